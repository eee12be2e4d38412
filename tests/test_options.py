"""The options of `plaudit train`, by flag and in a YAML file, and of the other verbs: each given value in its type."""

import dataclasses
import json

import pytest

from plaudit import options
from plaudit.compat import OLDER_FIELDS
from plaudit.config import RewardConfig
from plaudit.options import UsageError, option, parse_fields


@pytest.fixture(scope="module")
def parser():
    return options.train_parser()


def config_file(folder, text):
    file = folder / "run.yaml"
    file.write_text(text)
    return str(file)


def test_only_what_was_given_is_passed_on(parser):
    assert options._given(parser, ["--learning_rate", "1e-3", "--bf16"]) == {"learning_rate": 1e-3, "bf16": True}


def test_every_field_of_the_config_is_a_flag_and_in_the_help(parser):
    text = parser.format_help()
    for name in RewardConfig.__dataclass_fields__:
        if RewardConfig.__dataclass_fields__[name].init:
            assert f"--{name}" in text


def test_the_help_shows_defaults(parser):
    text = " ".join(parser.format_help().split())
    assert "(default: 1024)" in text
    assert "checkpoints will be written. (default: <model>-Reward)" in text


def test_the_help_has_our_own_options_before_those_of_transformers(parser):
    text = parser.format_help()
    heads = ["\nmodel:", "\ndata:", "\ntraining:", "--learning_rate", "--max_length", "\noptions of transformers"]
    places = [text.index(head) for head in [*heads, "--weight_decay"]]
    assert places == sorted(places)
    assert len(parser._action_groups) == len({group.title for group in parser._action_groups})


def test_resuming_needs_no_value(parser):
    assert options._given(parser, ["--resume_from_checkpoint", "--bf16"]) == {
        "resume_from_checkpoint": "true",
        "bf16": True,
    }


def test_a_yaml_file_gives_the_same_options_as_flags_do(parser, tmp_path):
    file = config_file(
        tmp_path,
        """
        learning_rate: 1e-4
        max_steps: 3
        eval_strategy: no
        gradient-checkpointing: off
        max_length: null
        model_init_kwargs: {dtype: bfloat16, factor: 1e-3}
        lora_target_modules: [q_proj, v_proj]
        resume_from_checkpoint: true
        """,
    )
    given = options._given(parser, ["--config", file])
    kwargs = json.loads(given.pop("model_init_kwargs"))
    assert kwargs == {"dtype": "bfloat16", "factor": 1e-3}
    assert given == {
        "learning_rate": 1e-4,
        "max_steps": 3,
        "eval_strategy": "no",
        "gradient_checkpointing": False,
        "max_length": None,
        "lora_target_modules": ["q_proj", "v_proj"],
        "resume_from_checkpoint": "true",
    }


def test_flags_win_over_the_file(parser, tmp_path):
    file = config_file(tmp_path, "learning_rate: 1e-4\nseed: 7\n")
    for arguments in (["--seed", "8", f"--config={file}"], ["--config", file, "--seed=8"]):
        assert options._given(parser, arguments) == {"learning_rate": 1e-4, "seed": 8}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        ("config: other.yaml", "unknown key 'config'"),
        ("learning_rate: fast", r"learning_rate: invalid float value: 'fast'"),
        ("max_steps: 1.5", "max_steps: invalid int value: '1.5'"),
        ("learning_rate:", "learning_rate: has no value; give one, or leave the key out"),
        ("bf16: perhaps", "bf16: Truthy value expected"),
        ("learning_rate: [1, 2]", "learning_rate: takes one value, not the list [1, 2]"),
        ("dataset_name: [a, b]", "dataset_name: takes one value, not the list ['a', 'b']"),
        ("lora_target_modules: [q_proj, 2]", "lora_target_modules: the list's 2 is no text; write it in quotes"),
        ("lora_target_modules: [q_proj, {a: b}]", "lora_target_modules: the list's {'a': 'b'} is no text"),
        ("seed: 1\nlearning-rate: 1\nlearning_rate: 2", "key 'learning_rate' is there twice; leave one out"),
        ("seed: 1\nseed: 1", "key 'seed' is there twice; leave one out"),
        ("max_length: abc", "max_length: must be a whole number or none, not 'abc'"),
        ("- a\n- b", "holds a list, but must hold 'option: value' lines"),
        ("a: [1", "is not YAML"),
    ],
)
def test_a_config_file_that_is_wrong_is_named_with_its_key(parser, tmp_path, text, message):
    with pytest.raises(ValueError, match=r"config file '.*run\.yaml'") as caught:
        options._given(parser, ["--config", config_file(tmp_path, text)])
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["report_to: []", "report_to: [none]", "include_for_metrics: [inputs, loss]"])
def test_options_that_take_several_values_take_lists(parser, tmp_path, text):
    name, values = text.split(": ")
    given = options._given(parser, ["--config", config_file(tmp_path, text)])
    assert given == {name: [word for word in values.strip("[]").split(", ") if word]}


def test_an_empty_config_file_gives_nothing(parser, tmp_path):
    assert options._given(parser, ["--config", config_file(tmp_path, "# nothing yet\n")]) == {}


@pytest.mark.parametrize("name", sorted(OLDER_FIELDS))
def test_an_older_name_works_as_a_flag_and_as_a_key(parser, tmp_path, name):
    text = {bool: "true", int: "3", float: "0.5", str: "word"}[OLDER_FIELDS[name].type]
    value = {bool: True, int: 3, float: 0.5, str: "word"}[OLDER_FIELDS[name].type]
    assert options._given(parser, [f"--{name}", text]) == {name: value}
    assert options._given(parser, ["--config", config_file(tmp_path, f"{name}: {text}")]) == {name: value}


def test_older_names_stay_out_of_the_help(parser):
    text = parser.format_help()
    assert not [name for name in OLDER_FIELDS if f"--{name} " in text]


# A verb's options from its dataclass


@dataclasses.dataclass(frozen=True)
class Verb:
    data: str = dataclasses.field(metadata={"help": "What.", "positional": True})
    bound: float = option("How far.", 0.5)
    top_k: int | None = option("How many.", also="--best")
    strict: bool = option("Not so strict.", True, flag="--no_strict")
    words: tuple[str, ...] | None = option("Which.", nargs="+")


def given(*arguments):
    return parse_fields(Verb, "try", "DATA", "Tries.", list(arguments))


def test_a_verbs_flags_are_its_fields_in_their_types_and_what_is_not_given_stays_out():
    assert given("x") == {"data": "x"}
    assert given("x", "--bound", "-1e-3", "--best", "3", "--no_strict", "--words", "a", "b") == {
        "data": "x", "bound": -0.001, "top_k": 3, "strict": False, "words": ["a", "b"],
    }  # fmt: skip


@pytest.mark.parametrize("flag", ["--top_k=3", "--top-k=3", "--best=3"])
def test_a_verbs_flag_may_be_written_with_dashes(flag):
    assert given("x", flag, "--no-strict") == {"data": "x", "top_k": 3, "strict": False}
    assert given("x", "--words", "a-b")["words"] == ["a-b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "data"),
        (("x", "--bond", "1"), "unknown argument '--bond'; did you mean '--bound'?"),
        (("x", "--top_k", "many"), "--top_k: invalid int value: 'many'"),
    ],
)
def test_what_a_verb_cannot_understand_is_one_line(arguments, message):
    with pytest.raises(UsageError) as caught:
        given(*arguments)
    assert message in str(caught.value)


@dataclasses.dataclass(frozen=True)
class Checked:
    count: int = option("A number.", 3)
    kind: str | None = option("A word.", choices=("a", "b"))
    names: tuple[str, ...] | None = option("Words.", None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"count": "3"}, "count must be a whole number, not '3'"),
        ({"count": True}, "count must be a whole number, not True"),
        ({"kind": 3}, "kind must be text or None, not 3"),
        ({"kind": "c"}, "kind is 'c', but must be one of 'a', 'b'"),
        ({"names": [1]}, r"names must be a list, each text or None, not \[1\]"),
    ],
)
def test_a_field_of_another_type_or_none_of_its_choices_is_refused_by_name(given, said):
    with pytest.raises(ValueError, match=said):
        options.check_fields(Checked(**given))


def test_fields_as_they_should_be_are_accepted():
    options.check_fields(Checked(4, "a", ["x"]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model_init_kwargs: {a: 2020-01-01}\n", "model_init_kwargs: 2020-01-01 is a date to YAML; write it in quotes"),
        ("model_init_kwargs: {1: a}\n", "model_init_kwargs: the key 1 is no text; write it in quotes"),
        ("model_init_kwargs: {a: {null: b}}\n", "model_init_kwargs: the key None is no text"),
    ],
)
def test_what_json_does_not_have_is_refused_inside_an_option_that_is_a_dict(parser, tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        options._given(parser, ["--config", config_file(tmp_path, text)])


def test_a_name_of_a_million_characters_is_compared_no_further_than_names_go():
    assert options.did_you_mean("x" * 1_000_000, ["seed"]) == ""
