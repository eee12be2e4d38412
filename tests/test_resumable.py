"""Runs that are cut short and resumed: the same run, bit for bit, with nothing half written on the disk."""

import json
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from conftest import text_pairs
from datasets import Dataset
from interrupted import RUNS, Starter, outcome
from processes import config
from transformers import TrainerCallback

from plaudit import RewardTrainer, checkpoints, kept

BOTH = pytest.mark.parametrize("processes", [1, 2])


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    starter = Starter(tmp_path_factory.mktemp("runs"))
    yield starter
    starter.close()


@pytest.fixture(scope="module")
def whole(start):
    """A function that gives the outcome of a run that is not cut short; each runs once."""
    found = {}

    def of(run, processes):
        if (run, processes) not in found:
            answer = start(f"whole-{run}-{processes}", run, processes)
            assert answer["codes"] == [0] * processes, answer["said"][-4000:]
            found[run, processes] = outcome(start.folder / f"whole-{run}-{processes}", processes)
            assert len(found[run, processes][0]["rows"]) > 2, "the run trained"
        return found[run, processes]

    return of


def seen_on_a_disk_of_its_own(start, folder):
    seen = start.seen(folder)
    if "skipped" in seen:
        pytest.skip(f"no disk can be mounted: {seen['skipped']}")
    return seen


def assert_same(start, folder, whole, processes):
    after = outcome(start.folder / folder, processes)
    for one, other in zip(after, whole, strict=True):
        for name, value in other.items():
            assert one[name] == value, name


KILLS = [
    ("map", 1, ["file_save", 11], 0),  # in a save, between two of its files
    ("map", 1, ["file_replace", 3], 0),  # in the final save
    ("map", 2, ["prediction_step", 3], 1),
    ("stream", 1, ["step_begin", 5], 0),
    ("stream", 2, ["file_fsync", 12], 0),
    ("epochs", 1, ["prediction_step", 17], 0),
    ("epochs", 2, ["pre_optimizer_step", 6], 1),
    ("late", 1, ["epoch_end", 1], 0),  # between the save of an epoch's last step and the end of the epoch
    ("late", 2, ["evaluate", 1], 0),
    ("stopped", 1, ["save", 2], 0),
    ("stopped", 2, ["file_rename", 3], 0),
]


@pytest.mark.parametrize(("run", "processes", "at", "rank"), KILLS)
def test_a_run_that_is_killed_and_resumed_is_the_run_that_is_not(start, whole, run, processes, at, rank):
    folder = f"kill-{run}-{processes}-{at[0]}"
    expected = whole(run, processes)
    answer = start(folder, run, processes, at=at, rank=rank)
    assert answer["codes"][rank] == -signal.SIGKILL, answer["said"][-3000:]
    assert "there is no checkpoint in" in answer["said"], "it began with resume_from_checkpoint=True"
    answer = start(folder, run, processes)
    assert answer["codes"] == [0] * processes, answer["said"][-4000:]
    assert_same(start, folder, expected, processes)


def test_a_run_that_was_stopped_early_and_one_that_is_over_train_no_step_more(start, whole):
    for run in ("stopped", "stream", "late"):
        expected = whole(run, 1)
        rows = (start.folder / f"whole-{run}-1" / "rows-0.txt").read_text()
        assert start(f"whole-{run}-1", run)["codes"] == [0]
        assert (start.folder / f"whole-{run}-1" / "rows-0.txt").read_text() == rows + "null\n"
        assert_same(start, f"whole-{run}-1", expected, 1)


TERMS = [
    ("map", 1, ["step_end", 3], 0, "checkpoint-3"),
    ("map", 1, ["prediction_step", 9], 0, "checkpoint-4"),  # in the evaluation of a step that is then saved
    ("map", 1, ["file_save", 11], 0, "checkpoint-4"),  # in a save
    # In an epoch's last evaluation, after a save of the same step.
    ("late", 1, ["prediction_step", 1], 0, "checkpoint-4"),
    ("late", 2, ["prediction_step", 1], 1, "checkpoint-4"),
    ("epochs", 1, ["prediction_step", 17], 0, "checkpoint-8"),  # in the evaluation after the last step
    ("stopped", 1, ["prediction_step", 1], 0, "checkpoint-1"),
    ("stream", 2, ["substep_end", 4], 1, "checkpoint-4"),  # one of two processes gets the signal
]


@pytest.mark.parametrize(("run", "processes", "at", "rank", "saved"), TERMS)
def test_sigterm_saves_and_the_resumed_run_is_the_run_without_it(start, whole, run, processes, at, rank, saved):
    folder = f"term-{run}-{processes}-{at[0]}"
    expected = whole(run, processes)
    answer = start(folder, run, processes, at=at, rank=rank, signal=signal.SIGTERM)
    assert answer["codes"] == [143] * processes, answer["said"][-3000:]
    assert f"SIGTERM: saved {saved} in" in answer["said"]
    left = sorted(path.name for path in (start.folder / folder / "out").iterdir())
    assert saved in left
    assert checkpoints.UNFINISHED not in left
    state = json.loads((start.folder / folder / "out" / saved / "trainer_state.json").read_text())
    assert state["stateful_callbacks"][kept.STATE]["place"]["evaluate"] is (at[0] in ("prediction_step", "substep_end"))
    answer = start(folder, run, processes)
    assert answer["codes"] == [0] * processes, answer["said"][-4000:]
    assert_same(start, folder, expected, processes)
    # Not one step was made twice.
    steps = [json.loads(line) for line in (start.folder / folder / "rows-0.txt").read_text().splitlines()]
    assert len([one for one in steps if one]) == sum(len(parts) for parts in expected[0]["rows"])


def test_sigterm_saves_a_whole_checkpoint_where_only_models_are_saved_and_none_where_nothing_is(start, whole):
    only = {"save_only_model": True, "save_steps": 100}
    answer = start("term-only-model", "map", at=["step_end", 5], signal=signal.SIGTERM, config={**only, "load_best_model_at_end": False})  # fmt: skip
    assert answer["codes"] == [143]
    assert (start.folder / "term-only-model" / "out" / "checkpoint-5" / "optimizer.pt").exists()
    answer = start("term-no", "stream", at=["step_end", 2], signal=signal.SIGTERM, config={"save_strategy": "no"})
    assert answer["codes"] == [-signal.SIGTERM]
    answer = start(
        "term-jit", "stream", at=["step_end", 2], signal=signal.SIGTERM,
        config={"save_strategy": "no", "enable_jit_checkpoint": True},
    )  # fmt: skip
    assert answer["codes"] == [143]
    assert "in place of transformers'" in answer["said"]
    assert (start.folder / "term-jit" / "out" / "checkpoint-2" / "optimizer.pt").exists()


def test_a_loaders_workers_outlive_a_sigterm_that_every_process_gets(start, whole):
    """A cluster signals workers too, and torch would end the training for a worker that died."""
    folder, run = "term-workers", "map"
    more = {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 2}
    answer = start(folder, run, at=["step_end", 3], signal=signal.SIGTERM, group=True, config=more)
    assert answer["codes"] == [143], answer["said"][-3000:]
    assert start(folder, run, config=more)["codes"] == [0]
    assert_same(start, folder, whole(run, 1), 1)


def test_a_full_disk_leaves_the_checkpoints_that_were_there_and_says_what_to_do(start, whole):
    expected = whole("stream", 1)
    one = checkpoints.size_of(str(next((start.folder / "whole-stream-1" / "out").glob("checkpoint-*"))))
    answer = start("full", "stream", script="on_a_small_disk", bytes=int(one * 1.6))
    assert answer["codes"] == [0], answer["said"][-3000:]
    seen = seen_on_a_disk_of_its_own(start, "full")
    assert seen["left"] == {"checkpoint-3": None}
    for part in ("checkpoint-6 was not written", "the disk is full", "bytes, and", "the last whole checkpoint, checkpoint-3, is as it was",
                 "save_total_limit", "save_only_model=True", "resume_from_checkpoint=True goes on from checkpoint-3"):  # fmt: skip
        assert part in seen["error"]
    assert_same(start, "full", expected, 1)


def test_a_process_that_cannot_write_ends_every_process_with_the_reason(start):
    answer = start("full-2", "map", 2, at=["file_save", 9], rank=0, signal=None)
    # In the model's part, after which all wait for each other before they go on to theirs.
    assert answer["codes"] == [1, 1]
    assert "No space left on device" in answer["said"]
    assert "process 0 could not save checkpoint-4: checkpoint-4 was not written" in answer["said"], "the other's words"
    left = sorted(path.name for path in (start.folder / "full-2" / "out").iterdir())
    assert left == ["checkpoint-2"]
    assert checkpoints.faults_of(str(start.folder / "full-2" / "out" / "checkpoint-2")) is None


@pytest.mark.parametrize("own_disks", [False, True])
def test_the_disk_of_every_machine_gets_whole_checkpoints(start, whole, own_disks):
    """Two processes, each of a machine of its own, on one disk or on two."""
    folder, expected = f"machines-{own_disks}", whole("map", 2)
    answer = start(folder, "map", 2, machines=True, own_disks=own_disks, config={"save_on_each_node": own_disks})
    if "is not allowed here" in answer["said"]:
        pytest.skip("no disk can be mounted")
    assert answer["codes"] == [0, 0], answer["said"][-4000:]
    left = [json.loads((start.folder / folder / f"left-{rank}.json").read_text()) for rank in (0, 1)]
    of_whole = [each.name for each in checkpoints.checkpoints_of(str(start.folder / "whole-map-2" / "out"))]
    assert left == [dict.fromkeys(of_whole)] * 2
    assert (start.folder / folder / "out" / of_whole[0]).exists() is not own_disks, "the disks were their own"
    after = outcome(start.folder / folder, 2)
    assert [each["weights"] for each in after] == [each["weights"] for each in expected]


def test_a_full_disk_leaves_the_saved_model_as_it_was(start):
    assert start("full-model", "stream", script="saved_again_when_full")["codes"] == [0]
    seen = seen_on_a_disk_of_its_own(start, "full-model")
    assert "the model was not written" in seen["error"]
    assert "No space left" in seen["error"]
    assert seen["untouched"]


def test_a_directory_that_cannot_be_written_to_is_found_before_the_first_step(start, model_path, tmp_path):
    assert start("read-only", "map", script="on_a_read_only_disk")["codes"] == [0]
    seen = seen_on_a_disk_of_its_own(start, "read-only")
    assert "cannot be written to (Read-only file system)" in seen["error"]
    assert "name a directory that can, or set save_strategy='no'" in seen["error"]
    assert seen["steps"] == "null\n", "no step was made"
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"output_dir '.*file/out' cannot be made \(Not a directory\); name a directory"):
        make(model_path, tmp_path / "file" / "out")


# ---- In this process: what is decided and kept


def make(model_path, folder, callbacks=(), rows=12, **values):
    values = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4, **values}
    data = Dataset.from_list(text_pairs(rows))
    return RewardTrainer(
        model_path, config(folder, **values), train_dataset=data, eval_dataset=data, callbacks=list(callbacks)
    )


class Sizes(TrainerCallback):
    """Notes which checkpoints there are after each save."""

    def __init__(self):
        self.after = []

    def on_save(self, args, state, control, **kwargs):
        self.after.append([each.name for each in checkpoints.checkpoints_of(args.output_dir)])


@pytest.fixture(scope="module")
def trained(model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    make(model_path, folder).train()
    return folder


@pytest.mark.parametrize(("limit", "kept_at_the_end"), [(1, ["checkpoint-1", "checkpoint-4"]), (3, ["checkpoint-1", "checkpoint-3", "checkpoint-4"])])  # fmt: skip
def test_the_best_and_the_last_checkpoint_are_never_deleted(model_path, tmp_path, limit, kept_at_the_end):
    sizes = Sizes()
    # The loss rises, so the first evaluation is the best.
    trainer = make(
        model_path, tmp_path, [sizes], save_steps=1, eval_strategy="steps", eval_steps=1, save_total_limit=limit,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=False, learning_rate=1e-9,
    )  # fmt: skip
    losses = iter([0.1, 0.2, 0.3, 0.4])
    evaluate = trainer.evaluate
    trainer.evaluate = lambda *args, **kwargs: {**evaluate(*args, **kwargs), "eval_loss": next(losses)}
    trainer.train()
    assert sizes.after[-1] == kept_at_the_end
    assert [each.name for each in checkpoints.checkpoints_of(str(tmp_path))] == kept_at_the_end
    assert all(checkpoints.faults_of(each.path) is None for each in checkpoints.checkpoints_of(str(tmp_path)))
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-1")


def test_the_newest_checkpoint_that_is_broken_is_named_and_the_one_before_is_used(
    model_path, trained, tmp_path, caplog
):
    folder = shutil.copytree(trained, tmp_path / "run")
    with open(folder / "checkpoint-4" / "optimizer.pt", "r+b") as file:
        file.truncate(1_000)
    trainer = make(model_path, folder)
    trainer.train(resume_from_checkpoint=True)
    size = (trained / "checkpoint-4" / "optimizer.pt").stat().st_size
    assert f"checkpoint-4 is not whole (optimizer.pt has 1,000 of {size:,} bytes); going on from checkpoint-2 instead" in caplog.text  # fmt: skip
    assert checkpoints.faults_of(str(folder / "checkpoint-4")) is None, "it was saved again"
    one, other = (torch.load(place / "checkpoint-4" / "optimizer.pt") for place in (folder, trained))
    assert torch.equal(one["state"][0]["exp_avg"], other["state"][0]["exp_avg"])


def test_without_a_whole_checkpoint_training_starts_from_the_beginning_and_says_so(
    model_path, trained, tmp_path, caplog
):
    folder = tmp_path / "run"
    for step in (2, 4):
        shutil.copytree(trained / "checkpoint-4", folder / f"checkpoint-{step}")
        (folder / f"checkpoint-{step}" / "model.safetensors").unlink()
    trainer = make(model_path, folder, save_strategy="no")
    trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-4 is not whole (model.safetensors is missing); checkpoint-2 is not whole" in caplog.text
    assert "training starts from the beginning" in caplog.text
    assert trainer.state.log_history[0]["step"] == 1


def test_a_named_checkpoint_that_is_broken_or_none_is_an_error_that_names_the_newest_whole_one(
    model_path, trained, tmp_path
):
    folder = shutil.copytree(trained, tmp_path / "run")
    broken = folder / "checkpoint-4"
    (broken / "rng_state.pth").unlink()
    trainer = make(model_path, folder)
    with pytest.raises(ValueError, match=r"checkpoint-4' is not a whole checkpoint: rng_state.pth is missing; the newest whole one is '.*checkpoint-2'"):  # fmt: skip
        trainer.train(resume_from_checkpoint=broken)
    with pytest.raises(ValueError, match="is not a checkpoint but a directory of checkpoints; name '.*checkpoint-2'"):
        trainer.train(resume_from_checkpoint=str(folder))
    with pytest.raises(ValueError, match="nowhere' is not a whole checkpoint: there is no such directory"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "nowhere"))
    with pytest.raises(TypeError, match="resume_from_checkpoint: expected True, a path or None, got int 4"):
        trainer.train(resume_from_checkpoint=4)
    assert checkpoints.faults_of(str(folder / "checkpoint-2")) is None


def test_a_run_that_goes_on_says_from_where_and_what_is_other_than_it_was(model_path, trained, tmp_path, caplog):
    folder = shutil.copytree(trained, tmp_path / "run")
    make(model_path, folder, max_steps=6).train(resume_from_checkpoint=True)
    assert "going on from checkpoint-4, step 4 of 6; this run is another" in caplog.text
    assert "max_steps 4, now 6. The weights" in caplog.text
    caplog.clear()
    make(model_path, folder, max_steps=6, learning_rate=0.5, rows=8).train(resume_from_checkpoint=True)
    assert "checkpoint-6, step 6 of 6, so nothing is left to train; this run is another" in caplog.text
    assert "learning_rate 0.001, now 0.5" in caplog.text
    assert "training pairs 12, now 8" in caplog.text
    assert "hash of the training data '" in caplog.text


def test_the_same_run_that_goes_on_is_not_called_another(model_path, trained, tmp_path, caplog):
    folder = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(folder / "checkpoint-4")
    make(model_path, folder).train(resume_from_checkpoint=True)
    assert "going on from checkpoint-2, step 2 of 4" in caplog.text
    assert "another" not in caplog.text


def test_an_optimizer_that_the_checkpoint_does_not_fit_is_an_error_that_names_it(model_path, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    trainer = make(model_path, folder, optim="sgd", optim_args="momentum=0.9", max_steps=6)
    with pytest.raises(
        ValueError, match=r"the optimizer of '.*checkpoint-4' does not fit this run \(ValueError: it has no "
    ):
        trainer.train(resume_from_checkpoint=True)


def test_a_process_that_is_lost_while_a_checkpoint_is_read_is_not_taken_for_one_that_does_not_fit(model_path, tmp_path):
    trainer = make(model_path, tmp_path)
    trainer.args = SimpleNamespace(world_size=2, process_index=0, ddp_timeout=5, output_dir="here")
    with (
        pytest.raises(RuntimeError, match="^Connection closed by peer$"),
        trainer._fitting("checkpoint-4", "the model"),
    ):
        raise RuntimeError("Connection closed by peer")


def test_the_directory_of_a_finished_run_is_not_taken_for_a_checkpoint(model_path, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    trainer = make(model_path, folder)
    trainer.save_model()
    trainer.save_state()
    with pytest.raises(ValueError, match="is not a checkpoint but a directory of checkpoints; name '.*checkpoint-4'"):
        trainer.train(resume_from_checkpoint=str(folder))


def test_a_run_that_saves_nothing_says_that_it_cannot_be_resumed(model_path, tmp_path, caplog):
    make(model_path, tmp_path, save_strategy="no").train(resume_from_checkpoint=True)
    assert "nothing will be saved to go on from, and SIGTERM saves nothing (save_strategy='no')" in caplog.text


def test_a_run_from_the_beginning_says_which_checkpoints_are_in_its_directory_and_counts_them_as_older(model_path, trained, tmp_path, caplog):  # fmt: skip
    folder = tmp_path / "run"
    shutil.copytree(trained / "checkpoint-4", folder / "checkpoint-40")
    make(model_path, folder, save_total_limit=2).train()
    assert "holds checkpoint-40 of an earlier run; this one starts from the beginning" in caplog.text
    assert [each.name for each in checkpoints.checkpoints_of(str(folder))] == ["checkpoint-2", "checkpoint-4"]
    trainer = make(model_path, folder, max_steps=6)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.log_history[3]["step"] == 4
    assert trainer.state.global_step == 6


def test_a_best_checkpoint_is_found_where_its_directory_was_moved_to(model_path, tmp_path):
    values = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    make(model_path, tmp_path / "run", **values).train()
    (tmp_path / "run").rename(tmp_path / "moved")
    trainer = make(model_path, tmp_path / "moved", **values)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.best_model_checkpoint == str(
        tmp_path / "moved" / f"checkpoint-{trainer.state.best_global_step}"
    )


def test_a_checkpoint_without_an_optimizer_goes_on_with_a_new_one_and_says_so(model_path, tmp_path, caplog):
    make(model_path, tmp_path, save_only_model=True).train()
    trainer = make(model_path, tmp_path, max_steps=5, save_only_model=True)
    trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-4 holds no optimizer (save_only_model)" in caplog.text
    assert trainer.state.global_step == 5


def test_a_checkpoint_without_the_random_numbers_state_says_so(model_path, trained, tmp_path, caplog):
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "checkpoint-4" / checkpoints.MANIFEST).unlink()
    (folder / "checkpoint-4" / "rng_state.pth").unlink()
    make(model_path, folder, max_steps=5).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert "checkpoint-4 holds no state of the random numbers (rng_state*.pth), which begin anew" in caplog.text


def test_an_older_checkpoint_keeps_the_sums_of_all_processes_as_one(model_path, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    path = folder / "checkpoint-4" / "trainer_state.json"
    state = json.loads(path.read_text())
    interval = {"sums": [8.0, 4.0, 0.0, 1.0, 2.0], "extremes": [[1.0, 2.0]]}
    state["stateful_callbacks"]["plaudit"] = {
        "num_tokens": 1_000,
        "interval": interval,
        "loss": {"sum": 0.5, "steps": 1},
    }
    path.write_text(json.dumps(state))
    (folder / "checkpoint-4" / checkpoints.MANIFEST).unlink()
    trainer = make(model_path, folder, max_steps=5)
    trainer.train(resume_from_checkpoint=True)
    found = next(entry for entry in trainer.state.log_history if entry["step"] == 5)
    whole = make(model_path, tmp_path / "whole", max_steps=5, save_strategy="no", lr_scheduler_type="constant")
    whole.train()
    before, after = (entry for entry in whole.state.log_history if entry["step"] in (4, 5) and "loss" in entry)
    assert found["num_tokens"] == 1_000 + after["num_tokens"] - before["num_tokens"]
    # Eight pairs of which four were right, and the four of this step.
    assert found["accuracy"] == pytest.approx((4 + 4 * after["accuracy"]) / 12)
    assert found["loss"] == pytest.approx((0.5 + after["loss"]) / 2)


def test_a_save_draws_no_random_numbers_from_the_run(model_path, tmp_path):
    trainer = make(model_path, tmp_path, max_steps=2)
    save, states = trainer._save, []

    def drawing(*args, **kwargs):
        states.append(torch.get_rng_state())
        torch.rand(3)
        save(*args, **kwargs)

    trainer._save = drawing
    trainer.train()
    (before,) = states
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.load(tmp_path / "checkpoint-2" / "rng_state.pth", weights_only=False)["cpu"], before)


def test_a_callback_that_came_with_the_resumed_run_is_saved_too(model_path, trained, tmp_path):
    from transformers import EarlyStoppingCallback

    folder = shutil.copytree(trained, tmp_path / "run")
    values = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "eval_loss", "max_steps": 6}
    callbacks = [EarlyStoppingCallback(9), EarlyStoppingCallback(5)]
    make(model_path, folder, callbacks, **values).train(resume_from_checkpoint=True)
    state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())
    patience = [
        each["args"]["early_stopping_patience"] for each in state["stateful_callbacks"]["EarlyStoppingCallback"]
    ]
    assert patience == [9, 5]


def test_the_runs_differ_in_what_resuming_must_get_right():
    strategies = {name: [run.get(f"{what}_strategy") for what in ("logging", "eval", "save")] for name, run in RUNS.items()}  # fmt: skip
    assert strategies["late"] == ["epoch", "epoch", "steps"]
    assert strategies["epochs"] == ["epoch"] * 3
    assert {"streamed", "gradient_accumulation_steps"} <= set(RUNS["stream"])
    assert {"early_stopping", "lora"} <= set(RUNS["stopped"])
