"""Kinds of accelerators by name."""

import pytest

from plaudit import machines


@pytest.mark.parametrize(
    ("text", "name"), [("H100", "h100"), ("NVIDIA H200", "h200"), ("a100", "a100-80gb"), ("amd_mi300x", "mi300x")]
)
def test_a_kind_is_known_in_any_case_and_with_its_maker(text, name):
    assert machines.named(text).name == name


def test_an_unknown_kind_names_the_nearest_and_all():
    with pytest.raises(ValueError, match=r"gpu 'h1000' is not known; did you mean 'h100'\?; known: b200, .*here"):
        machines.named("h1000")


def test_a_kind_without_bfloat16_says_what_to_give():
    assert machines.named("t4").peak("float32") == 8.1e12
    with pytest.raises(ValueError, match=r"gpu 't4' does not compute in bfloat16; give --precision float32"):
        machines.named("t4").peak("bfloat16")


def test_every_kind_computes_faster_in_half_precision_and_faster_than_it_moves():
    for kind in machines.KINDS.values():
        assert kind.bfloat16 == 0 or kind.bfloat16 > kind.float32
        assert 1e10 < kind.memory < 1e12
        assert kind.network <= kind.link < kind.bandwidth < kind.float32
        assert all(0 < share < 1 for share in kind.shares.values())
