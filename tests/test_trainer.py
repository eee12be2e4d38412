"""RewardTrainer: losses, metrics, evaluation, saving and resuming, on tiny models."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import conversations, make_model, make_tokenizer, text_pairs
from datasets import Dataset, DatasetDict, IterableDataset
from processes import config
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification, TrainerCallback, TrainingArguments

from plaudit import DataCollatorForPreference, RewardDataCollatorWithPadding, RewardTrainer
from plaudit.collate import Padded, TreeRow


def make(model, folder, rows=None, eval_rows=None, **kwargs):
    """A trainer on rows (12 text pairs) with the values of kwargs in its config or, if they are its own, as arguments."""
    own = (
        "data_collator",
        "compute_metrics",
        "processing_class",
        "callbacks",
        "peft_config",
        "model_init",
        "optimizers",
    )
    own += ("preprocess_logits_for_metrics", "optimizer_cls_and_kwargs")
    arguments = {name: kwargs.pop(name) for name in own if name in kwargs}
    train = (
        Dataset.from_list(text_pairs(12) if rows is None else rows) if not isinstance(rows, IterableDataset) else rows
    )
    evaluation = Dataset.from_list(eval_rows) if isinstance(eval_rows, list) else eval_rows
    return RewardTrainer(model, config(folder, **kwargs), train_dataset=train, eval_dataset=evaluation, **arguments)


def rewards_by_hand(trainer, rows):
    """Both sides' rewards of text pairs, each in a batch of one, shape (num_pairs, 2)."""
    tokenizer, model = trainer.processing_class, trainer.model.eval()
    out = []
    for row in rows:
        for side in ("chosen", "rejected"):
            ids = [*tokenizer(row["prompt"] + row[side])["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                out.append(model(input_ids=torch.tensor([ids])).logits.item())
    return np.array(out).reshape(-1, 2)


def test_the_data_are_looked_through_once_however_often_a_trainer_trains(model_path, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("plaudit.audit.say_summary", lambda *data: asked.append(data))
    trainer = make(model_path, tmp_path, eval_rows=text_pairs(4), max_steps=1)
    trainer.train()
    trainer.train()
    ((train, test, max_length),) = asked
    assert (len(train), len(test), max_length) == (12, 4, 1024)


def test_training_logs_every_metric_and_changes_every_parameter(model_path, tmp_path):
    trainer = make(model_path, tmp_path, max_steps=4, logging_steps=2)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    output = trainer.train()
    assert math.isfinite(output.training_loss)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    names = {"loss", "grad_norm", "learning_rate", "epoch", "step", "num_tokens", "accuracy", "ties", "margin"}
    assert names | {"min_reward", "mean_reward", "max_reward"} <= set(logged[0])
    assert all(not torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())


def test_num_tokens_counts_the_attended_tokens_of_both_sides(model_path, tmp_path):
    rows = text_pairs(6)
    trainer = make(model_path, tmp_path, rows, num_train_epochs=2, per_device_train_batch_size=4, pad_to_multiple_of=64)
    tokens = sum(len(row[side]) for row in trainer.train_dataset for side in ("chosen_ids", "rejected_ids"))
    trainer.train()
    assert trainer.state.log_history[-2]["num_tokens"] == 2 * tokens
    assert trainer.evaluate(Dataset.from_list(rows))["eval_num_tokens"] == tokens


def test_the_prepared_data_set_holds_tokens_and_margins_only_and_the_users_own_is_unchanged(model_path, tmp_path):
    dataset = Dataset.from_list([{**row, "margin": 0.5, "source": "x"} for row in text_pairs(4)])
    trainer = RewardTrainer(model_path, config(tmp_path), train_dataset=dataset)
    assert set(trainer.train_dataset.column_names) == {"chosen_ids", "rejected_ids", "margin"}
    assert set(dataset.column_names) == {"prompt", "chosen", "rejected", "margin", "source"}


def test_the_loss_is_bradley_terry_with_margin_and_centering(model_path, tmp_path):
    rows = [{**row, "margin": 0.25 * i} for i, row in enumerate(text_pairs(5))]
    trainer = make(model_path, tmp_path, rows, eval_rows=rows, center_rewards_coefficient=0.1)
    chosen, rejected = rewards_by_hand(trainer, rows).T
    margin = np.array([row["margin"] for row in rows])
    expected = np.log1p(np.exp(-(chosen - rejected - margin))) + 0.1 * (chosen + rejected) ** 2
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.mean(), abs=1e-5)
    batch = next(iter(trainer.get_train_dataloader()))
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected.mean(), abs=1e-5)


def test_compute_loss_takes_a_bare_batch(model_path, tmp_path):
    trainer = make(model_path, tmp_path)
    ids = torch.tensor([[5, 6, 7], [5, 6, 8]])
    loss, output = trainer.compute_loss(trainer.model, {"input_ids": ids}, return_outputs=True)
    assert loss.item() == pytest.approx(-torch.nn.functional.logsigmoid(output.logits[0] - output.logits[1]).item())


def test_the_load_balancing_loss_is_added_when_router_logits_are_asked_for(tmp_path):
    tokenizer = make_tokenizer()
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "router_aux_loss_coef": 0.5}
    make_model(tokenizer, "qwen3_moe", **moe).save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")
    losses = {}
    for asked in (False, True):
        kwargs = {"output_router_logits": asked}
        trainer = make(
            str(tmp_path / "moe"), tmp_path / "out", model_init_kwargs=kwargs, per_device_train_batch_size=12
        )
        batch = next(iter(trainer.get_train_dataloader()))
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        gate = trainer.model.model.layers[0].mlp.gate.weight.grad
        losses[asked] = (loss.item(), gate.clone())
    # With 4 experts of which 2 are taken, a perfectly balanced router has loss 2; ours can only be above.
    assert losses[True][0] - losses[False][0] >= 0.5 * 2 - 1e-4
    assert not torch.allclose(losses[True][1], losses[False][1])
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_evaluation_sets_have_their_own_keys_and_the_prefix_is_honoured(model_path, tmp_path):
    sets = DatasetDict(a=Dataset.from_list(text_pairs(5, seed=1)), b=Dataset.from_list(conversations(6, seed=2)))
    trainer = make(model_path, tmp_path, eval_rows=sets)
    metrics = trainer.evaluate()
    assert {"eval_a_accuracy", "eval_b_accuracy", "eval_a_loss", "eval_b_num_tokens"} <= set(metrics)
    assert metrics["eval_a_margin"] != metrics["eval_b_margin"]
    raw = trainer.evaluate(sets["a"], metric_key_prefix="final")
    assert raw["final_margin"] == pytest.approx(metrics["eval_a_margin"])
    assert "eval_margin" not in raw


def test_the_best_checkpoint_is_chosen_by_accuracy(model_path, tmp_path):
    rows = text_pairs(12)
    trainer = make(
        model_path,
        tmp_path,
        rows,
        eval_rows={"held_out": Dataset.from_list(rows)},
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_held_out_accuracy",
    )
    trainer.train()
    best = max(
        entry["eval_held_out_accuracy"] for entry in trainer.state.log_history if "eval_held_out_accuracy" in entry
    )
    assert trainer.state.best_metric == best
    assert trainer.evaluate()["eval_held_out_accuracy"] == best


def test_batch_metrics_are_called_a_batch_and_summed_up_by_the_user(model_path, tmp_path):
    calls = []

    def compute_metrics(prediction, compute_result):
        calls.append((prediction.predictions.shape, compute_result))
        return {"batches": len(calls)} if compute_result else {}

    trainer = make(
        model_path, tmp_path, eval_rows=text_pairs(9), compute_metrics=compute_metrics, batch_eval_metrics=True
    )
    assert trainer.evaluate()["eval_batches"] == 3
    assert calls == [((4, 2), False), ((4, 2), False), ((1, 2), True)]


def test_preprocessed_logits_reach_compute_metrics_in_order(model_path, tmp_path):
    seen = []
    trainer = make(
        model_path,
        tmp_path,
        eval_rows=text_pairs(6),
        preprocess_logits_for_metrics=lambda logits, labels: logits[:, 0] - logits[:, 1] + labels,
        compute_metrics=lambda prediction: seen.append(prediction.predictions) or {"accuracy_again": 1.0},
    )
    metrics = trainer.evaluate()
    by_hand = rewards_by_hand(trainer, text_pairs(6))
    np.testing.assert_allclose(seen[0], by_hand[:, 0] - by_hand[:, 1], atol=1e-5)
    assert metrics["eval_accuracy"] == (by_hand[:, 0] > by_hand[:, 1]).mean()


def test_losses_and_inputs_are_given_to_compute_metrics_when_asked_for(model_path, tmp_path):
    seen = []
    trainer = make(
        model_path,
        tmp_path,
        eval_rows=text_pairs(5),
        include_for_metrics=["inputs", "loss"],
        compute_metrics=lambda prediction: seen.append(prediction) or {},
    )
    metrics = trainer.evaluate()
    assert seen[0].losses.mean() == pytest.approx(metrics["eval_loss"])
    pair = trainer.eval_dataset[4]
    row = seen[0].inputs[4]
    assert row.shape[0] == 2
    assert row[0][: len(pair["chosen_ids"])].tolist() == pair["chosen_ids"]
    assert row[1][: len(pair["rejected_ids"])].tolist() == pair["rejected_ids"]


def test_prediction_drops_nothing(model_path, tmp_path):
    rows = text_pairs(5)
    rows[2]["rejected"] = rows[2]["chosen"]
    trainer = make(model_path, tmp_path)
    output = trainer.predict(Dataset.from_list(rows))
    assert output.predictions.shape == (5, 2)
    assert output.label_ids.tolist() == [0.0] * 5
    assert output.metrics["test_ties"] == 0.2
    np.testing.assert_allclose(output.predictions, rewards_by_hand(trainer, rows), atol=1e-5)
    streamed = trainer.predict(Dataset.from_list(rows).to_iterable_dataset())
    np.testing.assert_allclose(streamed.predictions, output.predictions, atol=1e-6)


def test_prediction_refuses_an_over_long_pair(model_path, tmp_path):
    rows = [*text_pairs(3), {"prompt": "a", "chosen": " b" * 100, "rejected": " c"}]
    trainer = make(model_path, tmp_path, max_length=64)
    with pytest.raises(ValueError, match=r"test row 3: .*max_length 64.*raise max_length"):
        trainer.predict(Dataset.from_list(rows))
    with pytest.raises(ValueError, match=r"test row 3: .*max_length 64"):
        trainer.predict(Dataset.from_list(rows).to_iterable_dataset())


def test_evaluation_alone_needs_no_training_set_and_training_then_says_so(model_path, tmp_path):
    trainer = RewardTrainer(model_path, config(tmp_path), eval_dataset=Dataset.from_list(text_pairs(3)))
    assert "eval_accuracy" in trainer.evaluate()
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        trainer.train()


def test_a_stream_needs_max_steps_and_trains_with_them(model_path, tmp_path):
    stream = Dataset.from_list(text_pairs(10)).to_iterable_dataset()
    with pytest.raises(ValueError, match="max_steps"):
        make(model_path, tmp_path, stream)
    trainer = make(model_path, tmp_path, stream, max_steps=4, per_device_train_batch_size=4)
    trainer.train()
    # Three batches an epoch, the last of two pairs; the fourth step starts the stream again.
    assert trainer.state.global_step == 4


def test_a_streams_dropped_pairs_are_counted_when_their_number_grows(model_path, tmp_path, caplog):
    rows = text_pairs(12)
    for i in (1, 10):
        rows[i]["chosen"] = " word" * 200
    rows[5]["rejected"] = rows[5]["chosen"]
    stream = Dataset.from_list(rows).to_iterable_dataset()
    trainer = make(model_path, tmp_path, stream, max_steps=3, per_device_train_batch_size=3, max_length=128)
    trainer.train()
    lines = [record.message for record in caplog.records if "dropped" in record.message]
    assert len(lines) == 3
    assert "dropped 1 of" in lines[0]
    assert lines[-1] == "dropped 3 of 12 train pairs: 2 longer than 128 tokens, 1 whose two sides are identical"


def test_a_bad_row_late_in_a_stream_is_the_same_error_when_it_is_reached(model_path, tmp_path):
    rows = text_pairs(1_400)
    rows[1_350]["chosen"] = None
    stream = Dataset.from_list(rows).to_iterable_dataset()
    trainer = make(model_path, tmp_path, stream, max_steps=200, per_device_train_batch_size=100)
    with pytest.raises(ValueError, match=r"train row 1350: 'chosen'"):
        trainer.train()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one(model_path, tmp_path, streamed):
    def run(folder, **kwargs):
        rows = Dataset.from_list(text_pairs(14))
        if streamed:
            rows = rows.to_iterable_dataset()
        values = {
            "max_steps": 9,
            "logging_steps": 2,
            "save_strategy": "steps",
            "save_steps": 5,
            "lr_scheduler_type": "linear",
        }
        trainer = RewardTrainer(
            model_path, config(folder, per_device_train_batch_size=4, **values), train_dataset=rows, **kwargs
        )
        return trainer

    class StopAtFive(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    whole = run(tmp_path / "whole")
    whole.train()
    run(tmp_path / "cut", callbacks=[StopAtFive()]).train()
    resumed = run(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    clock = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss")
    histories = [
        [{k: v for k, v in entry.items() if k not in clock} for entry in trainer.state.log_history]
        for trainer in (whole, resumed)
    ]
    assert histories[0] == histories[1]
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_metrics_open_when_a_run_ends_in_an_evaluation_are_logged(model_path, tmp_path):
    trainer = make(
        model_path, tmp_path, eval_rows=text_pairs(4), max_steps=5, logging_steps=3, eval_strategy="steps", eval_steps=5
    )
    trainer.train()
    last = trainer.state.log_history[-1]
    assert "train_loss" in last
    assert {"accuracy", "margin", "num_tokens"} <= set(last)
    assert last["num_tokens"] > trainer.state.log_history[0]["num_tokens"]


def test_a_loss_that_is_not_finite_stops_the_run_unless_the_filter_is_asked_for(model_path, tmp_path):
    def broken(**kwargs):
        trainer = make(model_path, tmp_path, max_steps=2, **kwargs)
        trainer.model.score.weight.data.fill_(float("nan"))
        return trainer

    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1.*lower learning_rate"):
        broken().train()
    with pytest.raises(FloatingPointError, match="at step 2"):
        broken(logging_steps=10, save_strategy="steps", save_steps=2).train()
    assert not list(tmp_path.glob("checkpoint-*"))
    broken(logging_nan_inf_filter=True).train()


class Reads(TorchDispatchMode):
    """Counts the reads of a tensor's value by plaudit's own code, each of which would wait for an accelerator."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            frame = sys._getframe(1)
            while "/torch/" in frame.f_code.co_filename:
                frame = frame.f_back
            # The collator works on host memory, in the loader's workers.
            self.count += "/plaudit/" in frame.f_code.co_filename and "collate.py" not in frame.f_code.co_filename
        return func(*args, **(kwargs or {}))


def test_values_are_read_and_processes_reduced_once_a_log_and_not_a_micro_batch(model_path, tmp_path):
    def count(steps, packing):
        trainer = make(
            model_path, tmp_path, text_pairs(32), max_steps=steps, logging_steps=steps, gradient_accumulation_steps=2,
            per_device_train_batch_size=1, packing=packing,
        )  # fmt: skip
        assert isinstance(trainer._layout_of(trainer.train_dataset), {"auto": TreeRow, "off": Padded}[packing])
        calls = []
        gather = trainer.accelerator.gather
        trainer.accelerator.gather = lambda tensor: calls.append(1) or gather(tensor)
        with Reads() as reads:
            trainer.train()
        return reads.count, len(calls)

    assert count(2, "auto") == count(6, "auto") == count(2, "off") == count(6, "off") == (1, 1)


def test_training_makes_no_connection(model_path, tmp_path, monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError(f"a connection was attempted: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    trainer = make(model_path, tmp_path, eval_rows=text_pairs(4), max_steps=1)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()


def test_bf16_autocast_on_a_cpu_keeps_rewards_in_float32(model_path, tmp_path):
    trainer = make(model_path, tmp_path, eval_rows=text_pairs(8), bf16=True, max_steps=1)
    trainer.train()
    rewards = trainer.predict(Dataset.from_list(text_pairs(8))).predictions
    rounded = torch.tensor(rewards).bfloat16().float().numpy()
    assert rewards.dtype == np.float32
    assert (rewards != rounded).mean() > 0.9


def test_a_new_head_is_the_same_for_the_same_seed(tmp_path):
    from transformers import AutoModelForCausalLM

    tokenizer = make_tokenizer()
    language_model = AutoModelForCausalLM.from_config(make_model(tokenizer).config)
    language_model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    heads = [make(str(tmp_path / "lm"), tmp_path, seed=seed).model.score.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_plain_training_arguments_are_taken_over(model_path, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=1, learning_rate=3e-4, report_to="none", use_cpu=True)
    trainer = RewardTrainer(model_path, args, train_dataset=Dataset.from_list(text_pairs(4)))
    assert trainer.args.learning_rate == 3e-4
    assert trainer.args.max_length == 1024
    trainer.train()


def test_model_init_makes_an_adapted_model_for_every_run(model_path, tmp_path):
    made = []

    def model_init():
        made.append(AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1))
        return made[-1]

    trainer = make(None, tmp_path, model_init=model_init, max_steps=2)
    trainer.train()
    first = trainer.model.score.weight.clone()
    trainer.train()
    assert len(made) == 3
    assert torch.equal(first, trainer.model.score.weight)
    assert trainer.model.config.problem_type == "regression"


def test_hyperparameter_search_starts_every_trial_from_model_init(model_path, tmp_path):
    pytest.importorskip("optuna", reason="optuna is in the test extra")
    trainer = make(
        None,
        tmp_path,
        eval_rows=text_pairs(6),
        model_init=lambda trial: AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1),
        max_steps=2,
        eval_strategy="steps",
        eval_steps=2,
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True)},
        compute_objective=lambda metrics: metrics["eval_accuracy"],
        direction="maximize",
        backend="optuna",
        n_trials=2,
    )
    assert 0.0 <= best.objective <= 1.0


class PlainModule(torch.nn.Module):
    """A module that is no transformers model: the mean of embeddings, one logit a row."""

    def __init__(self, vocabulary):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, 8)
        self.head = torch.nn.Linear(8, 1)

    def forward(self, input_ids, attention_mask):
        states = self.embedding(input_ids) * attention_mask.unsqueeze(-1)
        return self.head(states.sum(1) / attention_mask.sum(1, keepdim=True))


def test_a_plain_module_trains_on_the_padded_path(tmp_path, tokenizer, caplog):
    trainer = make(
        PlainModule(len(tokenizer)),
        tmp_path,
        eval_rows=text_pairs(5),
        processing_class=tokenizer,
        max_steps=3,
        gradient_checkpointing=True,
        learning_rate=0.1,
    )
    assert "activation checkpointing is off: PlainModule" in caplog.text
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] != before
    trainer.save_model()
    assert (tmp_path / "model.safetensors").exists()


def test_the_oldest_columns_and_collator_train_a_model(tmp_path, tiny_model, tokenizer):
    rows = []
    for row in text_pairs(8):
        sides = {side: tokenizer(row["prompt"] + row[side]) for side in ("chosen", "rejected")}
        rows.append({f"{key}_{side}": sides[side][key] for side in sides for key in ("input_ids", "attention_mask")})
    collator = RewardDataCollatorWithPadding(tokenizer, max_length=64)
    seen = []
    spy = lambda examples: seen.append(set(examples[0])) or collator(examples)  # noqa: E731
    trainer = make(tiny_model, tmp_path, rows, data_collator=spy, processing_class=tokenizer, max_steps=2)
    trainer.train()
    names = {"input_ids_chosen", "attention_mask_chosen", "input_ids_rejected", "attention_mask_rejected"}
    assert seen[0] == names
    default = make(tiny_model, tmp_path, rows, processing_class=tokenizer)
    np.testing.assert_allclose(
        trainer.predict(Dataset.from_list(rows)).predictions,
        default.predict(Dataset.from_list(rows)).predictions,
        atol=1e-5,
    )


@pytest.mark.parametrize("strategy", ["group_by_length", "sequential", "random"])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_pair_is_trained_on_once_an_epoch(model_path, tmp_path, strategy, workers):
    rows = text_pairs(10)
    trainer = make(
        model_path, tmp_path, rows, train_sampling_strategy=strategy, dataloader_num_workers=workers,
        per_device_train_batch_size=4,
    )  # fmt: skip
    seen = [index for batch in trainer.get_train_dataloader() for index in batch["pair_index"].tolist()]
    assert sorted(seen) == list(range(10))
    assert (seen == sorted(seen)) == (strategy == "sequential")


def test_activation_offloading_on_a_cpu_is_one_line(model_path, tmp_path, caplog):
    make(model_path, tmp_path, activation_offloading=True, max_steps=1).train()
    assert "activation_offloading has no effect on a CPU" in caplog.text


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_run(model_path, tmp_path, reentrant):
    def run(**kwargs):
        trainer = make(model_path, tmp_path, max_steps=3, **kwargs)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    assert run(**kwargs) == pytest.approx(run(), abs=1e-5)


def test_a_checkpoint_holds_card_tags_template_and_the_open_interval(model_path, tmp_path):
    trainer = make(model_path, tmp_path, max_steps=3, logging_steps=2, save_strategy="steps", save_steps=3)
    trainer.train()
    folder = tmp_path / "checkpoint-3"
    saved = json.loads((folder / "config.json").read_text())
    assert saved["problem_type"] == "regression"
    assert saved["pad_token_id"] == trainer.processing_class.pad_token_id
    assert {"reward-trainer", "plaudit"} <= set((folder / "README.md").read_text().split())
    assert (folder / "chat_template.jinja").exists()
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["plaudit"]["processes"][0]["sums"][0] == 8
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert reloaded.num_labels == 1


def test_unused_arguments_of_train_are_refused(model_path, tmp_path):
    with pytest.raises(TypeError, match="unexpected arguments"):
        make(model_path, tmp_path).train(nonsense=1)


def test_a_streams_bad_row_in_a_loader_worker_is_the_same_one_line(model_path, tmp_path):
    rows = text_pairs(1_400)
    rows[1_350]["chosen"] = None
    stream = Dataset.from_list(rows).to_iterable_dataset()
    trainer = make(
        model_path, tmp_path, stream, max_steps=200, per_device_train_batch_size=100, dataloader_num_workers=1
    )
    with pytest.raises(ValueError, match=r"^train row 1350: 'chosen' is None; drop the row or fill it$"):
        trainer.train()


@pytest.mark.parametrize("streamed", [False, True])
def test_fewer_pairs_than_a_batch_with_drop_last_are_an_error(model_path, tmp_path, streamed):
    rows = Dataset.from_list(text_pairs(3))
    trainer = make(
        model_path, tmp_path, rows.to_iterable_dataset() if streamed else rows, max_steps=2,
        per_device_train_batch_size=8, dataloader_drop_last=True,
    )  # fmt: skip
    with pytest.raises(ValueError, match="no whole batch of 8 pairs.*leave dataloader_drop_last out"):
        trainer.train()


def test_the_name_of_an_evaluation_set_that_does_not_exist_is_an_error(model_path, tmp_path):
    trainer = make(model_path, tmp_path, eval_rows={"a": Dataset.from_list(text_pairs(3))})
    assert "eval_accuracy" in trainer.evaluate("a")
    with pytest.raises(ValueError, match=r"no evaluation set 'b'; the sets are \['a'\]"):
        trainer.evaluate("b")
    with pytest.raises(ValueError, match="empty dict"):
        trainer.evaluate({})


def test_neftune_trains_and_says_which_path_it_takes(model_path, tmp_path, caplog):
    make(model_path, tmp_path, neftune_noise_alpha=5.0, max_steps=1).train()
    assert "neftune_noise_alpha takes the padded path" in caplog.text


def test_a_path_object_names_a_model(model_path, tmp_path):
    assert make(Path(model_path), tmp_path).model.config.num_labels == 1


def test_a_collator_that_pads_with_another_id_gives_the_same_rewards(model_path, tmp_path):
    rows = Dataset.from_list(text_pairs(6))
    expected = make(model_path, tmp_path).predict(rows).predictions
    other = make(model_path, tmp_path, data_collator=DataCollatorForPreference(pad_token_id=9))
    np.testing.assert_allclose(other.predict(rows).predictions, expected, atol=1e-6)


def test_the_oldest_collator_gives_lone_rewards_whatever_the_padding_side(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "left"
    model = make_model(tokenizer, "gpt2", n_embd=32, n_head=4, n_layer=2, n_positions=512)
    rows = text_pairs(6)
    trainer = make(
        model, tmp_path, rows, processing_class=tokenizer, data_collator=RewardDataCollatorWithPadding(tokenizer)
    )
    np.testing.assert_allclose(
        trainer.predict(Dataset.from_list(rows)).predictions, rewards_by_hand(trainer, rows), atol=1e-5
    )


def test_an_attempt_given_up_for_memory_counts_nowhere(model_path, tmp_path, monkeypatch):
    rows = text_pairs(30)
    trainer = make(
        model_path, tmp_path, rows, per_device_train_batch_size=8, auto_find_batch_size=True, num_train_epochs=1
    )
    compute, calls = trainer.compute_loss, []

    def once_too_large(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("CUDA out of memory.")
        return compute(*args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", once_too_large)
    trainer.train()
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert last["num_tokens"] == sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in trainer.train_dataset)


def test_an_infinite_gradient_under_a_loss_scaler_does_not_stop_the_run(model_path, tmp_path):
    trainer = make(model_path, tmp_path)
    trainer.is_in_train = True
    with pytest.raises(FloatingPointError, match="grad_norm is inf"):
        trainer.log({"loss": 0.5, "grad_norm": math.inf})
    trainer.accelerator.scaler = object()
    trainer.log({"loss": 0.5, "grad_norm": math.inf})


def test_a_model_is_saved_under_a_path_object(model_path, tmp_path):
    make(model_path, tmp_path).save_model(tmp_path / "saved")
    assert (tmp_path / "saved" / "README.md").exists()
