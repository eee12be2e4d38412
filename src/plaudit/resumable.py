"""ResumableTrainer: transformers' Trainer as far as it resumes, so that a run that was cut short is the run that was not."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import EarlyStoppingCallback
from transformers.trainer_callback import TrainerControl
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import SaveStrategy

from plaudit import checkpoints, faults, sharding
from plaudit import kept as records
from plaudit.kept import Kept, Place
from plaudit.memory import is_out_of_memory
from plaudit.preemption import EXIT_CODE, Agreement, BrokenOff, Sigterm
from plaudit.running import RunningMetrics
from plaudit.saving import SavingTrainer
from plaudit.say import say
from plaudit.trust import Refused


class ResumableTrainer(SavingTrainer):
    """The checkpoints of RewardTrainer: complete or absent, taken up exactly, and saved once more when SIGTERM comes.

    `_running`: the training metrics since the last log, new for each training.
    """

    _running: RunningMetrics
    _tr_loss: Tensor
    _total_loss_scalar: float
    _globalstep_last_logged: int
    _sigterm = Sigterm()
    # What an evaluation that was made up for has left the random numbers at.
    _random_state_to_go_on: dict[str, Any] | None = None
    # Of the checkpoint that is resumed: its path, its record, and its place until the epoch that goes on has begun.
    _resumed_from: str | None = None
    _kept: Kept | None = None
    _resumed: Place | None = None
    # Whether `_total_loss_scalar` is of all steps since the first.
    _has_whole_loss = True
    # Of the epoch that runs: its number, the step before its first, its steps, and whether it is over.
    _epoch: tuple[int, int, int] | None = None
    _is_ended = False
    _attended_step = -1
    _last_figures: tuple[Any, float | None] = (None, None)
    # What an evaluation that is broken off is taken back to.
    _before_evaluation: Callable[[], None] | None = None

    # ---- A training, from the checkpoint that it goes on from to its end

    def train(
        self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: list[str] | None = None
    ) -> Any:
        """Overridden to go on from the newest checkpoint that is whole, and to listen for SIGTERM."""
        self._agreement = Agreement.of(self.args.ddp_timeout)
        self._run_dir, resumed_from = self._agreement.first_decides(lambda: self._settle(resume_from_checkpoint, trial))
        self._sigterm = Sigterm()
        try:
            output = super().train(resumed_from, trial, ignore_keys_for_eval)
        finally:
            self._sigterm.restore()
            self._run_dir = None
        self._sigterm.pass_on()
        return output

    def _settle(self, asked: Any, trial: Any) -> tuple[str, str | None]:
        run_dir = self._get_output_dir(trial)
        if self._saves:
            checkpoints.require_writable(run_dir)
        elif asked is True:
            say(
                "resume_from_checkpoint: nothing will be saved to go on from, and SIGTERM saves nothing (save_strategy='no')"
            )
        with contextlib.suppress(OSError):
            checkpoints.tidy(run_dir)
        return run_dir, checkpoints.to_resume(run_dir, asked, self._saves)

    @property
    def _saves(self) -> bool:
        return self.args.save_strategy != SaveStrategy.NO or self.args.enable_jit_checkpoint

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, resumed_from: Any, trial: Any
    ) -> tuple[int, int]:
        """Overridden to take up what a checkpoint keeps beyond Trainer's own state, and its very place in the epoch."""
        # Trainer comes here again when auto_find_batch_size gives up an attempt: what that had counted goes with it.
        self._running = RunningMetrics(self.accelerator.device)
        self._kept = self._resumed = self._random_state_to_go_on = self._epoch = None
        self._saved_as = self._before_evaluation = None
        self._resumed_from, self.current_flos, self._has_whole_loss = resumed_from, 0, True
        begun = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resumed_from, trial
        )
        if resumed_from is None:
            return begun
        self._find_best()
        self._say_resumed(resumed_from, max_steps)
        _say_what_begins_anew(resumed_from)
        self._has_whole_loss = self._kept is not None and self._kept.total_loss is not None
        if self._kept is None:
            return begun
        own = self._kept.of_process(self.args.process_index, self.args.world_size)
        self._running.restore(self._kept.num_tokens, own)
        place = self._kept.place
        # With another number of steps an epoch, as for another batch size, Trainer's arithmetic is all there is.
        if place is None or place.steps_per_epoch != num_update_steps_per_epoch:
            return begun
        if place.is_ended and place.is_at_end and not place.evaluate:
            return place.epoch + 1, 0
        self._resumed = place
        batches = 0 if self.args.ignore_data_skip else place.steps * self.args.gradient_accumulation_steps
        return place.epoch, batches

    def _facts_of_run(self) -> dict[str, Any]:
        """Return by name what the run is told to do, of which a resumed one is to be told where it differs."""
        return {}

    def _say_resumed(self, resumed_from: str, max_steps: int) -> None:
        step = self.state.global_step
        told = f"going on from {os.path.basename(resumed_from)}, step {step} of {max_steps}"
        if step >= max_steps:
            told += ", so nothing is left to train"
        others = records.differences(self._kept.facts if self._kept else None, self._facts_of_run())
        if others:
            told += (
                f"; this run is another than the one that was cut short: {'; '.join(others)}. The weights, the optimizer's "
                "values and the learning rate's schedule are the checkpoint's"
            )
        say(f"resume_from_checkpoint: {told}")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Overridden because what does not fit would be told in torch's words, without the checkpoint's name."""
        with self._fitting(resume_from_checkpoint, "the model"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Overridden as the weights'."""
        with self._fitting(checkpoint, "the optimizer"):
            super()._load_optimizer_and_scheduler(checkpoint)
            # Another kind of optimizer takes the saved values as they are, and fails in its first step.
            wanted = set(getattr(self.optimizer, "defaults", None) or ())
            for group in getattr(self.optimizer, "param_groups", ()):
                if wanted - set(group):
                    raise ValueError(f"it has no {', '.join(sorted(wanted - set(group)))}")

    @contextlib.contextmanager
    def _fitting(self, checkpoint: str | None, what: str) -> Iterator[None]:
        try:
            yield
        except (KeyError, ValueError, RuntimeError) as error:
            # These say what is wrong themselves, and a lost process is told of further out.
            if is_out_of_memory(error) or isinstance(error, Refused) or faults.told(error, self.args) is not None:
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ValueError(
                f"resume_from_checkpoint: {what} of {checkpoint!r} does not fit this run ({reason}); give the model, the adapter, "
                "the optimizer and the engine that it was saved with, or leave resume_from_checkpoint out"
            ) from error

    def _load_callback_state(self) -> None:
        """Overridden because Trainer takes our record for a callback's, and leaves early stopping to count anew."""
        stored = cast(dict, self.state.stateful_callbacks)
        self._kept = records.read(stored.pop(records.STATE, None), self.state.global_step)
        super()._load_callback_state()
        if self.args.restore_callback_states_from_checkpoint:
            return
        for name, callbacks in self._stateful_callbacks().items():
            data = stored.get(name, [])
            for callback, one in zip(callbacks, data if isinstance(data, list) else [data], strict=False):
                # What a callback has counted; what it was made with is the user's to change.
                for attribute, value in one.get("attributes", {}).items():
                    setattr(callback, attribute, value)

    def _stateful_callbacks(self) -> dict[str, list[Any]]:
        named: dict[str, list[Any]] = {}
        for callback in records.with_state(self):
            named.setdefault(type(callback).__name__, []).append(callback)
        return named

    def _find_best(self) -> None:
        """Find the best checkpoint where the run is now, if its directory was moved since."""
        if not self.state.best_global_step:
            return
        name = f"checkpoint-{self.state.best_global_step}"
        places = [cast(str, self._run_dir), os.path.dirname(os.path.abspath(cast(str, self._resumed_from)))]
        found = next((path for path in (os.path.join(place, name) for place in places) if os.path.isdir(path)), None)
        if found is not None:
            self.state.best_model_checkpoint = found

    def _take_up_losses(self) -> None:
        """Take up the losses that a resumed checkpoint kept, which Trainer has set to zero by the time this is called."""
        kept, self._kept = self._kept, None
        if kept is None:
            return
        own = kept.of_process(self.args.process_index, self.args.world_size)
        self._tr_loss = torch.tensor(own["loss"], dtype=self._tr_loss.dtype, device=self._tr_loss.device)
        self._globalstep_last_logged, self.current_flos = kept.logged_step, own["flos"]
        self._total_loss_scalar = kept.total_loss or 0.0
        self._last_figures = kept.grad_norm, kept.learning_rate

    def _run_epoch(self, **epoch: Any) -> None:
        """Overridden because a checkpoint may have been saved before its epoch's end was over, or after the last step."""
        if self._saves:
            self._sigterm.install()
        self._take_up_losses()
        place, self._resumed = self._resumed, None
        trained = 0 if place is None or self.args.ignore_data_skip else place.steps
        self._epoch = epoch["epoch"], self.state.global_step - trained, epoch["num_update_steps_per_epoch"]
        if place is not None and place.evaluate:
            self._make_up(place, epoch)
        stops = self.state.global_step >= self.state.max_steps or self._was_stopped_early()
        if place is not None and not place.is_ended and (stops or place.is_at_end):
            self._end_epoch(place, epoch)
        elif not stops and not (place is not None and place.is_at_end):
            self._attended_step = -1
            if place is not None and place.evaluate:
                self._random_state_to_go_on = records.random_state()
            super()._run_epoch(**epoch)
            return
        elif place is None or not place.evaluate:
            self._load_rng_state(self._resumed_from)
        # Trainer asks only after a step, so a finished run would train one more.
        self.control.should_training_stop |= stops

    def _make_up(self, place: Place, epoch: dict[str, Any]) -> None:
        """Do what SIGTERM left undone at the checkpoint's step: its evaluation and the save that was due."""
        self._load_rng_state(self._resumed_from)
        self.control.should_log, self.control.should_evaluate, self.control.should_save = False, True, place.save
        self._attend(epoch, after_end=place.is_ended)

    def _end_epoch(self, place: Place, epoch: dict[str, Any]) -> None:
        """Do what Trainer does at an epoch's end, which the run that saved the checkpoint did not come to."""
        if not place.evaluate:
            self._load_rng_state(self._resumed_from)
        self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
        self._attend(epoch, after_end=True)

    def _attend(self, epoch: dict[str, Any], after_end: bool) -> None:
        self._attended_step = self.state.global_step if after_end else -1
        grad_norm, learning_rate = self._last_figures
        names = ("model", "trial", "epoch", "ignore_keys_for_eval", "start_time")
        rest: dict[str, Any] = {name: epoch[name] for name in names}
        self._maybe_log_save_evaluate(self._tr_loss, grad_norm, **rest, learning_rate=learning_rate)

    def _was_stopped_early(self) -> bool:
        """Tell whether the checkpoint is of a run that early stopping had ended, by what its callback has counted."""
        return self._resumed_from is not None and any(
            isinstance(each, EarlyStoppingCallback) and each.early_stopping_patience_counter >= each.early_stopping_patience
            for each in self.callback_handler.callbacks
        )  # fmt: skip

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Overridden because an evaluation that was made up for has drawn random numbers since the checkpoint."""
        state, self._random_state_to_go_on = self._random_state_to_go_on, None
        if state is None:
            super()._load_rng_state(checkpoint)
        else:
            records.set_random_state(state)

    def _finalize_training(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        """Overridden because losses are of this process alone, and the last checkpoint would be deleted beside the best."""
        self._take_up_losses()
        if self._epoch is None:
            # No epoch was left to resume.
            self._load_rng_state(self._resumed_from)
        self._leave_if_asked(self.model_wrapped, trial)
        if self.args.world_size > 1:
            # The losses since the last log are one process's share, which Trainer takes for the mean.
            self._tr_loss = self.accelerator.gather(self._tr_loss.reshape(1)).mean()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            output = super()._finalize_training(trial, *args, **kwargs)
        finally:
            self.args.save_total_limit = limit
        return output._replace(training_loss=output.metrics["train_loss"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Overridden because Trainer's loss of the whole training forgets the steps before a resumed checkpoint."""
        if self.is_in_train and "train_loss" in logs and self._has_whole_loss:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 0.001)
        super().log(logs, start_time)

    # ---- Steps and evaluations, each of which may be the last

    def _maybe_log_save_evaluate(
        self,
        tr_loss: Tensor,
        grad_norm: Any,
        model: nn.Module,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        """Overridden to know the place of a save, and to leave when SIGTERM has come."""
        # Trainer comes here after each step, and once more for an epoch's end.
        self._is_ended = self._attended_step == self.state.global_step
        self._attended_step = self.state.global_step
        self._last_figures = grad_norm, learning_rate
        try:
            super()._maybe_log_save_evaluate(
                tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=learning_rate
            )
        except BrokenOff:
            cast(Callable, self._before_evaluation)()
            self._leave(model, trial, evaluate=True)
        self._leave_if_asked(model, trial)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False) -> dict:
        """Overridden because a resumed run has made its evaluation at the start, and one may be broken off."""
        # Trainer leaves out the scheduler in that evaluation alone.
        if skip_scheduler and self.state.global_step > 0:
            return {}
        if self._sigterm.is_installed:
            self._before_evaluation = self._way_back()
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        self._before_evaluation = None
        return metrics

    def _way_back(self) -> Callable[[], None]:
        """Return what puts the run back to where it is now, before an evaluation."""
        random_state, num_logs, saves = records.random_state(), len(self.state.log_history), self.control.should_save
        counted = [
            (callback, dict(callback.state().get("attributes", {})))
            for callbacks in self._stateful_callbacks().values()
            for callback in callbacks
        ]

        def go_back() -> None:
            self._before_evaluation = None
            sharding.reshard(self.model)
            records.set_random_state(random_state)
            del self.state.log_history[num_logs:]
            self.control.should_evaluate, self.control.should_save = True, saves
            for callback, attributes in counted:
                for name, value in attributes.items():
                    setattr(callback, name, value)

        return go_back

    def _between_batches(self) -> None:
        """Overridden to break an evaluation of the training off; one that was asked for by the user's code goes on."""
        if self._before_evaluation is not None and self._agreement.any_by_now(self._sigterm.came):
            raise BrokenOff

    def _leave_if_asked(self, model: nn.Module, trial: Any) -> None:
        if self._sigterm.is_installed and self._agreement.any_by_now(self._sigterm.came):
            self._leave(model, trial)

    def _leave(self, model: nn.Module, trial: Any, evaluate: bool = False) -> None:
        """Save a whole checkpoint, unless this very state was just saved, and end the process as SIGTERM does."""
        began, step = time.monotonic(), self.state.global_step
        name = f"checkpoint-{step}"
        if self._epoch is None or not step:
            told = "nothing was trained since the run began or was resumed, so there was nothing to save"
        else:
            if evaluate or self._saved_as != self._state_now():
                self._save_extra(model, trial, evaluate)
            told = f"saved {name} in {time.monotonic() - began:.1f} s"
        say(f"SIGTERM: {told}; resume_from_checkpoint=True goes on from there")
        self._sigterm.restore()
        self._agreement.leave()
        raise SystemExit(EXIT_CODE)

    def _keep(self, evaluate: bool) -> None:
        """Put the record of the run into the state that is saved. Collective."""
        own = {"loss": self._tr_loss.item(), "flos": self.current_flos, **self._running.own()}
        every = gather_object([own])
        self._require_finite_run(every)
        grad_norm, learning_rate = self._last_figures
        place = None
        if self._epoch is not None:
            number, first, steps = self._epoch
            cut, save = self.control.should_epoch_stop, evaluate and self.control.should_save
            place = Place(number, self.state.global_step - first, steps, self._is_ended, cut, evaluate, save)
        stored = cast(dict, self.state.stateful_callbacks)
        stored[records.STATE] = Kept(
            num_tokens=self._running.num_tokens,
            processes=every,
            logged_step=self._globalstep_last_logged,
            total_loss=self._total_loss_scalar if self._has_whole_loss else None,
            grad_norm=grad_norm.item() if isinstance(grad_norm, Tensor) else grad_norm,
            learning_rate=learning_rate,
            place=place,
            facts=self._facts_of_run(),
        ).to_json()
        for name, callbacks in {**self._stateful_callbacks(), TrainerControl.__name__: [self.control]}.items():
            # Trainer appends to a list at every save, and knows no callback that came with a resumed run.
            stored[name] = [] if len(callbacks) > 1 else {}

    def _require_finite_run(self, processes: list[dict[str, Any]]) -> None:
        """Raise FloatingPointError rather than save what is not finite. processes: the open sums of each."""

    def _state_now(self) -> tuple:
        return self.state.global_step, self._is_ended, len(self.state.log_history)

    def _save_extra(self, model: nn.Module, trial: Any, evaluate: bool) -> None:
        only_model, self.args.save_only_model = self.args.save_only_model, False
        self._is_extra = True
        try:
            self._save_checkpoint(model, trial, evaluate)
        finally:
            self._is_extra, self.args.save_only_model = False, only_model
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _take_over_sigterm(self) -> None:
        """Take transformers' own answer to SIGTERM out, which would save into the same folder."""
        if self.args.enable_jit_checkpoint:
            callback = self.pop_callback(JITCheckpointCallback)
            signal.signal(signal.SIGTERM, callback.jit_manager._original_sigterm_handler or signal.SIG_DFL)
            say("enable_jit_checkpoint: plaudit's checkpoint at SIGTERM is saved in place of transformers'", once=True)


def _say_what_begins_anew(checkpoint: str) -> None:
    """Say what a checkpoint does not hold, so that the run is another than one that was not cut short."""
    name, files = os.path.basename(checkpoint), os.listdir(checkpoint)
    if not any(word in file for file in files for word in ("optimizer", "latest")):
        say(
            f"resume_from_checkpoint: {name} holds no optimizer (save_only_model); the optimizer, the learning rate's schedule and "
            "the random numbers begin anew"
        )
    elif not any(file.startswith("rng_state") for file in files):
        say(f"resume_from_checkpoint: {name} holds no state of the random numbers (rng_state*.pth), which begin anew")
