"""SavingTrainer: transformers' Trainer as far as it saves: aside, then all at once, or not at all and with a clear error."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, cast

from torch import Tensor, nn

from plaudit import checkpoints
from plaudit import kept as records
from plaudit.checkpoints import STATE_FILE, UNFINISHED, UNFINISHED_MODEL
from plaudit.evaluator import PairEvaluator
from plaudit.preemption import Agreement


class SavingTrainer(PairEvaluator):
    """The saves of RewardTrainer. A checkpoint and a model's folder are as they were, or whole, whenever a run is cut short."""

    # Brought by a subclass: puts what a checkpoint keeps beyond Trainer's own into the state that is saved, on all processes
    # together; and returns what tells this state of the run from every other.
    _keep: Callable[[bool], None]
    _state_now: Callable[[], tuple]
    # The directory of this training's checkpoints, as the first process has it; None outside a training.
    _run_dir: str | None = None
    _agreement = Agreement()
    # Where files are being written aside, and the place that they are for.
    _asides: tuple[tuple[str, str], ...] = ()
    _is_saving = False
    _failure: BaseException | None = None
    # A save beyond those that the options ask for; it leaves no trace in what the run computes.
    _is_extra = False
    # The state that the newest whole checkpoint is of.
    _saved_as: tuple | None = None
    # The random numbers' state when the save began.
    _random_state: dict[str, Any] | None = None

    def _get_output_dir(self, trial: Any) -> str:
        """Overridden because a checkpoint is written aside."""
        if self._is_saving:
            return self._asides[0][0]
        return os.fspath(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any, evaluate: bool = False) -> None:
        """Overridden to write it aside, with what Trainer leaves out, and to rename it when it is whole on the disk.

        evaluate: whether the evaluation of this step is still to be made. Raises OSError on every process where one could
        not write its part; the checkpoints before are as they were.
        """
        name, run_dir = f"checkpoint-{self.state.global_step}", self._run_dir or self._get_output_dir(trial)
        if not self.is_in_train:
            self._agreement = Agreement.of(self.args.ddp_timeout)
        if self.hp_search_backend is None and trial is None:
            # Trainer does this inside, after our record is made.
            self.store_flos()
        self._keep(evaluate)
        self._write_checkpoint(model, trial, name, run_dir)
        self._require_saved(name, run_dir)
        self._put_in_place(name, run_dir)
        self._saved_as = None if self.args.save_only_model else self._state_now()
        if self.args.push_to_hub and not self._is_extra:
            self._push_from_checkpoint(os.path.join(run_dir, name))
        if self.args.should_save:
            best = os.path.basename(self.state.best_model_checkpoint or "")
            checkpoints.rotate(run_dir, self.args.save_total_limit, {name, best})

    def _write_checkpoint(self, model: nn.Module, trial: Any, name: str, run_dir: str) -> None:
        self._asides, self._is_saving, self._failure = ((os.path.join(run_dir, UNFINISHED), run_dir),), True, None
        self._random_state = records.random_state()
        try:
            with self._noting_failure():
                super()._save_checkpoint(model, trial)
            self._name_best(name)
        finally:
            self._is_saving, self._asides, self._random_state = False, (), None

    def _name_best(self, name: str) -> None:
        """Have the state name the best checkpoint by the place that it will be in."""
        (aside, run_dir) = self._asides[0]
        if self.state.best_model_checkpoint != os.path.join(aside, name):
            return
        self.state.best_model_checkpoint = os.path.join(run_dir, name)
        path = os.path.join(aside, name, STATE_FILE)
        with self._noting_failure():
            if self.args.should_save and os.path.exists(path):
                self.state.save_to_json(path)

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """Note an error in a checkpoint's save, for all processes to end on together: the others go on in step."""
        try:
            yield
        except Exception as error:
            self._failure = self._failure or error
        except BaseException as error:
            # torch's distributed checkpoints raise one of these for a full disk.
            if type(error).__name__ != "CheckpointException":
                raise
            self._failure = self._failure or error

    def _require_saved(self, name: str, run_dir: str) -> None:
        """Raise on every process what went wrong on any, and remove what was written. Collective."""
        mine, self._failure = self._failure, None
        failed = mine is not None and checkpoints.is_failed_write(mine)
        error: Any = (
            checkpoints.not_written(name, run_dir, cast(Any, mine), self._bytes_needed(run_dir)) if failed else mine
        )
        every = self._agreement.errors(None if error is None else str(getattr(error, "strerror", None) or error))
        if not every:
            return
        if self.args.should_save:
            with contextlib.suppress(OSError):
                checkpoints.tidy(run_dir)
        if error is not None:
            raise error from (mine if failed else None)
        number, text = every[0]
        raise OSError(f"process {number} could not save {name}: {text}")

    def _bytes_needed(self, run_dir: str) -> int:
        there = checkpoints.checkpoints_of(run_dir)
        with contextlib.suppress(OSError):
            if there:
                return checkpoints.size_of(there[-1].path)
        states = [] if self.args.save_only_model or self.optimizer is None else self.optimizer.state.values()
        tensors = [*self.model.state_dict().values(), *(each for one in states for each in one.values())]
        return sum(each.numel() * each.element_size() for each in tensors if isinstance(each, Tensor))

    def _put_in_place(self, name: str, run_dir: str) -> None:
        """Have the first process make the checkpoint whole, then the first of every other machine with a disk of its own."""
        several = int(os.environ.get("LOCAL_WORLD_SIZE", self.args.world_size)) < self.args.world_size
        is_own = several and has_own_disk(self._agreement, os.path.join(run_dir, UNFINISHED))
        with self._noting_failure():
            if self.is_world_process_zero():
                checkpoints.finish(run_dir, name)
        self._require_saved(name, run_dir)
        if several:
            with self._noting_failure():
                if is_own and self.is_local_process_zero():
                    checkpoints.finish(run_dir, name)
            self._require_saved(name, run_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        """Overridden because a save must not change what the run draws after it."""
        if self._random_state is not None:
            records.set_random_state(self._random_state)
        super()._save_rng_state(output_dir)

    def store_flos(self) -> None:
        """Overridden because a sum over processes is rounded, so one more of them would show."""
        if not self._is_extra:
            super().store_flos()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Overridden because the upload goes on after this call, from a folder that is still to be renamed."""
        if not self._is_saving:
            super()._push_from_checkpoint(checkpoint_folder)

    @contextlib.contextmanager
    def _written_aside(self, output_dir: Any) -> Iterator[str]:
        """Yield where a model's files are to be written; they move to output_dir, None for the run's, when all are there.

        Inside a checkpoint, which is written aside as a whole, that is output_dir itself.
        """
        place = os.fspath(output_dir or cast(str, self.args.output_dir))
        if self._is_saving:
            with self._noting_failure():
                yield place
            return
        aside, before = os.path.join(place, UNFINISHED_MODEL), self._asides
        self._asides = (*before, (aside, place))
        try:
            if self.args.should_save:
                shutil.rmtree(aside, ignore_errors=True)
                os.makedirs(aside)
            yield aside
            if self.args.should_save:
                checkpoints.move_into(aside, place)
        except Exception as error:
            if self.args.should_save:
                shutil.rmtree(aside, ignore_errors=True)
            if checkpoints.is_failed_write(error):
                raise checkpoints.not_written("the model", place, error, 0) from error
            raise
        finally:
            self._asides = before

    def _final_place(self, path: str) -> str:
        """Return where a path that is being written aside will be."""
        for aside, place in self._asides:
            if path == aside or path.startswith(aside + os.sep):
                return place + path[len(aside) :]
        return path

    def save_state(self) -> None:
        """Overridden because a disk that is full would leave half of the file in place of the old one."""
        if not self.is_world_process_zero():
            return
        path = os.path.join(cast(str, self.args.output_dir), STATE_FILE)
        try:
            self.state.save_to_json(f"{path}.unfinished")
            os.replace(f"{path}.unfinished", path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.remove(f"{path}.unfinished")
            raise checkpoints.not_written(STATE_FILE, os.path.dirname(path), error, 0) from error


def has_own_disk(agreement: Agreement, folder: str) -> bool:
    """Tell whether this process does not see what the first one writes into a folder. Collective."""

    def leave_mark() -> str:
        handle, path = tempfile.mkstemp(dir=folder)
        os.close(handle)
        return os.path.basename(path)

    # By a name that is new: a shared disk may go on showing what another machine has renamed, for as long as it is cached.
    is_own = not os.path.exists(os.path.join(folder, agreement.first_decides(leave_mark)))
    # The first one goes on to remove the mark.
    agreement.errors(None)
    return is_own
