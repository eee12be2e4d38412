"""What is measured of texts by columns, against plain Python on each text."""

import random

import numpy as np
import pyarrow as pa
import pytest
from planted_pairs import text

from plaudit import measures

DRAWN = [text(random.Random(seed)) for seed in range(60)]
ODD = ["", " ", "a", "\n", " a\tb ", "a\u00a0b", "日本 語", "é" * 40, "x" * 40, "\x1fa\x1eb"]


def binary(values):
    return pa.array([one.encode() for one in values], pa.large_binary())


def strings(values):
    return pa.array(values, pa.large_string())


def test_words_are_parted_by_ascii_white_space():
    # Python's own split on bytes leaves out the separators from 28 to 31.
    expected = [len(one.translate(dict.fromkeys(range(28, 32), " ")).encode().split()) for one in DRAWN + ODD]
    assert measures.num_words(binary(DRAWN + ODD)).to_pylist() == expected
    whole = binary(["a b", *DRAWN, "c"])
    assert measures.num_words(whole[1:-1]).to_pylist() == expected[: len(DRAWN)]
    assert measures.num_words(pa.array([b"a b", None], pa.large_binary())).to_pylist() == [2, None]


def test_texts_that_differ_in_case_and_spacing_are_made_one():
    assert measures.spaced(strings(["What  is\n it? ", "what is it?", "A\u3000b", "ÜBER"])).to_pylist() == [
        "what is it?",
        "what is it?",
        "a b",
        "über",
    ]
    assert measures.spaced(strings(DRAWN)).to_pylist() == [" ".join(one.lower().split()) for one in DRAWN]


def test_a_first_word_is_cut_at_32_characters_and_none_is_null():
    found = measures.first_words(strings(DRAWN + ODD)).to_pylist()
    # A no-break space is white space to Python and not to the pattern, which takes ASCII's.
    expected = [(one.split(maxsplit=1) or [None])[0] for one in DRAWN + ODD]
    expected[len(DRAWN) + ODD.index("a\u00a0b")] = "a\u00a0b"
    expected[len(DRAWN) + ODD.index("\x1fa\x1eb")] = "\x1fa\x1eb"
    assert found == [None if one is None else one[:32] for one in expected]


@pytest.mark.parametrize("seed", range(3))
def test_common_beginnings_are_those_of_a_plain_comparison(seed):
    draw = random.Random(seed)
    left = ["", "same", "é" * 30, *("ab" * draw.randint(0, 9_000) for _ in range(12))]
    right = [one[: draw.randint(0, len(one))] + draw.choice(["", "x", "ab"]) for one in left]

    def plain(one, other):
        shorter = min(len(one), len(other))
        return next((i for i in range(shorter) if one[i] != other[i]), shorter)

    found = measures.num_common_bytes(binary(left), binary(right))
    assert found.tolist() == [plain(a.encode(), b.encode()) for a, b in zip(left, right, strict=True)]
    assert max(found) > 4096, "the ever longer steps were taken"


def test_a_character_counts_as_shared_only_whole():
    # Both begin with the byte 0xC3 and part within the second character.
    batch = {"chosen": ["aé"], "rejected": ["aè"], "chosen_prompt": ["日本"], "rejected_prompt": [None]}
    columns = {
        name: pa.array([one and one.encode() for one in values], pa.large_binary()) for name, values in batch.items()
    }
    rows = pa.RecordBatch.from_pydict({**columns, "prompt_text": columns["chosen_prompt"]})
    found = measures.measured(rows, is_tokenized=False, with_said=True)
    assert found["shared"].to_pylist() == [2 + 1]
    assert found["prompt_characters"].to_pylist() == [2]
    assert found["said"].to_pylist() == ["日本"]


@pytest.mark.parametrize(
    ("said", "marks"),
    [
        ("# h", 1),
        ("#h", 0),
        ("a\n- b\n  * c\n2) d", 3),
        ("**b**", 2),
        ("`x`", 2),
        ("- a - b", 1),
        ("plain", 0),
        ("\n\n- a", 1),
    ],
)
def test_marks_are_what_markdown_shows_as_such(said, marks):
    columns = {name: binary([value]) for name, value in {"chosen": said, "rejected": "", "chosen_prompt": "q"}.items()}
    nothing = pa.nulls(1, pa.large_binary())
    rows = pa.RecordBatch.from_pydict({**columns, "rejected_prompt": nothing, "prompt_text": columns["chosen_prompt"]})
    assert measures.measured(rows, is_tokenized=False, with_said=False)["chosen_marks"].to_pylist() == [marks]


def test_of_ids_only_lengths_are_measured():
    ids = [np.array(one, "<i4").tobytes() for one in ([1, 2, 3], [1, 2])]
    columns = {name: pa.array([one], pa.large_binary()) for name, one in zip(("chosen", "rejected"), ids, strict=True)}
    nothing = {name: pa.array([b""], pa.large_binary()) for name in ("chosen_prompt", "prompt_text")}
    rows = pa.RecordBatch.from_pydict({**columns, **nothing, "rejected_prompt": pa.nulls(1, pa.large_binary())})
    found = measures.measured(rows, is_tokenized=True, with_said=False)
    assert (found["chosen_characters"].to_pylist(), found["shared"].to_pylist()) == ([3], [2])
    assert found["chosen_words"].null_count == 1
