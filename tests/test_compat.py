"""The tables of older names, name by name."""

import dataclasses
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from plaudit import compat
from plaudit.compat import (
    OLDER_ARGUMENTS,
    OLDER_CLASSES,
    OLDER_FIELDS,
    TOKEN_COLUMNS,
    older_argument,
    translate_config,
    translate_model_kwargs,
)

TRANSLATIONS = {
    "evaluation_strategy": ("steps", {"eval_strategy": "steps"}),
    "warmup_ratio": (0.1, {"warmup_steps": 0.1}),
    "group_by_length": (True, {"train_sampling_strategy": "group_by_length"}),
    "no_cuda": (True, {"use_cpu": True}),
    "adafactor": (True, {"optim": "adafactor"}),
    "per_gpu_train_batch_size": (3, {"per_device_train_batch_size": 3}),
    "per_gpu_eval_batch_size": (5, {"per_device_eval_batch_size": 5}),
    "include_inputs_for_metrics": (True, {"include_for_metrics": ["inputs"]}),
    "include_tokens_per_second": (True, {"include_num_input_tokens_seen": "all"}),
    "push_to_hub_model_id": ("judge", {"hub_model_id": "judge"}),
    "push_to_hub_organization": ("court", {"hub_model_id": "court/judge"}),
    "push_to_hub_token": ("secret", {"hub_token": "secret"}),
    "torchdynamo": ("eager", {"torch_compile_backend": "eager"}),
    "tpu_metrics_debug": (True, {"debug": "tpu_metrics_debug"}),
    "fsdp_min_num_params": (100, {"fsdp_config": {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 100}}),
    "fsdp_transformer_layer_cls_to_wrap": ("Block", {"fsdp_config": {"transformer_layer_cls_to_wrap": "Block"}}),
    "xpu_backend": ("gloo", {"ddp_backend": "gloo"}),
}
GONE = [name for name, field in OLDER_FIELDS.items() if field.translate is None]


def another_value(name):
    field = OLDER_FIELDS[name]
    return {bool: not field.default, int: 7, str: "another", float: 0.5}[field.type]


def test_every_translated_name_has_an_expectation_here():
    assert set(TRANSLATIONS) | set(GONE) == set(OLDER_FIELDS)


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_an_older_field_becomes_todays_with_a_warning_that_names_both(name):
    value, expected = TRANSLATIONS[name]
    context = {"output_dir": "runs/judge"} if name == "push_to_hub_organization" else {}
    with pytest.warns(FutureWarning) as caught:
        assert translate_config({name: value} | context) == expected | context
    (warning,) = caught
    text = str(warning.message)
    assert name in text
    assert OLDER_FIELDS[name].today in text
    assert "secret" not in text
    assert set(expected) == {OLDER_FIELDS[name].today}


@pytest.mark.parametrize("name", GONE)
def test_a_field_without_successor_is_an_error_that_says_what_to_do(name):
    cure = OLDER_FIELDS[name].cure
    assert len(cure) > 20
    with pytest.raises(TypeError, match=rf"`{name}=.*no longer exists; {re.escape(cure)}"):
        translate_config({name: another_value(name)})


@pytest.mark.parametrize("name", OLDER_FIELDS)
def test_an_older_field_at_its_old_default_is_left_out_in_silence(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert translate_config({name: OLDER_FIELDS[name].default, "seed": 1}) == {"seed": 1}


@pytest.mark.parametrize(
    ("old", "given"),
    [
        ("evaluation_strategy", {"eval_strategy": "epoch"}),
        ("group_by_length", {"train_sampling_strategy": "random"}),
        ("no_cuda", {"use_cpu": False}),
        ("adafactor", {"optim": "sgd"}),
        ("per_gpu_train_batch_size", {"per_device_train_batch_size": 8}),
        ("push_to_hub_model_id", {"hub_model_id": "jury"}),
        ("push_to_hub_organization", {"hub_model_id": "jury"}),
        ("push_to_hub_token", {"hub_token": "other"}),
        ("torchdynamo", {"torch_compile_backend": "inductor"}),
        ("fsdp_min_num_params", {"fsdp_config": {"min_num_params": 1}}),
        ("fsdp_min_num_params", {"fsdp_config": {"fsdp_min_num_params": 1}}),
        ("fsdp_transformer_layer_cls_to_wrap", {"fsdp_config": '{"transformer_layer_cls_to_wrap": ["Layer"]}'}),
    ],
)
def test_an_older_and_a_newer_name_that_disagree_are_an_error_that_names_both(old, given):
    with pytest.raises(TypeError, match=rf"{old}.*{next(iter(given))}"):
        translate_config({old: TRANSLATIONS[old][0]} | given)


def test_an_error_about_two_tokens_shows_neither():
    with pytest.raises(TypeError) as caught:
        translate_config({"push_to_hub_token": "secret-one", "hub_token": "secret-two"})
    assert "secret" not in str(caught.value)


def test_an_older_and_a_newer_name_that_agree_are_accepted():
    with pytest.warns(FutureWarning):
        assert translate_config({"no_cuda": True, "use_cpu": True}) == {"use_cpu": True}


@pytest.mark.parametrize(("steps", "expected"), [(0, 0.2), (50, 50)])
def test_warmup_steps_wins_over_warmup_ratio_unless_it_is_zero(steps, expected):
    with pytest.warns(FutureWarning):
        assert translate_config({"warmup_ratio": 0.2, "warmup_steps": steps}) == {"warmup_steps": expected}


def test_a_warmup_ratio_of_one_stays_a_ratio():
    with pytest.warns(FutureWarning):
        steps = translate_config({"warmup_ratio": 1.0})["warmup_steps"]
    assert 0.999 < steps < 1


def test_a_warmup_ratio_above_one_is_an_error():
    with pytest.raises(ValueError, match=r"warmup_ratio is 5.*warmup_steps"):
        translate_config({"warmup_ratio": 5})


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_translating_changes_no_container_of_the_caller():
    given = {
        "fsdp_config": {"xla": False},
        "fsdp_min_num_params": 9,
        "include_for_metrics": ["loss"],
        "include_inputs_for_metrics": True,
        "debug": ["underflow_overflow"],
        "tpu_metrics_debug": True,
    }
    translated = translate_config(given)
    assert given["fsdp_config"] == {"xla": False}
    assert given["include_for_metrics"] == ["loss"]
    assert given["debug"] == ["underflow_overflow"]
    assert len(given) == 6
    assert translated["include_for_metrics"] == ["loss", "inputs"]
    assert translated["debug"] == "underflow_overflow tpu_metrics_debug"
    assert translated["fsdp_config"] == {"xla": False, "min_num_params": 9, "auto_wrap_policy": "SIZE_BASED_WRAP"}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_file_of_fsdp_options_is_read_for_the_older_fields(tmp_path):
    path = tmp_path / "fsdp.json"
    path.write_text('{"version": 2}')
    translated = translate_config({"fsdp_config": str(path), "fsdp_transformer_layer_cls_to_wrap": "Block"})
    assert translated == {"fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": "Block"}}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_two_older_fields_of_fsdp_fill_one():
    translated = translate_config({"fsdp_min_num_params": 9, "fsdp_transformer_layer_cls_to_wrap": "Block"})
    assert translated["fsdp_config"]["min_num_params"] == 9
    assert translated["fsdp_config"]["transformer_layer_cls_to_wrap"] == "Block"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_organization_comes_before_the_models_name():
    given = {"push_to_hub_model_id": "judge", "push_to_hub_organization": "court"}
    assert translate_config(given) == {"hub_model_id": "court/judge"}
    assert translate_config(dict(reversed(given.items()))) == {"hub_model_id": "court/judge"}


def test_an_organization_alone_is_an_error():
    with pytest.raises(TypeError, match="hub_model_id='court/<name>'"):
        translate_config({"push_to_hub_organization": "court"})


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("chosen", "expected"), [("non_padding", "non_padding"), (False, "all"), ("no", "all")])
def test_a_way_of_counting_tokens_that_was_chosen_stays(chosen, expected):
    given = {"include_tokens_per_second": True, "include_num_input_tokens_seen": chosen}
    assert translate_config(given) == {"include_num_input_tokens_seen": expected}


def test_an_older_argument_is_used_with_a_warning_and_refused_beside_the_newer():
    assert older_argument("tokenizer", None, "processing_class", 1) == 1
    with pytest.warns(FutureWarning, match="`tokenizer` is now `processing_class`"):
        assert older_argument("tokenizer", 2, "processing_class", None) == 2
    with pytest.raises(TypeError, match=r"`max_length` and `args.max_length`"):
        older_argument("max_length", 512, OLDER_ARGUMENTS["max_length"], 1024)


def test_torch_dtype_is_dtype_in_silence_and_both_are_an_error():
    kwargs = {"torch_dtype": "bfloat16", "revision": "main"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert translate_model_kwargs(kwargs) == {"dtype": "bfloat16", "revision": "main"}
    assert "torch_dtype" in kwargs
    with pytest.raises(TypeError, match=r"`dtype` .float32. and its older name `torch_dtype` .bfloat16."):
        translate_model_kwargs({"dtype": "float32", "torch_dtype": "bfloat16"})


def test_only_the_middle_generation_of_columns_warns_and_only_once(monkeypatch):
    monkeypatch.setattr(compat, "_warned_columns", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for generation in TOKEN_COLUMNS * 2:
            compat.warn_of_older_columns(generation)
    (warning,) = caught
    assert warning.category is FutureWarning
    assert "will not be supported in v1" in str(warning.message)


def test_the_newest_columns_come_first_and_no_name_means_two_things():
    assert TOKEN_COLUMNS[0]["chosen_ids"] == "chosen_ids"
    names = [name for generation in TOKEN_COLUMNS for name in generation.values() if name]
    assert len(names) == len(set(names)) == 12


def test_no_older_field_is_one_of_todays():
    from plaudit.config import RewardConfig

    today = {field.name for field in dataclasses.fields(RewardConfig)}
    assert not today & set(OLDER_FIELDS)
    assert {field.today for field in OLDER_FIELDS.values() if field.today} <= today


def test_the_page_of_older_names_has_a_row_for_every_one():
    page = (Path(__file__).parent.parent / "docs" / "older-names.md").read_text("utf-8")
    rows = [row for row in page.splitlines() if row.startswith("| `")]
    first_cells = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    columns = {name for generation in TOKEN_COLUMNS[1:] for name in generation.values() if name}
    older = set(OLDER_FIELDS) | set(OLDER_ARGUMENTS) | set(OLDER_CLASSES) | columns | {"torch_dtype"}
    assert older == first_cells
    for field in OLDER_FIELDS.values():
        (row,) = [row for row in rows if row.startswith(f"| `{field.name}` | config")]
        if field.today:
            assert f"`{field.today}" in row or f"{field.today}`" in row
        else:
            assert f"default `{field.default!r}`".replace("'", '"') in row


def test_the_tables_load_neither_torch_nor_transformers():
    code = "import sys, plaudit.compat; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("value", ["0.1", [0.1], True, {}])
def test_an_older_name_with_a_value_of_another_type_is_an_error_that_names_it(value):
    with pytest.raises(TypeError, match="`warmup_ratio` must be a number, not "):
        compat.translate_config({"warmup_ratio": value})


def test_an_older_token_of_another_type_is_not_shown():
    with pytest.raises(TypeError, match=re.escape("`push_to_hub_token` must be text, not '...'")):
        compat.translate_config({"push_to_hub_token": b"secret"})
