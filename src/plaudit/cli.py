"""The command: each verb parses, makes one library call and prints; torch loads once the verb is known."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit import __version__, faults, memory
from plaudit.options import LineParser, UsageError, did_you_mean, parse_fields, parse_train, parsed
from plaudit.redaction import redact
from plaudit.say import visible


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 for a user's mistake, 2 for arguments that cannot be understood."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in VERBS:
        return _run_verb(arguments[0], arguments[1:])
    verbs = "\n".join(f"  {name:<10}{verb.help}" for name, verb in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="plaudit",
        description="Train, check, evaluate and score with reward models.",
        epilog=f"verbs:\n{verbs}\n\nplaudit VERB --help lists a verb's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"plaudit {__version__}")
    parser.add_argument("verb", metavar="VERB", help="what to do, see below")
    known = [*VERBS, "--help", "--version"]
    if arguments and arguments[0].startswith("-") and arguments[0] not in (*known, "-h"):
        parser.error(f"unknown flag {arguments[0]!r}{did_you_mean(arguments[0], known)}; known: {', '.join(known)}")
    # The rest belongs to a verb that does not exist, so only its name is worth an error.
    verb = parser.parse_args(arguments[:1]).verb
    parser.error(f"unknown verb {verb!r}{did_you_mean(verb, VERBS)}; known: {', '.join(VERBS)}")


def _run_verb(name: str, arguments: list[str]) -> int:
    try:
        return VERBS[name].run(arguments) or 0
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python would complain once more when it closes its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UsageError as error:
        _print_error(name, f"{error}; see plaudit {name} --help")
        return 2
    except Exception as error:
        if os.environ.get("PLAUDIT_TRACEBACK"):
            raise
        # Where no trainer has told what ended, as while the data are prepared.
        error = faults.told(error) or error
        is_ours = _raised_here(error) or error.__traceback__ is None
        is_expected = is_ours or isinstance(error, (ValueError, OSError, ImportError, FloatingPointError))
        kind = "" if is_expected and str(error) else f"{type(error).__name__}: "
        hint = "" if is_ours else " (PLAUDIT_TRACEBACK=1 shows where)"
        # What is wrong with data or options, every process finds; a fault may be one process's alone.
        is_alone = not is_expected or faults.may_be_alone(error)
        _print_error(name, f"{kind}{_one_line(str(error), memory.is_told(error))}{hint}", from_all=is_alone)
        return 1
    except KeyboardInterrupt:
        print(f"plaudit {name}: interrupted", file=sys.stderr)
        return 130


def _print_error(verb: str, text: str, *, from_all: bool = False) -> None:
    """Print one line from the first process, or from all of them, the others with their number."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or from_all:
        process = "" if rank == "0" else f" (process {rank})"
        print(f"plaudit {verb}: error{process}: {visible(redact(text))}", file=sys.stderr)


def _one_line(text: str, is_whole: bool = False) -> str:
    """Return the text on one line, of a long one its beginning, which says what is wrong, and its end, the cure.

    is_whole: leave nothing out, because its middle is options.
    """
    # torch passes on an error of a loader's worker with the worker's whole traceback as its text.
    if "Original Traceback (most recent call last)" in text:
        text = text.strip().splitlines()[-1]
    text = " ".join(text.split())
    return text if is_whole or len(text) <= 600 else f"{text[:397]} … {text[-200:]}"


def _raised_here(error: BaseException) -> bool:
    """Return whether a line of this package raised the error, in this process or in one that prepares data."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    files = [trace.tb_frame.f_code.co_filename] if trace is not None else []
    # A pool's process sends its traceback as the text of this cause.
    if type(error.__cause__).__name__ == "RemoteTraceback":
        files = re.findall(r'File "(.+?)", line \d+', str(error.__cause__))
    return bool(files) and Path(files[-1]).parent == Path(__file__).parent


def _run_train(arguments: list[str]) -> None:
    given = parse_train(arguments)
    from plaudit import run

    trainer = run.train(given)
    if given.get("do_train", True) and trainer.is_world_process_zero():
        print(f"saved to {trainer.args.output_dir}")
        _print_page(str(trainer.args.output_dir))
    if trainer.args.world_size > 1:
        # Left to the interpreter's end, the process group's threads may be destroyed while they run.
        trainer.end()


def _run_score(arguments: list[str]) -> None:
    given = _parse_score(arguments)
    from plaudit import bulk

    print(visible(bulk.describe(bulk.score_data(**given))))


def _parse_score(arguments: list[str]) -> dict[str, Any]:
    """Return the fields of job.Job that were given."""
    from plaudit.job import Job

    given = parse_fields(
        Job,
        "score",
        "--model MODEL --data DATA --output OUTPUT [options]",
        _sentence("score") + " Started again after a kill, it goes on where it was.",
        arguments,
    )
    return {**given, "keep": _parse_keep(given["keep"])} if "keep" in given else given


def _parse_keep(words: list[str]) -> str | float:
    if words == ["top1"]:
        return "top1"
    try:
        threshold, number = words
        if threshold == "threshold":
            return float(number)
    except ValueError:
        pass
    raise UsageError(f"--keep: must be 'top1' or 'threshold X' with a number X, not {' '.join(words)!r}")


def _run_evaluate(arguments: list[str]) -> None:
    from plaudit.evaluation import Evaluation, describe, run

    usage = "--model MODEL --benchmark NAME_OR_FILE ... [options]\n       plaudit evaluate --scores FILE [options]"
    given = parse_fields(Evaluation, "evaluate", usage, _sentence("evaluate"), arguments)
    print(visible(describe(run(**given))))
    folder = Evaluation(**given).folder
    if folder is not None:
        print(f"\nresults in {folder}")
        _print_page(folder)


def _print_page(folder: str) -> None:
    """Say where the report is, if one could be made."""
    from plaudit.report import PAGE

    if (Path(folder) / PAGE).is_file():
        print(f"report in {Path(folder) / PAGE}")


def _run_compare(arguments: list[str]) -> None:
    from plaudit.comparison import describe
    from plaudit.results import Comparing, compare_files

    given = parse_fields(Comparing, "compare", "A.jsonl B.jsonl [options]", _sentence("compare"), arguments)
    print(visible(describe(compare_files(**given))))
    if "output_dir" in given:
        print(f"\nresults in {given['output_dir']}")


def _run_report(arguments: list[str]) -> None:
    from plaudit.report import ReportOptions, run

    print(run(**parse_fields(ReportOptions, "report", "DIR", _sentence("report"), arguments)))


def _run_audit(arguments: list[str]) -> int:
    from plaudit.audit import Audit, run

    given = parse_fields(Audit, "audit", "DATA [options]", _sentence("audit"), arguments)
    text, exit_code = run(**given)
    # In JSON, names are data to be read by programs.
    print(text if given.get("format") == "json" else visible(text))
    return exit_code


def _run_plan(arguments: list[str]) -> None:
    from plaudit.plan import Plan, run

    usage = "--model SHAPE_OR_NAME --data FILE_OR_FIGURES --gpu KIND [--gpus N] [options]"
    given = parse_fields(Plan, "plan", usage, _sentence("plan"), arguments)
    text = run(**given)
    print(text if given.get("json") == "-" else visible(text))


def _run_doctor(arguments: list[str]) -> int:
    given = parse_train(arguments, "doctor", _sentence("doctor") + " Options are those of plaudit train.")
    from plaudit.checkup import check_up

    diagnosis = check_up(given)
    print(visible(str(diagnosis)))
    return 0 if diagnosis.healthy else 1


def _sentence(verb: str) -> str:
    return VERBS[verb].help.capitalize() + "."


def _run_verify(arguments: list[str]) -> int:
    parser = _loading_parser("verify", "PATH", "the checkpoint: a directory or a Hub id, with reward_model.json")
    parser.add_argument(
        "--rewards",
        metavar="FILE",
        help="compare these instead: another tool's rewards of the golden conversations, one a line, in their order",
    )
    options = parsed(parser, arguments)
    path, rewards_file = options.pop("path"), options.pop("rewards", None)
    from plaudit.diagnosis import read_rewards
    from plaudit.scoring import RewardModel

    served = None if rewards_file is None else read_rewards(rewards_file)
    result = RewardModel.from_pretrained(path, strict=False, **options).verify(served)
    print(visible(str(result)))
    return 0 if result.passed else 1


def _run_merge(arguments: list[str]) -> None:
    parser = _loading_parser("merge", "ADAPTER", "the adapter: a directory or a Hub id")
    parser.add_argument("--output_dir", required=True, help="where the whole model goes: a new directory")
    parser.add_argument("--no_strict", dest="strict", action="store_false", help="merge it even if it does not verify")
    options = parsed(parser, arguments)
    from plaudit.merging import merge

    print(visible(str(merge(options.pop("path"), options.pop("output_dir"), **options))))


def _run_demo(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="plaudit demo", description=_sentence("demo"))
    parser.add_argument("--output_dir", default="runs/demo", help="where everything is left (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs and of the training (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="use no more pairs than this, for a quick try")
    options = parser.parse_args(arguments)
    from plaudit import demo

    print(demo.describe(demo.run(options.output_dir, seed=options.seed, limit=options.limit)))


def _loading_parser(verb: str, metavar: str, what: str) -> argparse.ArgumentParser:
    parser = LineParser(
        prog=f"plaudit {verb}",
        description=_sentence(verb),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar=metavar, help=what)
    parser.add_argument("--device", help="where to compute (default: the accelerator if there is one)")
    parser.add_argument("--dtype", help="precision to load in (default: the saved one)")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    return parser


@dataclass(frozen=True)
class Verb:
    """A word of the command. help: its line in --help. run: does it, from the arguments after the word; may return the
    exit code."""

    help: str
    run: Callable[[list[str]], int | None]


VERBS = {
    "train": Verb("train a reward model on preference pairs", _run_train),
    "score": Verb("write a data set's rows with their rewards, in flat memory", _run_score),
    "evaluate": Verb("measure a reward model on benchmarks, or scores that are there already", _run_evaluate),
    "compare": Verb("compare two models' scores on the same rows", _run_compare),
    "report": Verb("make one page of a directory of results, to be opened in a browser", _run_report),
    "audit": Verb("say what is wrong with preference data before they are trained on", _run_audit),
    "plan": Verb("say what a training takes of memory and time, and how to run it", _run_plan),
    "doctor": Verb("find out why a training does not learn, before or after it", _run_doctor),
    "verify": Verb("replay a checkpoint's golden conversations, and say why rewards differ", _run_verify),
    "merge": Verb("merge an adapter into one whole model, its rewards compared before and after", _run_merge),
    "demo": Verb("train, save, reload and score a tiny reward model on real text", _run_demo),
}
