"""What a run's loss has done step by step, kept on the device and read every fifty steps: a plateau, or no number at all."""

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from plaudit import checks, doctor, metrics, setup
from plaudit.case import Case, untouched
from plaudit.collate import Padded, PairCollator
from plaudit.doctor import NEAR, WINDOW, is_a_coins
from plaudit.prepare import ORIGINS, rows_named
from plaudit.say import say

logger = logging.getLogger("plaudit")


@dataclass(frozen=True)
class Broken:
    """The first step in which a number stopped being finite, by row number of the prepared data set.

    rows: those whose loss is not finite; num_rows: of how many of the step; before: the rows of the step before, empty where
    that is not known.
    """

    step: int
    rows: tuple[int, ...]
    num_rows: int
    before: tuple[int, ...]


class Watch:
    """The losses of the pairs since the last reading, and how long the mean has been that of a coin."""

    def __init__(self) -> None:
        self._open: list[tuple[Tensor, Tensor, Tensor]] = []
        self._steps: list[list[tuple[Tensor, Tensor, Tensor]]] = []
        self._before: list[tuple[Tensor, Tensor, Tensor]] = []
        self._means: list[float] = []
        self.was_examined = False

    def add(self, losses: Tensor, weight: Tensor, pair_index: Tensor | None) -> None:
        """Add one micro-batch. losses, weight: shape (num_pairs,); pair_index: rows, None for a bare batch."""
        index = torch.full_like(weight, -1, dtype=torch.int64) if pair_index is None else pair_index
        self._open.append((losses.detach(), weight, index))

    def end_step(self) -> None:
        """Close an optimizer step."""
        if self._open:
            self._steps.append(self._open)
            self._open = []

    def forget(self) -> None:
        """Forget the steps that are not read yet, and those before."""
        self._steps, self._means, self._before = [], [], []

    @property
    def is_due(self) -> bool:
        """Whether there are steps enough to read: the same on every process, so it may guard a collective."""
        return len(self._steps) >= WINDOW

    def read(self, gather: Callable[[Tensor], Tensor]) -> tuple[bool, bool]:
        """Return whether all numbers are finite, and whether the loss stays at ln 2; one collective, one read of the device.

        gather: a function from a tensor, shape (n,), to all processes' tensors, shape (num_processes, n). Where all is
        finite, the steps are forgotten.
        """
        sums = [
            torch.stack([torch.where(weight > 0, losses, 0.0).sum() for losses, weight, _ in step]).sum()
            for step in self._steps
        ]
        counts = [torch.stack([weight.sum() for _, weight, _ in step]).sum() for step in self._steps]
        rows = gather(torch.stack([*sums, *counts]).float()).double().sum(dim=0).cpu()
        means = (rows[: len(sums)] / rows[len(sums) :].clamp_min(1.0)).tolist()
        if not all(map(math.isfinite, means)):
            return False, False
        self._before = self._steps[-1]
        self._steps = []
        self._means = (self._means + means)[-(2 * WINDOW - 1) :]
        return True, stays_at_chance(self._means)

    def first_broken(self, last_step: int, gather_object: Callable[[list], list]) -> Broken | None:
        """Return the first step whose loss is not finite on any process; None where every loss is. Takes a collective."""
        every = gather_object([[_rows_of(step) for step in self._steps]])
        first = last_step - len(self._steps) + 1
        before = gather_object([[row for row, _ in _rows_of(self._before)]])
        earlier = [row for rows in before for row in rows]
        for number, parts in enumerate(zip(*every, strict=True)):
            rows = [each for part in parts for each in part]
            bad = [row for row, is_finite in rows if not is_finite]
            if bad:
                return Broken(first + number, tuple(sorted(bad)), len(rows), tuple(sorted(earlier)))
            earlier = [row for row, _ in rows]
        return None

    def last_rows(self, gather_object: Callable[[list], list]) -> tuple[int, ...]:
        """Return the rows of the last step, over all processes. Takes a collective."""
        step = self._steps[-1] if self._steps else self._before
        return tuple(sorted(row for rows in gather_object([[row for row, _ in _rows_of(step)]]) for row in rows))


def _rows_of(step: Sequence[tuple[Tensor, Tensor, Tensor]]) -> list[tuple[int, bool]]:
    """Return the rows of a step and whether the loss of each is finite; fillers are left out."""
    found: list[tuple[int, bool]] = []
    for losses, weight, index in step:
        real = (weight > 0).cpu()
        found += zip(index.cpu()[real].tolist(), losses.isfinite().cpu()[real].tolist(), strict=True)
    return found


def stays_at_chance(means: Sequence[float]) -> bool:
    """Tell whether the loss of fifty consecutive steps is that of a coin: each, or the mean of their first and last half.

    Steps of few pairs scatter by more than a hundredth even where nothing is learnt, and the mean does not.
    """
    near = [is_a_coins(mean) for mean in means]
    half = WINDOW // 2
    for end in range(WINDOW, len(means) + 1):
        if all(near[end - WINDOW : end]):
            return True
        parts = means[end - WINDOW : end - half], means[end - half : end]
        if all(is_a_coins(sum(part) / half) for part in parts):
            return True
    return False


def where_broken(broken: Broken | None, last_rows: Sequence[int], named: Callable[[int], int]) -> str:
    """Return in which rows of the user's data the numbers stopped being finite.

    last_rows: of the last step, for a gradient that is not finite where every loss is. named: from a row of the prepared
    data set to the user's.
    """
    if broken is None and not last_rows:
        return ""
    if broken is None:
        return f"every loss is finite, in the last step those of the train {_listed(last_rows, named)}"
    rows = f"train {_listed(broken.rows, named)}"
    first = (
        f"the first loss that is not finite is in step {broken.step}, in {len(broken.rows)} of its {broken.num_rows}"
    )
    if len(broken.rows) < broken.num_rows or not broken.before:
        return f"{first} pairs, {rows}"
    return (
        f"{first} pairs ({rows}), so the weights broke in the step before, of the train {_listed(broken.before, named)}"
    )


def _listed(rows: Sequence[int], named: Callable[[int], int]) -> str:
    return rows_named([named(row) for row in rows])


def case_of(trainer: Any) -> Case:
    """Return a trainer's run as the doctor examines it: its own model, prepared pairs, collator and schedule."""
    dataset = trainer.eval_dataset if trainer.train_dataset is None else trainer.train_dataset
    dataset = next(iter(dataset.values()), None) if isinstance(dataset, dict) else dataset
    if dataset is None:
        raise ValueError("there are no pairs to examine; give the trainer a train_dataset or an eval_dataset")
    whole = not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    # Choosing a layout tries it on the model, so that is among what is put back.
    with untouched(model) if whole else contextlib.nullcontext():
        layout = trainer._layout_of(dataset) if whole else Padded(trainer._pad_token_id)
    return Case(
        model=model,
        pairs=dataset,
        tokenizer=setup.tokenizer_of(trainer.processing_class),
        args=trainer.args,
        log_history=trainer.state.log_history,
        collate=PairCollator(layout, trainer._pad_token_id, trainer._user_columns()),
        num_steps=trainer.state.max_steps if trainer.is_in_train else _num_steps(dataset, trainer.args),
        optimizer=trainer.optimizer if whole else None,
        schedule=trainer.lr_scheduler if whole else None,
        rows=_rows(dataset),
        conversational=trainer.data_kind == "conversational",
        template_kwargs=trainer._template_kwargs,
        whole=whole,
    )


def _rows(dataset: Any) -> Sequence[int] | None:
    """Return each prepared pair's row in the user's own data, None where it is its number."""
    origins = getattr(dataset, ORIGINS, None)
    return None if origins is None else origins.rows


def _num_steps(dataset: Any, args: Any) -> int:
    if args.max_steps > 0:
        return args.max_steps
    size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return math.ceil(math.ceil(len(dataset) / size) * args.num_train_epochs)


def attend(trainer: Any) -> None:
    """Read the losses where fifty steps are waiting: stop the run, or examine it once, where something is wrong."""
    watch: Watch = trainer._watch
    if not watch.is_due:
        return
    is_finite, is_stuck = watch.read(trainer._gather_rows)
    if not is_finite:
        if trainer.args.logging_nan_inf_filter:
            watch.forget()
        else:
            require_finite(trainer, {"loss": math.nan})
        return
    if watch.was_examined or not (is_stuck or _is_idle(trainer)):
        return
    watch.was_examined = True
    stuck = f"the loss has stayed within {100 * NEAR:g} % of ln 2, that of a coin, for {WINDOW} steps"
    examine(trainer, stuck if is_stuck else f"the learning rate is 0 at step {trainer.state.global_step}")


def _is_idle(trainer: Any) -> bool:
    """Tell whether the next step changes nothing, which is so by right at the end of a schedule alone."""
    groups = [] if trainer.optimizer is None else trainer.optimizer.param_groups
    if trainer.state.global_step < trainer.state.max_steps:
        groups = [{**group, "initial_lr": group["lr"]} for group in groups]
    return bool(groups) and not any(checks.base_rate(group) for group in groups)


def require_finite(trainer: Any, figures: Mapping[str, float]) -> None:
    """Raise FloatingPointError, with the rows and what the doctor finds, for the first number that is not finite."""
    if metrics.not_finite(figures) is None:
        return
    watch: Watch = trainer._watch
    step = trainer.state.global_step
    broken = watch.first_broken(step, gather_object)
    last_rows = watch.last_rows(gather_object)
    examine(trainer, f"{metrics.not_finite(figures)} at step {step}")
    rows = _rows(trainer.train_dataset)
    metrics.require_finite(
        figures, step, where_broken(broken, last_rows, lambda row: row if rows is None or row < 0 else int(rows[row]))
    )


def require_finite_weights(trainer: Any) -> None:
    """Raise FloatingPointError where the last step left weights that are not finite, which its loss does not show yet."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return  # the proof of what is saved computes with the whole weights
    weights = [each for each in trainer.model.parameters() if each.requires_grad and each.is_floating_point()]
    device = trainer.accelerator.device
    is_finite = torch.stack([each.detach().isfinite().all().to(device) for each in weights]).all()
    require_finite(trainer, {} if bool(is_finite) else {"a weight": math.nan})


def examine(trainer: Any, why: str) -> None:
    """Examine a run and say each finding; whatever goes wrong in it is said too, and never ends the run."""
    try:
        diagnosis = doctor.diagnose(case_of(trainer))
    # Examining needs memory, and runs what may be broken.
    except Exception as error:
        say(
            f"doctor: {why}; the examination itself failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        )
        return
    for number, finding in enumerate(diagnosis.findings, 1):
        say(f"doctor: {why}. Cause {number} of {len(diagnosis.findings)}: {finding}")
    if diagnosis.healthy:
        logger.info("doctor: %s; no fault was found. %s", why, "; ".join(diagnosis.evidence))
