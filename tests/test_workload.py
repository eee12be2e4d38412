"""What batches hold: from rows, from an audit, and from figures."""

import json
from dataclasses import replace

import numpy as np
import pytest

from plaudit import tree, workload
from plaudit.audit import audit
from plaudit.collate import Padded, TreeRow

FIGURES = "pairs=5000,prompt=60,answer=20"


def write(file, rows):
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(file)


@pytest.fixture
def texts(tmp_path):
    """A file of pairs about two prompts."""
    answers = [f"answer {i} " * (1 + i % 3) for i in range(12)]
    rows = [{"prompt": "why is this? " * (5 + i % 2), "chosen": answers[i], "rejected": "no"} for i in range(12)]
    return write(tmp_path / "pairs.jsonl", rows)


def test_a_batch_is_laid_out_as_training_lays_it_out():
    work = workload.read(FIGURES, 1024)
    batch = work.batches(6)[0]
    sequences = [ids for side in zip(*batch, strict=True) for ids in side]
    row, block = TreeRow(None)(sequences), Padded(0)(sequences)
    in_tree, padded = (workload.load(batch, name) for name in ("tree", "padded"))
    assert in_tree.tokens == row["input_ids"].numel() < padded.tokens == block["input_ids"].numel()
    assert in_tree.scores == int((row["position_ids"] + 1).sum())
    assert padded.scores == padded.mask == padded.tokens * block["input_ids"].shape[1]
    assert in_tree.paths == sum(len(chain.path) for chain in tree.layout(sequences).chains)


def test_figures_have_their_means_and_their_number_of_pairs():
    work = workload.read(FIGURES, None)
    lengths = work.lengths
    assert (work.pairs, work.over, work.max_length) == (5000, 0.0, None)
    assert lengths["shared"] == pytest.approx(60, rel=0.05)
    assert lengths["chosen"] - lengths["shared"] == pytest.approx(20, rel=0.05)


def test_a_spread_of_nearly_nothing_makes_pairs_alike():
    work = workload.read(f"{FIGURES},prompt_sd=0.001,answer_sd=0.001", None)
    assert {tuple(map(len, pair)) for pair in work.sample} == {(80, 80)}


def test_quartiles_are_kept():
    work = workload.read("pairs=10,prompt=50/100/200,answer=10/20/40", None)
    shared = [tree.num_common(*pair) for pair in work.sample]
    assert np.percentile(shared, [25, 50, 75]) == pytest.approx([50, 100, 200], rel=0.1)


def test_pairs_over_max_length_are_left_out_and_their_share_is_known():
    work = workload.read(FIGURES, 100)
    assert 0.05 < work.over < 0.5
    assert work.pairs == round(5000 * (1 - work.over))
    assert max(len(side) for pair in work.sample for side in pair) <= 100


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("pairs=10,prompt=1e9,answer=5", r"a pair has [\d,]+ tokens on average, but must have at most 50,000"),
        ("pairs=10,prompt=60", r"data: 'pairs=10,prompt=60' lacks answer; give it"),
        ("pairs=10,prompt=60,answr=5", r"'answr=5' is not understood; did you mean 'answer'\?"),
        ("pairs=1.5,prompt=60,answer=5", r"pairs is 1.5, but must be a whole number"),
        ("pairs=10,prompt=3/2/1,answer=5", r"prompt is '3/2/1', but must be a mean, or three rising quartiles"),
        ("pairs=10,prompt=1/2/3,answer=5,prompt_sd=2", r"prompt has quartiles, so prompt_sd=2 says it twice"),
        (
            "pairs=10,prompt=600,answer=500",
            r"none of the pairs is within max_length 32 \(quartiles of the longer side:",
        ),
    ],
)
def test_figures_that_make_no_pairs_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        workload.read(data, 32)


def test_texts_are_counted_by_characters_where_nothing_counts_tokens(texts):
    work = workload.read(texts, 1024)
    assert work.pairs == 12
    assert "12 of 12 rows counted by 4 characters a token" in work.source
    # 65 or 78 characters of prompt.
    assert 65 / 4 - 1 <= work.lengths["shared"] <= 78 / 4 + 1
    assert work.lengths["chosen"] > work.lengths["shared"] + 1


def test_token_ids_are_counted_as_they_are(tmp_path):
    rows = [{"chosen_ids": [1, 2, 3, 4, 5, 6 + i], "rejected_ids": [1, 2, 3, 4, 9]} for i in range(8)]
    work = workload.read(write(tmp_path / "ids.jsonl", rows), 1024)
    assert work.lengths == {"chosen": 6.0, "rejected": 5.0, "shared": 4.0, "longer": 6.0}
    assert "its own token ids" in work.source


def test_pairs_whose_sides_are_the_same_do_not_count(tmp_path):
    rows = [{"chosen_ids": [1, 2], "rejected_ids": [1, 2 + i % 2]} for i in range(8)]
    file = write(tmp_path / "ids.jsonl", rows)
    assert workload.read(file, None).pairs == 4
    with pytest.raises(ValueError, match="both sides of every pair looked at are the same"):
        workload.read(write(tmp_path / "same.jsonl", [rows[0]] * 3), None)


def test_a_split_that_is_not_there_is_named(texts):
    with pytest.raises(ValueError, match=r"has no split 'dev'; found: train; choose with --split"):
        workload.read(texts, None, split="dev")


def test_an_audit_of_texts_gives_what_its_rows_give(texts, tmp_path):
    pytest.importorskip("duckdb")
    file = tmp_path / "audit.json"
    file.write_text(json.dumps(audit(texts)), encoding="utf-8")
    from_audit, from_rows = workload.read(str(file), None), workload.read(texts, None)
    assert from_audit.pairs == from_rows.pairs
    assert not workload.has_rows(str(file))
    for name, value in from_rows.lengths.items():
        assert from_audit.lengths[name] == pytest.approx(value, abs=2)


@pytest.mark.parametrize(
    "text",
    [
        '{"sharing": null, "lengths": null, "pairs": 3}',
        '{"sharing": {"within_pairs": 0.5}, "lengths": {"characters": {"chosen": {}, "rejected": {}}}, "pairs": 3}',
        '{"sharing": [], "lengths": {"tokens": 3}, "tokens": [1], "pairs": "x"}',
    ],
)
def test_an_audit_with_other_contents_is_refused(text, tmp_path):
    file = tmp_path / "audit.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"data: the audit '.*' cannot be used .*; audit the data again"):
        workload.read(str(file), None)


@pytest.mark.parametrize("content", ['{"a":'.encode("utf-16"), b'{"a":' * 100_000, b'{"a": "\xff"}'])
def test_a_file_that_is_no_json_is_left_to_the_reader_of_data_sets(content, tmp_path):
    file = tmp_path / "pairs.json"
    file.write_bytes(content)
    assert workload.has_rows(str(file))


def test_an_audit_of_token_ids_gives_its_lengths_and_its_sharing(tmp_path):
    pytest.importorskip("duckdb")
    rows = [{"chosen_ids": [*range(50), 60 + i, 7], "rejected_ids": [*range(50), 200, 201, 202]} for i in range(8)]
    file = tmp_path / "audit.json"
    file.write_text(json.dumps(audit(write(tmp_path / "ids.jsonl", rows))), encoding="utf-8")
    lengths = workload.read(str(file), None).lengths
    assert lengths == {name: pytest.approx(value, abs=1) for name, value in
                       {"chosen": 52, "rejected": 53, "shared": 50, "longer": 53}.items()}  # fmt: skip


def test_batches_are_drawn_as_an_epoch_draws_them_and_the_same_each_time():
    work = workload.read(FIGURES, None)
    first, second = work.batches(4), work.batches(4)
    assert all(a is b for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True))
    drawn = [id(pair) for batch in first for pair in batch]
    assert len(set(drawn)) == len(drawn)


def test_an_epoch_of_fewer_pairs_than_a_micro_batch_is_one_of_all_of_them():
    work = workload.read("pairs=3,prompt=50,answer=20", 1024)
    few = replace(work, sample=work.sample[:3], pairs=3)
    assert [len(batch) for batch in few.batches(64)] == [3] * len(few.batches(64))
    for layout, load in few.largest(64, 10).items():
        assert load == workload.load(few.sample, layout)
