"""Kill runs at random moments, resume them, and compare them with the runs that were not killed, bit for bit.

    python benchmarks/kills.py --kills 20 --seed 0

Runs of one and two processes, on data in memory and streamed, with dropout, adapters, early stopping, uneven accumulation and
everything at an epoch's end. A kill is a SIGKILL at a random event of a random process: a step, a batch of an evaluation, a
log, before or after a file of a save is written, flushed or renamed, and the final save. Half of the resumed runs are killed
once more.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from interrupted import RUNS, Starter, outcome


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    kinds = [(run, processes) for run in RUNS for processes in (1, 2)]
    with tempfile.TemporaryDirectory() as folder:
        start = Starter(folder)
        whole, found = {}, Counter()
        for number in range(given.kills):
            run, processes = kinds[number % len(kinds)]
            if (run, processes) not in whole:
                answer = start(f"{run}-{processes}", run, processes)
                assert answer["codes"] == [0] * processes, answer["said"][-4000:]
                whole[run, processes] = outcome(start.folder / f"{run}-{processes}", processes)
            found += kill_once(start, draw, number, run, processes, whole[run, processes])
        start.close()
    print(f"{given.kills} runs killed {found['kills']} times: {found['identical']} ended as the run that was not killed, bit for bit; "
          f"{found['lost']} rows lost, {found['twice']} counted twice")  # fmt: skip
    return 0 if found["identical"] == given.kills else 1


def kill_once(start, draw, number, run, processes, whole):
    """Kill a run, resume it until it ends, and return what was found, counted."""
    events = [(start.folder / f"{run}-{processes}" / f"events-{rank}.txt").read_text().splitlines() for rank in range(processes)]  # fmt: skip
    folder, rank = f"kill-{number}", draw.randrange(processes)
    # Each kind of event is as likely as any other, however often it comes.
    kind = draw.choice(sorted({event.split()[0] for event in events[rank]}))
    at = draw.choice([place for place, event in enumerate(events[rank], 1) if event.split()[0] == kind])
    answer, kills, where = start(folder, run, processes, at=at, rank=rank), 1, [events[rank][at - 1]]
    assert -9 in answer["codes"], answer
    if draw.random() < 0.5:
        again = draw.randint(1, len(events[rank]))
        answer = start(folder, run, processes, at=again, rank=rank)
        # A resumed run has fewer events, so it may be over before.
        kills += -9 in answer["codes"]
        where.append(f"resumed, event {again}")
    if answer["codes"] != [0] * processes:
        answer = start(folder, run, processes)
    assert answer["codes"] == [0] * processes, answer["said"][-4000:]
    after = outcome(start.folder / folder, processes)
    differ = sorted({key for one, other in zip(whole, after, strict=True) for key in one if one[key] != other[key]})
    seen, wanted = (Counter((step, row) for one in each for step, parts in enumerate(one["rows"]) for part in parts for row in part) for each in (after, whole))  # fmt: skip
    lost, twice = (wanted - seen).total(), (seen - wanted).total()
    print(f"{run}, {processes} process{'es' * (processes > 1)}, killed at {' and '.join(where)}: {'differs in ' + ', '.join(differ) if differ else 'identical'}", flush=True)  # fmt: skip
    return Counter(kills=kills, identical=not differ, lost=lost, twice=twice)


if __name__ == "__main__":
    sys.exit(main())
