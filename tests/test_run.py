"""A run from names: its adapter, how its model is loaded, and which options cannot work together."""

import pytest

from plaudit import options, run
from plaudit.config import RewardConfig


def test_adapter_flags_become_a_lora_config():
    flags = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["all-linear"], "use_dora": True}
    config = run._peft_config(options.ModelArguments(**flags), flags)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 32, 0.05)
    assert (config.target_modules, config.use_dora, config.task_type) == ("all-linear", True, "SEQ_CLS")


def test_adapter_flags_without_use_peft_are_an_error():
    with pytest.raises(ValueError, match="--lora_r has no effect without --use_peft; add --use_peft"):
        run._peft_config(options.ModelArguments(lora_r=4), {"lora_r": 4})


def test_quantized_weights_without_an_adapter_are_an_error():
    with pytest.raises(ValueError, match="--load_in_4bit: quantized weights cannot be trained.* add --use_peft"):
        run._peft_config(options.ModelArguments(load_in_4bit=True), {})


def test_quantization_without_its_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "plaudit\[quant\]"'):
        run._model_init_kwargs(options.ModelArguments(load_in_4bit=True), RewardConfig(output_dir=str(tmp_path)))


def test_both_quantizations_at_once_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="--load_in_4bit and --load_in_8bit exclude each other"):
        run._model_init_kwargs(
            options.ModelArguments(load_in_4bit=True, load_in_8bit=True), RewardConfig(output_dir=str(tmp_path))
        )


def test_model_flags_join_model_init_kwargs(tmp_path):
    config = RewardConfig(output_dir=str(tmp_path), model_init_kwargs={"dtype": "bfloat16", "token": "x"})
    flags = options.ModelArguments(dtype="bfloat16", model_revision="main", attn_implementation="sdpa")
    assert run._model_init_kwargs(flags, config) == {
        "dtype": "bfloat16",
        "token": "x",
        "revision": "main",
        "attn_implementation": "sdpa",
    }
    assert run._model_init_kwargs(options.ModelArguments(), RewardConfig(output_dir=str(tmp_path))) is None


def test_a_model_flag_that_contradicts_model_init_kwargs_is_an_error(tmp_path):
    config = RewardConfig(output_dir=str(tmp_path), model_init_kwargs={"dtype": "bfloat16"})
    with pytest.raises(ValueError, match="--dtype float16 contradicts model_init_kwargs, where 'dtype' is 'bfloat16'"):
        run._model_init_kwargs(options.ModelArguments(dtype="float16"), config)


@pytest.mark.parametrize(
    ("value", "taken"), [("true", True), ("True", True), ("false", None), (None, None), ("out/step-1", "out/step-1")]
)
def test_a_resume_flag_is_the_last_checkpoint_or_a_path(value, taken):
    assert run._resume_from(value) is taken or run._resume_from(value) == taken


@pytest.mark.parametrize("name", ["accuracy", "eval_margin", "loss", "eval_samples_per_second"])
def test_a_metric_that_evaluation_gives_can_choose_the_best_model(name):
    run._check_best_metric(name)


def test_without_test_rows_only_the_benchmarks_figures_can_choose_the_best_model():
    run._check_best_metric("eval_mine_accuracy", ["mine_accuracy"], has_pairs=False)
    run._check_best_metric("loss", ["mine_accuracy"])
    with pytest.raises(
        ValueError, match="metric_for_best_model='loss' is not a metric of the evaluation.*mine_accuracy"
    ):
        run._check_best_metric("loss", ["mine_accuracy"], has_pairs=False)
