"""What a RewardConfig accepts, resolves and refuses."""

import copy
import dataclasses
import inspect
import json
import pickle
import time
import warnings

import numpy as np
import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from plaudit import config as config_module
from plaudit.config import RewardConfig, from_training_arguments

OWN_DEFAULTS = {
    "model_init_kwargs": None,
    "chat_template_path": None,
    "disable_dropout": True,
    "dataset_num_proc": None,
    "eos_token": None,
    "pad_token": None,
    "max_length": 1024,
    "pad_to_multiple_of": None,
    "center_rewards_coefficient": None,
    "activation_offloading": False,
    "trust_remote_code": False,
    "packing": "auto",
    "eval_benchmarks": None,
}
on_a_cpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="says what happens without an accelerator")


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        yield


def parse(*flags):
    (parsed,) = HfArgumentParser(RewardConfig).parse_args_into_dataclasses(list(flags), look_for_args_file=False)
    return parsed


def test_the_defaults_are_the_documented_ones():
    made = RewardConfig()
    assert {name: getattr(made, name) for name in OWN_DEFAULTS} == OWN_DEFAULTS
    assert made.logging_steps == 10
    assert made.learning_rate == 1e-4
    assert made.gradient_checkpointing is True
    assert made.logging_nan_inf_filter is False
    assert made.bf16 is (torch.accelerator.is_available() and config_module._supports_bf16())


def test_every_own_field_is_known_here_and_has_a_help_text():
    inherited = {each.name for each in dataclasses.fields(TrainingArguments)}
    own = {each.name: each for each in dataclasses.fields(RewardConfig) if each.name not in inherited}
    assert set(own) == set(OWN_DEFAULTS)
    assert all(len(each.metadata["help"]) > 20 for each in own.values())


def test_no_other_default_differs_from_transformers():
    ours = {each.name: each.default for each in dataclasses.fields(RewardConfig)}
    changed = {each.name for each in dataclasses.fields(TrainingArguments) if ours[each.name] != each.default}
    assert changed == {"logging_steps", "learning_rate", "gradient_checkpointing", "logging_nan_inf_filter", "bf16"}


# Checkpointing


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, True),
        ({"gradient_checkpointing": False}, False),
        ({"activation_checkpointing": False}, False),
        ({"activation_checkpointing": True}, True),
        ({"gradient_checkpointing": False, "activation_checkpointing": True}, True),
    ],
)
def test_both_names_of_checkpointing_work_without_a_warning(given, expected):
    made = RewardConfig(**given)
    assert made.gradient_checkpointing is expected
    assert made.activation_checkpointing is expected


@pytest.mark.parametrize("name", ["gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"])
def test_both_names_of_the_checkpointing_options_work_without_a_warning(name):
    made = RewardConfig(**{name: {"use_reentrant": False}})
    assert made.gradient_checkpointing_kwargs == made.activation_checkpointing_kwargs == {"use_reentrant": False}


# Precision


@on_a_cpu
def test_bf16_is_off_without_an_accelerator_and_does_not_ask_for_the_cpu():
    made = RewardConfig()
    assert made.bf16 is False
    assert made.use_cpu is False


@on_a_cpu
@pytest.mark.parametrize("name", ["bf16", "bf16_full_eval"])
def test_explicit_bf16_without_an_accelerator_is_the_cpus(name):
    made = RewardConfig(**{name: True})
    assert getattr(made, name) is True
    assert made.use_cpu is True
    assert made.device.type == "cpu"


@on_a_cpu
def test_fp16_without_an_accelerator_is_an_error_that_offers_bf16():
    with pytest.raises(ValueError, match="fp16=True needs an accelerator, and this machine has none; set bf16=True"):
        RewardConfig(fp16=True)


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ({}, {}, True),
        ({"fp16": True}, {}, False),
        ({"use_cpu": True}, {}, False),
        ({"bf16": False}, {}, False),
        ({}, {"ACCELERATE_USE_CPU": "true"}, False),
        ({}, {"ACCELERATE_MIXED_PRECISION": "fp16"}, False),
        ({}, {"ACCELERATE_MIXED_PRECISION": "no"}, True),
    ],
)
def test_unset_bf16_is_on_where_an_accelerator_supports_it_and_nothing_else_is_asked_for(
    monkeypatch, given, environment, expected
):
    monkeypatch.setattr(config_module.torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(config_module, "_supports_bf16", lambda: True)
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: None)
    monkeypatch.setattr(RewardConfig, "world_size", 1)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made = RewardConfig(**given)
    assert made.bf16 is expected
    assert made.use_cpu is given.get("use_cpu", False)


def test_an_accelerator_that_only_emulates_bf16_does_not_count(monkeypatch):
    cuda = config_module.torch.cuda
    monkeypatch.setattr(config_module.torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(config_module.torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert config_module._supports_bf16() is False
    monkeypatch.setattr(cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert config_module._supports_bf16() is True
    monkeypatch.setattr(config_module.torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert config_module._supports_bf16() is False


# model_init_kwargs


@pytest.mark.parametrize("value", [{"dtype": "bfloat16"}, '{"dtype": "bfloat16"}', {"torch_dtype": "bfloat16"}])
def test_model_init_kwargs_are_a_dict_or_json(value):
    assert RewardConfig(model_init_kwargs=value).model_init_kwargs == {"dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("dtype=bfloat16", "model_init_kwargs is not JSON: 'dtype=bfloat16'.*--model_init_kwargs"),
        ("[1]", "must be a dict or JSON of one, not list"),
        (7, "must be a dict or JSON of one, not int: 7"),
        ({"num_labels": 2}, "num_labels=2; leave it out, num_labels is always 1"),
        ('{"num_labels": 1}', "num_labels is always 1"),
    ],
)
def test_bad_model_init_kwargs_are_an_error_that_says_how_to_write_them(value, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(model_init_kwargs=value)


def test_the_callers_containers_are_not_changed():
    accelerator = AcceleratorConfig()
    given = {
        "model_init_kwargs": {"torch_dtype": torch.bfloat16, "nested": {"dtype": torch.float16}},
        "fsdp_config": {"fsdp_min_num_params": 0},
        "include_for_metrics": ["loss"],
        "accelerator_config": accelerator,
    }
    before = copy.deepcopy({name: value for name, value in given.items() if value is not accelerator})
    RewardConfig(fsdp=True, gradient_checkpointing=False, **given).to_dict()
    assert {name: given[name] for name in before} == before
    assert "use_configured_state" in vars(accelerator)


def test_to_dict_changes_nothing_and_shows_our_tokens_but_not_the_hubs():
    made = RewardConfig(
        model_init_kwargs={"dtype": torch.bfloat16, "nested": {"dtype": torch.float16}},
        eos_token="</s>",
        hub_token="secret",
    )
    values = made.to_dict()
    assert values["model_init_kwargs"] == {"dtype": "bfloat16", "nested": {"dtype": "float16"}}
    assert values["eos_token"] == "</s>"
    assert values["pad_token"] is None
    assert "secret" not in json.dumps(values)
    assert made.model_init_kwargs == {"dtype": torch.bfloat16, "nested": {"dtype": torch.float16}}
    assert not {"given", "_given"} & set(values)


def test_printing_a_config_shows_no_access_token():
    made = RewardConfig(hub_token="secret")
    assert "secret" not in repr(made) + str(made)


# Values that cannot work


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"max_length": 0},
            "max_length must be a whole number of at least 1, not 0; None is the value to drop no pair",
        ),
        ({"max_length": "abc"}, "max_length must be .* not 'abc'"),
        ({"max_length": 10.5}, "max_length must be .* not 10.5"),
        ({"max_length": True}, "max_length must be .* not True"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of must be .* not 0"),
        ({"dataset_num_proc": 0}, "dataset_num_proc must be .* not 0; None"),
        ({"center_rewards_coefficient": -0.1}, "center_rewards_coefficient must be .* not -0.1; 0.01"),
        ({"center_rewards_coefficient": float("nan")}, "center_rewards_coefficient must be .* not nan"),
        ({"center_rewards_coefficient": float("inf")}, "center_rewards_coefficient must be .* not inf"),
        ({"center_rewards_coefficient": "0.01"}, "center_rewards_coefficient must be .* not '0.01'"),
        ({"disable_dropout": "False"}, "disable_dropout must be True or False, not 'False'"),
        ({"eos_token": 2}, "eos_token must be the token's text, not 2"),
        ({"pad_token": 0}, "pad_token must be the token's text, not 0"),
        ({"packing": "tree"}, "packing must be 'auto' or 'off', not 'tree'"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 has no meaning here.*'margin' column"),
        (
            {"per_device_train_batch_size": 0},
            "per_device_train_batch_size must be a whole number of at least 1, not 0; leave it out for 8",
        ),
        ({"per_device_eval_batch_size": 2.5}, "per_device_eval_batch_size must be a whole number .* not 2.5"),
        ({"gradient_accumulation_steps": True}, "gradient_accumulation_steps must be a whole number .* not True"),
        ({"num_train_epochs": 0}, "num_train_epochs must be a finite number above 0, not 0; leave it out for 3"),
        ({"num_train_epochs": float("inf")}, "num_train_epochs must be a finite number above 0, not inf"),
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1, or -1 for num_train_epochs, not 0"),
        ({"max_steps": -5}, "max_steps must be .* not -5"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number of at least 0, not nan; .* 0.0001"),
        ({"learning_rate": -1e-4}, "learning_rate must be .* not -0.0001"),
        ({"learning_rate": "1e-4"}, "learning_rate must be a number, not the text '1e-4'; write it without quotes"),
        ({"learning_rate": None}, "learning_rate must be .* not None"),
        ({"weight_decay": -0.1}, "weight_decay must be .* not -0.1"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm must be .* not inf"),
        ({"warmup_steps": -1}, "warmup_steps must be .* not -1"),
        (
            {"logging_steps": 0},
            "logging_steps must be a finite number above 0 while logging_strategy is 'steps', not 0",
        ),
        ({"eval_strategy": "steps", "eval_steps": 0}, "eval_steps must be .* above 0 .* not 0; leave it out$"),
        ({"save_steps": -1, "save_strategy": "no"}, "save_steps must be a finite number of at least 0, not -1"),
        ({"save_steps": 0}, "save_steps must be .* above 0 while save_strategy is 'steps', not 0"),
        ({"seed": 1.5}, "seed must be a whole number from 0 to 4294967295, not 1.5; leave it out for 42"),
        ({"data_seed": -1}, "data_seed must be .* not -1; leave it out$"),
        ({"adam_beta1": 1.0}, "adam_beta1 must be a finite number of at least 0 and below 1, not 1.0"),
        ({"adam_epsilon": float("nan")}, "adam_epsilon must be .* not nan"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers must be a whole number of at least 0, not -1"),
        ({"bf16": "no"}, "bf16 must be True or False, not 'no'"),
        ({"gradient_checkpointing": "x"}, "gradient_checkpointing must be True or False, not 'x'"),
        ({"do_train": 1}, "do_train must be True or False, not 1"),
        ({"gradient_checkpointing_kwargs": "x"}, "gradient_checkpointing_kwargs is not JSON: 'x'"),
        ({"gradient_checkpointing_kwargs": [1]}, r"gradient_checkpointing_kwargs must be a dict .* not list: \[1\]"),
        ({"lr_scheduler_kwargs": "3"}, "lr_scheduler_kwargs must be a dict or JSON of one, not int: 3"),
        ({"output_dir": ""}, "output_dir is '', which names no directory; name one, or leave it out"),
        ({"eval_do_concat_batches": False}, "eval_do_concat_batches=False would have no effect.*batch_eval_metrics"),
    ],
)
def test_a_value_that_cannot_work_is_an_error_with_the_value_and_the_cure(given, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(**given)


def test_values_at_the_edge_work():
    made = RewardConfig(
        max_length=None, pad_to_multiple_of=1, dataset_num_proc=1, center_rewards_coefficient=0, packing="off"
    )
    assert made.max_length is None
    assert made.center_rewards_coefficient == 0


def test_numbers_of_transformers_at_the_edge_work():
    made = RewardConfig(
        learning_rate=0,
        max_steps=1,
        num_train_epochs=0,
        logging_strategy="no",
        logging_steps=0,
        warmup_steps=0.1,
        save_steps=0.5,
        adam_beta1=0,
        lr_scheduler_kwargs='{"num_cycles": 2}',
    )
    assert made.lr_scheduler_kwargs == {"num_cycles": 2}
    assert RewardConfig(learning_rate=np.float32(1e-3), seed=np.int64(3)).seed == 3


def test_a_flag_with_a_number_that_cannot_work_is_the_same_error():
    with pytest.raises(ValueError, match="learning_rate must be a finite number .* not nan"):
        parse("--learning_rate", "nan")
    with pytest.raises(ValueError, match="max_steps must be .* not 0"):
        parse("--max_steps", "0")


def test_averaging_a_process_at_a_time_is_said_to_have_no_effect(monkeypatch):
    lines = []
    monkeypatch.setattr(config_module, "say", lines.append)
    RewardConfig(average_tokens_across_devices=False)
    assert not lines
    monkeypatch.setattr(RewardConfig, "world_size", 2)
    RewardConfig(average_tokens_across_devices=False)
    (line,) = lines
    assert "average_tokens_across_devices=False has no effect" in line


def test_report_to_none_means_no_reports():
    assert RewardConfig(report_to=None).report_to == []


# Older names and what was given


def test_older_names_are_translated_and_the_new_ones_count_as_given():
    with pytest.warns(FutureWarning, match="warmup_ratio"):
        made = RewardConfig(warmup_ratio=0.1)
    assert made.warmup_steps == 0.1
    assert made.given == {"warmup_steps"}


def test_the_warning_of_an_older_name_points_at_the_callers_line():
    with pytest.warns(FutureWarning) as caught:
        RewardConfig(warmup_ratio=0.1)
    assert caught[0].filename == __file__


def test_an_unknown_name_is_pythons_own_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_lenght'"):
        RewardConfig(max_lenght=3)


def test_positional_arguments_work_and_one_given_twice_is_an_error():
    made = RewardConfig("runs", 4)
    assert made.output_dir == "runs"
    assert made.per_device_train_batch_size == 4
    assert made.given == {"output_dir", "per_device_train_batch_size"}
    with pytest.raises(TypeError, match="multiple values for argument 'output_dir'"):
        RewardConfig("runs", output_dir="other")


def test_the_constructors_signature_names_every_field():
    parameters = inspect.signature(RewardConfig).parameters
    assert {"output_dir", "max_length", "packing"} <= set(parameters)


def test_a_value_given_at_its_default_counts_as_given():
    assert RewardConfig(max_length=1024).given == {"max_length"}
    assert RewardConfig().given == frozenset()


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, dataclasses.replace, lambda made: pickle.loads(pickle.dumps(made))],
    ids=["copy", "deepcopy", "replace", "pickle"],
)
def test_a_copy_knows_what_was_given(copied):
    made = copied(RewardConfig(max_length=7, gradient_checkpointing=False))
    assert made.max_length == 7
    assert made.gradient_checkpointing is False
    assert {"max_length", "gradient_checkpointing"} <= made.given
    assert not {"output_dir", "packing", "logging_steps"} & made.given


def test_replace_takes_older_names_and_keeps_the_rest():
    made = RewardConfig(max_length=7)
    with pytest.warns(FutureWarning, match="adafactor"):
        changed = dataclasses.replace(made, adafactor=True)
    assert changed.optim == "adafactor"
    assert changed.max_length == 7


def test_a_saved_config_loads_again(tmp_path):
    made = RewardConfig(max_length=7, model_init_kwargs={"dtype": torch.bfloat16})
    torch.save(made, tmp_path / "args.bin")
    loaded = torch.load(tmp_path / "args.bin", weights_only=False)
    assert loaded.to_dict() == made.to_dict()
    assert loaded.given == made.given


def test_a_config_made_of_its_own_dict_is_the_same():
    made = RewardConfig(max_length=7, eos_token="</s>", learning_rate=1e-3)
    again = RewardConfig(**{name: value for name, value in made.to_dict().items() if name != "hub_token"})
    assert again.to_dict() == made.to_dict()


def test_a_derived_dataclass_works_and_knows_what_was_given():
    @dataclasses.dataclass(repr=False)
    class Derived(RewardConfig):
        extra: int = 3

    assert Derived(max_length=7, extra=4).given == {"max_length", "extra"}


# Plain TrainingArguments


def test_plain_training_arguments_keep_their_values_and_are_not_changed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        plain = TrainingArguments("runs", learning_rate=3e-4, hub_token="secret", gradient_checkpointing=False)
    before = copy.deepcopy(vars(plain))
    made = from_training_arguments(plain)
    assert isinstance(made, RewardConfig)
    assert made.learning_rate == 3e-4
    assert made.hub_token == "secret"
    assert made.output_dir == "runs"
    assert made.logging_steps == 500
    assert made.gradient_checkpointing is False
    assert made.bf16 is False
    assert made.logging_nan_inf_filter is True
    assert {name: getattr(made, name) for name in OWN_DEFAULTS} == OWN_DEFAULTS
    after = vars(plain)
    assert {name: after[name] for name in before if name != "distributed_state"} == {
        name: before[name] for name in before if name != "distributed_state"
    }
    assert made.accelerator_config is not plain.accelerator_config


def test_plain_training_arguments_without_a_directory_give_none():
    assert "output_dir" not in from_training_arguments(TrainingArguments()).given
    assert "output_dir" in from_training_arguments(TrainingArguments("runs")).given


def test_a_reward_config_is_returned_as_it_is():
    made = RewardConfig()
    assert from_training_arguments(made) is made


# The command line's parser


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ([], "max_length", 1024),
        (["--max_length", "512"], "max_length", 512),
        (["--max_length", "none"], "max_length", None),
        (["--bf16"], "bf16", True),
        (["--bf16", "False"], "bf16", False),
        (["--no_gradient_checkpointing"], "gradient_checkpointing", False),
        (["--gradient_checkpointing", "False"], "activation_checkpointing", False),
        (["--activation_checkpointing", "False"], "gradient_checkpointing", False),
        (["--no_disable_dropout"], "disable_dropout", False),
        (["--disable_dropout", "False"], "disable_dropout", False),
        (["--model_init_kwargs", '{"dtype": "bfloat16"}'], "model_init_kwargs", {"dtype": "bfloat16"}),
        (["--chat_template_path", "a.jinja"], "chat_template_path", "a.jinja"),
        (["--dataset_num_proc", "2"], "dataset_num_proc", 2),
        (["--eos_token", "</s>"], "eos_token", "</s>"),
        (["--pad_token", "<pad>"], "pad_token", "<pad>"),
        (["--pad_to_multiple_of", "8"], "pad_to_multiple_of", 8),
        (["--center_rewards_coefficient", "0.01"], "center_rewards_coefficient", 0.01),
        (["--activation_offloading"], "activation_offloading", True),
        (["--trust_remote_code"], "trust_remote_code", True),
        (["--packing", "off"], "packing", "off"),
        (["--logging_nan_inf_filter"], "logging_nan_inf_filter", True),
        (["--learning_rate", "1e-5"], "learning_rate", 1e-5),
    ],
)
def test_a_flag_sets_its_field(flags, name, value):
    assert getattr(parse(*flags), name) == value


def test_a_parsers_untouched_fields_do_not_count_as_given():
    # The parser itself turns the defaults of these two into something else.
    assert parse("--max_length", "512").given - {"debug", "include_num_input_tokens_seen"} == {"max_length"}


def test_a_bad_number_on_the_command_line_is_the_parsers_error(capsys):
    with pytest.raises(SystemExit):
        parse("--max_length", "abc")
    assert "--max_length" in capsys.readouterr().err


def test_the_parsers_help_can_be_shown(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    assert "--center_rewards_coefficient" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"accelerator_config": {"split_batches": True}}, "split_batches=True would have no effect"),
        ({"accelerator_config": {"even_batches": False}}, "even_batches=False would have no effect"),
        ({"train_sampling_strategy": "batch_rebalance"}, "group_by_length"),
        ({"label_names": ["labels"]}, "label_names=.*no effect"),
    ],
)
def test_an_inherited_option_without_effect_is_an_error(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(output_dir=str(tmp_path), **values)


def test_checkpointing_by_fsdp_takes_the_place_of_our_default(tmp_path):
    fsdp = {"fsdp": "full_shard", "fsdp_config": {"version": 2, "activation_checkpointing": True}}
    assert not RewardConfig(output_dir=str(tmp_path), **fsdp).activation_checkpointing
    assert RewardConfig(output_dir=str(tmp_path), gradient_checkpointing=True, **fsdp).activation_checkpointing
    assert RewardConfig(
        output_dir=str(tmp_path), fsdp="full_shard", fsdp_config={"version": 2}
    ).activation_checkpointing


@pytest.mark.parametrize("form", ["file", "text", "launcher"])
def test_checkpointing_by_fsdp_is_seen_in_every_form_it_is_asked_for(tmp_path, monkeypatch, form):
    text = json.dumps({"version": 2, "fsdp_activation_checkpointing": True})
    (tmp_path / "fsdp.json").write_text(text)
    fsdp = {
        "file": {"fsdp": "full_shard", "fsdp_config": str(tmp_path / "fsdp.json")},
        "text": {"fsdp": "full_shard", "fsdp_config": text},
        "launcher": {},
    }[form]
    if form == "launcher":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", "true")
    assert not RewardConfig(output_dir=str(tmp_path), **fsdp).activation_checkpointing


def test_an_fsdp_config_without_fsdp_changes_nothing(tmp_path):
    config = {"version": 2, "activation_checkpointing": True}
    assert RewardConfig(output_dir=str(tmp_path), fsdp_config=config).activation_checkpointing


# Values of another type than the field's.


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("output_dir", 3, "output_dir must be text or None, not 3"),
        ("run_name", ["a"], r"run_name must be text or None, not \['a'\]"),
        ("save_total_limit", "3", "save_total_limit must be a whole number or None, not '3'"),
        ("save_total_limit", 2.5, "save_total_limit must be a whole number or None, not 2.5"),
        ("eval_strategy", "sometimes", "eval_strategy must be one of 'no', 'steps', 'epoch', not 'sometimes'"),
        ("optim", "adam", "optim must be one of 'adamw_torch', "),
        ("include_for_metrics", "inputs", "include_for_metrics must be a list, each text, not 'inputs'"),
        ("eval_benchmarks", [3], r"eval_benchmarks must be a list, each text or None, not \[3\]"),
        ("chat_template_path", b"x", "chat_template_path must be text or None, not b'x'"),
        ("hub_token", 3, "hub_token must be text or None"),
        ("learning_rate", 10**400, "learning_rate must be a finite number of at least 0, not 1000"),
        ("max_length", 2.5, "max_length must be a whole number of at least 1, not 2.5"),
        ("seed", np.array([1, 2]), "seed must be a whole number"),
        ("warmup_ratio", "x", "`warmup_ratio` must be a number, not 'x'"),
        ("no_cuda", "yes", "`no_cuda` must be True or False, not 'yes'"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_name(name, value, said):
    with pytest.raises((ValueError, TypeError), match=said):
        RewardConfig(**{name: value})


def test_what_transformers_refuses_is_named_with_its_reason():
    with pytest.raises(ValueError, match="these options are refused by transformers: debug .*not a valid DebugOption"):
        RewardConfig(debug="everything", seed=3)


def test_an_option_that_holds_itself_is_refused():
    endless = {}
    endless["a"] = endless
    with pytest.raises(
        ValueError, match="one of the options model_init_kwargs, seed is nested too deeply, or holds itself"
    ):
        RewardConfig(model_init_kwargs=endless, seed=3)


@pytest.mark.parametrize(
    "value", ["", "nowhere.json", "{", "[" * 100_000, "."], ids=["empty", "missing", "broken", "deep", "folder"]
)
def test_an_fsdp_config_that_cannot_be_read_is_refused_by_its_name(value):
    with pytest.raises(ValueError, match="fsdp_config must be a dict, JSON of one, or a JSON file, not "):
        RewardConfig(fsdp_config=value)


def test_an_fsdp_config_file_that_holds_no_dict_is_refused(tmp_path):
    (tmp_path / "fsdp.json").write_text("[1]")
    with pytest.raises(ValueError, match="fsdp_config must hold a dict, not a list"):
        RewardConfig(fsdp_config=str(tmp_path / "fsdp.json"))


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False)])
def test_a_flags_text_for_fsdp_is_a_switch(text, value, tmp_path):
    assert bool(RewardConfig(str(tmp_path), fsdp=text, use_cpu=True).fsdp) == value


def test_a_process_that_waits_for_the_others_says_where(monkeypatch, caplog):
    for name, one in (("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, one)
    monkeypatch.setattr(config_module, "SECONDS_TO_MEET", 0.01)
    with config_module._waiting_said():
        time.sleep(0.2)
    assert "process 1 of 2 still waits for the others at 10.0.0.1:29500" in caplog.text


def test_noise_on_the_embeddings_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neftune_noise_alpha must be a finite number of at least 0, not nan"):
        RewardConfig(str(tmp_path), use_cpu=True, neftune_noise_alpha=float("nan"))
