"""The audit: every figure against a plain count, on every format, with planted faults."""

import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("duckdb")

from datasets import Dataset, IterableDataset
from planted_pairs import (
    FORMATS,
    as_pairs_of_texts,
    conversational,
    plain_accuracy,
    plain_faults,
    plain_spread,
    planted,
    texts,
    write,
)

from plaudit import audit, page, tables
from plaudit.options import UsageError, parse_fields

DATA = Path(__file__).parents[2] / "shared" / "data"
MARKS = re.compile(r"(?m)^[ \t]*(?:#{1,6} |[-*+] |[0-9]+[.)] )|\*\*|`")


SEEDS = {("jsonl", 0), ("jsonl", 1), ("parquet", 2), ("json", 3), ("saved", 4)}
# Arrow has no column of both texts and lists.
WRITTEN = [
    (name, form, seed)
    for name in FORMATS
    for form, seed in sorted(SEEDS)
    if name != "blocks" or form not in ("parquet", "saved")
]


@pytest.mark.parametrize(("format_name", "form", "seed"), WRITTEN)
def test_every_figure_is_what_a_plain_count_gives(format_name, form, seed, tmp_path):
    written, read = FORMATS[format_name]
    pairs = planted(seed)
    found = audit.audit(write(written(pairs), tmp_path, form), threads=2, batch_size=4)
    pairs = read(pairs)
    if format_name == "sharegpt":
        # A dropped row keeps its place; this format drops none.
        assert found["dropped"] == {}
    assert found["pairs"] == found["rows"] == len(pairs)
    expected = plain_faults(pairs)
    assert found["faults"] == expected
    assert min(one["count"] for name, one in expected.items() if name != "prompts_differ" and "empty_" not in name) > 0
    for unit, measure in {"characters": len, "words": lambda said: len(said.split())}.items():
        for place, side in ((2, "chosen"), (3, "rejected")):
            assert found["lengths"][unit][side] == plain_spread([measure(pair[place]) for pair in pairs])
    rules = found["baselines"]
    assert rules["longer_wins"] == plain_accuracy([len(c) - len(r) for *_, c, r in pairs])
    assert rules["shorter_wins"] == plain_accuracy([len(r) - len(c) for *_, c, r in pairs])
    assert rules["markdown_wins"] == plain_accuracy(
        [len(MARKS.findall(c)) - len(MARKS.findall(r)) for *_, c, r in pairs]
    )
    firsts = Counter((c.split() or [""])[0] for *_, c, _ in pairs), Counter((r.split() or [""])[0] for *_, r in pairs)
    for one in rules["first_word_wins"]["words"]:
        assert (one["chosen"], one["rejected"]) == tuple(count[one["word"]] for count in firsts)
    prompts = Counter(str(b) for b, *_ in pairs)
    sharing = found["sharing"]
    assert sharing["prompts"] == len(prompts)
    assert sharing["pairs_with_others"] == pytest.approx(sum(n for n in prompts.values() if n > 1) / len(pairs))


def test_the_figures_do_not_depend_on_threads_or_on_where_tables_end(tmp_path, monkeypatch):
    name = write(conversational(planted(4, 200)), tmp_path)
    expected = audit.audit(name, threads=1)
    monkeypatch.setattr(tables, "BATCH_ROWS", 7)
    assert audit.audit(name, threads=4) == expected
    monkeypatch.setattr(audit, "PART_BYTES", 300)
    assert audit.audit(name, threads=3) == expected


@pytest.mark.parametrize("layout", ["chosen_ids", "input_ids_chosen"])
def test_token_ids_are_counted_without_what_masks_hide(layout, tmp_path):
    draw = random.Random(0)
    pairs = [
        ([draw.randrange(5) for _ in range(draw.randint(1, 4))], [draw.randrange(5) for _ in range(draw.randint(1, 4))])
        for _ in range(200)
    ]
    if layout == "chosen_ids":
        rows = [{"chosen_ids": c, "rejected_ids": r} for c, r in pairs]
    else:
        rows = [
            {
                "input_ids_chosen": [0, *c],
                "attention_mask_chosen": [0] + [1] * len(c),
                "input_ids_rejected": [*r, 7],
                "attention_mask_rejected": [1] * len(r) + [0],
            }
            for c, r in pairs
        ]
    found = audit.audit(write(rows, tmp_path), max_length=3)
    expected = plain_faults([([], [], "".join(map(str, c)), "".join(map(str, r))) for c, r in pairs])
    expected.pop("prompts_differ")
    assert found["faults"] == expected
    assert found["lengths"]["tokens"]["chosen"] == plain_spread([len(c) for c, _ in pairs])
    assert found["over"]["pairs"]["count"] == sum(max(len(c), len(r)) > 3 for c, r in pairs)
    assert found["over"]["rejected"]["count"] == sum(len(r) > 3 for _, r in pairs)
    assert found["sharing"]["unit"] == "tokens"


def test_test_prompts_are_found_whatever_their_case_and_spacing(tmp_path):
    train = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in ("What  is\n it?", "Why?", "Ünder", "")]
    other = [
        {
            "prompt": [{"role": "user", "content": p}],
            "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [{"role": "assistant", "content": "c"}],
        }
        for p in ("what is it? ", "Who?", "üNDER", "  WHY?")
    ]
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    found = audit.audit(write(train, tmp_path / "train"), test_data=write(other, tmp_path / "test"))
    assert found["test_overlap"]["prompts"] == {"count": 3, "share": 0.75, "rows": [0, 2, 3]}
    assert found["test_overlap"]["same_pairs"]["count"] == 0


def test_a_data_sets_own_test_split_is_compared(tmp_path):
    rows = texts(planted(11, 40))
    for split, part in (("train", rows[:30]), ("test", rows[25:])):
        Dataset.from_list(part).to_parquet(str(tmp_path / f"{split}-00000-of-00001.parquet"))
    found = audit.audit(str(tmp_path))
    seen = {" ".join(row["prompt"].lower().split()) for row in rows[:30]}
    same = {(row["prompt"], row["chosen"], row["rejected"]) for row in rows[:30]}
    assert (
        found["test_overlap"]["prompts"]["count"]
        == sum(" ".join(row["prompt"].lower().split()) in seen for row in rows[25:])
        >= 5
    )
    assert found["test_overlap"]["same_pairs"]["count"] == sum(
        (row["prompt"], row["chosen"], row["rejected"]) in same for row in rows[25:]
    )


@pytest.fixture
def name(tmp_path):
    return write(texts(planted(12)), tmp_path)


def test_the_command_reads_every_option():
    arguments = [
        "rows.jsonl",
        "--fail-on",
        "duplicates>1%",
        "identical",
        "--benchmark",
        "b.jsonl",
        "--model",
        "m",
        "--max_length",
        "9",
    ]
    given = parse_fields(audit.Audit, "audit", "DATA [options]", "Look.", arguments)
    assert given == {
        "data": "rows.jsonl",
        "fail_on": ["duplicates>1%", "identical"],
        "benchmarks": ["b.jsonl"],
        "tokenizer": "m",
        "max_length": 9,
    }
    assert [condition.bound for condition in audit.Audit(**given).conditions] == [0.01, 0.0]
    with pytest.raises(UsageError, match="DATA"):
        parse_fields(audit.Audit, "audit", "DATA [options]", "Look.", ["--format", "json"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 10}, "max_length 10 is in tokens, and the rows are texts; give --tokenizer MODEL as well"),
        ({"max_length": 0}, "max_length is 0, but must be 1 or more"),
        ({"sample": -1}, "sample is -1"),
        ({"format": "xml"}, "format is 'xml'"),
        ({"split": "dev"}, "has no split 'dev'; found: train"),
        ({"test_split": "dev"}, "has no split 'dev' beside 'train'"),
        ({"test_split": "a", "test_data": "b"}, "are both given; leave one out"),
        ({"source": "domain"}, "there is no column 'domain' to count by; found 'prompt', 'chosen', 'rejected'"),
        ({"output": "/dev/null/x"}, "output '/dev/null/x' cannot be written"),
    ],
)
def test_an_option_without_a_meaning_is_an_error(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        audit.run(data=name, **options)


def test_a_bad_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": \n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot be read: line 2 is not JSON"):
        audit.audit(str(path))
    path.write_bytes(
        b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "\xff", "chosen": "b", "rejected": "c"}\n'
    )
    with pytest.raises(ValueError, match=r"line 2 is not UTF-8"):
        audit.audit(str(path))
    path.write_text("")
    with pytest.raises(ValueError, match=r"holds no rows"):
        audit.audit(str(path))
    with pytest.raises(FileNotFoundError, match=r"there is no such file"):
        audit.audit(str(tmp_path / "none.jsonl"))


def test_a_column_of_dates_beside_the_pairs_does_no_harm(tmp_path):
    rows = [{"prompt": "2020-01-02", "chosen": "2020-01-02", "rejected": "b", "source": "2020-01-02"}] * 2
    rows.append({"prompt": "when", "chosen": "then", "rejected": "b", "source": "2021-01-02"})
    found = audit.audit(write(rows, tmp_path))
    assert found["lengths"]["characters"]["chosen"]["max"] == 10


def test_nothing_but_faults_is_said_to_be_no_pairs(tmp_path):
    rows = [{"prompt": "q", "responses": ["a", "b"], "scores": [1.0, 1.0]}]
    with pytest.raises(ValueError, match=r"no pair is left|none of its 1 rows of train is a pair \(tied\)"):
        audit.audit(write(rows, tmp_path))


def test_json_is_whole_and_written_where_it_is_wanted(name, tmp_path):
    text, code = audit.run(data=name, format="json", output=str(tmp_path / "out"), fail_on=["malformed"])
    assert code == 0
    assert json.loads(text) == json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert json.loads(text) == {**audit.audit(name), "failed": []}


def test_a_report_has_the_audits_paragraph_and_each_of_its_tables(tmp_path):
    rows = [{**row, "source": "s", "chosen_model": "m", "rejected_model": "n"} for row in texts(planted(16))]
    audit.run(data=write(rows, tmp_path), output=str(tmp_path))
    found = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    shown = page.report_context({"audit.json": found})["audit"]
    assert shown["summary"] == audit.summarise(found)
    assert [(table.title, len(table.rows)) for table in shown["tables"]] == [
        ("Faults", len(found["faults"])),
        ("What trivial rules would get right", 4),
        ("Lengths in characters", 3),
        ("Lengths in words", 2),
        ("By source", 1),
        ("By model", 2),
        ("What is told twice, and what layouts cost", 1),
    ]
    told = {name for name, _ in shown["facts"]}
    assert {"data", "rows", "pairs", "sharing, prompts", "malformed, count"} <= told


def test_a_data_set_in_memory_is_summarised_raw_and_tokenized():
    rows = texts(planted(13, 100))
    data = Dataset.from_list(rows)
    said = audit.summarise_dataset(data, data.select(range(10)))
    faults = plain_faults(as_pairs_of_texts(planted(13, 100)))
    assert f"train: {len(rows)} pairs of texts." in said
    assert f"{faults['duplicates']['count']} repeated, {faults['contradictory']['count']} contradictory" in said
    assert "10 of 10 test pairs have a prompt of the training data." in said
    ids = Dataset.from_list(
        [{"chosen_ids": [1, 2, 3], "rejected_ids": [1, 2]}, {"chosen_ids": [1], "rejected_ids": [1]}]
    )
    said = audit.summarise_dataset(ids, ids, max_length=2)
    assert "Of these 0 with an empty answer, 1 identical" in said
    assert "50.00 % of the pairs are longer than 2 tokens." in said


def test_a_summary_reads_no_more_than_it_says(monkeypatch):
    rows = texts(planted(14, 100))
    monkeypatch.setattr(audit, "SUMMARY_ROWS", 30)
    monkeypatch.setattr(audit, "SUMMARY_STREAM_ROWS", 20)
    read = []

    def generate():
        for row in rows:
            read.append(row)
            yield row

    assert f"30 pairs of texts (the first 30 rows of {len(rows)})." in audit.summarise_dataset(Dataset.from_list(rows))
    monkeypatch.setattr(tables, "BATCH_ROWS", 10)
    assert "20 pairs of texts (the first 20 rows of a stream)." in audit.summarise_dataset(
        IterableDataset.from_generator(generate)
    )
    assert len(read) < 60


def test_a_missing_duckdb_costs_a_training_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    data = Dataset.from_list(texts(planted(15, 10)))
    assert audit.summarise_dataset(data) == (
        'the data was not looked through: the audit needs an extra package: pip install "plaudit[audit]"'
    )


def test_an_audit_loads_no_torch(name):
    code = f"import sys; from plaudit import audit; audit.audit({name!r}); print(*sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_importing_the_audit_loads_nothing_heavy():
    code = "import sys; import plaudit.audit; print(*sorted({'torch', 'transformers', 'datasets', 'duckdb', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the data folder beside the project")
def test_real_transcripts_have_the_known_figures():
    found = audit.audit(str(DATA / "hh_harmless_test.jsonl.gz"))
    assert found["pairs"] == 2312
    assert found["faults"]["duplicates"]["count"] == 0
    assert found["faults"]["empty_chosen"] == {"count": 4, "share": 4 / 2312, "rows": [86, 516, 925, 1103]}
    assert found["faults"]["prompts_differ"]["rows"] == [1254, 1688, 1950, 1952, 2036]
    longer, shorter = found["baselines"]["longer_wins"], found["baselines"]["shorter_wins"]
    assert (longer["ties"], round(longer["official"] * 2312), round(shorter["official"] * 2312)) == (11, 1023, 1278)
    assert (round(100 * longer["official"], 2), round(100 * longer["half_credit"], 2)) == (44.25, 44.49)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the data folder beside the project")
def test_real_sharegpt_pairs_have_the_known_duplicates():
    found = audit.audit(str(DATA / "dpo_en_demo.json"))
    assert (found["pairs"], found["faults"]["duplicates"]["count"]) == (300, 5)
