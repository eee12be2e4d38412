"""The long fuzzing: so many cases over all targets, each target in a process of its own; `make fuzz` runs it.

    python tests/fuzz.py [--cases 100000] [--seed N] [--target NAME ...]

Hypothesis makes the cases. Where atheris is installed, a tenth of them once more are made by coverage of our code.
A failing case is printed in its smallest form with its seed: `--target NAME --seed N` runs that target's same cases again.
"""

import argparse
import atexit
import faulthandler
import logging
import os
import resource
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

# Cases under one seed: few enough that those of a failing one are run again within seconds.
ROUND = 500
# Beyond what a process with the libraries in it has: a case that takes more is a fault.
MEMORY = 6 << 30
# Cases by coverage of one target end after this, as many as there then are.
COVERAGE_SECONDS = 120
# Of a process that no longer even hears its alarm.
STUCK = 120


def main() -> int:
    """Run what the command line says; return 1 where a case failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=100_000, help="cases over all targets (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the first round of each target; drawn unless given")
    parser.add_argument("--target", nargs="*", help="these targets only")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--by_coverage", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    seed = int.from_bytes(os.urandom(3)) if asked.seed is None else asked.seed
    if asked.only is None:
        return fuzz_all(asked.cases, seed, asked.target)
    return (fuzz_by_coverage if asked.by_coverage else fuzz_target)(asked.only, asked.cases, seed)


def fuzz_all(cases: int, seed: int, names: list[str] | None) -> int:
    """Run each target in a process, and print what came of it."""
    from fuzz_targets import TARGETS

    chosen = [TARGETS[name] for name in names or TARGETS]
    shares = sum(one.share for one in chosen) or 1
    has_atheris = find_spec("atheris") is not None
    print(f"fuzzing {cases:,} cases over {len(chosen)} targets, seed {seed}", flush=True)
    if not has_atheris:
        print("atheris is not installed, so no cases are made by coverage", flush=True)
    failed, started = [], time.monotonic()
    for one in chosen:
        wanted = max(cases * one.share // shares + 1, 10)
        command = [sys.executable, __file__, "--only", one.name, "--seed", str(seed)]
        runs = [[*command, "--cases", str(wanted)]]
        if has_atheris and one.share:
            runs.append([*command, "--cases", str(wanted // 10 + 1), "--by_coverage"])
        # What atheris says of each module goes to the errors' stream, what failed to the other one.
        quiet = [None, subprocess.DEVNULL]
        if any(
            subprocess.run(run, check=False, stderr=where).returncode for run, where in zip(runs, quiet, strict=False)
        ):
            failed.append(one.name)
    print(f"{time.monotonic() - started:,.0f} s, {'failed: ' + ', '.join(failed) if failed else 'nothing failed'}")
    return 1 if failed else 0


def fuzz_target(name: str, cases: int, seed: int) -> int:
    """Run one target's cases in this process, round by round; return 1 where one failed."""
    from hypothesis import seed as seeded

    _prepare()
    counts: Counter[str] = Counter()
    failing: list[Any] = []
    started, number = time.monotonic(), 0
    while counts.total() < cases:
        before = counts.total()
        try:
            seeded(seed + number)(_test_of(name, min(ROUND, cases - before), counts, failing))()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            _print_failure(name, counts, error, failing)
            print(f"again: python tests/fuzz.py --target {name} --seed {seed + number} --cases {ROUND}", flush=True)
            return 1
        number += 1
        if counts.total() == before:
            break  # Every input that there is was tried.
    _print_counts(name, counts, time.monotonic() - started, f"seed {seed}")
    return 0


def fuzz_by_coverage(name: str, cases: int, seed: int) -> int:
    """Run one target's cases as atheris makes them, after which new lines of our code they reach; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["plaudit"]):
        import fuzz_targets  # noqa: F401
    _prepare()
    counts: Counter[str] = Counter()
    failing: list[Any] = []
    run_one = _test_of(name, cases, counts, failing).hypothesis.fuzz_one_input
    started = time.monotonic()

    def one_input(data: bytes) -> None:
        try:
            run_one(data)
        except BaseException as error:
            _print_failure(name, counts, error, failing)
            # libFuzzer would only print it once more.
            os._exit(1)
        if counts.total() >= cases:
            _print_counts(name, counts, time.monotonic() - started, f"seed {seed}, by coverage")
            os._exit(0)

    # Bytes that are too few for a case are no case. Our own alarm is the one to be heard.
    atexit.register(lambda: _print_counts(name, counts, time.monotonic() - started, f"seed {seed}, by coverage"))
    options = [
        f"-seed={seed}",
        f"-runs={cases * 100}",
        f"-max_total_time={COVERAGE_SECONDS}",
        "-timeout=0",
        "-rss_limit_mb=0",
        "-verbosity=0",
        "-max_len=8192",
    ]
    options.append("-len_control=0")
    atheris.Setup([sys.argv[0], *options], one_input)
    atheris.Fuzz()
    return 0


def _test_of(name: str, cases: int, counts: Counter[str], failing: list[Any]) -> Callable[[], None]:
    """Return hypothesis's test of a target. counts: of what came of the cases; failing: holds the last one that failed."""
    from fuzz_targets import TARGETS, run_case
    from hypothesis import HealthCheck, Phase, Verbosity, given, settings

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
    )
    @given(TARGETS[name].inputs)
    def check(case: Any) -> None:
        faulthandler.dump_traceback_later(STUCK, exit=True)
        try:
            counts[run_case(TARGETS[name], case)] += 1
        except BaseException:
            # The last one is the smallest, because hypothesis runs that again at the end.
            failing[:] = [case]
            raise

    return check


def _prepare() -> None:
    """Keep what accepted cases say out of the way, and memory within its limit."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    faulthandler.enable()
    # The targets bring the libraries, which are not to count.
    import fuzz_targets  # noqa: F401

    if sys.platform == "linux":
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, resource.RLIM_INFINITY))


def _print_failure(name: str, counts: Counter[str], error: BaseException, failing: list[Any]) -> None:
    from fuzzing import showable

    print(f"{name}: FAILED after {counts.total():,} cases", flush=True)
    traceback.print_exception(error, file=sys.stdout)
    print(f"input: {showable(failing[0]) if failing else 'none'}", flush=True)


def _print_counts(name: str, counts: Counter[str], seconds: float, how: str) -> None:
    shown = ", ".join(f"{counts[word]:,} {word}" for word in ("accepted", "refused"))
    print(f"{name:<20} {counts.total():>7,} cases ({shown}) in {seconds:6.1f} s, {how}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
