"""auto_find_batch_size: each attempt begins where the first one did, so that it is a run of its own with that batch size."""

import copy
import os
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.trainer_callback import TrainerControl

from plaudit import adapters, checkpoints, faults, memory, partitioned, shortage
from plaudit.evaluator import PairEvaluator
from plaudit.kept import random_state, set_random_state, with_state
from plaudit.prepare import StreamCounts
from plaudit.say import say


class Attempts:
    """What a training began with, kept while a batch size that fits is looked for.

    Costs a copy of the trainable weights in host memory. What an attempt that ran out of memory has moved or written is
    put back: weights, optimizer, scheduler, scaler, callbacks, random numbers and counts; its checkpoints, which no run
    with another batch size can go on from, are moved into a folder beside the others.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Any] | None = None
        self._before: dict[str, tuple[int, int]] = {}
        self._is_resumed = False
        self._num_begun = 0

    def keep(self, trainer: Any, is_resumed: bool = False) -> None:
        """Keep the trainer as it is, before a checkpoint is loaded into it and before its first step; later calls do nothing."""
        if self._kept is not None or not trainer.args.auto_find_batch_size or trainer.args.world_size > 1:
            return
        self._is_resumed = is_resumed
        optimizer, scheduler = trainer.optimizer, trainer.lr_scheduler
        self._kept = {
            "weights": {name: value.detach().to("cpu", copy=True) for name, value in _moving(trainer.model)},
            "random": random_state(),
            # What Trainer makes itself it makes anew.
            "optimizer": (optimizer, None if optimizer is None else copy.deepcopy(optimizer.state_dict())),
            "scheduler": (scheduler, None if scheduler is None else copy.deepcopy(scheduler.state_dict())),
            "scaler": None if trainer.accelerator.scaler is None else trainer.accelerator.scaler.state_dict(),
            "callbacks": [(one, copy.deepcopy(one.state()["attributes"])) for one in with_state(trainer)],
            "newest_rewards": dict(trainer.newest_rewards),
            "loaders": trainer.accelerator.gradient_state.dataloader_references,
        }

    def begin(self, trainer: Any, batch_size: int, run_dir: str) -> bool:
        """Make the trainer ready for an attempt with so many pairs a batch; return whether an earlier one ran out of memory."""
        if not trainer.args.auto_find_batch_size:
            return False
        if trainer.args.world_size > 1:
            say(
                f"auto_find_batch_size has no effect on {trainer.args.world_size} processes: the one that starts again would "
                "leave the others waiting, so that running out of memory is an error",
                once=True,
            )
        self._num_begun += 1
        again = self._num_begun > 1 and self._kept is not None
        if again:
            self._say(trainer, batch_size, run_dir)
            self._restore(trainer)
        else:
            self.keep(trainer)
            # Later attempts cannot go on from what a resumed one had gone on from.
            self._before = {} if self._is_resumed else _checkpoints(run_dir)
        if trainer.args.per_device_train_batch_size != batch_size:
            # All that asks the arguments for the batch size is to get the attempt's; the user's own object stays.
            trainer.args = copy.copy(trainer.args)
            trainer.args.per_device_train_batch_size = batch_size
        return again

    def _say(self, trainer: Any, batch_size: int, run_dir: str) -> None:
        earlier = trainer.args.per_device_train_batch_size
        moved = self._move_checkpoints(run_dir, earlier)
        say(
            f"step {trainer.state.global_step + 1} of training ran out of memory with per_device_train_batch_size={earlier}; "
            f"it starts again from the beginning with {batch_size} (auto_find_batch_size){moved}"
        )

    def _move_checkpoints(self, run_dir: str, batch_size: int) -> str:
        """Move the checkpoints of the attempt aside, those that it had gone on from too; return what is to be said of it."""
        moved = sorted(name for name, made in _checkpoints(run_dir).items() if self._before.get(name) != made)
        if not moved:
            return ""
        aside = os.path.join(run_dir, f"out-of-memory-at-{batch_size}")
        os.makedirs(aside, exist_ok=True)
        for name in moved:
            target = os.path.join(aside, name)
            number = 1
            while os.path.exists(target):
                target, number = os.path.join(aside, f"{name}.{number}"), number + 1
            os.rename(os.path.join(run_dir, name), target)
        return f"; its checkpoints {', '.join(moved)} are now in {aside}"

    def _restore(self, trainer: Any) -> None:
        kept: dict[str, Any] = self._kept  # type: ignore[assignment]
        with torch.no_grad():
            for name, value in _moving(trainer.model):
                _put(value, kept["weights"][name])
        trainer.model.zero_grad(set_to_none=True)
        if adapters.allocates_ranks(trainer.model):
            trainer.model.base_model.rankallocator.reset_ipt()
        for name, attribute in (("optimizer", "optimizer"), ("scheduler", "lr_scheduler")):
            owner, state = kept[name]
            setattr(trainer, attribute, owner)
            if owner is not None:
                owner.load_state_dict(copy.deepcopy(state))
        if kept["scaler"] is not None:
            trainer.accelerator.scaler.load_state_dict(kept["scaler"])
        for callback, attributes in kept["callbacks"]:
            vars(callback).update(copy.deepcopy(attributes))
        trainer.control = TrainerControl()
        trainer.newest_rewards = dict(kept["newest_rewards"])
        trainer._dropped = StreamCounts()
        # The loaders of the attempt were broken off and have not signed off.
        trainer.accelerator.gradient_state.dataloader_references = kept["loaders"]
        set_random_state(kept["random"])


def _moving(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return what training may change of a model, by names that stay when it is wrapped."""
    trained = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    return [(partitioned.name_of(name), each) for name, each in [*trained, *model.named_buffers()]]


def _put(target: Tensor, value: Tensor) -> None:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(target, DTensor):
        # Kept before FSDP divided it.
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


def _checkpoints(run_dir: str) -> dict[str, tuple[int, int]]:
    """Return the checkpoints in a directory by name, each with what tells it from another of the same name."""
    status = {each.name: os.stat(each.path) for each in checkpoints.checkpoints_of(run_dir)}
    return {name: (one.st_ino, one.st_mtime_ns) for name, one in status.items()}


class AttemptingTrainer(PairEvaluator):
    """A PairEvaluator whose training says what ran out or broke, and with auto_find_batch_size begins again where it began."""

    _attempts: Attempts | None = None
    _newest_batch: Mapping[str, Any] | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Overridden because a dead worker's and a lost process's errors are to name the cause and the cure."""
        self._attempts, self._newest_batch = Attempts(), None
        try:
            with faults.explained(self):
                return super().train(*args, **kwargs)
        finally:
            self._attempts = self._newest_batch = None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Overridden to keep what an attempt with a smaller batch begins with: the weights before the checkpoint's."""
        if self._attempts is not None:
            self._attempts.keep(self, is_resumed=True)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: Any = None,
        resume_from_checkpoint: str | None = None,
        trial: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Overridden because Trainer begins its next attempt with the weights, the optimizer and the random numbers that the
        last one left, and because an error is to name the batch."""
        if cast(Attempts, self._attempts).begin(self, cast(int, batch_size), self._get_output_dir(trial)):
            resume_from_checkpoint = None
        with memory.explained(
            lambda: shortage.of_training(self, self._newest_batch), lambda: shortage.may_try_again(self)
        ):
            return super()._inner_training_loop(batch_size, self.args, resume_from_checkpoint, trial, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Overridden because an error is to name the batch, also one of the optimizer's step after it."""
        self._newest_batch = inputs
        return super().training_step(model, inputs, *args, **kwargs)
