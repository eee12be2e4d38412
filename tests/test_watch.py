"""What a run says of itself: a plateau is examined once and changes nothing; a number that is not finite stops it, with its rows."""

import logging
import math
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_tokenizer, text_pairs
from datasets import Dataset
from processes import config
from transformers import TrainerCallback

from plaudit import RewardTrainer, doctor, watch
from plaudit.collate import Padded, TreeRow, pad
from plaudit.prepare import ORIGINS
from plaudit.watch import Broken, Watch, stays_at_chance, where_broken

LN2 = math.log(2)


def make(folder, rows=None, model=None, **values):
    own = ("data_collator", "callbacks", "eval_dataset")
    arguments = {name: values.pop(name) for name in own if name in values}
    tokenizer = make_tokenizer()
    model = model or quiet_model()
    args = config(folder, **{"max_steps": 60, "logging_steps": 1000, **values})
    data = Dataset.from_list(rows or text_pairs(32))
    return RewardTrainer(model, args, train_dataset=data, processing_class=tokenizer, **arguments)


def quiet_model(**values):
    """A model whose rewards are near 0, so that it begins with the loss of a coin."""
    model = make_model(make_tokenizer(), initializer_range=0.02, **values)
    model.score.weight.data.mul_(0.01)
    return model


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("doctor:")]


def with_broken_margin(trainer, at):
    """Give the trainer's prepared pairs a margin that is not a number in these rows, as no data set of a user's may have."""
    prepared = trainer.train_dataset
    broken = prepared.map(lambda row, i: {"margin": math.nan if i in at else row["margin"]}, with_indices=True)
    setattr(broken, ORIGINS, getattr(prepared, ORIGINS))
    trainer.train_dataset = broken
    return trainer


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_plateau_is_examined_once_however_seldom_the_run_logs(tmp_path, caplog, monkeypatch, accumulation):
    calls = []
    monkeypatch.setattr(doctor, "diagnose", lambda case, real=doctor.diagnose: calls.append(1) or real(case))
    trainer = make(tmp_path, learning_rate=0.0, max_steps=110, gradient_accumulation_steps=accumulation)
    trainer.train()
    assert calls == [1]
    (line,) = said(caplog)
    assert line.startswith("doctor: the loss has stayed within 1 % of ln 2")
    assert "Cause 1 of 1: the learning rate is 0" in line
    assert "set learning_rate above 0" in line


def test_fewer_than_fifty_steps_are_no_plateau(tmp_path, caplog):
    make(tmp_path, learning_rate=0.0, max_steps=49).train()
    assert said(caplog) == []


def test_a_learning_rate_of_0_is_named_where_the_loss_is_not_a_coins(tmp_path, caplog):
    make(tmp_path, model=make_model(make_tokenizer(), initializer_range=0.5), learning_rate=0.0).train()
    (line,) = said(caplog)
    assert line.startswith("doctor: the learning rate is 0 at step 50. Cause 1 of 1: the learning rate is 0")


def test_a_read_out_inside_the_prompt_is_named_in_a_real_run(tmp_path, caplog):
    def first_tokens(examples):
        ids, mask = pad([one[side] for side in ("chosen_ids", "rejected_ids") for one in examples], 0)
        mask[:, 2:] = 0
        return {"input_ids": ids, "attention_mask": mask}

    make(tmp_path, data_collator=first_tokens).train()
    (line,) = said(caplog)
    assert "Cause 1 of 1: the read-out is inside the prompt" in line


def test_a_run_that_learns_is_not_examined(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(doctor, "diagnose", lambda case: pytest.fail("examined"))
    make(tmp_path, max_steps=110, learning_rate=1e-2).train()
    assert said(caplog) == []


@pytest.mark.parametrize(("packing", "kind"), [("auto", TreeRow), ("off", Padded)])
def test_an_examined_run_ends_with_the_same_weights_bit_for_bit(tmp_path, monkeypatch, caplog, packing, kind):
    def train(is_examined):
        # Dropout draws random numbers in every step, so one that the examination used up would show.
        values = {"learning_rate": 1e-6, "max_steps": 70, "disable_dropout": False, "packing": packing}
        trainer = make(tmp_path, text_pairs(40), quiet_model(attention_dropout=0.2), **values)
        found = []
        with monkeypatch.context() as patched:
            if is_examined:
                patched.setattr(
                    doctor, "diagnose", lambda case, real=doctor.diagnose: found.append(real(case)) or found[0]
                )
            else:
                patched.setattr(watch, "examine", lambda *_: None)
            trainer.train()
        assert len(found) == is_examined
        assert not is_examined or any("overfit test" in line for line in found[0].evidence)
        assert isinstance(trainer._batch_layout, kind)
        return {name: value.clone() for name, value in trainer.model.state_dict().items()}

    examined, plain = train(True), train(False)
    assert all(torch.equal(value, plain[name]) for name, value in examined.items())


def test_a_plateau_without_a_fault_is_no_warning(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="plaudit"):
        make(tmp_path, learning_rate=1e-6).train()
    (record,) = [one for one in caplog.records if one.getMessage().startswith("doctor:")]
    assert record.levelno == logging.INFO
    assert "no fault was found" in record.getMessage()


def test_an_examination_that_fails_does_not_end_the_run(tmp_path, caplog, monkeypatch):
    def fail(case):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(doctor, "diagnose", fail)
    trainer = make(tmp_path, learning_rate=0.0)
    trainer.train()
    assert trainer.state.global_step == 60
    assert "the examination itself failed (OutOfMemoryError: no memory)" in said(caplog)[0]


@pytest.mark.parametrize(
    ("packing", "accumulation", "logging_steps"), [("auto", 1, 10), ("off", 1, 1000), ("auto", 2, 7)]
)
def test_a_loss_that_is_not_finite_stops_the_run_with_its_row(tmp_path, packing, accumulation, logging_steps, caplog):
    rows = [{**row, "margin": 0.1} for row in text_pairs(44)]
    # Two dropped rows move the numbers of those that follow.
    for dropped in (1, 4):
        rows[dropped]["rejected"] = rows[dropped]["chosen"]
    values = {"per_device_train_batch_size": 4, "packing": packing, "gradient_accumulation_steps": accumulation}
    trainer = make(tmp_path, rows, logging_steps=logging_steps, **values)
    with_broken_margin(trainer, {20})
    with pytest.raises(FloatingPointError) as raised:
        trainer.train()
    found = re.search(r"the first loss that is not finite is in step (\d+), in 1 of its (\d+) pairs", str(raised.value))
    assert found, str(raised.value)
    assert "train row 22;" in str(raised.value)
    assert "the last checkpoint is kept" in str(raised.value)
    assert int(found[2]) in (4 * accumulation, 2)
    assert "Cause 1 of 1: a margin is not a finite number" in said(caplog)[0]
    assert "row 22" in said(caplog)[0]


def test_the_last_good_checkpoint_is_kept_and_no_broken_one_is_written(tmp_path):
    rows = [{**row, "margin": 0.1} for row in text_pairs(32)]
    values = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "per_device_train_batch_size": 4}
    trainer = with_broken_margin(make(tmp_path, rows, train_sampling_strategy="sequential", **values), {17})
    with pytest.raises(
        FloatingPointError, match=r"loss is nan at step 5: .* step 5, in 1 of its 4 pairs, train row 17;"
    ):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    from transformers import AutoModelForSequenceClassification

    kept = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4")
    assert all(bool(each.isfinite().all()) for each in kept.parameters())


class Breaks(TrainerCallback):
    """Makes the gradient of one step infinite, after its loss was computed."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3:
            model.score.weight.grad.fill_(math.inf)


def test_a_step_that_breaks_the_weights_is_not_saved_and_its_rows_are_named(tmp_path):
    values = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 4, "callbacks": [Breaks()]}
    trainer = make(tmp_path, train_sampling_strategy="sequential", **values)
    with pytest.raises(FloatingPointError, match=r"a weight is nan at step 4: .*last step .* rows 12, 13, 14, 15;"):
        trainer.train()
    assert not (tmp_path / "checkpoint-4").exists()
    assert (tmp_path / "checkpoint-3").exists()


def test_where_all_losses_of_a_step_are_broken_the_step_before_is_named_too(tmp_path, caplog):
    values = {"per_device_train_batch_size": 4, "callbacks": [Breaks()], "logging_steps": 6}
    trainer = make(tmp_path, train_sampling_strategy="sequential", **values)
    where = (
        r"in step 5, in 4 of its 4 pairs \(train rows 16, 17, 18, 19\), .* broke in the step before, .* 12, 13, 14, 15;"
    )
    with pytest.raises(FloatingPointError, match=where):
        trainer.train()
    assert "weights that are not finite" in said(caplog)[0]


def test_the_filter_that_hides_such_losses_is_left_to_hide_them(tmp_path, caplog):
    rows = [{**row, "margin": 0.1} for row in text_pairs(32)]
    trainer = with_broken_margin(make(tmp_path, rows, logging_nan_inf_filter=True), {17})
    trainer.train()
    assert trainer.state.global_step == 60
    assert said(caplog) == []


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([LN2] * 50, True),
        ([LN2] * 49, False),
        ([2.0] * 7 + [LN2 * 1.009] * 50 + [0.3] * 20, True),
        ([LN2] * 49 + [0.5] + [LN2] * 49, False),
        ([LN2 * (1.5 if i % 2 else 0.5) for i in range(50)], False),
        ([LN2 * (1.05 if i % 2 else 0.95) for i in range(52)], True),
        ([LN2 * 1.02] * 25 + [LN2 * 0.98] * 25, False),
        ([LN2 * 0.985] * 60, False),
    ],
)
def test_a_plateau_is_fifty_steps_in_a_row_at_ln_2(means, expected):
    assert stays_at_chance(means) is expected


def test_steps_are_read_over_all_processes_and_fillers_do_not_count():
    one, other = Watch(), Watch()
    for each, loss in ((one, LN2 - 0.3), (other, LN2 + 0.3)):
        for _ in range(50):
            each.add(torch.tensor([loss, 9.0]), torch.tensor([1.0, 0.0]), torch.tensor([1, -1]))
            each.end_step()
    rows = {}
    other.read(lambda row: rows.setdefault("other", row).unsqueeze(0))
    finite, stuck = one.read(lambda row: torch.stack([row, rows["other"]]))
    assert (finite, stuck) == (True, True)


def test_the_first_broken_step_is_the_first_on_any_process():
    mine = Watch()
    for rows, losses in (([1, 2], [0.5, 0.5]), ([3, 4], [0.5, math.nan]), ([5, 6], [math.nan, math.nan])):
        mine.add(torch.tensor(losses), torch.ones(2), torch.tensor(rows))
        mine.end_step()
    assert mine.first_broken(9, lambda parts: parts) == Broken(8, (4,), 2, (1, 2))

    def two_processes(parts):
        others = [[(11, False)], [(13, True)], [(15, True)]] if isinstance(parts[0][0], list) else []
        return [*parts, others]

    assert Watch().first_broken(9, lambda parts: parts) is None
    mine._before = []
    assert mine.first_broken(9, lambda parts: two_processes(parts) if parts[0] else parts) == Broken(7, (11,), 3, ())


def test_long_lists_of_rows_are_cut():
    text = where_broken(Broken(3, tuple(range(30)), 40, ()), (), lambda row: row + 100)
    assert "train rows 100, 101" in text
    assert text.endswith("119 and 10 more")


@pytest.mark.parametrize(
    ("groups", "is_idle"),
    [
        ([{"lr": 0.0, "initial_lr": 1e-3}], True),
        ([{"lr": 0.0}, {"lr": torch.tensor(1e-5)}], False),
        # As transformers' Adafactor does, which makes its rates itself.
        ([{"lr": None}], False),
        ([{"lr": 0.0, "relative_step": True}], False),
        ([], False),
    ],
)
def test_a_run_is_idle_where_no_rate_is_above_0(groups, is_idle):
    optimizer = SimpleNamespace(param_groups=groups)
    trainer = SimpleNamespace(optimizer=optimizer, state=SimpleNamespace(global_step=50, max_steps=100))
    assert watch._is_idle(trainer) is is_idle


@pytest.mark.parametrize(("initial", "is_idle"), [(1e-3, False), (0.0, True)])
def test_a_rate_that_its_schedule_has_brought_to_0_at_the_last_step_is_no_fault(initial, is_idle):
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.0, "initial_lr": initial}])
    trainer = SimpleNamespace(optimizer=optimizer, state=SimpleNamespace(global_step=100, max_steps=100))
    assert watch._is_idle(trainer) is is_idle


@pytest.mark.parametrize("in_training", [True, False])
def test_rows_of_an_evaluation_whose_loss_is_not_finite_are_named_by_the_users_numbers(tmp_path, caplog, in_training):
    rows = text_pairs(12, seed=3)
    # A row that is dropped moves all that follow.
    rows[1]["rejected"] = rows[1]["chosen"]
    trainer = make(tmp_path, max_steps=20, eval_strategy="steps", eval_steps=10, eval_dataset=Dataset.from_list(rows))
    prepared = trainer.eval_dataset
    broken = prepared.map(lambda _, i: {"margin": math.nan if i in (4, 7) else 0.0}, with_indices=True)
    setattr(broken, ORIGINS, getattr(prepared, ORIGINS))
    trainer.eval_dataset = broken
    says = "the loss of 2 of 11 pairs is not finite, eval rows 5, 8"
    if in_training:
        with pytest.raises(FloatingPointError, match=f"^eval_loss is nan at step 10: {says}; training stops"):
            trainer.train()
        return
    assert math.isnan(trainer.evaluate()["eval_loss"])
    assert f"eval: {says}" in [record.getMessage() for record in caplog.records]
