"""Scoring of whole data sets: the rows as they went in, their rewards, and every row once, whatever is killed."""

import gzip
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import text_pairs

from plaudit import cli
from plaudit.bulk import score_data
from plaudit.scoring import RewardModel, RowScorer

# A scorer without a model, so that a process starts in a tenth of a second and many can be killed. A file named poison
# kills the process that scores row 7; one named slow makes each block take its time.
STAND_IN = '''
import json, os, random, shutil, signal, sys, time, types
from collections import Counter
from pathlib import Path

class RewardModel:
    fingerprint = "stand-in"
    inference = types.SimpleNamespace(shows_progress=True)

    @classmethod
    def from_pretrained(cls, name, **options):
        return cls()

class RowScorer:
    kind, reward_columns = "single", ("reward",)

    def __init__(self, model, **options):
        self.counts = Counter()

    def __call__(self, rows, numbers):
        if os.path.exists("slow") and len(rows) > 1:
            Path(f"{os.getpid()}.pid").touch()
            time.sleep(0.1 if sys.argv[1] == "killed" else 60)
        if os.path.exists("poison") and len(rows) > 1 and 7 in numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        if len(rows) > 1:
            with open("scored", "a") as file:
                file.write(f"{numbers[0]}\\n")
        self.counts.update(rows=len(rows), sequences=len(rows), tokens=3 * len(rows))
        return [{"reward": row["id"] / 2} for row in rows]

sys.modules["plaudit.scoring"] = types.SimpleNamespace(RewardModel=RewardModel, RowScorer=RowScorer)

def start(output, kill_at=None, kill_after=None, **options):
    """Score rows.jsonl in a process of its own, killed before its kill_at-th step; return whether it came to its end."""
    from plaudit.bulk import score_data
    pid = os.fork()
    if pid == 0:
        steps = 0
        def counted(step):
            def call(*arguments, **more):
                nonlocal steps
                steps += 1
                if steps == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(*arguments, **more)
            return call
        for name in ("replace", "fsync", "mkdir", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        # The first halfway through a file's rows, the second through the joined file.
        json.dumps, shutil.copyfileobj = counted(json.dumps), counted(shutil.copyfileobj)
        score_data("model", "rows.jsonl", output, **options)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == 0

def state(output):
    """Return what is in the folder of the output, the manifest's times left out."""
    found = {}
    for file in sorted(output.parent.rglob("*")):
        if file.is_file() and file.name.endswith(".manifest.json"):
            manifest = json.loads(file.read_text())
            found[file.name] = {name: manifest[name] for name in ("rows", "rows_written", "tokens", "parts")}
        elif file.is_file():
            found[str(file.relative_to(output.parent))] = file.read_bytes().hex()
    return found

def places(name):
    number = 0
    while True:
        number += 1
        yield Path(f"{name}-{number}") / name

def kill_at_each_step(name, options):
    outputs = places(name)
    whole = next(outputs)
    whole.parent.mkdir()
    assert start(whole, **options)
    for step, output in enumerate(outputs, 1):
        output.parent.mkdir()
        if start(output, kill_at=step, **options):
            return {"kills": step - 1, "files": sorted(state(whole))}
        assert start(output, **options), step
        assert state(output) == state(whole), step

def kill_at_random_moments(name, options):
    outputs = places(name)
    whole, output = next(outputs), next(outputs)
    whole.parent.mkdir(), output.parent.mkdir()
    assert start(whole, **options)
    chance, kills = random.Random(0), 0
    while not start(output, kill_after=chance.uniform(0.05, 0.4) if kills < 8 else None, **options):
        kills += 1
    assert state(output) == state(whole)
    return {"kills": kills}

if __name__ == "__main__":
    if sys.argv[1] == "killed":
        way, name, options = sys.argv[2:]
        import tqdm.auto
        print(json.dumps(globals()[way](name, json.loads(options))))
    else:
        from plaudit.bulk import score_data
        print(json.dumps(score_data("model", "rows.jsonl", sys.argv[2], **json.loads(sys.argv[3]))))
'''


@pytest.fixture
def folder(tmp_path):
    """A folder with 25 rows and the script that scores them without a model."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    write(tmp_path / "rows.jsonl", [{"id": number, "text": "é" * number} for number in range(25)])
    return tmp_path


def write(file, rows):
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def read(file):
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def command(folder, *words):
    return [sys.executable, str(folder / "stand_in.py"), *map(str, words)]


def run(folder, *words):
    """Return the last line that the script printed, and its errors where it failed."""
    done = subprocess.run(command(folder, *words), cwd=folder, capture_output=True, text=True, timeout=120)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr.strip().split("\n")[-1]


def singles(count, seed=0):
    return [
        {"id": number, "prompt": row["prompt"], "response": row["chosen"]}
        for number, row in enumerate(text_pairs(count, seed))
    ]


def several(count):
    return [
        {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"], row["chosen"] + " so"][: 1 + i % 3]}
        for i, row in enumerate(text_pairs(count))
    ]


# Rows in, rows out.


def test_lines_come_out_as_they_went_in_with_the_reward_at_their_end(model_path, tmp_path):
    lines = [
        b'{"z": 1.50, "text": "The sky\\u2028is \\ud83d\\ude00", "none": null, "a": {"b": [1e3, NaN]}}',
        b'\xef\xbb\xbf  {"text":"caf\xc3\xa9","big":123456789012345678901234567890, "half": "\\ud800" }  \r',
        b"",
        b'{"text": "a cat", "twice": 1, "twice": 2}',
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    manifest = score_data(model_path, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    written = (tmp_path / "out.jsonl").read_bytes().splitlines()
    rewards = RewardModel.from_pretrained(model_path).score(["The sky\u2028is 😀", "café", "a cat"])
    kept = [lines[0], lines[1].strip(b"\xef\xbb\xbf\r ")[:-1].rstrip() + b"}", lines[3]]
    for line, old, reward in zip(written, kept, rewards, strict=True):
        assert line.startswith(old[:-1] + b', "reward": ')
        assert json.loads(line)["reward"] == pytest.approx(float(reward), abs=1e-5)
    assert (manifest["rows"], manifest["rows_written"], manifest["bad"]) == (3, 3, 0)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (singles(7), ["reward"]),
        (text_pairs(7), ["reward_chosen", "reward_rejected"]),
        (several(7), ["rewards"]),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_each_kind_of_row_gets_the_rewards_of_score(model_path, tmp_path, rows, columns, suffix):
    data = tmp_path / f"in{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), data)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        data.write_bytes(gzip.compress(text) if suffix == ".jsonl.gz" else text)
    manifest = score_data(model_path, data, tmp_path / "out.jsonl", rows_per_part=3)
    found = read(tmp_path / "out.jsonl")
    assert [{name: row[name] for name in row if name not in columns} for row in found] == rows
    model = RewardModel.from_pretrained(model_path)
    for row in found:
        if columns == ["rewards"]:
            expected = [model.score(prompt=row["prompt"], responses=row["responses"]).tolist()]
        elif columns == ["reward"]:
            expected = model.score(prompt=row["prompt"], responses=[row["response"]]).tolist()
        else:
            expected = model.score(prompt=row["prompt"], responses=[row["chosen"], row["rejected"]]).tolist()
        assert [row[name] for name in columns] == [pytest.approx(value, abs=1e-5) for value in expected]
    assert manifest["parts"] == 3
    assert manifest["sequences"] == sum(len(row.get("rewards", columns)) for row in found)


def test_parquet_comes_out_with_exactly_its_schema_and_the_reward(model_path, tmp_path):
    schema = pa.schema(
        [
            pa.field("text", pa.large_string(), nullable=False, metadata={"own": "field"}),
            pa.field("at", pa.timestamp("ns", tz="UTC")),
            pa.field("kind", pa.dictionary(pa.int8(), pa.string())),
            pa.field("pairs", pa.map_(pa.string(), pa.int32())),
            pa.field("bytes", pa.binary()),
            pa.field("nothing", pa.list_(pa.int16())),
        ],
        metadata={"own": "schema"},
    )
    rows = [
        {"text": f"a cat {i}", "at": i, "kind": "xyz"[i % 3], "pairs": [("a", i)], "bytes": b"\xff", "nothing": None}
        for i in range(10)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "in.parquet", row_group_size=3)
    score_data(model_path, tmp_path / "in.parquet", tmp_path / "out.parquet", rows_per_part=4)
    before, after = pq.read_table(tmp_path / "in.parquet"), pq.read_table(tmp_path / "out.parquet")
    assert after.schema.field("reward").type == pa.float32()
    assert after.schema.names == [*before.schema.names, "reward"]
    assert after.drop_columns("reward").schema.equals(before.schema, check_metadata=True)
    assert after.drop_columns("reward").equals(before)


def test_lines_become_parquet_of_one_schema_where_their_blocks_show_several(model_path, tmp_path):
    rows = [{"text": "a", "note": None, "n": 1}, {"text": "b", "note": {"x": 1}, "n": 2}]
    rows += [{"text": "c", "note": {"y": "u"}, "n": 1.5, "late": [1]}]
    write(tmp_path / "in.jsonl", rows)
    for output in ("out.parquet", "out"):
        score_data(model_path, tmp_path / "in.jsonl", tmp_path / output, format="parquet", rows_per_part=1)
    parts = [pq.ParquetFile(part).schema_arrow for part in sorted((tmp_path / "out").glob("*.parquet"))]
    assert len(parts) == 3
    assert all(part.equals(parts[0], check_metadata=True) for part in parts)
    for found in (pq.read_table(tmp_path / "out.parquet"), pq.read_table(tmp_path / "out")):
        assert found["note"].to_pylist() == [None, {"x": 1, "y": None}, {"x": None, "y": "u"}]
        assert found["n"].to_pylist() == [1, 2, 1.5]
        assert found["late"].to_pylist() == [None, None, [1]]
        assert found["reward"].null_count == 0


@pytest.mark.parametrize("rows_per_part", [1, 2])
def test_values_of_several_types_are_refused_for_parquet_with_the_cure(model_path, tmp_path, rows_per_part):
    write(tmp_path / "in.jsonl", [{"text": "a", "note": 1}, {"text": "b", "note": "x"}])
    with pytest.raises(ValueError, match=r"note.*\.jsonl"):
        score_data(model_path, tmp_path / "in.jsonl", tmp_path / "out.parquet", rows_per_part=rows_per_part)


def test_a_directory_of_parts_is_a_data_set_that_can_be_scored_and_loaded(model_path, tmp_path):
    write(tmp_path / "in.jsonl", singles(9))
    score_data(model_path, tmp_path / "in.jsonl", tmp_path / "out-v0.5", rows_per_part=4)
    assert sorted(file.name for file in (tmp_path / "out-v0.5").iterdir()) == [f"part-{i:08d}.jsonl" for i in range(3)]
    loaded = datasets.load_dataset(str(tmp_path / "out-v0.5"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["id"] == list(range(9))
    assert (tmp_path / "out-v0.5.manifest.json").exists()
    plain = loaded.remove_columns("reward")
    plain.save_to_disk(tmp_path / "saved")
    score_data(model_path, tmp_path / "saved", tmp_path / "again.parquet", rows_per_part=2)
    again = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "again.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert again["reward"] == pytest.approx(loaded["reward"], abs=1e-5)
    assert again.remove_columns("reward").features == plain.features


def test_values_that_json_files_mix_come_through_a_stream_as_they_are(model_path, tmp_path):
    (tmp_path / "data").mkdir()
    rows = [{"text": "a cat", "any": {"x": 1}}, {"text": "a dog", "any": "s"}, {"text": "a cow", "any": [1, None]}]
    write(tmp_path / "data" / "rows.jsonl", rows)
    score_data(model_path, tmp_path / "data", tmp_path / "out.jsonl", rows_per_part=2)
    assert [{"text": row["text"], "any": row["any"]} for row in read(tmp_path / "out.jsonl")] == rows


# Killed and started again.


@pytest.mark.parametrize(
    ("name", "options"), [("out.jsonl", {}), ("out", {}), ("out.jsonl", {"shard": "0/2"}), ("out", {"shard": "0/2"})]
)
def test_a_kill_before_any_step_and_a_restart_leave_what_one_run_leaves(folder, name, options):
    result = run(folder, "killed", "kill_at_each_step", name, json.dumps({"rows_per_part": 10, **options}))
    assert result["kills"] > 30, result


def test_kills_at_random_moments_and_restarts_leave_what_one_run_leaves(folder):
    (folder / "slow").touch()
    result = run(folder, "killed", "kill_at_random_moments", "out.jsonl", '{"rows_per_part": 2}')
    assert result["kills"] >= 5, result


def test_the_rows_of_the_killed_runs_are_each_there_once(folder):
    manifest = run(folder, "alone", "out.jsonl", '{"rows_per_part": 4}')
    expected = [{"id": number, "text": "é" * number, "reward": number / 2} for number in range(25)]
    assert read(folder / "out.jsonl") == expected
    assert (manifest["parts"], manifest["tokens"], manifest["job"]["model_fingerprint"]) == (7, 75, "stand-in")
    assert json.loads((folder / "out.jsonl.manifest.json").read_text()) == manifest


@pytest.mark.parametrize("processes", [(3, 1), (1, 2), (2, 3)])
def test_a_killed_process_is_named_and_another_number_of_them_goes_on(folder, processes):
    (folder / "poison").touch()
    first, second = (json.dumps({"rows_per_part": 3, "shard": "0/2", "num_processes": count}) for count in processes)
    error = run(folder, "alone", "out.jsonl", first)
    if processes[0] > 1:
        # Row 7 is in block 2, the second of shard 0.
        assert error.startswith(
            f"RuntimeError: process 1 of {processes[0]} failed at block 2: it ended with exit code -9"
        )
        assert "the same command goes on" in error
    done = [int(part.stem[5:]) * 3 for part in folder.glob("*.parts/part-*.jsonl")]
    (folder / "poison").unlink()
    assert run(folder, "alone", "out.jsonl", second)["rows"] == 13
    run(folder, "alone", "out.jsonl", '{"rows_per_part": 3, "shard": "1/2"}')
    ids = [row["id"] for shard in range(2) for row in read(folder / f"out-{shard:05d}-of-00002.jsonl")]
    assert sorted(ids) == list(range(25))
    scored = (folder / "scored").read_text().split()
    assert all(scored.count(str(row)) < 2 for row in done)
    assert done or processes[0] > 1


def test_processes_end_when_the_one_that_started_them_is_killed(folder):
    (folder / "slow").touch()
    started = subprocess.Popen(
        command(folder, "alone", "out.jsonl", '{"rows_per_part": 10, "num_processes": 2}'), cwd=folder
    )
    pids = until(lambda: sorted(int(file.stem) for file in folder.glob("*.pid")), lambda pids: len(pids) == 2)
    assert all(is_running(pid) for pid in pids)
    started.kill()
    started.wait()
    until(lambda: [pid for pid in pids if is_running(pid)], lambda running: not running)


def until(look, is_enough, seconds=30):
    end = time.monotonic() + seconds
    while not is_enough(found := look()):
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return found


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Nobody may be there to take note that it has ended.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_parts_that_no_job_claims_are_not_taken_for_this_ones(model_path, tmp_path):
    write(tmp_path / "in.jsonl", singles(3))
    (tmp_path / "out.jsonl.parts").mkdir()
    (tmp_path / "out.jsonl.parts" / "part-00000000.jsonl").write_text('{"stale": 1}\n')
    (tmp_path / "out.jsonl.parts" / "part-00000000.json").write_text('{"rows": 1}')
    assert score_data(model_path, tmp_path / "in.jsonl", tmp_path / "out.jsonl")["rows"] == 3
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == [0, 1, 2]


def test_data_that_change_while_they_are_scored_are_an_error(model_path, tmp_path, monkeypatch):
    data = write(tmp_path / "in.jsonl", singles(3))
    score_rows = RowScorer.__call__

    def changing(self, rows, numbers):
        os.utime(data, ns=(0, 0))
        return score_rows(self, rows, numbers)

    monkeypatch.setattr(RowScorer, "__call__", changing)
    with pytest.raises(ValueError, match=r"in\.jsonl' changed while it was scored; start again with --overwrite"):
        score_data(model_path, data, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


# Shares of the work.


def test_shards_together_have_every_row_once(model_path, tmp_path):
    write(tmp_path / "in.jsonl", singles(11))
    whole = score_data(model_path, tmp_path / "in.jsonl", tmp_path / "whole.jsonl", rows_per_part=2)
    for shard in range(3):
        for output in ("out.jsonl", "out"):
            score_data(model_path, tmp_path / "in.jsonl", tmp_path / output, rows_per_part=2, shard=f"{shard}/3")
    parts = [tmp_path / "out" / f"part-{block:08d}.jsonl" for block in range(6)]
    assert b"".join(part.read_bytes() for part in parts) == (tmp_path / "whole.jsonl").read_bytes()
    files = [tmp_path / f"out-{shard:05d}-of-00003.jsonl" for shard in range(3)]
    assert sorted(row["id"] for file in files for row in read(file)) == list(range(11))
    assert [row["id"] for row in read(files[1])] == [2, 3, 8, 9]
    manifests = [
        json.loads((tmp_path / f"out-{shard:05d}-of-00003.jsonl.manifest.json").read_text()) for shard in range(3)
    ]
    for name in ("rows", "sequences", "tokens"):
        assert sum(manifest[name] for manifest in manifests) == whole[name]


def test_the_first_row_of_the_data_says_what_rows_are_to_every_shard(model_path, tmp_path):
    # By the columns of its own first row, shard 1 would score prompts with responses.
    rows = [{"text": "a cat"}, {"text": "a dog", "prompt": "who", "response": "me"}]
    write(tmp_path / "in.jsonl", rows)
    score_data(model_path, tmp_path / "in.jsonl", tmp_path / "out.jsonl", shard="1/2", rows_per_part=1)
    [row] = read(tmp_path / "out-00001-of-00002.jsonl")
    assert row["reward"] == pytest.approx(float(RewardModel.from_pretrained(model_path).score("a dog")[0]), abs=1e-5)


def test_two_processes_write_what_one_does(model_path, tmp_path):
    write(tmp_path / "in.jsonl", singles(11))
    found = []
    for count in (1, 2):
        output = tmp_path / f"{count}.jsonl"
        manifest = score_data(model_path, tmp_path / "in.jsonl", output, rows_per_part=2, num_processes=count)
        found.append((read(output), manifest["tokens"]))
    assert [row["id"] for row in found[1][0]] == list(range(11))
    assert [row["reward"] for row in found[1][0]] == pytest.approx([row["reward"] for row in found[0][0]], abs=1e-5)
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("shard", ["2/2", "4/2", "-1/2", "1", "0/0", "a/b"])
def test_a_shard_that_is_not_there_is_refused(model_path, tmp_path, shard):
    with pytest.raises(ValueError, match=rf"shard is '{shard}', but must be i/n .* count from 0"):
        score_data(model_path, "in.jsonl", tmp_path / "out.jsonl", shard=shard)


def test_a_shard_without_rows_is_an_error_with_the_cure(model_path, tmp_path):
    write(tmp_path / "in.jsonl", singles(3))
    with pytest.raises(ValueError, match="shard 2/3 of 3 rows is empty with rows_per_part=2; use fewer shards"):
        score_data(model_path, tmp_path / "in.jsonl", tmp_path / "out.jsonl", rows_per_part=2, shard="2/3")


# What is kept.


def test_top1_keeps_each_rows_best_answer(model_path, tmp_path):
    rows = several(8)
    write(tmp_path / "in.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    score_data(model_path, tmp_path / "in.jsonl", tmp_path / "all.jsonl")
    score_data(model_path, tmp_path / "in.jsonl", tmp_path / "best.jsonl", keep="top1")
    score_data(model_path, tmp_path / "in.parquet", tmp_path / "best2.parquet", keep="top1")
    best = read(tmp_path / "best.jsonl")
    for row, kept in zip(read(tmp_path / "all.jsonl"), best, strict=True):
        rewards = row["rewards"]
        answer = row["responses"][rewards.index(max(rewards))]
        assert kept == {"prompt": row["prompt"], "responses": [answer], "rewards": [max(rewards)]}
    table = pq.read_table(tmp_path / "best2.parquet")
    assert table["responses"].to_pylist() == [row["responses"] for row in best]
    assert table.drop_columns("rewards").schema.equals(pq.read_schema(tmp_path / "in.parquet"))
    assert [each for [each] in table["rewards"].to_pylist()] == pytest.approx(
        [row["rewards"][0] for row in best], abs=1e-5
    )


@pytest.mark.parametrize("rows", [singles(12), text_pairs(12), several(12)])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_threshold_leaves_out_what_does_not_reach_it_and_counts_it(model_path, tmp_path, rows, suffix):
    write(tmp_path / "in.jsonl", rows)
    score_data(model_path, tmp_path / "in.jsonl", tmp_path / "all.jsonl", rows_per_part=5)
    full = read(tmp_path / "all.jsonl")
    values = [value for row in full for value in values_of(row)]
    threshold = sorted(values)[len(values) // 2]
    output = tmp_path / f"kept{suffix}"
    manifest = score_data(model_path, tmp_path / "in.jsonl", output, keep=threshold, rows_per_part=5)
    kept = read(output) if suffix == ".jsonl" else pq.read_table(output).to_pylist()
    assert [value for row in kept for value in values_of(row)] == [value for value in values if value >= threshold]
    assert [row["prompt"] for row in kept] == [row["prompt"] for row in full if max(values_of(row)) >= threshold]
    assert manifest["rows_written"] == len(kept) < manifest["rows"] == 12
    for row in kept if "rewards" in full[0] else ():
        answers = next(each["responses"] for each in full if each["prompt"] == row["prompt"])
        assert len(row["responses"]) == len(row["rewards"])
        assert set(row["responses"]) <= set(answers)


def values_of(row):
    if "rewards" in row:
        return row["rewards"]
    return [row["reward"] if "reward" in row else row["reward_chosen"] - row["reward_rejected"]]


def test_a_threshold_that_nothing_reaches_leaves_a_file_without_rows(model_path, tmp_path):
    write(tmp_path / "in.jsonl", singles(3))
    for output in ("out.jsonl", "out.parquet"):
        assert (
            score_data(model_path, tmp_path / "in.jsonl", tmp_path / output, keep=1e9, overwrite=True)["rows_written"]
            == 0
        )
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    assert pq.read_table(tmp_path / "out.parquet").schema.names == ["id", "prompt", "response", "reward"]


def test_top1_of_rows_without_several_answers_is_refused(model_path, tmp_path):
    write(tmp_path / "in.jsonl", singles(3))
    with pytest.raises(ValueError, match=r"'top1', but the rows do not have several answers \(each is a single\)"):
        score_data(model_path, tmp_path / "in.jsonl", tmp_path / "out.jsonl", keep="top1")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_bad_rows_are_an_error_or_null_and_counted_and_kept(model_path, tmp_path, suffix):
    rows = singles(6)
    rows[4]["response"] = None
    write(tmp_path / "in.jsonl", rows)
    output = tmp_path / f"out{suffix}"
    with pytest.raises(ValueError, match="row 4: 'response' is None"):
        score_data(model_path, tmp_path / "in.jsonl", output, rows_per_part=2)
    manifest = score_data(
        model_path, tmp_path / "in.jsonl", output, rows_per_part=2, bad_rows="null", keep=1e9, overwrite=True
    )
    found = read(output) if suffix == ".jsonl" else pq.read_table(output).to_pylist()
    assert found == [{**rows[4], "reward": None}]
    assert (manifest["bad"], manifest["rows"], manifest["rows_written"]) == (1, 6, 1)


# Whose the output is.


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"truncation": "left"}, r"truncation 'error' \(now 'left'\)"),
        ({"rows_per_part": 7}, r"rows_per_part 2 \(now 7\)"),
        ({"keep": 0.5}, r"keep None \(now 0.5\)"),
        ({"shard": "0/2", "output": "out"}, r"shards 1 \(now 2\)"),
        ({"data": "other.jsonl"}, r"data '.*in.jsonl' \(now '.*other.jsonl'\)"),
        ({"model": None}, r"model_fingerprint '\w+' \(now '\w+'\)"),
        ({"touch": True}, r"data_fingerprint '\w+' \(now '\w+'\)"),
    ],
)
@pytest.mark.parametrize("has_ended", [False, True])
def test_a_start_that_differs_is_refused_and_says_in_what(
    model_path, language_model_path, tmp_path, changed, named, has_ended
):
    rows = singles(5)
    for name in ("in.jsonl", "other.jsonl"):
        write(tmp_path / name, rows if has_ended else [*rows[:4], {**rows[4], "response": None}])
    first = {"model": model_path, "data": "in.jsonl", "output": changed.get("output", "out.jsonl"), "rows_per_part": 2}
    if has_ended:
        score(tmp_path, first)
    else:
        with pytest.raises(ValueError, match="row 4"):
            score(tmp_path, first)
    second = {**first, **changed}
    if second.pop("touch", False):
        os.utime(tmp_path / "in.jsonl", ns=(0, 0))
    if second["model"] is None:
        second["model"] = other_model(model_path, tmp_path)
    with pytest.raises(ValueError, match=rf"is of a job with .*{named}.*name another output"):
        score(tmp_path, second)
    if has_ended and "shard" not in changed:
        assert score(tmp_path, {**second, "overwrite": True})["rows"] == 5
    assert score(tmp_path, {**second, "output": "free.jsonl", "bad_rows": "null"})["parts"] >= 1


def score(folder, options):
    options = dict(options)
    data, output = (str(folder / options.pop(name)) for name in ("data", "output"))
    return score_data(options.pop("model"), data, output, **options)


def other_model(model_path, folder):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1)
    with torch.no_grad():
        model.score.weight += 1
    model.save_pretrained(folder / "other-model")
    AutoTokenizer.from_pretrained(model_path).save_pretrained(folder / "other-model")
    return str(folder / "other-model")


def test_a_start_after_the_end_scores_nothing_and_returns_the_manifest(model_path, tmp_path, caplog, monkeypatch):
    write(tmp_path / "in.jsonl", singles(3))
    first = score_data(model_path, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    stamp = (tmp_path / "out.jsonl").stat().st_mtime_ns
    (tmp_path / "out.jsonl.parts").mkdir()
    assert score_data(model_path, tmp_path / "in.jsonl", tmp_path / "out.jsonl") == first
    assert "out.jsonl is already complete" in caplog.text
    assert (tmp_path / "out.jsonl").stat().st_mtime_ns == stamp
    assert not (tmp_path / "out.jsonl.parts").exists()
    (tmp_path / "out.jsonl").unlink()
    score_data(model_path, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert len(read(tmp_path / "out.jsonl")) == 3


def test_what_something_else_has_written_is_left_alone(model_path, tmp_path):
    write(tmp_path / "in.jsonl", singles(3))
    (tmp_path / "out.jsonl").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-00000000.jsonl").write_text("mine")
    for output in ("out.jsonl", "out"):
        with pytest.raises(
            ValueError, match=r"is there already, from something else; name another, or give --overwrite"
        ):
            score_data(model_path, tmp_path / "in.jsonl", tmp_path / output)
    assert (tmp_path / "out.jsonl").read_text() == (tmp_path / "out" / "part-00000000.jsonl").read_text() == "mine"
    score_data(model_path, tmp_path / "in.jsonl", tmp_path / "out.jsonl", overwrite=True)
    assert len(read(tmp_path / "out.jsonl")) == 3


@pytest.mark.parametrize(
    ("data", "output"), [("in.jsonl", "in.jsonl"), ("folder", "folder/out.jsonl"), ("folder/in.jsonl", "folder")]
)
def test_an_output_over_the_data_is_refused_even_to_overwrite(model_path, tmp_path, data, output):
    (tmp_path / "folder").mkdir()
    for name in ("in.jsonl", "folder/in.jsonl", "folder/part-00000000.jsonl"):
        write(tmp_path / name, singles(3))
    with pytest.raises(ValueError, match="overlap; name another output"):
        score_data(model_path, tmp_path / data, tmp_path / output, overwrite=True)
    assert read(tmp_path / "folder/part-00000000.jsonl") == read(tmp_path / "in.jsonl") == singles(3)


# Mistakes.


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"output": "out.csv"}, r"output is .*out\.csv', but must end in \.jsonl or \.parquet, or be a directory"),
        ({"output": "out.jsonl.gz"}, r"but must end in \.jsonl or \.parquet"),
        (
            {"output": "out.jsonl", "format": "parquet"},
            "format is 'parquet', but output .* says 'jsonl'; leave one out",
        ),
        ({"rows_per_part": 0}, "rows_per_part is 0, but must be 1 or more"),
        ({"num_processes": 0}, "num_processes is 0, but must be 1 or more"),
        ({"keep": "best"}, "keep is 'best', but must be 'top1' or a number"),
        ({"keep": float("nan")}, "keep is nan, but must be 'top1' or a number"),
        ({"truncation": "right"}, "truncation is 'right', but must be one of 'error', 'left', 'drop_turns'"),
        ({"split": "test"}, "has no split 'test'; found: train; choose with --split"),
        ({"config": "small"}, "has no configurations"),
    ],
)
def test_impossible_options_are_refused_with_the_cure(model_path, tmp_path, options, text):
    write(tmp_path / "in.jsonl", singles(3))
    options = {"output": "out.jsonl", **options}
    with pytest.raises(ValueError, match=text):
        score(tmp_path, {"model": model_path, "data": "in.jsonl", **options})


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"text": oops}', r"line 4 is not JSON \(Expecting value, column 10\)"),
        (b"[1]", "line 4 holds a list, but must hold an object"),
        (b'{"text": "\xe9"}', r"line 4 is not UTF-8 \(byte 0xe9\)"),
    ],
)
def test_a_line_that_is_no_row_is_named_by_file_and_number(model_path, tmp_path, line, text):
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "a"}\n\n{"text": "b"}\n' + line)
    with pytest.raises(ValueError, match=rf"data set '.*in\.jsonl' cannot be read: {text}"):
        score_data(model_path, tmp_path / "in.jsonl", tmp_path / "out.jsonl")


def test_values_that_json_does_not_have_are_refused_with_the_row_and_the_cure(model_path, tmp_path):
    rows = [{"text": "a cat", "other": value} for value in (b"", b"")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    with pytest.raises(ValueError, match=r"row 1 cannot be written as JSON \(.*bytes.*\); write \.parquet"):
        score_data(model_path, tmp_path / "in.parquet", tmp_path / "out.jsonl", rows_per_part=1, shard="1/2")


def test_a_reward_column_that_is_there_already_is_not_overwritten(model_path, tmp_path):
    write(tmp_path / "in.jsonl", [*singles(3), {**singles(1)[0], "reward": 5}])
    with pytest.raises(ValueError, match="row 3 has a column 'reward' already; rename or drop it"):
        score_data(model_path, tmp_path / "in.jsonl", tmp_path / "out.jsonl")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_data_without_rows_is_an_error(model_path, tmp_path, content):
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(ValueError, match="holds no rows"):
        score_data(model_path, tmp_path / "in.jsonl", tmp_path / "out.jsonl")


def test_a_file_that_is_cut_off_is_an_error(model_path, tmp_path):
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in singles(50)).encode())
    (tmp_path / "in.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    for name in ("in.jsonl.gz", "in.parquet"):
        with pytest.raises(ValueError, match=f"data set '.*{name}' cannot be read"):
            score_data(model_path, tmp_path / name, tmp_path / "out.jsonl", overwrite=True)


def test_data_that_is_not_there_leaves_nothing_behind(model_path, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        score_data(model_path, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert not list(tmp_path.iterdir())


# The command.


def command_line(capsys, *arguments):
    code = cli.main(["score", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_the_command_says_what_was_written_and_where(model_path, tmp_path, capsys):
    write(tmp_path / "in.jsonl", several(4))
    code, out, _ = command_line(
        capsys, "--model_name_or_path", model_path, "--dataset_name", tmp_path / "in.jsonl", "--output",
        tmp_path / "out.jsonl", "--keep", "threshold", "-99.5", "--shard", "0/1", "--rows_per_part", 3,
    )  # fmt: skip
    assert code == 0
    assert out.startswith(f"4 of 4 rows in {tmp_path / 'out.jsonl'}, 7 sequences\n")
    assert f"manifest in {tmp_path / 'out.jsonl.manifest.json'}" in out
    manifest = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())
    assert (manifest["job"]["keep"], manifest["job"]["rows_per_part"]) == (-99.5, 3)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--modle", "x"], 2, "unknown argument '--modle'; did you mean '--model'?"),
        (["--model", "x", "--data", "y"], 2, "--output is required"),
        (["--keep", "best"], 2, "--keep: must be 'top1' or 'threshold X' with a number X, not 'best'"),
        (["--num_processes", "two"], 2, "--num_processes: invalid int value: 'two'"),
        (["--bad_rows", "drop"], 2, "--bad_rows: invalid choice: 'drop'"),
        (["--shard", "4/4"], 1, "shard is '4/4', but must be i/n"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(capsys, arguments, code, text):
    given = [] if code == 2 and "required" in text else ["--model", "x", "--data", "y", "--output", "z"]
    found, _, err = command_line(capsys, *arguments, *given)
    assert found == code
    assert text in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("made", "output", "message"),
    [
        ("folder", "out.jsonl", "is a directory; name a file in it"),
        ("file", "out", "is a file; name a directory"),
        ("file", "out/deep/x.jsonl", "cannot be written: '.*out' is no directory to write to"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_scored(
    model_path, tmp_path, made, output, message
):
    write(tmp_path / "in.jsonl", singles(3))
    place = tmp_path / output.split("/")[0]
    place.mkdir() if made == "folder" else place.write_text("mine")
    with pytest.raises(ValueError, match=message):
        score_data("no/such/model", tmp_path / "in.jsonl", tmp_path / output)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_manifest_is_an_error_that_names_it(model_path, tmp_path, text):
    write(tmp_path / "in.jsonl", singles(3))
    score_data(model_path, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    (tmp_path / "out.jsonl.manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"out\.jsonl\.manifest\.json is damaged .*; give --overwrite to begin anew"):
        score_data(model_path, tmp_path / "in.jsonl", tmp_path / "out.jsonl")


# Files that a job left, broken.


def places_of(folder):
    from plaudit.job import Job, Places

    made = Places(Job("m", "d.jsonl", str(folder / "out.jsonl")))
    made.state.mkdir(parents=True)
    return made


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 100_000, "is damaged"),
        ("9" * 5_000, "is damaged"),
        ("[]", "it holds no object"),
        ("{}", "'parts' is missing or of another type"),
        ('{"parts": "1"}', "'parts' is missing or of another type"),
    ],
)
def test_a_manifest_of_other_things_is_an_error_that_names_it(tmp_path, content, said):
    from plaudit import bulk

    places = places_of(tmp_path)
    places.manifest.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(places.manifest))) as error:
        bulk._completed(places.job, places, {})
    assert said in str(error.value)
    assert "give --overwrite to begin anew" in str(error.value)


@pytest.mark.parametrize("counts", [{"rows": 3}, {"rows": "3"}, {}])
def test_damaged_counts_of_a_part_are_an_error_that_names_them(tmp_path, counts):
    from plaudit import bulk

    places = places_of(tmp_path)
    places.counts(0).write_text(json.dumps(counts))
    with pytest.raises(ValueError, match="part-00000000.json is damaged .it does not hold a part's counts"):
        bulk._summed(places, [0])


def test_a_job_file_whose_job_is_no_object_is_damaged(tmp_path):
    from plaudit.job import require_same

    file = tmp_path / "job.json"
    file.write_text('{"job": 3}')
    with pytest.raises(ValueError, match="job.json is damaged .'job' is no object"):
        require_same(file, True, {"data": "d"})


def test_a_line_of_too_many_levels_is_named(tmp_path):
    from plaudit.blocks import read_blocks

    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n' + '{"a": ' * 50_000 + "\n")
    (block,) = read_blocks(str(file), None, None, 10)
    with pytest.raises(ValueError, match="rows.jsonl' cannot be read: line 2 is JSON of too many levels"):
        block.rows()


def test_half_a_surrogate_pair_does_not_fit_parquet(tmp_path):
    from plaudit.blocks import read_blocks

    for line, said in (
        ('{"text": "\\ud800"}', "column 'text'"),
        ('{"\\ud800": "a"}', "a column's name in lines 1 to 1"),
    ):
        file = tmp_path / "rows.jsonl"
        file.write_text(line)
        (block,) = read_blocks(str(file), None, None, 10)
        with pytest.raises(ValueError, match=f"{said}.*write a .jsonl file"):
            block.table(block.rows())


@pytest.mark.parametrize("keep", [10**400, float("nan"), True, "best"])
def test_what_is_kept_is_top1_or_a_finite_number(keep):
    from plaudit.job import Job

    with pytest.raises(ValueError, match="keep (is|must be) "):
        Job("m", "d.jsonl", "out.jsonl", keep=keep)


@pytest.mark.parametrize("name", ["num_processes", "rows_per_part", "normalise", "shard"])
def test_an_option_of_another_type_is_refused_by_its_name(name):
    from plaudit.job import Job

    with pytest.raises(ValueError, match=f"{name} must be "):
        Job("m", "d.jsonl", "out.jsonl", **{name: [3]})
