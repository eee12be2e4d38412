"""auto_find_batch_size, by a model whose memory ends at so many pairs of a batch."""

import gc
import os

import pytest
import torch
from conftest import text_pairs
from datasets import Dataset
from peft import LoraConfig
from processes import config
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from plaudit import RewardTrainer

# What depends on the clock.
CLOCK = ("runtime", "per_second")


@pytest.fixture(scope="module", autouse=True)
def little_garbage():
    """Each attempt collects garbage, which would go through all that was imported."""
    gc.freeze()
    yield
    gc.unfreeze()


class Hungry:
    """Takes batches of at most so many pairs, from its call number `after` on."""

    def __init__(self, model, most, after=0):
        self.most, self.after, self.calls, self.layouts = most, after, 0, set()
        model.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, module, args, kwargs):
        if module.training:
            self.calls += 1
            self.layouts.add("tree" if "tree" in kwargs else "padded")
            pairs = len(kwargs["read_out"] if "tree" in kwargs else kwargs["input_ids"]) // 2
            if self.calls > self.after and pairs > self.most:
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"
                )


def run(
    model_path, folder, size, most=99, after=0, streamed=False, lora=False, checkpoint=None, callbacks=(), **values
):
    """Train and return the trainer; the model takes `most` pairs from its call number `after` on."""
    rows = Dataset.from_list(text_pairs(24))
    defaults = {"num_train_epochs": 2, "eval_strategy": "steps", "eval_steps": 2, "packing": "auto"}
    trainer = RewardTrainer(
        model_path,
        config(folder, per_device_train_batch_size=size, **{**defaults, **values}),
        train_dataset=rows.to_iterable_dataset() if streamed else rows,
        eval_dataset=Dataset.from_list(text_pairs(5, seed=9)),
        callbacks=list(callbacks),
        peft_config=LoraConfig(task_type="SEQ_CLS", r=4, lora_dropout=0.3) if lora else None,
    )
    trainer.hungry = Hungry(trainer.model, most, after)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def outcome(trainer):
    """Return all that a run leaves which does not depend on the clock."""
    logs = [
        {name: value for name, value in entry.items() if not name.endswith(CLOCK) and "per_second" not in name}
        for entry in trainer.state.log_history
    ]
    state = trainer.state
    return {
        "weights": torch.cat([each.detach().flatten() for each in trainer.model.parameters()]).tolist(),
        "logs": logs,
        "counts": (state.global_step, state.max_steps, state.num_input_tokens_seen, state.total_flos, state.train_batch_size),
        "batch_size": trainer.args.per_device_train_batch_size,
    }  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [
        {"packing": "auto"},
        # Logged seldom, so that sums are open when the attempt fails.
        {"packing": "off", "gradient_accumulation_steps": 2, "lr_scheduler_type": "linear", "logging_steps": 10},
        # Dropout draws random numbers, and batches of like lengths are made by the batch size.
        {"packing": "auto", "lora": True, "train_sampling_strategy": "group_by_length", "gradient_checkpointing": True},
        {"packing": "auto", "streamed": True, "max_steps": 7},
    ],
)  # fmt: skip
def test_a_run_that_had_to_start_again_is_a_run_with_the_batch_size_that_fitted(model_path, tmp_path, values):
    # Up to three steps are trained, logged and evaluated before the first attempt fails.
    found = run(model_path, tmp_path / "a", 5, most=4, after=3, auto_find_batch_size=True, **values)
    assert found.args.per_device_train_batch_size == 4
    assert found.hungry.layouts == {"tree" if values["packing"] == "auto" else "padded"}
    alone = run(model_path, tmp_path / "b", 4, **values)
    assert outcome(found) == outcome(alone)
    assert alone.state.global_step > 3


def test_starting_again_is_said_with_the_old_size_and_the_new(model_path, tmp_path, caplog):
    run(model_path, tmp_path, 8, most=6, after=2, auto_find_batch_size=True)
    told = [record.message for record in caplog.records if "starts again" in record.message]
    assert told == [
        "step 3 of training ran out of memory with per_device_train_batch_size=8; it starts again from the beginning with 7 "
        "(auto_find_batch_size)",
        "step 1 of training ran out of memory with per_device_train_batch_size=7; it starts again from the beginning with 6 "
        "(auto_find_batch_size)",
    ]


def test_the_users_own_arguments_keep_the_batch_size_that_they_were_given(model_path, tmp_path):
    args = config(tmp_path, per_device_train_batch_size=4, auto_find_batch_size=True, max_steps=1)
    trainer = RewardTrainer(model_path, args, train_dataset=Dataset.from_list(text_pairs(8)))
    Hungry(trainer.model, 2)
    trainer.train()
    assert trainer.args.per_device_train_batch_size == 2
    assert args.per_device_train_batch_size == 4


def test_an_optimizer_and_a_scheduler_of_the_users_begin_again_too(model_path, tmp_path):
    weights = {}
    for size, most in ((4, 2), (2, 99)):
        trainer = RewardTrainer(
            model_path,
            config(tmp_path, per_device_train_batch_size=size, auto_find_batch_size=size == 4, max_steps=5),
            train_dataset=Dataset.from_list(text_pairs(16)),
        )
        optimizer = torch.optim.Adam(trainer.model.parameters(), lr=1e-3)
        trainer.optimizer = optimizer
        trainer.lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        Hungry(trainer.model, most, after=2)
        trainer.train()
        weights[size] = [each.detach().clone() for each in trainer.model.parameters()]
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.8**5)
    assert all(torch.equal(one, other) for one, other in zip(*weights.values(), strict=True))


class Counter(TrainerCallback, ExportableState):
    """Counts steps, as a callback of the user's might."""

    seen = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.seen += 1

    def state(self):
        return {"args": {}, "attributes": {"seen": self.seen}}


def test_a_callback_forgets_the_steps_of_the_attempt_that_failed(model_path, tmp_path):
    counter = Counter()
    run(model_path, tmp_path, 5, most=4, after=3, auto_find_batch_size=True, max_steps=4, callbacks=[counter])
    assert counter.seen == 4


def test_checkpoints_of_an_attempt_that_failed_are_moved_aside_and_those_of_others_stay(model_path, tmp_path, caplog):
    (tmp_path / "checkpoint-99").mkdir()
    saves = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
    run(model_path, tmp_path, 8, most=7, after=2, auto_find_batch_size=True, max_steps=3, **saves)
    assert sorted(os.listdir(tmp_path / "out-of-memory-at-8")) == ["checkpoint-2"]
    assert {"checkpoint-2", "checkpoint-3", "checkpoint-99"} <= set(os.listdir(tmp_path))
    moved = f"its checkpoints checkpoint-2 are now in {tmp_path / 'out-of-memory-at-8'}"
    assert any(record.message.endswith(moved) for record in caplog.records)


def test_a_resumed_run_that_runs_out_of_memory_starts_again_from_the_beginning(model_path, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no", "max_steps": 5}
    run(model_path, tmp_path / "a", 5, auto_find_batch_size=True, **{**saves, "max_steps": 2})
    found = run(model_path, tmp_path / "a", 5, most=4, after=1, auto_find_batch_size=True, checkpoint=True, **saves)
    assert "checkpoint-2" in os.listdir(tmp_path / "a" / "out-of-memory-at-5")
    alone = run(model_path, tmp_path / "b", 4, **saves)
    assert outcome(found) == outcome(alone)


def test_a_resumed_run_goes_on_with_the_batch_size_that_was_found(model_path, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
    run(model_path, tmp_path / "a", 5, most=4, auto_find_batch_size=True, max_steps=2, **saves)
    resumed = run(model_path, tmp_path / "a", 5, auto_find_batch_size=True, max_steps=5, checkpoint=True, **saves)
    alone = run(model_path, tmp_path / "b", 4, max_steps=5, **saves)
    assert outcome(resumed)["weights"] == outcome(alone)["weights"]
    assert outcome(resumed)["batch_size"] == 4


def test_the_search_ends_at_one_pair_with_the_batch_and_what_else_helps(model_path, tmp_path):
    with pytest.raises(torch.OutOfMemoryError, match=r"step 1 of training ran out of memory: 2.00 GiB more") as error:
        run(model_path, tmp_path, 2, most=0, auto_find_batch_size=True)
    assert "The batch: 1 pair (per_device_train_batch_size=1), " in str(error.value)
    assert "auto_find_batch_size can go no lower. What helps, in this order: (1) activation_checkpointing=True" in str(error.value)  # fmt: skip


def test_an_evaluation_that_runs_out_of_memory_is_no_reason_to_train_with_less(model_path, tmp_path):
    trainer = RewardTrainer(
        model_path,
        config(tmp_path, per_device_train_batch_size=4, auto_find_batch_size=True, eval_strategy="steps", eval_steps=1),
        train_dataset=Dataset.from_list(text_pairs(8)),
        eval_dataset=Dataset.from_list(text_pairs(6)),
    )

    def look(module, args):
        if not module.training and trainer.is_in_train:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer.model.register_forward_pre_hook(look)
    with pytest.raises(torch.OutOfMemoryError, match="the evaluation of 'eval' ran out of memory: ") as error:
        trainer.train()
    assert "(1) per_device_eval_batch_size=2 (the same rewards)" in str(error.value)
    assert trainer.args.per_device_train_batch_size == 4
