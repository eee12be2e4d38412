"""What is fuzzed of files: data of every kind, and the files that plaudit itself has written."""

import contextlib
import dataclasses
import functools
import io
import json
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import xxhash
from fuzz_cases import folder, target, tokenizer, unchanged, written
from fuzz_rows import CONVERSATIONS, PAIRS, RECORDS, _row
from fuzzing import (
    Refused,
    attempt,
    broken,
    broken_text,
    json_values,
    one_of_these,
    same,
)
from hypothesis import strategies as st

from plaudit import (
    blocks,
    checkpoints,
    formats,
    job,
    loading,
    proof,
    schemas,
    score_rows,
    sheet,
    sides,
    tables,
)

# Files of data.

LINES = [*RECORDS, {"text": "x"}, {"prompt": "a", "response": "b", "n": 1, "time": "2020"}]


@st.composite
def data_lines(draw: Any) -> bytes:
    lines = []
    for _ in range(draw(st.integers(1, 4))):
        row = draw(broken(one_of_these(LINES), json_values))
        try:
            line = json.dumps(row, ensure_ascii=draw(st.booleans()), default=lambda _: "?", skipkeys=True)
        except (ValueError, RecursionError, TypeError):
            line = '{"a": ' * 30_000
        lines.append(draw(broken_text(st.just(line))) if draw(st.integers(0, 5)) == 0 else line)
    raw = "\n".join(lines).encode("utf-8", "surrogatepass")
    ending = draw(
        one_of_these([b"", b"", b"", b"\n", b"\r\n\r\n", b"\xff", b"\x00", b"{", b"[1]\n", b"null\n", b'"x"'])
    )
    return draw(one_of_these([b"", b"", b"", b"\xef\xbb\xbf"])) + raw + ending


@target(data_lines(), 6)
def json_lines(content: bytes) -> None:
    """JSON lines on their way through `plaudit score`: each row written as it was, or an error that names the line."""
    path = written("fuzz.jsonl", content)
    for block in attempt(lambda: list(blocks.read_blocks(str(path), None, None, 2)), "fuzz.jsonl"):
        rows = attempt(block.rows, "fuzz.jsonl", "row ")
        assert len(rows) == len(block)
        for index, row in enumerate(rows):
            line = attempt(functools.partial(block.line, index, row, {"reward": 1.5}), "row ", "fuzz.jsonl")
            assert b"\n" not in line
            assert same(json.loads(line), {**row, "reward": 1.5}), "a row is not written as it was"
        with contextlib.suppress(Refused):
            attempt(functools.partial(block.table, rows), "column")


@target(st.one_of(data_lines(), data_lines()), 3)
def audited_lines(content: bytes) -> None:
    """JSON lines on their way through the audit: by columns what they are row by row."""
    path = written("audit.jsonl", content)
    rows = tables.open_rows(str(path))["train"]
    reading = attempt(lambda: sides.reading_of(rows, "fuzz"), also=(tables.Unreadable,))
    number = 0
    for table in attempt(lambda: list(tables.tables(rows)), also=(tables.Unreadable,)):
        fast = attempt(lambda table=table, number=number: sides.batch_of(table, number, reading), "fuzz")
        slow = sides._slow_batch(table.combine_chunks(), np.arange(number, number + len(table)), reading)
        assert same(_comparable(fast), _comparable(slow)), "by columns other pairs than row by row"
        number += len(table)


def _comparable(batch: Any) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in ("margin", "source")} for row in batch.to_pylist()
    ]


CSV = ["chosen,rejected\na,b\n", 'prompt,chosen,rejected,margin\n"x\ny",a,b,1.5\n']


@target(st.one_of(data_lines().map(lambda raw: ("x.jsonl", raw)), data_lines().map(lambda raw: ("x.json", raw)), broken_text(one_of_these(CSV)).map(lambda text: ("x.csv", text.encode("utf-8", "surrogatepass"))), data_lines().map(lambda raw: ("x.parquet", b"PAR1" + raw + b"PAR1")), data_lines().map(lambda raw: ("x.jsonl.gz", raw)), data_lines().map(lambda raw: ("x.arrow", raw))), 1)  # fmt: skip
def loaded_files(case: tuple[str, bytes]) -> None:
    """Data files of every kind, broken ones among them: their rows, or an error that names the file."""
    name, content = case
    path = written(f"{abs(hash(content)):x}-{name}", content)
    try:
        splits = attempt(lambda: loading.load_splits(str(path), streaming=True), path.name)
        found = attempt(
            lambda: list(blocks._table_blocks(path.name, splits["train"].with_format("arrow").iter(batch_size=2), 2)),
            path.name,
        )
        assert all(len(block) for block in found)
    finally:
        path.unlink()


# Files of our own.

GOLDEN = [
    {"token_ids": [1, 2, 3], "reward": 0.5, "text": "a"},
    {"token_ids": [4], "reward": -1.0, "messages": CONVERSATIONS[0]},
]
PROOF = {
    "format": 1,
    "rendering": {"kind": "standard", "template_kwargs": {"add_generation_prompt": False}, "max_length": 64, "read_out": "x",
                  "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "chat_template_sha256": None},
    "model": {"class": "C", "dtype": "float32", "computed_in": "float32", "head": ["score"], "fingerprints": {"head": "a"}},
    "reward": {"mean": 0.1, "std": 1.0, "quantiles": {"0.5": 0.0}, "num_sequences": 4},
    "normalisation": {"mean": 0.1, "scale": 1.0},
    "data": {"num_pairs": 3, "sha256": "x"},
    "versions": {"torch": "1"},
    "golden": GOLDEN,
}  # fmt: skip


def _json_bytes(draw: Any, examples: list[Any], most: int = 3) -> bytes:
    value = draw(broken(one_of_these(examples), json_values, most))
    try:
        text = json.dumps(value, ensure_ascii=draw(st.booleans()), default=lambda _: None, skipkeys=True)
    except (ValueError, RecursionError, TypeError):
        text = "[" * 60_000
    if draw(st.integers(0, 5)) == 0:
        text = draw(broken_text(st.just(text)))
    raw = text.encode("utf-8", "surrogatepass")
    return raw[: draw(st.integers(0, len(raw)))] if draw(st.integers(0, 9)) == 0 else raw


@st.composite
def json_files(draw: Any, examples: list[Any]) -> bytes:
    """Give a JSON file that holds one of the examples, broken in its values or in its text."""
    return _json_bytes(draw, examples)


@target(json_files([PROOF]), 6)
def proofs(content: bytes) -> None:
    """reward_model.json: a proof that can be used, written again as it was read, or an error that names the file."""
    from plaudit import diagnosis

    written(proof.PROOF_FILE, content)
    found = attempt(lambda: proof.read_proof(str(folder())), proof.PROOF_FILE)
    assert [one.reward for one in found.golden] == found.golden_rewards.tolist()
    assert diagnosis.tolerance(found, "float32") >= 0
    attempt(lambda: diagnosis.render(found, tokenizer()), "golden", "chat template")
    proof.write_proof(found, str(folder()), {})
    again = proof.read_proof(str(folder()))
    assert same([one.token_ids for one in again.golden], [one.token_ids for one in found.golden])


SCORES = [
    {"benchmark": "b", "id": "1", "subset": None, "rewards": [0.5, -1.25], "labels": [1, 0], "tokens": [3, 4], "extra": {"prompt": "x"}},
    {"id": 2, "rewards": [1, 2, 3], "labels": [0, 0, 1]},
    {"benchmark": "rewardbench2", "id": "ref:1", "subset": "Ties", "rewards": [[1.0], [2.0]], "labels": [True, False]},
    {"benchmark": "ppe-human", "id": "3", "subset": "x", "rewards": [1.0, 0.0], "labels": [0, 0], "extra": {"winner": "tie", "models": ["a", "b"]}},
    {"benchmark": "rmb", "id": "4", "subset": "Helpfulness/x", "rewards": [1.0, 0.0], "labels": [1, 0], "extra": {"task": "pairwise"}},
    {"benchmark": "judgebench", "id": "5", "subset": "mmlu-pro", "rewards": [1.0, 0.0], "labels": [1, 0], "extra": {"label": "A>B"}},
]  # fmt: skip


@st.composite
def score_lines(draw: Any) -> bytes:
    return b"\n".join(_json_bytes(draw, SCORES, 1) for _ in range(draw(st.integers(1, 3))))


@target(st.tuples(score_lines(), one_of_these(score_rows.NONFINITE)), 8)
def scores(case: tuple[bytes, str]) -> None:
    """scores.jsonl: rows that are written again as they were read, in any order, and judged; or an error that names the line."""
    content, on_nonfinite = case
    path = written("scores.jsonl", content)
    rows = attempt(lambda: score_rows.read_rows(path, benchmark="fuzz", on_nonfinite=on_nonfinite), "scores.jsonl")
    again = folder() / "again.jsonl"
    attempt(lambda: score_rows.write_rows(again, rows), "again.jsonl")
    assert same([dataclasses.astuple(row) for row in rows], [
        dataclasses.astuple(row) for row in score_rows.read_rows(again, on_nonfinite=on_nonfinite)
    ])  # fmt: skip
    made = attempt(lambda: sheet.sheet_of(rows, on_nonfinite=on_nonfinite), "row", "benchmark", "Ties", "kind")
    assert len(made.is_kept) == len(rows)


BENCHMARK_ROWS = [
    *PAIRS,
    {"prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Math", "id": "1", "num_correct": 1, "total_completions": 4},
    {"prompt": "p", "chosen": "a", "rejected": "b", "subset": "alpacaeval-easy", "chosen_model": "x", "rejected_model": "y", "id": 3},
    {"prompt": "p", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "chat", "id": "x"},
    {"question": "p", "response_A": "a", "response_B": "b", "label": "A>B", "source": "mmlu-pro-math", "pair_id": "x"},
    {"prompt": "p", **{f"response_{n}": f"answer {n}" for n in range(1, 33)}, "scores": [True, False] * 16, "sampled_conflict_pairs": [[0, 1], [3, 2]], "question_id": "q"},
    {"prompt": "p", "response_1": "a", "response_2": "b", "winner": "model_a", "model_a": "m", "model_b": "n", "question_id": "q"},
    {"conversation_input": [{"role": "user", "content": "p"}], "chosen": {"answer": "a"}, "reject": {"answer": "b"}, "pair_uid": "u", "category_path": "x/y"},
    {"conversation_input": [{"role": "user", "content": "p"}], "bon_best": {"answer": "a"}, "loser_list": [{"answer": "b"}], "bon_uid": "u"},
    {"prompt": "p", "responses": ["a", "b"], "correct": [True, False], "subset": None},
]  # fmt: skip


@st.composite
def rows_of_benchmarks(draw: Any) -> tuple[str, dict[str, Any], str | None]:
    example = draw(one_of_these(BENCHMARK_ROWS))
    fitting = [kind for kind in schemas.SCHEMAS if schemas.fits(kind, example)] * 4
    return (
        draw(one_of_these([*fitting, *schemas.SCHEMAS, "own"])),
        draw(_row([example])),
        draw(one_of_these([None, "chat"])),
    )


@target(rows_of_benchmarks(), 10)
def benchmark_rows(case: tuple[str, dict[str, Any], str | None]) -> None:
    """Rows of benchmarks by each kind's rules: answers with as many labels, that can be scored, or an error of their place."""
    kind, row, part = case
    with unchanged(row):
        if kind == "own":
            kind = attempt(lambda: schemas.kind_of_row(row))
        if kind == "pairs":
            if attempt(lambda: formats.recognise(list(row), row, "fuzz row 3"), "fuzz row 3") is not None:
                return
            layout = attempt(lambda: formats.layout_of(list(row), row, "fuzz row 3"), "fuzz row 3")
            found = attempt(lambda: schemas.pair_row(row, layout, "fuzz row 3"), "fuzz row 3")
        else:
            found = attempt(lambda: schemas.read_row(kind, row, "fuzz row 3", part), "fuzz row 3")
    assert len(found.answers) == len(found.labels)
    assert set(found.labels) <= {0, 1}
    json.dumps(found.extra, allow_nan=False)
    scored = score_rows.ScoredRow(
        "b", found.id, found.subset, [0.0] * len(found.labels), found.labels, None, found.extra
    )
    assert score_rows._line(scored)


MANIFEST = {"plaudit": "1", "model": "m", "parts": 1, "rows": 3, "rows_written": 3, "sequences": 3, "tokens": 9, "truncated": 0, "bad": 0,
            "without_preference": 0, "seconds": 0.5, "output": "x", "manifest": "y", "rows_per_second": 1.0, "tokens_per_second": 1.0,
            "job": {"data": "d", "format": "jsonl", "model_fingerprint": "f"}}  # fmt: skip


@target(json_files([MANIFEST, MANIFEST["job"]]), 5)
def manifests(content: bytes) -> None:
    """The manifest and the job.json of `plaudit score`: of the same job, or an error that names the file."""
    from plaudit import bulk

    path = written("fuzz.manifest.json", content)
    attempt(lambda: job.require_same(path, True, {"data": "d"}), "fuzz.manifest.json")
    found = attempt(lambda: bulk._read_manifest(path), "fuzz.manifest.json")
    assert bulk.describe(found)


@target(json_files([{"rows": 3, "sequences": 3, "tokens": 9, "truncated": 0, "bad": 0, "without_preference": 0, "rows_written": 3, "seconds": 0.5}]), 3)  # fmt: skip
def counts_of_parts(content: bytes) -> None:
    """What a part of `plaudit score` counted: sums, or an error that names the file."""
    from plaudit import bulk

    made = job.Places(job.Job("m", "d.jsonl", str(folder() / "parts" / "out.jsonl")))
    made.state.mkdir(parents=True, exist_ok=True)
    made.counts(0).write_bytes(content)
    summed = attempt(lambda: bulk._summed(made, [0]), made.counts(0).name)
    assert same(summed, json.loads(content))


STATE = {"log_history": [{"loss": 1.0, "step": 1, "epoch": 0.1, "accuracy": 0.5}, {"eval_loss": 1.0, "step": 2}], "global_step": 2, "best_metric": None}  # fmt: skip


@target(json_files([STATE]), 4)
def trainer_states(content: bytes) -> None:
    """trainer_state.json as the doctor reads it: a log of dicts, or an error that names the file."""
    from plaudit import checkup

    written("trainer_state.json", content)
    history = attempt(lambda: checkup.read_history(folder()), "trainer_state.json")
    assert all(isinstance(entry, dict) for entry in history)


@target(st.one_of(json_files([[1.0, -2.5, 3]]), broken_text(one_of_these(["1.0\n2.5\n-3\n", "[1, 2]"])).map(lambda text: text.encode("utf-8", "surrogatepass"))), 3)  # fmt: skip
def served_rewards(content: bytes) -> None:
    """The rewards of another server for `plaudit verify`: numbers, or an error that names the line."""
    from plaudit import diagnosis

    path = written("rewards.txt", content)
    found = attempt(lambda: diagnosis.read_rewards(str(path)), "rewards.txt")
    assert all(type(number) is float for number in found)


@target(json_files([{"owner/name": "0" * 40}, {}]), 2)
def recorded_revisions(content: bytes) -> None:
    """The record of benchmarks' commits: names and commits, or an error that names the file."""
    from plaudit import benchmarks

    path = written("revisions.json", content)
    with mock.patch.object(benchmarks, "revisions_file", return_value=path):
        found = attempt(benchmarks._read_revisions, "revisions.json")
    assert all(isinstance(value, str) for value in found.values())


def _zipped() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("archive/data.pkl", b"weights" * 20)
    return made.getvalue()


def _tensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


WHOLE = {
    checkpoints.STATE_FILE: json.dumps(STATE).encode(),
    "model.safetensors": _tensors(),
    "optimizer.pt": _zipped(),
    "model.safetensors.index.json": b'{"weight_map": {"w": "model.safetensors"}}',
}


@st.composite
def checkpoint_files(draw: Any) -> dict[str, bytes]:
    """Give the files of a checkpoint, some of them cut, changed or missing, with a list of them or without."""
    files = dict(WHOLE)
    if draw(st.booleans()):
        listed = {"serial": 1, "files": {name: _listed(content) for name, content in files.items()}}
        files[checkpoints.MANIFEST] = _json_bytes(draw, [listed], draw(one_of_these([0, 0, 1])))
    for name in draw(st.lists(one_of_these(sorted(files)), max_size=2, unique=True)):
        content = files[name]
        at = draw(st.integers(0, len(content)))
        ways = [content[:at], content[:at] + draw(st.binary(max_size=4)) + content[at + 1 :], b"", None, b"[" * 60_000]
        changed = draw(one_of_these(ways))
        files.pop(name) if changed is None else files.update({name: changed})
    return files


def _listed(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}


@target(checkpoint_files(), 4)
def saved_checkpoints(files: dict[str, bytes]) -> None:
    """The files of a checkpoint: whole, or with a fault that names one of them; never an error."""
    place = Path(tempfile.mkdtemp(dir=folder())) / "checkpoint-3"
    place.mkdir()
    try:
        for name, content in files.items():
            (place / name).write_bytes(content)
        fault = checkpoints.faults_of(str(place))
        (found,) = checkpoints.checkpoints_of(str(place.parent))
        whole, faults = checkpoints.last_whole(str(place.parent))
        assert found.step == 3
        assert (whole is None) == (fault is not None) == bool(faults)
        if fault is None and checkpoints.MANIFEST in files:
            listed = json.loads(files[checkpoints.MANIFEST])["files"]
            assert all(_listed(files[name])["xxh3_128"] == one["xxh3_128"] for name, one in listed.items())
    finally:
        shutil.rmtree(place.parent)
    if fault is not None:
        assert fault.strip()
        raise Refused(fault)
