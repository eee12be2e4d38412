"""A plan as text."""

import pytest

from plaudit.plan import plan
from plaudit.plan_text import describe

FIGURES = "pairs=100000,prompt=300,answer=100"


@pytest.fixture(scope="module")
def found():
    return plan("llama-3.1-8b", FIGURES, "h100", gpus=8)


def lines_of(found):
    return describe(found).splitlines()


def test_the_first_sentence_is_the_advice_and_the_next_line_the_command(found):
    lines = lines_of(found)
    assert lines[0].startswith("llama-3.1-8b (7.5 billion parameters), ")
    assert ": train with " in lines[0]
    assert " on 8 x h100, " in lines[0]
    assert lines[2] == f"  {found['command']}"


def test_the_table_has_both_layouts_beside_each_other(found):
    text = describe(found)
    row = next(line for line in text.splitlines() if line.startswith("tokens a step"))
    numbers = [int(word.replace(",", "")) for word in row.split()[3:]]
    assert numbers == [round(found["layouts"][layout]["tokens_a_step"]) for layout in ("padded", "tree")]
    for title in ("weights", "gradients", "optimizer", "activations", "engine's buffers", "together", "GPU hours"):
        assert f"{title} " in text


def test_each_engine_says_whether_it_fits_and_why_not(found):
    text = describe(found)
    assert "  DDP               does not fit in 80.0 GB: " in text
    assert text.count("<- advised") == 1
    assert "(optimizer 60.0, " in text


def test_what_is_assumed_is_said(found):
    text = describe(found)
    assert "of which a step reaches padded 40%, tree 40% (assumed, not measured)" in text
    assert "pairs: made from the figures pairs=100000,prompt=300,answer=100; " in text
    assert "of the pairs are over max_length 1024 and left out" in text
    assert "between the gpus" in text


def test_one_process_has_no_engines_to_choose_from():
    text = describe(plan("qwen3-0.6b", FIGURES, "h100"))
    assert "engines" not in text
    assert "train with one process on 1 x h100" in text
