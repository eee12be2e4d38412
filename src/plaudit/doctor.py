"""What is wrong with a run: plain functions of a model, prepared pairs and a log history, which leave all as it was."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from plaudit import checks, trials
from plaudit.case import LOOKED_AT, Case, untouched
from plaudit.checks import Finding
from plaudit.collate import Padded, PairCollator, TreeRow
from plaudit.metrics import LN_2, not_finite
from plaudit.read_outs import check_read_out

# How near to ln 2, the loss of a coin, and for how many steps, is suspicious.
NEAR, WINDOW = 0.01, 50


@dataclass(frozen=True)
class Diagnosis:
    """What was found. findings: what is wrong, the true cause first; evidence: what else was seen, one line each."""

    findings: tuple[Finding, ...]
    evidence: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def __str__(self) -> str:
        lines = [f"examined  {line}" for line in self.evidence]
        for number, finding in enumerate(self.findings, 1):
            lines += [f"finding {number} {finding.cause}", f"  seen    {finding.evidence}", f"  cure    {finding.cure}"]
        count = len(self.findings)
        return "\n".join([*lines, f"{count} finding{'s' * (count > 1)}" if count else "healthy: no fault was found"])


def diagnose(case: Case) -> Diagnosis:
    """Return what is wrong with a run, true causes before what follows from them, and what was looked at.

    Leaves weights, gradients, modes and random numbers bit for bit as they were.
    """
    evidence: list[str] = [checks.length_note(case.sample), *_history_notes(case.log_history)]
    # The data too: a collator of the user's may draw random numbers.
    with untouched(case.model):
        findings = _check_data(case)
        if case.args is not None:
            findings += checks.check_learning_rate(
                case.args, case.num_steps, case.log_history, case.optimizer, case.schedule
            )
        if case.whole:
            findings += _check_model(case, findings, evidence)
        else:
            evidence.append(
                "the weights are spread over processes: what needs a forward of the whole model was left out"
            )
    # A number that is not finite follows from what was found, if anything was.
    return Diagnosis(tuple(findings or _check_history(case.log_history)), tuple(evidence))


def _check_data(case: Case) -> list[Finding]:
    margins = _margins(case)
    found = checks.check_margins(margins, range(len(margins)) if case.rows is None else case.rows)
    if case.tokenizer is not None:
        sides = [pair[side] for pair in case.sample[:LOOKED_AT] for side in ("chosen_ids", "rejected_ids")]
        found += checks.check_double_start(case.tokenizer, sides)
        if case.conversational:
            found += checks.check_template(case.tokenizer, case.template_kwargs)
        else:
            found += checks.check_marked_texts(case.tokenizer, sides)
    return found + checks.check_contradictions(case.sample)


def _margins(case: Case) -> np.ndarray:
    """Return the margins that the loss sees, of all pairs where they are a column, of the first where a collator makes them."""
    is_ours = isinstance(case.collate, PairCollator) and isinstance(case.collate.layout, (Padded, TreeRow))
    if is_ours and isinstance(case.pairs, Dataset) and "margin" in case.pairs.column_names:
        return np.asarray(case.pairs.with_format("numpy")["margin"][:], np.float64)
    if is_ours:
        return np.array([pair["margin"] for pair in case.sample if "margin" in pair], np.float64)
    starts = range(0, len(case.sample), LOOKED_AT)
    batches = [case.batch(case.sample[at : at + LOOKED_AT]) for at in starts]
    return np.concatenate(
        [batch["margin"].double().cpu().numpy() for batch in batches if "margin" in batch] or [np.zeros(0)]
    )


def is_a_coins(loss: float) -> bool:
    """Tell whether a loss is that of a model that knows nothing."""
    return abs(loss - LN_2) <= NEAR * LN_2


def _history_notes(log_history: Sequence[Mapping[str, Any]]) -> list[str]:
    logged = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry and "step" in entry]
    if not logged:
        return []
    (first, start), (last, end) = logged[0], logged[-1]
    lines = [f"logged losses: {start:.4g} at step {first}, {end:.4g} at step {last} (ln 2, a coin's, is {LN_2:.4f})"]
    if last >= WINDOW and all(is_a_coins(loss) for _, loss in logged):
        lines.append(
            f"all {len(logged)} logged losses are within {100 * NEAR:g} % of ln 2: nothing was learnt in {last} steps"
        )
    return lines


def _check_history(log_history: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Return a finding for the first number in the log that is not finite."""
    for entry in log_history:
        # JSON written by others has None or text where a number was none.
        problem = not_finite({name: math.nan if value in ("NaN", "nan") else value for name, value in entry.items()})
        if problem is not None:
            evidence = f"{problem} at step {entry.get('step', '?')} of the log"
            return [Finding("a number stopped being finite", evidence, trials.STEADIER)]
    return []


def _check_model(case: Case, before: Sequence[Finding], evidence: list[str]) -> list[Finding]:
    broken = trials.check_weights(case.model)
    if broken:
        # Where a margin broke the weights, the weights are no cause.
        return [] if any("margin" in finding.cause for finding in before) else broken
    found = trials.check_head(case, evidence) + trials.check_precision(case) + check_read_out(case, evidence)
    if any("not finite" in finding.cause for finding in found):
        return found
    found += trials.check_exchange(case, evidence)
    labels = trials.check_labels(case, evidence)
    learns = trials.check_overfit(case, evidence)
    # What cannot be learnt at all says nothing of the labels, and needs no second name.
    known = [*before, *found]
    return found + (labels if not learns else []) + ([] if known else learns)
