"""Where benchmarks come from: files, folders and the Hub, each row checked, and what pins the data."""

import json

import pytest
import rows_of_benchmarks as made
from datasets import Dataset, DatasetDict

from plaudit import benchmarks
from plaudit.benchmarks import load_benchmark, load_benchmarks

COMMIT, NEWER = "a" * 40, "b" * 40
ALL = {
    "rewardbench": made.rewardbench({"mt-bench-easy": 3}),
    "rewardbench2": made.rewardbench2({"Focus": 2, "Ties": 4}),
    "rm-bench": made.rm_bench({"chat": 2, "safety-refuse": 1}),
    "judgebench": made.judgebench({"livebench-math": 3}),
    "ppe-correctness": made.ppe_correctness(2),
    "ppe-human": [row | {"prompt": "q"} for row in made.ppe_human()],
    "rmb": made.rmb_pairs(2),
    "best-of-n": made.best_of_n(3),
    "pairs": [{"prompt": "q", "chosen": "a", "rejected": "b", "subset": "x"}] * 2,
}


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "plaudit"]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache of the user's, and a Hub that has the data sets of `hub`, at COMMIT until told otherwise."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    hub = {"commit": COMMIT, "asked": [], "loaded": [], "splits": {}}

    class Api:
        def dataset_info(self, repository, revision=None):
            hub["asked"].append((repository, revision))
            if hub["commit"] is None:
                raise ConnectionError("no way out")
            return type("Info", (), {"sha": hub["commit"]})

    def load_dataset(name, config=None, revision=None, **options):
        hub["loaded"].append((name, config, revision))
        return DatasetDict({split: Dataset.from_list(rows) for split, rows in hub["splits"][name].items()})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return hub


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_file_is_read_by_its_columns_whatever_its_name_and_form(kind, suffix, tmp_path):
    found = load_benchmark(made.write(tmp_path / f"mine{suffix}", ALL[kind]))
    assert (found.name, found.kind, len(found.rows)) == ("mine", kind, len(ALL[kind]))
    assert "mine" not in found.provenance["subsets"]
    assert len({(row.subset, row.id) for row in found.rows}) == len(found.rows)


@pytest.mark.parametrize("kind", ALL)
def test_a_benchmark_has_one_hash_in_every_form_and_another_after_a_change(kind, tmp_path):
    files = [made.write(tmp_path / f"mine{suffix}", ALL[kind]) for suffix in (".jsonl", ".json", ".parquet")]
    hashes = {load_benchmark(file).provenance["sha256"] for file in files}
    assert len(hashes) == 1
    text = json.dumps(ALL[kind]).replace("?", "!", 1) if kind != "pairs" else '[{"chosen": "a", "rejected": "c"}]'
    (tmp_path / "mine.json").write_text(text.replace('"q"', '"r"', 1))
    assert load_benchmark(files[1]).provenance["sha256"] not in hashes


def test_provenance_says_which_file_how_many_rows_and_no_folder(tmp_path):
    found = load_benchmark(made.write(tmp_path / "secret" / "mine.jsonl", ALL["rewardbench2"])).provenance
    assert found["source"] == "mine.jsonl"
    assert (found["kind"], found["rows"], found["subsets"]) == ("rewardbench2", 6, {"Focus": 2, "Ties": 4})
    assert "secret" not in json.dumps(found)


def test_a_name_before_a_path_names_benchmark_and_kind(tmp_path):
    plain = [{"prompt": "q", "chosen": "a", "rejected": "b", "subset": "mt-bench-easy", "id": 1}]
    path = made.write(tmp_path / "rows.jsonl", plain)
    assert load_benchmark(path).kind == "pairs"
    named = load_benchmark(f"mine={path}", kind="pairs")
    assert (named.name, named.kind) == ("mine", "pairs")
    known = load_benchmark(f"Reward-Bench={path}")
    assert (known.name, known.kind) == ("Reward-Bench", "rewardbench")
    maths = load_benchmark(f"RewardMATH={made.write(tmp_path / 'bon.jsonl', ALL['best-of-n'])}")
    assert (maths.name, maths.kind) == ("RewardMATH", "rewardmath")


def test_a_files_name_decides_where_its_columns_leave_it_open(tmp_path):
    bare = [
        {name: row[name] for name in ("prompt", "chosen", "rejected", "subset", "id")} for row in ALL["rewardbench"]
    ]
    assert load_benchmark(made.write(tmp_path / "pairs_of_mine.jsonl", bare)).kind == "pairs"
    assert load_benchmark(made.write(tmp_path / "rewardmath.jsonl", ALL["best-of-n"])).kind == "rewardmath"
    assert load_benchmark(made.write(tmp_path / "reward_bench.jsonl", bare)).kind == "rewardbench"
    # Its columns are not RM-Bench's, so its name decides nothing.
    assert load_benchmark(made.write(tmp_path / "rm-bench.jsonl", bare)).kind == "pairs"


def test_the_columns_of_rewardbench_with_other_subsets_are_plain_pairs(tmp_path):
    rows = [row | {"subset": "of my own"} for row in ALL["rewardbench"]]
    for name in ("mine", "reward-bench"):
        assert load_benchmark(made.write(tmp_path / f"{name}.jsonl", rows)).kind == "pairs"


def test_rows_that_are_not_what_the_name_says_are_an_error_with_the_row(tmp_path):
    path = made.write(tmp_path / "rows.jsonl", ALL["pairs"])
    with pytest.raises(
        ValueError, match=r"benchmark 'judgebench' row 0: the columns 'question', .* of a judgebench row are missing"
    ):
        load_benchmark(f"judgebench={path}")
    broken = [*ALL["judgebench"], {**ALL["judgebench"][0], "label": "A"}]
    with pytest.raises(ValueError, match="benchmark 'broken' row 3: 'label' must be 'A>B' or 'B>A'"):
        load_benchmark(made.write(tmp_path / "broken.jsonl", broken))


def test_a_folder_of_files_gives_their_rows_the_domain_from_the_files_name(tmp_path):
    for domain in ("chat", "math", "safety-refuse", "safety-response"):
        rows = [{name: row[name] for name in row if name != "domain"} for row in made.rm_bench({domain: 2})]
        made.write(tmp_path / "rm" / f"{domain}_filtered.json", rows)
    found = load_benchmark(str(tmp_path / "rm"))
    assert found.kind == "rm-bench"
    assert found.provenance["subsets"] == {"chat": 2, "math": 2, "safety-refuse": 2, "safety-response": 2}
    # The whole file beside its parts holds the same rows.
    made.write(tmp_path / "rm" / "total_dataset.json", made.rm_bench({"code": 3}))
    assert load_benchmark(str(tmp_path / "rm")).provenance["subsets"] == {"code": 3}
    (tmp_path / "rm" / "total_dataset.json").unlink()
    one = load_benchmark(str(tmp_path / "rm" / "math_filtered.json"))
    assert one.provenance["subsets"] == {"math": 2}
    # A folder above a file that is given is anybody's.
    (tmp_path / "rm" / "math_filtered.json").rename(tmp_path / "rm" / "mine.json")
    (tmp_path / "rm").rename(tmp_path / "code")
    with pytest.raises(
        ValueError, match="benchmark 'mine' row 0: there is no 'domain'; add the column, or name the file"
    ):
        load_benchmark(str(tmp_path / "code" / "mine.json"))


def test_a_folder_of_sets_of_ppe_gives_their_rows_the_set(tmp_path):
    made.write(tmp_path / "ppe" / "PPE-MBPP-Plus-Best-of-K" / "data" / "train.parquet", made.ppe_correctness(1, "MBPP"))
    made.write(tmp_path / "ppe" / "mmlu_pro.jsonl", made.ppe_correctness(2, "MMLU"))
    found = load_benchmark(str(tmp_path / "ppe"))
    assert found.provenance["subsets"] == {"MBPP-Plus": 1, "MMLU-Pro": 2}
    assert len({(row.subset, row.id) for row in found.rows}) == 3
    for source in (str(tmp_path / "ppe" / "PPE-MBPP-Plus-Best-of-K"), f"ppe-ifeval={tmp_path / 'ppe' / 'rows.jsonl'}"):
        made.write(tmp_path / "ppe" / "rows.jsonl", made.ppe_correctness(1))
        assert list(load_benchmark(source).provenance["subsets"]) == ["IFEval" if "=" in source else "MBPP-Plus"]


def test_both_parts_of_rmb_are_read_from_one_folder(tmp_path):
    made.write(tmp_path / "RMB" / "Pairwise_set" / "a.json", made.rmb_pairs(2))
    made.write(tmp_path / "RMB" / "BoN_set" / "b.json", made.rmb_best(3))
    found = load_benchmark(str(tmp_path / "RMB"))
    assert (found.name, found.kind, len(found.rows)) == ("RMB", "rmb", 5)
    assert sorted({len(row.answers) for row in found.rows}) == [2, 4]


def test_a_folder_of_pairs_has_its_files_as_subsets(tmp_path):
    for name in ("easy", "hard"):
        made.write(tmp_path / "mine" / f"{name}.jsonl", [{"chosen": f"good {name}", "rejected": "bad"}])
    assert load_benchmark(str(tmp_path / "mine")).provenance["subsets"] == {"easy": 1, "hard": 1}
    for name in ("easy", "hard"):
        made.write(tmp_path / "own" / f"{name}.jsonl", [{"chosen": "a", "rejected": name, "subset": "x"}] * 2)
    assert [row.id for row in load_benchmark(str(tmp_path / "own")).rows] == ["0", "1", "2", "3"]


def test_a_downloaded_data_set_gives_the_benchmarks_own_split(tmp_path):
    folder = tmp_path / "reward-bench"
    made.write(folder / "data" / "raw-00000-of-00001.parquet", made.rewardbench({"mt-bench-easy": 5}))
    made.write(folder / "data" / "filtered-00000-of-00001.parquet", ALL["rewardbench"])
    (folder / ".cache").mkdir()
    (folder / ".cache" / "notes.json").write_text("{}")
    assert len(load_benchmark(str(folder)).rows) == 3
    assert len(load_benchmark(str(folder), split="raw").rows) == 5
    with pytest.raises(ValueError, match="has no split 'train'; found: filtered, raw"):
        load_benchmark(str(folder), split="train")
    DatasetDict(test=Dataset.from_list(ALL["pairs"]), train=Dataset.from_list(ALL["pairs"] * 3)).save_to_disk(
        tmp_path / "saved"
    )
    assert len(load_benchmark(str(tmp_path / "saved")).rows) == 2
    assert len(load_benchmark(str(tmp_path / "saved"), split="train").rows) == 6


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("./nothing.jsonl", {}, FileNotFoundError, "benchmark './nothing.jsonl': there is no such file or folder"),
        ("nothing.jsonl", {}, FileNotFoundError, "there is no such file or folder"),
        ("rewardbench=nothing.jsonl", {}, FileNotFoundError, "benchmark 'rewardbench': there is no file or folder 'noth"),
        ("rewardbnch", {}, ValueError, r"neither a known name .* a Hub id .*; did you mean 'rewardbench'\?"),
        ("RMB", {}, ValueError, "benchmark 'RMB' has no one place on the Hub that is known; give its rows as RMB=PATH"),
        ("pairs", {}, ValueError, "give its rows as pairs=PATH"),
        ("{file}", {"revision": "main"}, ValueError, "is local, so revision='main' has no effect; leave it out"),
        ("{file}", {"split": "test"}, ValueError, "is local, so split='test' has no effect"),
        ("{file}", {"config": "x"}, ValueError, "is local, so config='x' has no effect"),
        ("{file}", {"kind": "pears"}, ValueError, "benchmark kind 'pears' is unknown; known: rewardbench2, "),
        ("{file}", {"limit": 0}, ValueError, "limit is 0; it must be at least 1 row"),
        ("{file}", {"format": "arena2"}, ValueError, "benchmark format 'arena2' is unknown; the formats are transcript, "),
        ("{bon}", {"format": "arena"}, ValueError, "is of kind 'best-of-n', so format='arena' has no effect"),
        (" ", {}, ValueError, "a benchmark's name is empty; give a name, a file or a folder"),
        ("n" * 5000, {}, ValueError, "is neither a known name .* nor a file"),
        ("n" * 5000 + "=" + "m" * 5000, {}, FileNotFoundError, "there is no file or folder 'mmm"),
        ("{empty}", {}, ValueError, "holds no .json, .jsonl"),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_is_an_error_with_its_cure(source, options, error, message, tmp_path):
    (tmp_path / "empty").mkdir()
    places = {
        "file": made.write(tmp_path / "mine.jsonl", ALL["pairs"]),
        "bon": made.write(tmp_path / "bon.jsonl", ALL["best-of-n"]),
        "empty": str(tmp_path / "empty"),
    }
    with pytest.raises(error, match=message):
        load_benchmark(source.format(**places), **options)


def test_limit_reads_the_first_rows_only(tmp_path):
    found = load_benchmark(made.write(tmp_path / "mine.jsonl", ALL["rewardbench"]), limit=2)
    assert [row.id for row in found.rows] == ["0", "1"]


def test_several_sources_keep_names_of_their_own(tmp_path, caplog):
    files = [made.write(tmp_path / folder / "mine.jsonl", ALL["pairs"]) for folder in ("one", "two", "three")]
    assert [one.name for one in load_benchmarks(files)] == ["mine", "mine-2", "mine-3"]
    (second, third) = (message for message in caplog.messages if "is called" in message)
    assert f"{files[1]!r} is called 'mine-2', because there is a 'mine' already; NAME=PATH names it" in second
    assert f"{files[2]!r} is called 'mine-3'" in third
    assert [one.name for one in load_benchmarks(files[0])] == ["mine"]
    ready = load_benchmark(files[1])
    assert load_benchmarks([ready])[0] is ready
    with pytest.raises(ValueError, match="there is no benchmark; give at least one"):
        load_benchmarks([])
    with pytest.raises(TypeError, match="one or several names, files or Benchmarks, not NoneType"):
        load_benchmarks(None)


def test_pairs_of_every_record_format_are_read_with_subset_and_id(tmp_path, caplog):
    rows = [
        {"prompt": "q", "responses": ["a", "b", "c"], "scores": [3, 2, 2], "subset": "x", "id": "one"},
        {"prompt": "r", "responses": ["a", "b"], "scores": [1, 1], "subset": "y", "id": "two"},
    ]
    found = load_benchmark(made.write(tmp_path / "rated.jsonl", rows))
    assert [(row.id, row.subset, row.answers) for row in found.rows] == [
        ("one", "x", ["a", "b"]),
        ("one#2", "x", ["a", "c"]),
    ]
    assert found.provenance["rows_left_out"] == 1
    assert any("1 rows without a preference, left out" in line for line in said(caplog))


def test_transcripts_become_conversations_where_that_is_asked_for(tmp_path):
    text = "\n\nHuman: Why?\n\nAssistant: {}"
    path = made.write(tmp_path / "hh.jsonl", [{"chosen": text.format("So."), "rejected": text.format("No.")}])
    assert load_benchmark(path).rows[0].contents()[0] == text.format("So.")
    turns = load_benchmark(path, format="transcript").rows[0].contents()[0]
    assert turns == [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]


def test_what_is_odd_in_the_rows_is_counted_and_said_once(tmp_path, caplog):
    parted = {
        "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}],
        "rejected": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "y"}],
        "id": "1",
    }
    same = {**parted, "rejected": parted["chosen"]}
    path = made.write(tmp_path / "mine.jsonl", [parted, same, {**parted, "id": "2"}])
    found = load_benchmark(path)
    assert found.provenance["prefix_mismatches"] == 2
    assert [row.extra.get("identical") for row in found.rows] == [None, True, None]
    assert [row.id for row in found.rows] == ["1", "1#2", "2"]
    (line,) = said(caplog)
    assert line == (
        "benchmark 'mine', 3 rows: 2 rows whose sides differ before the last turn, each kept as it is; 1 rows with the same "
        "text as right and as wrong answer, a tie by construction; 1 rows whose id another row of the subset has, numbered"
    )


# The Hub.


def test_a_known_name_is_loaded_at_the_commit_found_first_and_recorded(cache, caplog):
    cache["splits"]["allenai/reward-bench"] = {"raw": ALL["rewardbench"] * 2, "filtered": ALL["rewardbench"]}
    first = load_benchmark("RewardBench")
    assert (first.name, first.kind, len(first.rows)) == ("RewardBench", "rewardbench", 3)
    assert first.provenance["revision"] == COMMIT
    assert first.provenance["split"] == "filtered"
    assert any(f"allenai/reward-bench is loaded at commit {COMMIT} from now on" in line for line in said(caplog))
    cache["commit"] = NEWER
    assert load_benchmark("allenai/reward-bench").provenance["revision"] == COMMIT
    assert cache["asked"] == [("allenai/reward-bench", None)]
    assert {revision for _, _, revision in cache["loaded"]} == {COMMIT}
    recorded = json.loads(benchmarks.revisions_file().read_text())
    assert recorded == {"allenai/reward-bench": COMMIT}


def test_a_revision_that_is_given_is_used_and_not_recorded(cache):
    cache["splits"]["allenai/reward-bench"] = {"filtered": ALL["rewardbench"]}
    cache["commit"] = NEWER
    assert load_benchmark("rewardbench", revision="main").provenance["revision"] == NEWER
    assert cache["asked"] == [("allenai/reward-bench", "main")]
    assert load_benchmark("rewardbench", revision=COMMIT).provenance["revision"] == COMMIT
    assert len(cache["asked"]) == 1, "a commit is asked of nobody"
    assert not benchmarks.revisions_file().exists()


def test_without_the_hub_and_a_record_the_cure_is_named(cache):
    cache["commit"] = None
    with pytest.raises(
        OSError, match=r"'allenai/reward-bench': its revision cannot be asked of the Hub \(no way out\); give"
    ):
        load_benchmark("rewardbench")


def test_a_damaged_record_is_an_error(cache):
    file = benchmarks.revisions_file()
    file.parent.mkdir(parents=True)
    file.write_text("[1]")
    with pytest.raises(ValueError, match=r"revisions.json is damaged .*; remove it"):
        load_benchmark("rewardbench")


def test_all_five_sets_of_ppe_are_one_benchmark_and_one_of_them_is_named_alone(cache):
    for name in ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus"):
        cache["splits"][f"lmarena-ai/PPE-{name}-Best-of-K"] = {"train": made.ppe_correctness(1, name)}
    found = load_benchmark("ppe-correctness")
    assert found.provenance["subsets"] == {"GPQA": 1, "IFEval": 1, "MATH": 1, "MBPP-Plus": 1, "MMLU-Pro": 1}
    assert set(found.provenance["revision"]) == set(cache["splits"])
    with pytest.raises(
        ValueError, match="'ppe-correctness' is 5 data sets .* and revision 'aaa.*' a commit of one; give each"
    ):
        load_benchmark("ppe-correctness", revision=COMMIT)
    assert len(load_benchmark("ppe-correctness", revision="main").rows) == 5
    for name in ("ppe-math", "lmarena-ai/PPE-MATH-Best-of-K"):
        alone = load_benchmark(name)
        assert (alone.name, alone.kind, alone.provenance["subsets"]) == (name, "ppe-correctness", {"MATH": 1})


def test_another_split_of_a_known_benchmark_can_be_asked_for(cache):
    claude = made.judgebench({"livecodebench": 2})
    cache["splits"]["ScalerLab/JudgeBench"] = {"gpt": ALL["judgebench"], "claude": claude}
    assert len(load_benchmark("judgebench").rows) == 3
    assert len(load_benchmark("judgebench", split="claude").rows) == 2
    with pytest.raises(ValueError, match="has no split 'gemini'; found: gpt, claude; choose with split"):
        load_benchmark("judgebench", split="gemini")


def test_somebodys_own_data_set_is_loaded_from_there_and_recognised(cache):
    cache["splits"]["me/reward-bench"] = {"filtered": ALL["rewardbench"]}
    cache["splits"]["me/mine"] = {"train": ALL["pairs"] * 5, "test": ALL["pairs"]}
    assert load_benchmark("me/reward-bench").kind == "rewardbench"
    assert cache["loaded"][-1][0] == "me/reward-bench"
    found = load_benchmark("me/mine")
    assert (found.name, found.kind, found.provenance["split"], len(found.rows)) == ("me/mine", "pairs", "test", 2)
    cache["splits"]["me/odd"] = {"one": ALL["pairs"], "two": ALL["pairs"]}
    with pytest.raises(ValueError, match="'me/odd' has several splits; found: one, two; choose with split"):
        load_benchmark("me/odd")
