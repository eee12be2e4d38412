"""What the trainer is given: each mistake is one error that says the cure, and older ways still work."""

import pytest
import torch
from conftest import text_pairs
from datasets import Dataset, DatasetDict, IterableDataset
from processes import config
from torch import nn
from transformers import TrainingArguments

from plaudit import RewardConfig, RewardTrainer, setup

DATA = Dataset.from_list(text_pairs(4))


def test_a_missing_model_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="model is missing: pass a name, a path, a model, or model_init"):
        RewardTrainer(None, config(tmp_path), train_dataset=DATA)


def test_a_model_and_model_init_together_are_an_error(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="model and model_init were both given"):
        RewardTrainer(tiny_model, config(tmp_path), train_dataset=DATA, model_init=lambda: tiny_model)


def test_no_data_at_all_is_an_error(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        RewardTrainer(tiny_model, config(tmp_path))


def test_training_without_training_data_is_an_error_but_evaluating_is_not(model_path, tmp_path):
    trainer = RewardTrainer(model_path, config(tmp_path), eval_dataset=DATA)
    assert "eval_accuracy" in trainer.evaluate()
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        trainer.train()


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (list(DATA), r"train_dataset: expected a datasets.Dataset .* got builtins.list; datasets.Dataset.from_list"),
        (DatasetDict({"train": DATA}), r"got datasets.DatasetDict; did you mean dataset\['train'\]\?"),
        (DatasetDict({"test": DATA}), r"got datasets.DatasetDict; did you mean dataset\['test'\]\?"),
        (Rows(), r"train_dataset: expected .* got test_setup.Rows"),
        ("owner/pairs", r"got builtins.str"),
    ],
    ids=["list", "train split", "test split", "torch", "name"],
)
def test_training_data_of_another_type_is_a_type_error_that_names_it(given, message, model_path, tmp_path):
    with pytest.raises(TypeError, match=message):
        RewardTrainer(model_path, config(tmp_path), train_dataset=given)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (list(DATA), TypeError, "eval_dataset: expected"),
        ({"fair": DATA, "odd": list(DATA)}, TypeError, r"eval_dataset\['odd'\]: expected"),
        ({}, ValueError, "eval_dataset is an empty dict"),
    ],
)
def test_evaluation_data_of_another_type_is_an_error_that_names_the_set(given, error, message):
    with pytest.raises(error, match=message):
        setup.check_datasets(DATA, given)


@pytest.mark.parametrize(
    "given", [None, DATA, IterableDataset.from_generator(lambda: iter(DATA)), DatasetDict({"test": DATA}), {"a": DATA}]
)
def test_evaluation_data_may_come_alone_or_by_name(given):
    setup.check_datasets(DATA, given)


def test_plain_training_arguments_are_taken_over(model_path, tmp_path):
    given = TrainingArguments(
        str(tmp_path), learning_rate=3e-4, use_cpu=True, report_to="none", per_device_train_batch_size=3, seed=7
    )
    args = RewardTrainer(model_path, given, train_dataset=DATA).args
    assert isinstance(args, RewardConfig)
    assert (args.learning_rate, args.per_device_train_batch_size, args.seed) == (3e-4, 3, 7)
    assert (args.max_length, args.disable_dropout) == (1024, True)
    assert type(given) is TrainingArguments


def test_arguments_of_another_type_are_a_type_error(model_path):
    with pytest.raises(TypeError, match="args: expected a RewardConfig or a TrainingArguments, got dict"):
        RewardTrainer(model_path, {"learning_rate": 1e-4}, train_dataset=DATA)


@pytest.mark.parametrize(
    ("model", "name"),
    [("owner/Judge-1B", "Judge-1B-Reward"), ("some/where/judge/", "judge-Reward"), (nn.Linear(1, 1), "model-Reward")],
)
def test_without_arguments_the_output_directory_is_named_after_the_model(model, name):
    assert setup.reward_config(None, model, None).output_dir == name


def test_without_arguments_a_model_object_gives_its_own_name(tiny_model, model_path):
    assert setup.reward_config(None, tiny_model, None).output_dir == f"{model_path.rsplit('/', 1)[-1]}-Reward"


def test_a_trainer_without_arguments_works(model_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert RewardTrainer(model_path, train_dataset=DATA).args.output_dir == "tiny-qwen30-Reward"


def test_max_length_as_an_argument_is_the_configs_and_leaves_the_users_object_alone(tmp_path):
    given = config(tmp_path)
    with pytest.warns(FutureWarning, match="`max_length` is now `args.max_length`"):
        args = setup.reward_config(given, "judge", 77)
    assert (args.max_length, given.max_length) == (77, 1024)


def test_max_length_given_twice_is_a_type_error(tmp_path):
    with pytest.raises(TypeError, match="both `max_length` and `args.max_length` were given"):
        setup.reward_config(config(tmp_path, max_length=50), "judge", 77)


def test_tokenizer_is_the_older_name_of_processing_class(model_path, tokenizer, tmp_path):
    with pytest.warns(FutureWarning, match="`tokenizer` is now `processing_class`"):
        trainer = RewardTrainer(model_path, config(tmp_path), train_dataset=DATA, tokenizer=tokenizer)
    assert trainer.processing_class is tokenizer
    with pytest.raises(TypeError, match="both `tokenizer` and `processing_class` were given"):
        RewardTrainer(model_path, config(tmp_path), train_dataset=DATA, tokenizer=tokenizer, processing_class=tokenizer)


def test_no_tokenizer_for_a_plain_module_is_an_error(tmp_path):
    class Plain(nn.Module):
        def forward(self, input_ids, attention_mask):
            return input_ids.float().sum(-1)

    with pytest.raises(ValueError, match="there is no tokenizer: pass one as processing_class"):
        RewardTrainer(Plain(), config(tmp_path), train_dataset=DATA)


def test_model_init_kwargs_without_effect_are_said(tiny_model, tmp_path, caplog):
    setup.model_of(tiny_model, config(tmp_path, model_init_kwargs={"dtype": "bfloat16"}))
    assert any("model_init_kwargs has no effect" in record.message for record in caplog.records)


def test_checkpointing_that_a_module_lacks_is_switched_off_and_said(tmp_path, caplog):
    given = config(tmp_path, gradient_checkpointing=True)
    args = setup.fit_to_model(given, nn.Linear(1, 1))
    assert not args.activation_checkpointing
    assert not args.gradient_checkpointing
    assert given.activation_checkpointing
    assert any("Linear has no activation checkpointing" in record.message for record in caplog.records)


def test_a_model_whose_weights_are_all_frozen_is_an_error_to_train(tiny_model):
    setup.require_trainable(tiny_model)
    tiny_model.requires_grad_(False)
    with pytest.raises(ValueError, match="none of the weights of the Qwen3ForSequenceClassification are trainable"):
        setup.require_trainable(tiny_model)


def test_data_that_is_no_pairs_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(setup.models, "load", lambda *args: pytest.fail("the model was loaded first"))
    with pytest.raises(ValueError, match="no preference pairs in columns 'text'"):
        RewardTrainer(str(tmp_path), train_dataset=Dataset.from_list([{"text": "a"}]))
    with pytest.raises(ValueError, match="eval_odd: the dataset is empty"):
        RewardTrainer(str(tmp_path), train_dataset=DATA, eval_dataset={"odd": Dataset.from_list([])})


def test_processes_that_do_not_know_of_each_other_are_an_error(monkeypatch, tmp_path):
    args = RewardConfig(output_dir=str(tmp_path), report_to="none")
    setup.check_processes(args)
    monkeypatch.setenv("WORLD_SIZE", "2")
    setup.check_processes(args)  # a cluster's own variable, without a launcher's
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match=r"started 2 processes, but each would train alone: .*--use_cpu"):
        setup.check_processes(args)


@pytest.mark.parametrize("given", [None, {"sync_each_batch": False}])
def test_fsdp_shares_gradients_out_at_once_unless_told_not_to(given, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    accelerating = {} if given is None else {"gradient_accumulation_kwargs": given}
    args = RewardConfig(
        output_dir=str(tmp_path), report_to="none", gradient_accumulation_steps=2, accelerator_config=accelerating
    )
    fitted = setup.fit_to_model(args, tiny_model)
    assert fitted.accelerator_config.gradient_accumulation_kwargs == (given or {"sync_each_batch": True})
    assert args.accelerator_config.gradient_accumulation_kwargs == given, "the user's own object stays"


def test_tasks_of_slurm_that_no_launcher_told_of_each_other_say_so(monkeypatch, tmp_path, caplog):
    args = RewardConfig(output_dir=str(tmp_path), report_to="none")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    setup.check_processes(args)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setenv("LOCAL_RANK", "0")
    setup.check_processes(args)
    assert "Slurm" not in caplog.text
    monkeypatch.delenv("LOCAL_RANK")
    setup.check_processes(args)
    assert (
        f"Slurm started 8 tasks, and this run is of one process: if every task has come here, each trains alone into {tmp_path}"
        in caplog.text
    )
    assert "train.slurm" in caplog.text


def test_deepspeed_on_a_cpu_that_was_asked_for_is_an_error(monkeypatch, tmp_path):
    args = RewardConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(
        ValueError, match=r"DeepSpeed was asked for, but use_cpu keeps accelerate from it; .*ddp_backend='gloo'"
    ):
        setup.check_processes(args)


@pytest.mark.parametrize("by", ["option", "launcher"])
def test_processes_that_deepspeed_would_leave_alone_are_an_error(by, monkeypatch, tmp_path):
    args = RewardConfig(output_dir=str(tmp_path), report_to="none")
    if by == "option":
        args.deepspeed = "zero.json"
    else:
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    setup.check_processes(args)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(
        ValueError, match=r"DeepSpeed was asked for, but each process would train alone; .*accelerate launch"
    ):
        setup.check_processes(args)
