"""A small fixed set of fuzzed inputs for each target of `make fuzz`, and that the fuzzing finds what it is there to find."""

import json
import warnings

import pytest
from fuzz_targets import TARGETS, run_case
from fuzzing import NotOurs, Refused, TooSlow, attempt, broken, deadline, one_of_these, same, showable
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from plaudit import blocks, converters, options, records, scorable, score_rows, tree

EXAMPLES = 30
QUIET = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
# Each of its cases takes seconds by design; tests/test_tokens.py has one.
IN_THE_LONG_RUN_ONLY = {"template_bombs"}


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in IN_THE_LONG_RUN_ONLY])
def test_bad_input_is_accepted_as_it_is_or_refused_in_our_words(name):
    outcomes = []

    @QUIET
    @given(TARGETS[name].inputs)
    def check(case):
        outcomes.append(run_case(TARGETS[name], case))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check()
    # A target whose inputs all go one way tests half of what it says.
    assert set(outcomes) == {"accepted", "refused"}


def first_failure(name, count=400):
    """Return what the fuzzing of a target says of a fault, None where it finds none."""

    @settings(QUIET, max_examples=count, report_multiple_bugs=False)
    @given(TARGETS[name].inputs)
    def check(case):
        run_case(TARGETS[name], case)

    try:
        check()
    except (Exception, TooSlow) as error:
        return error
    return None


def cut(text):
    return lambda *args: text(*args)[:5]


def unchecked(row, layout, side):
    return list(row[layout.columns[f"{side}_ids"]])


@pytest.mark.parametrize(
    ("target", "module", "name", "fault", "said"),
    [
        ("pairs", records, "text_of", cut(records.text_of), ""),
        ("pairs", records, "text_of", lambda row, column: row[column], "another exception than ours"),
        ("token_rows", records, "ids_of", unchecked, ""),
        ("conversions", converters, "finite_number", lambda value: float(value), "TypeError|ValueError|OverflowError"),
        ("conversions", converters, "_gap", lambda high, low: 0.0, ""),
        (
            "json_lines",
            blocks,
            "_json_line",
            lambda row, **_: json.dumps({"lost": 1}).encode(),
            "not written as it was",
        ),
        ("scores", score_rows, "_labels", lambda value, count: value, ""),
        ("ids_to_score", scorable, "_attended", lambda row, mask: list(row), ""),
        ("config_files", options, "_may_be_none", lambda name: name["x"], "TypeError"),
    ],
)
def test_a_planted_fault_is_found(monkeypatch, target, module, name, fault, said):
    monkeypatch.setattr(module, name, fault)
    found = first_failure(target)
    assert found is not None
    assert not said or any(word in str(found) for word in said.split("|")), found


# What counts as an error of ours.


def test_an_error_that_we_raise_and_that_names_the_place_is_a_refusal():
    with pytest.raises(Refused, match="train row 3: 'chosen' is None"):
        attempt(
            lambda: records.canonical({}, records.Layout("standard", {"chosen": "chosen"}), "train row 3"),
            "train row 3",
        )


def test_an_error_without_the_place_is_none_of_ours():
    with pytest.raises(NotOurs, match="a message without any of"):
        attempt(lambda: records.canonical({}, records.Layout("standard", {"chosen": "chosen"}), "here"), "train row 3")


def test_an_operation_that_fails_in_our_file_is_none_of_ours():
    with pytest.raises(NotOurs, match=r"not raised by a raise statement \(tree.py"):
        attempt(lambda: tree.layout(3))


def test_another_librarys_error_is_none_of_ours():
    with pytest.raises(NotOurs, match=r"raised in .*decoder.py|another exception than ours: JSONDecodeError"):
        attempt(lambda: json.loads("{"))


def test_a_case_that_does_not_end_is_stopped():
    def forever():
        while True:
            try:
                while True:
                    pass
            except Exception:
                continue

    with pytest.raises(TooSlow, match="did not end within 0.2 seconds"), deadline(0.2):
        forever()


# Inputs.


def test_a_broken_example_leaves_the_example_whole():
    example = {"a": [1, {"b": "c"}]}
    changed = find(
        broken(one_of_these([example])), lambda value: value != example, settings=settings(QUIET, max_examples=500)
    )
    assert changed != example
    assert example == {"a": [1, {"b": "c"}]}


def test_the_same_draws_make_the_same_inputs():
    rounds = []
    for _ in range(2):
        rounds.append([])

        @settings(QUIET, max_examples=60)
        @given(st.one_of(TARGETS["pairs"].inputs, TARGETS["items_to_score"].inputs))
        def collect(case):
            rounds[-1].append(showable(case))

        collect()
    assert rounds[0] == rounds[1]
    assert len(set(rounds[0])) > 30


def test_whether_two_values_are_the_same_is_told_by_value_and_type():
    nan = float("nan")
    assert same({"a": [nan, 1]}, {"a": [float("nan"), 1]})
    assert not same([1], [True])
    assert not same([1], (1,))
    assert not same({"a": 1, "b": 2}, {"b": 2, "a": 1})
