"""What can be wrong with a run before its model computes anything: its pairs, labels, chat template and learning rate."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plaudit.metrics import wilson_interval
from plaudit.tokens import render
from plaudit.tree import num_common

# The probe of the labels: how many pairs it reads, into how many columns tokens are hashed, its ridge, and how many other
# labellings of the same pairs it is compared with.
PROBED_PAIRS, COLUMNS, RIDGE, LABELLINGS = 2_000, 4_096, 10.0, 200
# Fewer pairs than these say nothing: the probe's signal in 400 pairs of hh_harmless is 2.2 to 5 standard deviations.
FEWEST_PAIRS, FEWEST_SPLIT_PAIRS = 400, 40
# Below so many standard errors there is no sign of a rule; 49 of 50 sets of random labels stay below. Of more pairs a rule
# shows more clearly, by so much times the root of their number.
NO_SIGNAL, NO_EFFECT = 2.0, 0.08
# From so many standard errors on, what else is tried knows a rule.
SIGNAL = 3.0
# A token that only one side has, in so many of the pairs, tells the two kinds of answers apart.
TELLS_APART = 0.9
# Answers are of two clear kinds where a labelling that is made of the texts alone is told by at least this margin in all but
# a tenth of the pairs, each told by the others: 0.27 and more of polite against rude answers, long against short ones; at most
# 0.17 of hh_harmless and other people's preferences.
TWO_KINDS = 0.25
# Labels that contradict each other in more of the pairs than this are a fault of the data, not a few disagreements.
CONTRADICTED = 0.05
# Rewards are tens at most, so a larger margin decides the loss alone.
HUGE_MARGIN = 1e4
# A schedule that ends before this share of learning_rate was meant for a longer run.
LEAST_PEAK = 0.5
# Steps below this are lost to the rounding of weights of 0.02, as initialized, in float32.
LEAST_RATE = 1e-9
# How chat templates mark turns in a text: <|im_start|>, <start_of_turn>, </s>, and the wide bars of some vocabularies.
MARKER = re.compile(
    r"<[|\uff5c][^<>\s{}]{1,40}[|\uff5c]>|<(?:start|end)_of_(?:turn|text|role)>|</?s>|<(?:bos|eos)>|\[/?INST\]"
)
TURN_MARKER = re.compile(
    r"im_start|start_header|start_of_turn|start_of_role|START_OF_TURN|<[|\uff5c](user|assistant)[|\uff5c]>", re.I
)
# The families that mark turns by these read them as plain text.
PLAIN_MARKERS = ("[INST]", "[/INST]")
QUESTION, ANSWER = "plauditquestion", "plauditanswer"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: the cause, what shows it, and what to do."""

    cause: str
    evidence: str
    cure: str

    def __str__(self) -> str:
        return f"{self.cause}: {self.evidence}; {self.cure}"


def check_margins(margins: np.ndarray, rows: Sequence[int]) -> list[Finding]:
    """Return what is wrong with the margins of a data set; rows: their numbers in the user's own."""
    if not len(margins):
        return []
    cure = "mend or drop these rows, or leave the margin column out"
    bad = np.flatnonzero(~np.isfinite(margins))
    if len(bad):
        return [
            Finding(
                "a margin is not a finite number",
                f"{len(bad):,} of {len(margins):,} margins, the first in row {rows[bad[0]]} ({margins[bad[0]]})",
                cure,
            )
        ]
    largest = int(np.abs(margins).argmax())
    if abs(margins[largest]) > HUGE_MARGIN:
        evidence = f"the margin of row {rows[largest]} is {margins[largest]:.3g}, and rewards differ by tens at most"
        return [Finding("a margin is so large that it decides the loss alone", evidence, cure)]
    return []


def check_learning_rate(
    args: Any,
    num_steps: int,
    log_history: Sequence[Mapping[str, Any]] = (),
    optimizer: Any = None,
    schedule: Any = None,
) -> list[Finding]:
    """Return what is wrong with the learning rate: as given, as logged, and as the schedule makes it over num_steps.

    optimizer, schedule: the run's, where they are made; the options' otherwise.
    """
    groups = [] if optimizer is None else optimizer.param_groups
    if any(math.isinf(base_rate(group)) for group in groups):
        return []
    rates = [base_rate(group) for group in groups] or [float(args.learning_rate)]
    return _rate_given(args, rates) or _rate_logged(args, log_history) or _rate_reached(args, num_steps, schedule)


def base_rate(group: Mapping[str, Any]) -> float:
    """Return the rate that schedules multiply of an optimizer's parameter group; infinity where it makes its own rates."""
    rate = group.get("initial_lr", group.get("lr"))
    return math.inf if rate is None or group.get("relative_step") else float(rate)


def _rate_given(args: Any, rates: Sequence[float]) -> list[Finding]:
    if max(rates) >= LEAST_RATE:
        return []
    rate, cure = f"learning_rate={args.learning_rate}", "set learning_rate above 0"
    if max(rates) != args.learning_rate:
        rate = f"lr={max(rates)} in every parameter group of the optimizer that was given, which {rate} does not change"
        cure = "give its groups a rate above 0"
    cure += " (1e-4 with an adapter, 1e-5 without, is usual)"
    if max(rates) <= 0:
        return [Finding("the learning rate is 0", f"{rate}, so no step changes a weight", cure)]
    lost = "a step of Adam is about as large, and weights of the usual size are rounded to 1e-9 and coarser"
    return [Finding("the learning rate is as good as 0", f"{rate}; {lost}", cure)]


def _rate_logged(args: Any, log_history: Sequence[Mapping[str, Any]]) -> list[Finding]:
    logged = [entry["learning_rate"] for entry in log_history if "learning_rate" in entry]
    # The first step of a warm-up has the rate 0 by right.
    last = max((entry.get("step", 0) for entry in log_history if "learning_rate" in entry), default=0)
    if not logged or any(logged) or last <= 1:
        return []
    evidence = f"all {len(logged)} logged learning rates are 0 up to step {last}, although learning_rate is {args.learning_rate:g}"
    cure = "look at the scheduler (lr_scheduler_type, lr_scheduler_kwargs, or the one passed as optimizers)"
    return [Finding("the learning rate is 0", evidence, cure)]


def _rate_reached(args: Any, num_steps: int, schedule: Any) -> list[Finding]:
    of_options = peak_share(args, num_steps)
    peak = of_options if schedule is None else peak_of(schedule, num_steps)
    if peak is None or peak >= LEAST_PEAK:
        return []
    cause = "the learning rate never gets near its value" if peak else "the learning rate is 0"
    evidence = f"over the run's {num_steps:,} steps the schedule reaches {peak:.1%} of learning_rate {args.learning_rate:g} at most"
    if peak != of_options:
        return [Finding(cause, evidence, "look at the scheduler that was passed as optimizers")]
    evidence += f"; warm-up lasts {args.get_warmup_steps(num_steps):,} steps"
    return [Finding(cause, evidence, "lower warmup_steps, or train for more steps")]


def peak_share(args: Any, num_steps: int) -> float | None:
    """Return the largest share of learning_rate that the options' schedule reaches; None for schedules by a metric."""
    import torch
    from transformers import get_scheduler

    name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    if name in ("reduce_lr_on_plateau", "greedy"):
        return None
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    try:
        schedule = get_scheduler(
            name, optimizer, args.get_warmup_steps(num_steps), num_steps, args.lr_scheduler_kwargs or {}
        )
    # Arguments that Trainer itself will refuse.
    except (TypeError, ValueError):
        return None
    return peak_of(schedule, num_steps)


def peak_of(schedule: Any, num_steps: int) -> float | None:
    """Return the largest share of the base rate that a schedule of factors reaches; None for one of another make."""
    # Accelerate wraps the one that it steps.
    factors = getattr(getattr(schedule, "scheduler", schedule), "lr_lambdas", None)
    if not factors or num_steps < 2:
        return None
    steps = np.unique(np.linspace(0, num_steps - 1, 1_000).astype(int)).tolist()
    try:
        return max(float(factor(step)) for factor in factors for step in steps)
    # Shapes that need arguments.
    except (AttributeError, TypeError, ValueError, ZeroDivisionError):
        return None


def check_template(tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None) -> list[Finding]:
    """Return what is wrong with how the chat template writes a short conversation for this vocabulary."""
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    try:
        text = render(tokenizer, messages, None, dict(template_kwargs or {}))
    # A template is a program: one that refuses this conversation may still take the user's.
    except Exception:
        return []
    cause = "wrong chat template"
    cure = "set chat_template_path to the template that the model was trained with (its own tokenizer's directory)"
    if ANSWER not in text or QUESTION not in text:
        lost = "answer" if ANSWER not in text else "prompt"
        return [Finding(cause, f"it leaves the {lost} out: a conversation of two turns becomes {text!r}", cure)]
    tail = text.rpartition(ANSWER)[2]
    if re.search(r"assistant|model|user|human", tail, re.I):
        return [Finding(cause, f"after the answer it opens another turn, {tail!r}, and the reward is read there", cure)]
    evidence = _foreign(tokenizer, text) or _unlike_own(tokenizer, text, messages)
    return [Finding(cause, evidence, cure)] if evidence else []


def _unlike_own(tokenizer: Any, text: str, messages: list[dict[str, str]]) -> str | None:
    """Return how a rendered text differs from what the tokenizer's own template writes, if in all of its markers."""
    from transformers import AutoTokenizer

    try:
        own = AutoTokenizer.from_pretrained(tokenizer.name_or_path, trust_remote_code=False, local_files_only=True)
        if not own.chat_template or own.chat_template == tokenizer.chat_template:
            return None
        written = render(own, messages)
    # A tokenizer that was made in place, or whose files are no longer here, has nothing to compare with.
    except Exception:
        return None
    ends = (own.bos_token, own.eos_token)
    markers = [marker for marker in _markers(written) if marker not in ends and _is_token(own, marker)]
    if not markers or any(marker in text for marker in markers):
        return None
    return f"the tokenizer came with a template that marks turns by {', '.join(markers[:4])}, and this one writes {text[:120]!r}"


def check_marked_texts(tokenizer: Any, sequences: Sequence[Sequence[int]]) -> list[Finding]:
    """Return a finding where nearly all sequences hold turn markers of which the vocabulary has none as a token."""
    eos = getattr(tokenizer, "eos_token_id", None)
    texts = [tokenizer.decode(ids[:-1] if ids[-1] == eos else ids, skip_special_tokens=False) for ids in sequences]
    marked = [text for text in texts if MARKER.search(text)]
    if len(marked) < TELLS_APART * len(texts) or not marked:
        return []
    found = {marker for text in marked for marker in _markers(text)} - {tokenizer.bos_token}
    # Every vocabulary's own BOS is there, in texts without any template too.
    if not found or any(_is_token(tokenizer, marker) for marker in found):
        return []
    evidence = _foreign(tokenizer, marked[0])
    cure = "write the texts with the model's own template, or give conversations and let it be applied"
    return [Finding("wrong chat template", f"the texts come with it: {evidence}", cure)] if evidence else []


def _foreign(tokenizer: Any, text: str) -> str | None:
    """Return how a rendered text shows that its template was made for another vocabulary, None where it does not."""
    # A template's beginning is a variable, so it suits every vocabulary.
    markers = [marker for marker in _markers(text) if marker != tokenizer.bos_token]
    lost = [marker for marker in markers if marker not in PLAIN_MARKERS and not _is_token(tokenizer, marker)]
    after = _markers(text.rpartition(ANSWER)[2])[:1] if ANSWER in text else []
    # Some families write who speaks as plain text, but what ends an answer is a token of theirs.
    if lost and (lost == markers or set(after) & set(lost)):
        first = lost[0]
        pieces = tokenizer.tokenize(first)
        return (
            f"its markers ({', '.join(lost[:4])}) are no tokens of this vocabulary; {first} becomes {len(pieces)} "
            f"pieces ({' '.join(pieces[:8])}), so it was made for another model family"
        )
    own = sorted(
        {token.content for token in tokenizer.added_tokens_decoder.values() if TURN_MARKER.search(token.content)}
    )
    if own and not any(marker in text for marker in own):
        return (
            f"the vocabulary marks turns by {', '.join(own[:4])}, and the template writes none of them: {text[:120]!r}"
        )
    return None


def _markers(text: str) -> list[str]:
    return list(dict.fromkeys(MARKER.findall(text)))


def _is_token(tokenizer: Any, marker: str) -> bool:
    return len(tokenizer.encode(marker, add_special_tokens=False)) == 1


def check_double_start(tokenizer: Any, sequences: Sequence[Sequence[int]]) -> list[Finding]:
    """Return a finding where most sequences begin with two BOS tokens."""
    bos = getattr(tokenizer, "bos_token_id", None)
    double = sum(bos is not None and list(ids[:2]) == [bos, bos] for ids in sequences)
    if double <= len(sequences) / 2:
        return []
    evidence = f"{double} of {len(sequences)} sequences begin with `{tokenizer.bos_token}` twice"
    return [Finding("a second BOS token", evidence, "tokenize rendered texts with add_special_tokens=False")]


def check_contradictions(pairs: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Return a finding where the same two answers come with both labels in more than a few pairs."""
    ordered = Counter((tuple(pair["chosen_ids"]), tuple(pair["rejected_ids"])) for pair in pairs)
    both = sum(count for (chosen, rejected), count in ordered.items() if (rejected, chosen) in ordered)
    if both <= CONTRADICTED * len(pairs) or both < 4:
        return []
    return [
        Finding(
            "labels that contradict each other",
            f"in {both:,} of {len(pairs):,} pairs the same two answers come with the opposite label elsewhere",
            "drop these pairs, or find out where chosen and rejected were exchanged",
        )
    ]


@dataclass(frozen=True)
class Signal:
    """What a word-level probe learns of the labels: its accuracy on pairs it has not seen, and how sure that is.

    deviations: how far the probe does better than on the same pairs with random labels, in standard deviations of those; about
    0 where the labels follow no rule. split: where one token, or two in a row, tell the two answers of nearly every pair
    apart, (their ids, pairs with them on one side, of these those where the chosen side has them). kinds: where the two answers
    of nearly every pair are of two clear kinds, in how many pairs the chosen one is of the first.
    """

    num_pairs: int
    accuracy: float
    deviations: float
    split: tuple[tuple[int, ...], int, int] | None = None
    kinds: int | None = None


def label_signal(pairs: Sequence[Mapping[str, Any]], states: np.ndarray | None = None) -> Signal:
    """Return what can be learnt of the labels from tokens, neighbours and lengths, each pair told by all the others.

    states: what to learn from instead, a row of numbers a pair, chosen minus rejected, shape (num_pairs, any).
    A ridge regression on the differences between the sides; exchanging a pair's sides is changing the sign of its row, so
    one solution serves every labelling. The error of leaving one out: Allen (1974), Technometrics 16 (PRESS).
    """
    kept = distinct(pairs)
    if len(kept) < 2:
        return Signal(len(kept), 0.5, 0.0)
    pairs = [pairs[i] for i in kept]
    rows = _differences(pairs) if states is None else _unit(states[kept])
    products = (rows @ rows.T).astype(np.float64)
    inverse = np.linalg.inv(products + RIDGE * np.eye(len(rows)))
    # The labels as they are, and as a coin would give them.
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(len(rows), 1 + LABELLINGS))
    signs[:, 0] = 1.0
    margins = _unseen_margins(inverse, signs)
    spread = np.sqrt((margins**2).mean(axis=0))
    scores = np.divide(margins.mean(axis=0), spread, out=np.zeros(len(spread)), where=spread > 1e-12)
    by_chance = scores[1:]
    deviations = float((scores[0] - by_chance.mean()) / max(float(by_chance.std()), 1e-12))
    right = float((margins[:, 0] > 0).mean() + (margins[:, 0] == 0).mean() / 2)
    if states is not None:
        return Signal(len(pairs), right, deviations)
    return Signal(len(pairs), right, deviations, _split(pairs), _kinds(products, inverse))


def _unseen_margins(inverse: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Return by how much each pair's label is told by all the others, shape as signs, (num_pairs, num_labellings)."""
    return signs * (signs - inverse @ signs / np.diag(inverse)[:, None])


def _kinds(products: np.ndarray, inverse: np.ndarray) -> int | None:
    """Return in how many pairs the chosen answer is of the first of two kinds, where answers are (see Signal).

    The kinds are the two ends of the direction in which the pairs' differences are largest, whatever their labels.
    """
    # More pairs need no such help, and much time.
    if len(products) >= FEWEST_PAIRS:
        return None
    signs = _kind_signs(products)
    if np.quantile(_unseen_margins(inverse, signs), 0.1) < TWO_KINDS:
        return None
    return int((signs > 0).sum())


def _kind_signs(products: np.ndarray) -> np.ndarray:
    """Return on which side of that direction each pair's chosen answer is, 1 or -1, shape (num_pairs, 1)."""
    return np.where(np.linalg.eigh(products)[1][:, -1:] >= 0, 1.0, -1.0)


def prompt_signal(pairs: Sequence[Mapping[str, Any]]) -> Signal:
    """Return what the words of the prompts tell of which of two kinds of answers is chosen, as `label_signal` does of the answers.

    Where the answers are yes and no, say, the answers alone tell nothing, and the prompts everything.
    """
    rows = _differences(pairs)
    prompts = np.zeros((len(pairs), COLUMNS + 1), np.float32)
    for row, pair in zip(prompts, pairs, strict=True):
        chosen, rejected = np.asarray(pair["chosen_ids"]), np.asarray(pair["rejected_ids"])
        ids = chosen[: num_common(chosen, rejected)]
        columns, counts = np.unique(np.concatenate([_column(ids), _column(ids[:-1], ids[1:])]), return_counts=True)
        row[columns] = np.log1p(counts)
    # What all prompts share tells nothing, and would hide the rest.
    prompts -= prompts.mean(axis=0)
    return label_signal(pairs, _kind_signs((rows @ rows.T).astype(np.float64)) * prompts)


def distinct(pairs: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the places of pairs of which no two hold the same two answers: a repeat would be told by heart."""
    first: dict[frozenset, int] = {}
    for place, pair in enumerate(pairs):
        first.setdefault(frozenset((tuple(pair["chosen_ids"]), tuple(pair["rejected_ids"]))), place)
    return list(first.values())


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _differences(pairs: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return a row of hashed counts a pair, chosen minus rejected, of length 1, shape (num_pairs, COLUMNS + 1)."""
    rows = np.zeros((len(pairs), COLUMNS + 1), np.float32)
    for row, pair in zip(rows, pairs, strict=True):
        chosen, rejected = _answers(pair)
        for sign, ids in ((1.0, chosen), (-1.0, rejected)):
            columns, counts = np.unique(np.concatenate([_column(ids), _column(ids[:-1], ids[1:])]), return_counts=True)
            row[columns] += sign * np.log1p(counts)
        row /= max(float(np.linalg.norm(row)), 1e-12)
        row[-1] = np.clip(math.log((len(chosen) + 1) / (len(rejected) + 1)), -1, 1)
    return rows


def _answers(pair: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return both sides from the last token that they share."""
    chosen, rejected = np.asarray(pair["chosen_ids"]), np.asarray(pair["rejected_ids"])
    first = max(num_common(chosen, rejected) - 1, 0)
    return chosen[first:], rejected[first:]


def _column(ids: np.ndarray, following: np.ndarray | None = None) -> np.ndarray:
    mixed = ids.astype(np.int64) * 2_654_435_761 + (0 if following is None else (following + 1) * 40_503)
    return (mixed ^ (mixed >> 15)) % COLUMNS


def _split(pairs: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, ...], int, int] | None:
    """Return the token, or two in a row, that most often only one side has, if so in nearly all pairs (see Signal)."""
    on_one: Counter = Counter()
    on_chosen: Counter = Counter()
    for pair in pairs:
        chosen, rejected = (_pieces(ids.tolist()) for ids in _answers(pair))
        on_one.update(chosen ^ rejected)
        on_chosen.update(chosen - rejected)
    piece, count = max(on_one.items(), key=lambda item: item[1], default=((), 0))
    return (piece, count, on_chosen[piece]) if count and count >= TELLS_APART * len(pairs) else None


def _pieces(ids: list[int]) -> set[tuple[int, ...]]:
    return {*((one,) for one in ids), *itertools.pairwise(ids)}


def looks_random(signal: Signal) -> bool:
    """Tell whether there are pairs enough to expect a sign of a rule in the labels, and there is none."""
    if signal.deviations >= max(NO_SIGNAL, NO_EFFECT * math.sqrt(signal.num_pairs)):
        return False
    if signal.num_pairs >= FEWEST_PAIRS:
        return True
    # Fewer say something only where the two answers of nearly every pair differ in the same way.
    found = [signal.split[1:]] if signal.split is not None else []
    found += [(signal.num_pairs, signal.kinds)] if signal.kinds is not None else []
    intervals = [wilson_interval(on_chosen, count) for count, on_chosen in found if count >= FEWEST_SPLIT_PAIRS]
    return bool(intervals) and all(low <= 0.5 <= high for low, high in intervals)


def random_labels(signal: Signal, tokenizer: Any, also: str) -> Finding:
    """Return the finding for labels without a rule. also: what else was tried and says the same."""
    low, high = wilson_interval(round(signal.accuracy * signal.num_pairs), signal.num_pairs)
    evidence = (
        f"no rule was found in them: from words and lengths, {signal.accuracy:.1%} of {signal.num_pairs:,} pairs not seen "
        f"before are told right (95 % interval {low:.1%} to {high:.1%}, chance is 50 %){also}"
    )
    if signal.split is not None:
        piece, on_one, on_chosen = signal.split
        shown = repr(tokenizer.decode(list(piece))) if tokenizer is not None else f"ids {list(piece)}"
        evidence += (
            f"; in {on_one:,} pairs one answer alone has {shown}, and it is the chosen one in {on_chosen / on_one:.1%}"
        )
    elif signal.kinds is not None:
        share = signal.kinds / signal.num_pairs
        evidence += (
            "; the two answers of a pair are of two clear kinds, by their words and lengths, and the chosen one is of the "
            f"first kind in {share:.1%} and of the second in {1 - share:.1%}"
        )
    return Finding(
        "the labels look as if chosen and rejected were swapped at random",
        evidence,
        "look at twenty pairs by eye, and at the step that decided which answer is chosen; a rule that words do not show "
        "at all (such as right against wrong sums) would look the same",
    )


def length_note(pairs: Sequence[Mapping[str, Any]]) -> str:
    """Return how far length alone goes: a baseline to beat, and no fault."""
    gaps = np.array([len(pair["chosen_ids"]) - len(pair["rejected_ids"]) for pair in pairs])
    return (
        f"length alone: choosing the longer side is right in {(gaps > 0).mean():.1%} of {len(gaps):,} pairs, the shorter "
        f"in {(gaps < 0).mean():.1%}, {(gaps == 0).mean():.1%} are equally long"
    )
