"""Scoring of whole data sets: the same rows out with their rewards, in parts that outlive a kill, in flat memory."""

import logging
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeAlias, cast

from plaudit import __version__
from plaudit.blocks import (
    Block,
    common_schema,
    join_lines,
    join_tables,
    read_blocks,
    with_schema,
    write_lines,
    write_table,
)
from plaudit.job import CURE, Job, Places, identity_of, read_json, require_same
from plaudit.say import say
from plaudit.values import finite_number

COUNTED = ("rows", "sequences", "tokens", "truncated", "bad", "without_preference")
Report: TypeAlias = Callable[[str, int], None]


def score_data(model: str, data: str, output: str, **options: Any) -> dict[str, Any]:
    """Score each row of a data set, write the rows with their rewards, and return the manifest that is written too.

    options: the other fields of Job. Started again after whatever end, it goes on after the parts that are there, so
    that every row is written exactly once. With num_processes above 1, a script calls this under
    `if __name__ == "__main__":`. ValueError for a row that cannot be scored, and where something else is at the output;
    RuntimeError where a process ends before its time.
    """
    from tqdm.auto import tqdm

    started = time.monotonic()
    job = Job(str(model), str(data), str(output), **options)
    places, wanted = Places(job), identity_of(job)
    places.require_apart(Path(job.data).expanduser().resolve())
    places.clear(everything=job.overwrite)
    places.require_ours(wanted)
    manifest = _completed(job, places, wanted)
    if manifest is not None:
        say(f"{job.output} is already complete; nothing was scored (--overwrite begins anew)")
        return manifest
    with tqdm(desc="Scoring", unit=" rows", unit_scale=True, disable=None) as bar:

        def report(event: str, number: int) -> None:
            if event == "rows":
                bar.update(number)

        num_rows = _work(job, wanted, 0, report) if job.num_processes == 1 else _share_out(job, wanted, report)
    if identity_of(job) != wanted:
        raise ValueError(f"data set {job.data!r} changed while it was scored; start again with --overwrite")
    return _finish(job, places, num_rows, started)


def describe(manifest: dict[str, Any]) -> str:
    """Return what the command prints of a manifest."""
    odd = [
        f"{manifest[name]:,} {name.replace('_', ' ')}"
        for name in ("truncated", "bad", "without_preference")
        if manifest[name]
    ]
    return (
        f"{manifest['rows_written']:,} of {manifest['rows']:,} rows in {manifest['output']}, {manifest['sequences']:,} sequences"
        f"{''.join(f', {each}' for each in odd)}\n"
        f"{manifest['rows_per_second']:,.0f} rows/s and {manifest['tokens_per_second']:,.0f} tokens/s a process; "
        f"manifest in {manifest['manifest']}"
    )


def _completed(job: Job, places: Places, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of the same job, where it has ended and its rows are still there; None otherwise."""
    if not places.manifest.exists():
        return None
    manifest = _read_manifest(places.manifest)
    blocks = [places.shard + number * places.shards for number in range(manifest["parts"])]
    outputs = [places.output] if job.is_file else [places.part(block) for block in blocks]
    if not all(output.exists() for output in outputs):
        return None
    fingerprint = _load_model(job, "cpu", strict=False).fingerprint
    require_same(places.manifest, True, {**wanted, "model_fingerprint": fingerprint})
    # A kill may have come between the manifest and this.
    shutil.rmtree(places.state, ignore_errors=True)
    return manifest


def _read_manifest(file: Path) -> dict[str, Any]:
    """Return a finished job's manifest. ValueError for one that does not hold what is read of it."""
    manifest = read_json(file)
    numbers = ("parts", "rows", "rows_written", "sequences", "truncated", "bad", "without_preference")
    rates = ("rows_per_second", "tokens_per_second")
    wrong = [name for name in numbers if type(manifest.get(name)) is not int or manifest[name] < 0]
    wrong += [name for name in rates if finite_number(manifest.get(name)) is None]
    wrong += [name for name in ("output", "manifest") if not isinstance(manifest.get(name), str)]
    if wrong:
        raise ValueError(f"{file} is damaged ({wrong[0]!r} is missing or of another type); {CURE}")
    return manifest


# One process's work.


def _load_model(job: Job, device: str | None, strict: bool) -> Any:
    from plaudit.scoring import RewardModel

    model = RewardModel.from_pretrained(
        job.model,
        device=device,
        dtype=job.dtype,
        strict=strict,
        max_batch_tokens=job.max_batch_tokens,
        trust_remote_code=job.trust_remote_code,
    )
    # There is a bar of the job's own.
    model.inference.shows_progress = False
    return model


def _device(job: Job, worker: int) -> str | None:
    """Return where a worker scores: one GPU each, in turn; without one, it takes its share of the processor's cores."""
    if job.num_processes == 1 or job.device is not None:
        return job.device
    import torch

    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        return f"{kind.type}:{worker % torch.accelerator.device_count()}" if kind else None
    torch.set_num_threads(max(1, torch.get_num_threads() // job.num_processes))
    return "cpu"


def _work(job: Job, wanted: dict[str, Any], worker: int, report: Report) -> int:
    """Score what there is of one worker's blocks and is not done; return how many rows the whole data set has.

    report: is told ("block", number) before a block is scored and ("rows", how many) once it is done.
    """
    from plaudit.scoring import RowScorer

    places, blocks = Places(job), read_blocks(job.data, job.config, job.split, job.rows_per_part)
    model = _load_model(job, _device(job, worker), job.strict)
    places.claim({"model_fingerprint": model.fingerprint, **wanted})
    options = {name: getattr(job, name) for name in ("truncation", "max_length", "normalise", "bad_rows")}
    scorer, num_rows = RowScorer(model, **options), 0
    for number, block in enumerate(blocks):
        if number == 0:
            _recognise(job, scorer, block.rows()[0])
        turn, shard = divmod(number, places.shards)
        if shard == places.shard and turn % job.num_processes == worker:
            if not places.has(number):
                report("block", number)
                _score_block(places, scorer, block, number)
            report("rows", len(block))
        num_rows += len(block)
    return num_rows


def _recognise(job: Job, scorer: Any, first_row: dict[str, Any]) -> None:
    """Have the data set's first row show what kind its rows are, also to processes that score others.

    ValueError where `keep` does not suit that kind.
    """
    scorer([first_row], [0])
    if job.keep == "top1" and scorer.kind != "answers":
        raise ValueError(
            f"keep is 'top1', but the rows do not have several answers (each is a {scorer.kind}); give a threshold"
        )


def _score_block(places: Places, scorer: Any, block: Block, number: int) -> None:
    """Score a block and write its part, after its counts."""
    job, rows = places.job, block.rows()
    first = number * job.rows_per_part
    before, started = Counter(scorer.counts), time.perf_counter()
    rewards = scorer(rows, range(first, first + len(rows)))
    seconds = time.perf_counter() - started
    changes = [_kept(row, new, scorer, job.keep) for row, new in zip(rows, rewards, strict=True)]
    counts = {name: scorer.counts[name] - before[name] for name in COUNTED}
    counts |= {"rows_written": sum(change is not None for change in changes), "seconds": seconds}
    places.write_json(places.counts(number), counts)
    with places.written_whole(places.part(number)) as file:
        if job.written_as == "jsonl":
            write_lines(file, block, rows, changes)
        else:
            write_table(file, block, rows, changes, scorer.reward_columns)


def _kept(row: dict[str, Any], new: dict[str, Any], scorer: Any, keep: str | float | None) -> dict[str, Any] | None:
    """Return what a row gets, new columns and changed ones; None for a row that is left out. Bad rows stay."""
    if keep is None or None in new.values():
        return new
    if scorer.kind == "single":
        return new if new["reward"] >= keep else None
    if scorer.kind == "pair":
        return new if new["reward_chosen"] - new["reward_rejected"] >= keep else None
    rewards, answers = new["rewards"], row[scorer.answers_column]
    if keep == "top1":
        good = [max(range(len(rewards)), key=rewards.__getitem__)]
    else:
        good = [index for index, reward in enumerate(rewards) if reward >= keep]
    if len(good) == len(rewards):
        return new
    kept = {scorer.answers_column: [answers[index] for index in good], "rewards": [rewards[index] for index in good]}
    return kept if good else None


# Several processes.


def _share_out(job: Job, wanted: dict[str, Any], report: Report) -> int:
    """Do the work in num_processes processes; return how many rows the data set has.

    One that fails stops the others: ValueError for what is wrong with the data or the options, RuntimeError otherwise.
    """
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, Any] = {}
    try:
        for worker in range(job.num_processes):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_run_process, args=(job, wanted, worker, sender))
            process.start()
            processes[receiver] = process
            # The process now has the only sending end, so that the pipe ends when it does.
            sender.close()
        return _listen(processes, report)
    finally:
        for process in processes.values():
            process.kill()
            process.join()


def _listen(processes: dict[Connection, Any], report: Report) -> int:
    """Pass on what processes report until all are done; return the number of rows that they agree on."""
    running, blocks, num_rows = set(processes), dict.fromkeys(processes, "its beginning"), set()
    while running:
        for receiver in cast(list[Connection], wait(running)):
            try:
                event, value = receiver.recv()
            except EOFError:
                processes[receiver].join()
                exit_code = processes[receiver].exitcode
                event, value = "failed", (RuntimeError, f"it ended with exit code {exit_code}, as when memory runs out")
            if event == "failed":
                kind, text = value
                raise kind(
                    f"process {list(processes).index(receiver)} of {len(processes)} failed at {blocks[receiver]}: {text}; "
                    "what is scored is kept, and the same command goes on as long as the data stay as they are"
                )
            if event == "done":
                running.remove(receiver)
                num_rows.add(value)
            elif event == "block":
                blocks[receiver] = f"block {value:,}"
            report(event, value)
    if len(num_rows) > 1:
        raise ValueError(f"the processes read {sorted(num_rows)} rows of one data set; let it be while it is scored")
    return num_rows.pop()


def _run_process(job: Job, wanted: dict[str, Any], worker: int, sender: Connection) -> None:
    """Do one worker's share in this process, and send what happens as (event, value)."""
    # Ctrl-C reaches the parent as well, which then ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The parent shows one bar for all.
    os.environ["TQDM_DISABLE"] = "1"
    if worker > 0:
        # The first process says what there is to say.
        logging.getLogger("plaudit").setLevel(logging.ERROR)
    try:
        sender.send(("done", _work(job, wanted, worker, lambda *event: sender.send(event))))
    except Exception as error:
        if os.environ.get("PLAUDIT_TRACEBACK"):
            traceback.print_exc()
        is_users = isinstance(error, (ValueError, OSError, ImportError))
        text = str(error) if is_users else f"{type(error).__name__}: {error}"
        sender.send(("failed", (ValueError if is_users else RuntimeError, text)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


# The end.


def _finish(job: Job, places: Places, num_rows: int, started: float) -> dict[str, Any]:
    """Put the parts together, write the manifest, remove the state; return the manifest."""
    if not num_rows:
        raise ValueError(f"data set {job.data!r} holds no rows; check that what writes it has finished")
    blocks = range(places.shard, math.ceil(num_rows / job.rows_per_part), places.shards)
    if not blocks:
        raise ValueError(
            f"shard {job.shard} of {num_rows:,} rows is empty with rows_per_part={job.rows_per_part:,}; use fewer shards or smaller parts"
        )
    counts = _summed(places, blocks)
    parts = [places.part(block) for block in blocks]
    if job.is_file:
        with places.written_whole(places.output) as file:
            (join_lines if job.written_as == "jsonl" else join_tables)(parts, file)
    elif job.written_as == "parquet":
        _unify(places, parts)
    identity = read_json(places.state / "job.json")
    manifest = {
        "plaudit": __version__,
        "model": job.model,
        "model_fingerprint": identity["model_fingerprint"],
        "output": str(places.output),
        "manifest": str(places.manifest),
        "shard": job.shard,
        "parts": len(parts),
        **counts,
        "tokens_per_second": counts["tokens"] / max(counts["seconds"], 1e-9),
        "rows_per_second": counts["rows"] / max(counts["seconds"], 1e-9),
        "wall_seconds": time.monotonic() - started,
        "num_processes": job.num_processes,
        "job": identity,
    }
    places.write_json(places.manifest, manifest)
    shutil.rmtree(places.state, ignore_errors=True)
    return manifest


def _summed(places: Places, blocks: Sequence[int]) -> dict[str, Any]:
    """Return the blocks' counts, added."""
    sums: Counter = Counter()
    for block in blocks:
        counts = read_json(places.counts(block))
        if set(counts) != {*COUNTED, "rows_written", "seconds"} or any(
            finite_number(one) is None for one in counts.values()
        ):
            raise ValueError(f"{places.counts(block)} is damaged (it does not hold a part's counts); {CURE}")
        sums.update(counts)
    return dict(sums)


def _unify(places: Places, parts: list[Path]) -> None:
    """Give all parts one schema, where inferred ones differ."""
    import pyarrow.parquet as pq

    schema = common_schema(parts)
    for part in parts:
        if not pq.read_schema(part).equals(schema, check_metadata=True):
            with places.written_whole(part) as file:
                pq.write_table(with_schema(part, schema), file)
