"""The audit: every figure against a plain count, on every format, with planted faults."""

import json
import math
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("duckdb")

from datasets import Dataset, IterableDataset

from plaudit import audit, audit_text, census, columns, sides, tables
from plaudit.metrics import wilson_interval
from plaudit.options import UsageError, parse_fields

DATA = Path(__file__).parents[2] / "shared" / "data"
WORDS = "Sure Yes No the a cat dog ran, sat. é ü 日本 don\u2019t **bold** `code` # - 1. I I'm".split()


def text(draw, least=0, most=12):
    joined = "".join(
        draw.choice(WORDS) + draw.choice([" ", " ", "\n", "\n- ", "  "]) for _ in range(draw.randint(least, most))
    )
    return joined.strip()


def planted(seed, num_pairs=120):
    """Return (prompt turns of chosen, of rejected, chosen, rejected) with every fault in it somewhere."""
    draw = random.Random(seed)
    prompts = [[("user", text(draw, 1, 8) or "x")] for _ in range(num_pairs // 3)]
    for prompt in prompts[::4]:
        prompt += [("assistant", text(draw, 1, 4) or "y"), ("user", text(draw, 1, 4) or "z")]
    pairs = []
    for _ in range(num_pairs):
        kind, prompt = draw.random(), draw.choice(prompts)
        one, other = text(draw, 1), text(draw, 1)
        if kind < 0.08:
            one = draw.choice(["", " ", one])
        elif kind < 0.16:
            other = one
        elif kind < 0.3 and pairs:
            pairs.append(draw.choice(pairs))
            continue
        elif kind < 0.45 and pairs:
            before_one, before_other, one, other = draw.choice(pairs)
            pairs.append((before_other, before_one, other, one))
            continue
        elif kind < 0.55:
            pairs.append((prompt, draw.choice(prompts), one, other))
            continue
        pairs.append((prompt, prompt, one, other))
    draw.shuffle(pairs)
    return pairs


def as_messages(turns):
    return [{"role": role, "content": said} for role, said in turns]


def with_prompt(pairs):
    return [(before, before, one, other) for before, _, one, other in pairs]


def conversational(pairs):
    return [
        {
            side: as_messages([*before, ("assistant", answer)])
            for side, before, answer in (("chosen", b, c), ("rejected", d, e))
        }
        for b, d, c, e in pairs
    ]


def prompted(pairs):
    return [
        {
            "prompt": as_messages(b),
            "chosen": as_messages([("assistant", c)]),
            "rejected": as_messages([("assistant", r)]),
        }
        for b, _, c, r in with_prompt(pairs)
    ]


def from_value(pairs):
    names = {"user": "human", "assistant": "gpt"}

    def spoken(turns):
        return [{"from": names[role], "value": said} for role, said in turns]

    return [
        {"chosen": spoken([*b, ("assistant", c)]), "rejected": spoken([*d, ("assistant", r)])} for b, d, c, r in pairs
    ]


def sharegpt(pairs):
    return [
        {
            "conversations": [{"from": {"user": "human", "assistant": "gpt"}[role], "value": said} for role, said in b],
            "chosen": {"from": "gpt", "value": c},
            "rejected": {"from": "gpt", "value": r},
        }
        for b, _, c, r in with_prompt(pairs)
    ]


def transcripts(pairs):
    marks = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}

    def written(turns):
        return "".join(marks[role] + said for role, said in turns)

    return [
        {"chosen": written([*b, ("assistant", c)]), "rejected": written([*d, ("assistant", r)])} for b, d, c, r in pairs
    ]


def texts(pairs):
    return [{"prompt": b[0][1], "chosen": c, "rejected": r} for b, _, c, r in pairs]


def as_pairs_of_texts(pairs):
    return [([("user", b[0][1])], [("user", b[0][1])], c, r) for b, _, c, r in pairs]


def blocks(pairs):
    """Contents as lists of blocks, which no column of texts can be."""
    # datasets decodes a text such as "-" or "1." among blocks as a number.
    pairs = [(*([(role, f"said {one}") for role, one in turns] for turns in (b, d)), c, r) for b, d, c, r in pairs]
    return [
        {
            side: [*as_messages(b), {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
            for side, b, answer in (("chosen", b, c), ("rejected", d, r))
        }
        for b, d, c, r in pairs
    ]


FORMATS = {
    "conversational": (conversational, lambda pairs: pairs),
    "prompted": (prompted, with_prompt),
    "from_value": (from_value, lambda pairs: pairs),
    "sharegpt": (sharegpt, with_prompt),
    "transcripts": (transcripts, lambda pairs: [(b, d, c.strip(), r.strip()) for b, d, c, r in pairs]),
    "texts": (texts, as_pairs_of_texts),
    "blocks": (blocks, lambda pairs: pairs),
}


def write(rows, folder, form="jsonl"):
    """Write rows and return the name to audit them by."""
    if form == "jsonl":
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif form == "parquet":
        path = folder / "rows.parquet"
        Dataset.from_list(rows).to_parquet(str(path))
    elif form == "json":
        path = folder / "rows.json"
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path = folder / "saved"
        Dataset.from_list(rows).save_to_disk(str(path))
    return str(path)


# The plain count ------------------------------------------------------------------------------------------------------


def plain_faults(pairs):
    keys = [((tuple(b), c), (tuple(d), r)) for b, d, c, r in pairs]
    seen, swapped = set(), set(keys)
    found = {
        name: []
        for name in (
            "empty",
            "empty_chosen",
            "empty_rejected",
            "identical",
            "duplicates",
            "contradictory",
            "prompts_differ",
        )
    }
    for row, ((b, d, c, r), key) in enumerate(zip(pairs, keys, strict=True)):
        for name, holds in {
            "empty": not c.strip() or not r.strip(),
            "empty_chosen": not c.strip(),
            "empty_rejected": not r.strip(),
            "identical": key[0] == key[1],
            "duplicates": key in seen,
            "contradictory": key[0] != key[1] and key[::-1] in swapped,
            "prompts_differ": b != d,
        }.items():
            if holds:
                found[name].append(row)
        seen.add(key)
    return {
        name: {"count": len(rows), "share": len(rows) / len(pairs), "rows": rows[:10]} for name, rows in found.items()
    }


def plain_accuracy(gaps):
    wins, ties, total = sum(gap > 0 for gap in gaps), sum(gap == 0 for gap in gaps), len(gaps)
    return {
        "official": wins / total,
        "half_credit": (wins + ties / 2) / total,
        "n": total,
        "ties": ties,
        "interval": list(wilson_interval(wins, total)),
    }


def plain_first_word(pairs, halves):
    words = [tuple((answer.split() or [""])[0][:32] for answer in (c, r)) for _, _, c, r in pairs]
    gaps = []
    for (one, other), half in zip(words, halves, strict=True):
        seen = [pair for pair, which in zip(words, halves, strict=True) if which != half]

        def score(word, seen=seen):
            chosen, rejected = (sum(pair[side] == word for pair in seen) for side in (0, 1))
            return (chosen + 1) / (chosen + rejected + 2) if chosen + rejected else 0.5

        gaps.append(score(one) - score(other))
    return plain_accuracy(gaps)


def plain_spread(values):
    at = lambda share: sorted(values)[math.ceil(share * len(values) - 1e-9) - 1]  # noqa: E731
    return {
        "min": min(values),
        **{
            name: at(share)
            for name, share in {"p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}.items()
        },
        "max": max(values),
        "mean": pytest.approx(sum(values) / len(values)),
    }


def plain_common(one, other):
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


MARKS = re.compile(r"(?m)^[ \t]*(?:#{1,6} |[-*+] |[0-9]+[.)] )|\*\*|`")


@pytest.mark.parametrize(("form", "seed"), [("jsonl", 0), ("jsonl", 1), ("parquet", 2), ("json", 3), ("saved", 4)])
@pytest.mark.parametrize("format_name", FORMATS)
def test_every_figure_is_what_a_plain_count_gives(format_name, form, seed, tmp_path):
    if format_name == "blocks" and form in ("parquet", "saved"):
        pytest.skip("Arrow has no column of both texts and lists")
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


@pytest.mark.parametrize("seed", range(3))
def test_the_first_words_score_is_fitted_on_the_other_half(seed, tmp_path):
    pairs = as_pairs_of_texts(planted(seed, 60))
    name = write(texts(pairs), tmp_path)
    reading = sides.reading_of(tables.FileRows(Path(name)), "train")
    with census.Census(2) as table:
        audit._fill(table, "pairs", tables.FileRows(Path(name)), reading)
        halves = [half for (half,) in table.rows("SELECT prompt % 2 FROM pairs ORDER BY row")]
        found = census.figures(table, reading, 8)["baselines"]["first_word_wins"]
    assert {0, 1} == set(halves)
    by_prompt = {(str(b), half) for (b, *_), half in zip(pairs, halves, strict=True)}
    assert len(by_prompt) == len({prompt for prompt, _ in by_prompt}), "a prompt is in one half only"
    expected = plain_first_word(pairs, halves)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("form", ["transcripts", "texts", "prompted"])
def test_the_layouts_cost_what_a_plain_count_of_characters_gives(form, tmp_path):
    written, read = FORMATS[form]
    rows = written(planted(3))
    found = audit.audit(write(rows, tmp_path), batch_size=5)["sharing"]

    def sides_of(row, pair):
        if form == "transcripts":
            return [row[side].rpartition("\n\nAssistant:")[0] for side in ("chosen", "rejected")]
        said = pair[0][0][1] if form == "texts" else "".join(f"{role}\x1f{one}\x1e" for role, one in pair[0])
        return [said, said]

    padded = real = unique = shared = 0
    pairs = [(sides_of(row, pair), pair[2:]) for row, pair in zip(rows, read(planted(3)), strict=True)]
    for first in range(0, len(pairs), 5):
        batch = pairs[first : first + 5]
        every = [before + answer for befores, answers in batch for before, answer in zip(befores, answers, strict=True)]
        padded += len(every) * max(map(len, every))
        real += sum(map(len, every))
        seen = set()
        for (one, other), answers in batch:
            common = len(one) + plain_common(*answers) if one == other else plain_common(one, other)
            shared += common
            unique += (
                len(one)
                + len(other)
                + len(answers[0])
                + len(answers[1])
                - common
                - (len(one) if (one, one == other) in seen and one == other else 0)
            )
            seen.add((one, one == other))
    assert unique < real < padded
    assert found["padded_to_real"] == pytest.approx(padded / real)
    assert found["real_to_unique"] == pytest.approx(real / unique)
    assert found["padded_to_unique"] == pytest.approx(padded / unique)
    assert found["within_pairs"] == pytest.approx(2 * shared / real)


def without_place(found):
    return {**found, "data": None}


def test_the_figures_do_not_depend_on_threads_or_on_where_tables_end(tmp_path, monkeypatch):
    name = write(conversational(planted(4, 200)), tmp_path)
    expected = audit.audit(name, threads=1)
    monkeypatch.setattr(tables, "BATCH_ROWS", 7)
    assert audit.audit(name, threads=4) == expected
    monkeypatch.setattr(audit, "PART_BYTES", 300)
    assert audit.audit(name, threads=3) == expected


def test_counts_do_not_depend_on_the_rows_order(tmp_path):
    pairs = planted(5)
    (tmp_path / "other").mkdir()
    one = audit.audit(write(conversational(pairs), tmp_path))
    other = audit.audit(write(conversational(pairs[::-1]), tmp_path / "other"))
    for name in one["faults"]:
        assert one["faults"][name]["count"] == other["faults"][name]["count"]
    assert one["baselines"] == other["baselines"]
    assert one["lengths"] == other["lengths"]


def test_columns_and_rows_looked_at_one_by_one_give_the_same_batches(tmp_path):
    import pyarrow as pa

    pairs = planted(6)
    rows = conversational(pairs)
    for row in rows[::9]:
        row["chosen"][-1]["role"] = row["rejected"][-1]["role"] = "tool"
    forms = [
        (conversational, rows),
        (prompted, prompted(pairs)),
        (texts, texts(pairs)),
        (transcripts, transcripts(pairs)),
    ]
    for _, each in forms:
        data = Dataset.from_list(each)
        reading = sides.reading_of(data, "train")
        table = data.with_format("arrow")[:]
        assert columns.texts_of(table, reading.layout, reading.is_transcript) is not None, "the fast path must be taken"
        fast = sides.batch_of(table, 0, reading)
        slow = sides._slow_batch(table, np.arange(len(table)), reading)
        assert pa.Table.from_batches([fast]).equals(pa.Table.from_batches([slow]))


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


def test_a_part_of_a_dataset_and_renamed_columns_are_read_as_they_are_now(tmp_path, monkeypatch):
    Dataset.from_list(texts(planted(7))).save_to_disk(str(tmp_path / "saved"))
    saved = Dataset.load_from_disk(str(tmp_path / "saved"))
    swapped = saved.rename_columns({"chosen": "x", "rejected": "chosen"}).rename_column("x", "rejected")
    for rows in (saved.select(range(5, 25)), saved.select([3, 1, 2]), saved, swapped):
        assert [row for table in tables.tables(rows) for row in table.to_pylist()] == rows.to_list()
    monkeypatch.setattr(tables, "BATCH_ROWS", 50)
    whole = tables.open_rows(str(tmp_path / "saved"))["train"]
    assert isinstance(whole, tables.CachedRows)
    assert [row for table in whole.tables() for row in table.to_pylist()] == saved.to_list()
    assert not tables.CachedRows(saved.select(range(5))).is_whole()
    assert not tables.CachedRows(saved.select([3, 1])).is_whole()


def test_rows_that_are_no_pairs_are_counted_and_named_and_keep_their_place(tmp_path):
    rows = prompted(planted(8, 30))
    rows[4]["chosen"] = rows[11]["rejected"] = []
    rows[20]["chosen"][0]["role"] = "user"
    found = audit.audit(write(rows, tmp_path))
    assert found["malformed"]["count"] == 3
    assert found["malformed"]["rows"] == [4, 11, 20]
    assert found["malformed"]["problem"] == "'chosen' is an empty message list; drop the row or fill it"
    assert found["pairs"] == 27
    assert "row 4: 'chosen' is an empty message list" in audit.describe(found)


def test_dropped_votes_and_several_pairs_a_row_are_counted(tmp_path):
    rows = [
        {"prompt": "q", "responses": ["a", "bb", "ccc"], "scores": [1.0, 2.0, 2.0]},
        {"prompt": "q", "responses": ["a", "b"], "scores": [3.0, 3.0]},
        {"prompt": "q", "responses": ["bb", "a"], "scores": [2.0, 1.0]},
    ]
    found = audit.audit(write(rows, tmp_path))
    assert (found["rows"], found["pairs"], found["dropped"]) == (3, 3, {"tied": 2})
    assert found["faults"]["duplicates"] == {"count": 1, "share": 1 / 3, "rows": [2]}
    assert found["margins"]["median"] == 1.0


def test_arena_votes_are_read(tmp_path):
    rows = [
        {
            "prompt": '["q"]',
            "response_a": '["long answer"]',
            "response_b": '["short"]',
            "winner_model_a": w,
            "winner_model_b": 1 - w,
            "winner_tie": 0,
        }
        for w in (1, 0)
    ]
    found = audit.audit(write(rows, tmp_path))
    assert found["faults"]["contradictory"]["rows"] == [0, 1]


def test_sources_models_and_margins_are_counted(tmp_path):
    rows = [
        {
            **row,
            "source": "ab"[i % 2],
            "chosen_model": "m1",
            "rejected_model": f"m{1 + i % 3}",
            "margin": [1.0, -2.0, 0.0][i % 3],
        }
        for i, row in enumerate(texts(planted(9, 60)))
    ]
    found = audit.audit(write(rows, tmp_path))
    for one in found["sources"]["listed"]:
        mine = [row for row in rows if row["source"] == one["source"]]
        assert (one["n"], one["share"]) == (len(mine), len(mine) / len(rows))
        assert one["longer_wins"] == plain_accuracy([len(row["chosen"]) - len(row["rejected"]) for row in mine])
    wins = {one["model"]: (one["n"], one["wins"]) for one in found["models"]["listed"]}
    assert wins == {"m1": (80, 60), "m2": (20, 0), "m3": (20, 0)}
    assert {name: found["margins"][name] for name in ("n", "negative", "zero", "median")} == {
        "n": 60,
        "negative": 20,
        "zero": 20,
        "median": 0.0,
    }


def test_a_columns_name_is_never_a_statement(tmp_path):
    name = 'x"; DROP TABLE pairs; --'
    rows = [{**row, name: "'; DROP TABLE pairs; --"} for row in texts(planted(10, 20))]
    found = audit.audit(write(rows, tmp_path), source=name)
    assert found["sources"]["column"] == name
    assert found["sources"]["listed"][0]["source"] == "'; DROP TABLE pairs; --"
    assert found["pairs"] == len(rows)


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


@pytest.mark.parametrize(
    ("conditions", "held"),
    [
        (["identical"], 1),
        (["duplicates>1%"], 1),
        (["duplicates>99%"], 0),
        (["duplicates>=1"], 1),
        (["duplicates > 10000"], 0),
        (["malformed", "dropped"], 0),
        (["longer_wins>99%", "contradictory"], 1),
        (["longer_wins<99%", "shorter-wins<0.99"], 1),
    ],
)
def test_a_condition_that_holds_is_the_exit_code(name, conditions, held):
    text, code = audit.run(data=name, fail_on=conditions)
    assert code == held
    assert ("failed: " in text) == bool(held)


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


def test_a_failed_condition_says_count_share_and_rows(name):
    found = audit.audit(name)["faults"]["identical"]
    text, _ = audit.run(data=name, fail_on="identical")
    rows = ", ".join(map(str, found["rows"][:5]))
    assert (
        text.splitlines()[-1]
        == f"failed: identical: {found['count']} ({100 * found['share']:.2f} %), first in rows {rows}"
    )


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("duplicate", "unknown name 'duplicate'; did you mean 'duplicates'?; known: empty, identical"),
        ("longer_wins", "needs a bound, such as longer_wins>70%"),
        ("longer_wins>70", "asks for a share above 100 %"),
        ("duplicates>0.5", "asks for a part of a pair"),
        ("duplicates=1", "is no condition"),
        ("duplicates>1.2.3", "is no condition"),
        ("", "is no condition"),
        ("overlap", "cannot be judged: it needs a test split or --test_data"),
        ("benchmark_overlap", "cannot be judged: it needs --benchmarks"),
        ("over_max_length>1%", "cannot be judged: it needs --max_length"),
    ],
)
def test_a_condition_that_cannot_be_judged_is_an_error(name, condition, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        audit.run(data=name, fail_on=[condition])


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


def test_the_temporary_file_is_gone_even_after_an_error(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "here"))
    (tmp_path / "here").mkdir()
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    seen = []
    real = census.connect
    monkeypatch.setattr(census, "connect", lambda folder, threads: seen.append(folder) or real(folder, threads))
    audit.audit(name)
    monkeypatch.setattr(census, "figures", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        audit.audit(name)
    assert len(seen) == 2
    assert list((tmp_path / "here").glob("plaudit-audit-*")) == []


def test_an_audit_loads_no_torch(name):
    code = f"import sys; from plaudit import audit; audit.audit({name!r}); print(*sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_importing_the_audit_loads_nothing_heavy():
    code = "import sys; import plaudit.audit; print(*sorted({'torch', 'transformers', 'datasets', 'duckdb', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_text_names_every_fault_and_rule(name):
    said = audit.describe(audit.audit(name))
    for words in (*audit_text.FAULTS.values(), *audit_text.RULES.values()):
        assert words in said


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
