"""Runs of words that benchmarks and training texts share, against a plain search."""

import random
import unicodedata

import numpy as np
import pyarrow as pa
import pytest

from plaudit import overlap

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


def plain_words(text):
    words, word = [], ""
    for char in text:
        ascii_word = char.isascii() and char.isalnum()
        is_word = ascii_word or (not char.isascii() and unicodedata.category(char)[0] in "LNM")
        unspaced = is_word and not char.isascii() and unicodedata.name(char, "").startswith(UNSPACED)
        if word and (not is_word or unspaced):
            words.append(word)
            word = ""
        if unspaced:
            words.append(char.lower())
        elif is_word:
            word += char.lower()
    return words + ([word] if word else [])


def plain_runs(text, words):
    said = plain_words(text)
    return [" ".join(said[i : i + words]) for i in range(len(said) - words + 1)]


PIECES = [
    "a",
    "B",
    "cat",
    "Dog's",
    "x1",
    "É",
    "don\u2019t",
    "naïve",
    "日本",
    "語",
    "—",
    "...",
    "42",
    "ß",
    "Ω",
    "한국",
    "e\u0301",
]


def make_text(draw, most=30):
    return "".join(
        draw.choice(PIECES) + draw.choice([" ", " ", "\n", ", ", "", "  "]) for _ in range(draw.randint(0, most))
    )


def found_runs(benchmark_texts, train, words=3, parts=3):
    rows = np.arange(len(benchmark_texts))
    index = overlap.Index([overlap.Benchmark("b", benchmark_texts, rows, np.ones(len(rows), bool), len(rows))], words)
    numbers = np.arange(len(train))
    # Backwards, as threads may: the least row counts all the same.
    for part in np.array_split(numbers, parts)[::-1]:
        index.look(pa.array([train[i] for i in part], pa.large_string()), part)
    return index


@pytest.mark.parametrize("seed", range(2))
def test_words_are_those_of_a_plain_search(seed):
    draw = random.Random(seed)
    for _ in range(50):
        text = make_text(draw)
        assert overlap.runs_of(text, 3) == plain_runs(text, 3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("part_bytes", [1, 200, 1 << 19])
def test_every_shared_run_is_found_with_its_first_row_and_no_other(seed, part_bytes, monkeypatch):
    monkeypatch.setattr(overlap, "_PART_BYTES", part_bytes)
    draw = random.Random(seed)
    benchmark = [make_text(draw) for _ in range(40)]
    train = [make_text(draw) for _ in range(60)] + [benchmark[3].upper(), "", "ß"]
    index = found_runs(benchmark, train)
    first = {}
    for row, text in enumerate(train):
        for run in plain_runs(text, 3):
            first.setdefault(run, row)
    expected = {}
    for text, said in enumerate(benchmark):
        for at, run in enumerate(plain_runs(said, 3)):
            expected[text, at] = first.get(run)
    found = {
        (int(text), int(at)): None if row == overlap._UNSEEN else int(row)
        for text, at, row in zip(index.text_of, index.run_of, index.found_in, strict=True)
    }
    assert found == expected
    assert None in expected.values()
    assert any(row is not None for row in expected.values())


def test_runs_of_other_words_with_the_same_hash_do_not_count(monkeypatch):
    # Hashes so poor that nearly all runs have the same one.
    real = overlap.run_hashes

    def poor(data, offsets, words):
        runs, at, bounds = real(data, offsets, words)
        return runs % np.uint64(2), at, bounds

    monkeypatch.setattr(overlap, "run_hashes", poor)
    index = found_runs(["a b c d e", "x y z"], ["q r s t u v", "b c d", "z y x", "x y z"], parts=1)
    figures = index.figures()["b"]
    assert figures["prompts_found"] == 2
    assert [(one["run"], one["train_row"]) for one in figures["examples"]] == [("b c d", 1), ("x y z", 3)]


def test_runs_do_not_reach_from_one_text_into_the_next():
    assert found_runs(["a b c"], ["x a b", "c d"]).figures()["b"]["prompts_found"] == 0
    assert found_runs(["a b", "c"], ["a b c"]).figures()["b"]["prompts_found"] == 0


def test_a_text_larger_than_a_part_is_looked_through_whole(monkeypatch):
    monkeypatch.setattr(overlap, "_PART_BYTES", 64)
    long = " ".join(f"w{i}" for i in range(50_000))
    index = found_runs(["w49997 w49998 w49999"], ["short", long, "w49997"], parts=1)
    assert index.figures()["b"]["examples"][0]["train_row"] == 1


def test_figures_count_rows_prompts_and_answers():
    texts = ["a b c", "q q q", "d e f", "a b c d", "q q"]
    benchmark = overlap.Benchmark("b", texts, np.array([0, 0, 0, 1, 1]), np.array([True, False, False, True, False]), 3)
    index = overlap.Index([benchmark], 3)
    index.look(pa.array(["x d E f", "q"], pa.large_string()), np.array([7, 8]))
    assert index.figures()["b"] == {
        "rows": 3,
        "rows_found": 1,
        "rows_share": 1 / 3,
        "prompts": 2,
        "prompts_found": 0,
        "prompts_share": 0.0,
        "answers": 3,
        "answers_found": 1,
        "answers_share": 1 / 3,
        "words": 3,
        "examples": [{"row": 0, "in": "answer", "run": "d e f", "train_row": 7}],
    }


def test_a_benchmark_without_a_run_finds_nothing():
    assert found_runs(["a b"], ["a b c d"]).figures()["b"]["prompts_found"] == 0


MESSAGES = [{"role": "user", "content": "asked"}, {"role": "assistant", "content": "said"}]


@pytest.mark.parametrize(
    ("row", "prompts", "answers"),
    [
        (
            {"id": 1, "prompt": "asked", "chosen": "said", "rejected": "other", "subset": "s"},
            ["asked"],
            ["said", "other"],
        ),
        ({"prompt": "asked", "chosen": ["a", "b"], "rejected": ["c"], "models": ["m"]}, ["asked"], ["a", "b", "c"]),
        (
            {"question": "asked", "response_A": "a", "response_B": "b", "response_model": "m", "label": "A>B"},
            ["asked"],
            ["a", "b"],
        ),
        ({"prompt": "asked", "response_1": "a", "response_2": "b", "winner": "model_a"}, ["asked"], ["a", "b"]),
        (
            {"conversation_input": MESSAGES[:1], "chosen": {"answer": "a", "llm_name": "m"}, "reject": {"answer": "b"}},
            ["asked"],
            ["a", "b"],
        ),
        (
            {"conversation_input": MESSAGES[:1], "bon_best": {"answer": "a"}, "loser_list": [{"answer": "b"}]},
            ["asked"],
            ["a", "b"],
        ),
        ({"prompt": "asked", "responses": ["a", "b"], "correct": [True, False]}, ["asked"], ["a", "b"]),
        (
            {"chosen": MESSAGES, "rejected": [*MESSAGES[:1], {"role": "assistant", "content": "no"}]},
            ["asked"],
            ["said", "no"],
        ),
        (
            {"chosen": "\n\nHuman: asked\n\nAssistant: a", "rejected": "\n\nHuman: asked\n\nAssistant: b"},
            ["\n asked"],
            [" a", " b"],
        ),
        (
            {"conversations": [{"from": "human", "value": "asked"}], "chosen": {"from": "gpt", "value": "a"}},
            ["asked"],
            ["a"],
        ),
    ],
)
def test_the_prompt_and_answers_of_every_known_schema_are_read(row, prompts, answers):
    assert overlap.texts_of(row) == (prompts, answers)


def test_a_benchmark_of_unknown_columns_is_an_error_with_the_known_ones():
    from datasets import Dataset

    rows = {"train": Dataset.from_list([{"input": "a", "output": "b"}])}
    with pytest.raises(
        ValueError, match=r"benchmark 'x': no prompt or answer in the columns 'input', 'output'; known are 'prompt'"
    ):
        overlap.read_benchmark("x", rows)
