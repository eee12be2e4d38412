"""What only the model can show of a run that does not learn: gradients, exchanged sides, labels, eight pairs by heart."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plaudit import checks, losses
from plaudit.case import Case, head_modules
from plaudit.checks import Finding
from plaudit.metrics import wilson_interval
from plaudit.read_outs import pair_states
from plaudit.rewards import rewards

# Pairs that are overfitted, and whose sides are exchanged.
OVERFIT = 8
# Pairs, and weights beside the head's at either end of the model, whose gradient is looked at.
GRADIENT_PAIRS, OTHERS = 2, 12
# Pairs whose states the second probe of the labels reads.
PROBED_STATES = 512
# The overfitting: rates to try, steps each, and the loss that counts as learnt.
RATES, STEPS, LEARNT = (1e-3, 1e-4, 1e-2), 40, 0.3
# Above so many trainable weights, only the head's are trained in the test: two moments, a gradient and a copy of each weight
# have to fit beside the run's own.
MOST_TRAINED = 100_000_000
# What exchanging the sides may change in a gap, as a share of the largest reward.
EXCHANGED = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
# Where a step of learning_rate leaves this share of half-precision weights as they are, it is too small for them.
LOST = 0.95
# No weight of a model that works is so large.
HUGE_WEIGHT = 1e6
# What to do once a number is not finite.
STEADIER = "go on from the last good checkpoint, with a lower learning_rate, a warm-up, or max_grad_norm=1.0"


def check_weights(model: nn.Module) -> list[Finding]:
    """Return a finding where weights are not finite numbers, or so large that what is computed with them soon is not."""
    # The ends of each tensor, for which no copy of it is made.
    ends = {
        name: each.detach().aminmax()
        for name, each in model.named_parameters()
        if each.is_floating_point() and each.numel()
    }
    largest = {name: max(-float(low), float(high)) for name, (low, high) in ends.items()}
    bad = [name for name, value in largest.items() if not math.isfinite(value)]
    if bad:
        evidence = f"{len(bad)} of the model's tensors hold NaN or infinity, such as {', '.join(bad[:3])}"
        return [Finding("weights that are not finite", evidence, STEADIER)]
    name = max(largest, key=lambda name: largest[name])
    if largest[name] < HUGE_WEIGHT:
        return []
    evidence = f"the largest, in {name}, is {largest[name]:.3g}, and weights are about 1 at most"
    return [Finding("weights that have grown beyond all bounds", evidence, STEADIER)]


def check_head(case: Case, evidence: list[str]) -> list[Finding]:
    """Return what keeps the head from being trained: frozen, not in the optimizer, or without a gradient."""
    heads = head_modules(case.model)
    weights = [(f"{name}.{rest}", each) for name, head in heads for rest, each in head.named_parameters()]
    trained = [(name, each) for name, each in weights if each.requires_grad]
    total = sum(each.requires_grad for each in case.model.parameters())
    if weights and not trained:
        return [
            Finding(
                "the head is frozen",
                f"{weights[0][0]} has requires_grad=False, while {total} other tensors are trained",
                "set requires_grad of the head's weights to True (with an adapter: modules_to_save=['score'])",
            )
        ]
    return _check_optimizer(case, trained) or _check_gradient(case, trained, evidence)


def _check_optimizer(case: Case, trained: list[tuple[str, nn.Parameter]]) -> list[Finding]:
    if case.optimizer is None or not trained:
        return []
    groups = case.optimizer.param_groups
    rates = {id(each): checks.base_rate(group) for group in groups for each in group["params"]}
    held = [rates[id(each)] for _, each in trained if id(each) in rates]
    if not held:
        evidence = f"none of the optimizer's {len(rates)} tensors is {trained[0][0]}, so no step changes it"
        cure = "give the optimizer the parameters of the model that is trained, the head's among them"
        return [Finding("the head is not in the optimizer", evidence, cure)]
    # Where no weight has a rate, the learning rate itself is the fault, and found.
    if any(held) or not any(rates.values()):
        return []
    evidence = f"{trained[0][0]} is in a parameter group of the optimizer with lr=0, while others have up to {max(rates.values()):g}"
    return [Finding("the head's learning rate is 0", evidence, "give the head's parameter group a rate above 0")]


def _check_gradient(case: Case, trained: list[tuple[str, nn.Parameter]], evidence: list[str]) -> list[Finding]:
    pairs = _distinct(case.sample, GRADIENT_PAIRS)
    values = rewards(case.model, case.batch(pairs))
    cure = "let gradients reach it: no detach() or no_grad() between the loss and the head, no replaced parameter"
    if not values.requires_grad:
        return [Finding("the head is detached", "the rewards have no gradient at all", cure)]
    if not bool(values.isfinite().all()):
        evidence_of = f"{int((~values.isfinite()).sum())} of {len(values)}, although all weights are finite"
        cure = "use bf16 instead of fp16, or float32; look at the longest sequences"
        return [Finding("rewards that are not finite", evidence_of, cure)]
    # Of the gap, not of the loss, whose gradient dies out where all pairs are learnt.
    gap = (values.chunk(2)[0] - values.chunk(2)[1]).sum()
    rest = _some_others(case.model, trained)
    found = torch.autograd.grad(gap, [each for _, each in trained + rest], allow_unused=True, retain_graph=True)
    norms = [None if gradient is None else float(gradient.float().norm()) for gradient in found]
    of_head, of_rest = norms[: len(trained)], norms[len(trained) :]
    norm = math.hypot(*(each for each in of_head if each is not None))
    if trained:
        evidence.append(
            f"gradient norm of the head ({trained[0][0]}): {norm:.3g}, of {len(pairs)} pairs' reward difference"
        )
        if all(each is None for each in of_head):
            return [Finding("the head is detached", f"{trained[0][0]} gets no gradient from the rewards", cure)]
        # Where both sides are read at a shared token their gradients cancel, and that has another name.
        if not norm and not any(
            bool(each.any()) for each in torch.autograd.grad(values.sum(), [each for _, each in trained])
        ):
            evidence_of = f"{trained[0][0]} gets a gradient of exactly 0 from the rewards of {len(pairs)} pairs"
            cure = "remove what makes it 0: a hook on the weight, a factor of 0, a detach()"
            return [Finding("the head's gradient is 0", evidence_of, cure)]
    # A head that begins at zero passes nothing on before its first step.
    if not rest or not norm or not any(bool(each.any()) for _, each in trained) or any(of_rest):
        return []
    return [
        Finding(
            "no gradient goes through the head into the rest of the model",
            f"of {len(rest)} other tensors that are to be trained, such as {rest[0][0]}, none gets a gradient",
            "remove the detach() or no_grad() between the base model and the head, or freeze the rest on purpose",
        )
    ]


def _some_others(model: nn.Module, trained: list[tuple[str, nn.Parameter]]) -> list[tuple[str, nn.Parameter]]:
    """Return trainable weights beside the head's, the first and the last: the gradients of all would need much memory."""
    of_head = {id(each) for _, each in trained}
    others = [(name, each) for name, each in model.named_parameters() if each.requires_grad and id(each) not in of_head]
    return others if len(others) <= 2 * OTHERS else others[:OTHERS] + others[-OTHERS:]


def check_precision(case: Case) -> list[Finding]:
    """Return a finding where steps of learning_rate are lost to the rounding of half-precision weights."""
    if case.args is None or not case.args.learning_rate:
        return []
    trained = [each for each in case.model.parameters() if each.requires_grad]
    halves = [each.detach().flatten()[:10_000] for each in trained if each.dtype in (torch.bfloat16, torch.float16)]
    if len(halves) < len(trained) or not halves:
        return []
    # An Adam step is about the learning rate; of less than half the distance to the next number nothing is left.
    lost = [each + case.args.learning_rate == each for each in halves]
    share = sum(int(each.sum()) for each in lost) / sum(map(len, lost))
    if share < LOST:
        return []
    evidence = f"adding learning_rate {case.args.learning_rate:g} leaves {share:.1%} of the {halves[0].dtype} weights unchanged"
    return [
        Finding(
            "steps too small for the weights' precision",
            evidence.replace("torch.", ""),
            "load the model in float32 and compute in half precision (bf16=True), or raise learning_rate",
        )
    ]


def check_exchange(case: Case, evidence: list[str]) -> list[Finding]:
    """Return a finding where the batch has the sides exchanged, or exchanging them does not turn reward differences round."""
    pairs = case.sample[:OVERFIT]
    exchanged = [{**pair, "chosen_ids": pair["rejected_ids"], "rejected_ids": pair["chosen_ids"]} for pair in pairs]
    batch = case.batch(pairs)
    with torch.no_grad():
        values, others = rewards(case.model, batch), rewards(case.model, case.batch(exchanged))
    gap, other = (one.chunk(2)[0] - one.chunk(2)[1] for one in (values, others))
    evidence.append(f"exchanged sides: the mean reward difference {gap.mean():.3g} becomes {other.mean():.3g}")
    wrong = sum(_holds(batch, row, pair, len(pairs)) for row, pair in enumerate(pairs))
    if wrong > len(pairs) / 2:
        return [
            Finding(
                "the data collator exchanges the sides",
                f"in {wrong} of {len(pairs)} pairs the first half of the batch holds the rejected side",
                "return every pair's chosen sequence first, and then every pair's rejected one",
            )
        ]
    scale = float(torch.cat([values, others]).abs().max())
    off = float((gap + other).abs().max())
    if off <= EXCHANGED[case.dtype] * max(scale, 1e-6):
        return []
    return [
        Finding(
            "the reward depends on a sequence's place in the batch",
            f"with the sides exchanged, reward differences should turn round, but are off by up to {off:.3g}",
            "look at the data collator and at what a custom forward does across the rows of a batch",
        )
    ]


def _holds(batch: Mapping[str, Any], row: int, pair: Mapping[str, Any], num_pairs: int) -> bool:
    """Tell whether a padded batch has the pair's sides the wrong way round."""
    if "tree" in batch:
        return False
    held = [batch["input_ids"][at][batch["attention_mask"][at].bool()].tolist() for at in (row, row + num_pairs)]
    return held == [list(pair["rejected_ids"]), list(pair["chosen_ids"])] and held[0] != held[1]


def check_labels(case: Case, evidence: list[str]) -> list[Finding]:
    """Return a finding where nothing can be learnt of which side is chosen, from words or from what the head sees."""
    if len(case.sample) < checks.FEWEST_SPLIT_PAIRS:
        return []
    signal = checks.label_signal(case.sample)
    evidence.append(
        f"labels: a probe of words and lengths tells {signal.accuracy:.1%} of {signal.num_pairs:,} unseen pairs right "
        f"({signal.deviations:.1f} standard deviations above random labels)"
    )
    if not checks.looks_random(signal):
        if signal.deviations < checks.NO_SIGNAL and signal.num_pairs < checks.FEWEST_PAIRS:
            evidence[-1] += f"; whether they are random cannot be told from fewer than {checks.FEWEST_PAIRS} such pairs"
        return []
    if _tells_unseen(case) or _is_told_by_prompts(case, signal, evidence):
        return []
    # Once it is trained, a model knows pairs by heart, and what it sees of them says nothing of a rule.
    also = "" if case.is_trained else _not_in_states(case)
    return [] if also is None else [checks.random_labels(signal, case.tokenizer, also)]


def _is_told_by_prompts(case: Case, signal: checks.Signal, evidence: list[str]) -> bool:
    """Tell whether, in a small set whose answers are of two kinds, the prompt decides which is right."""
    if signal.num_pairs >= checks.FEWEST_PAIRS:
        return False
    told = checks.prompt_signal(case.sample)
    if told.deviations < checks.SIGNAL:
        return False
    evidence[-1] += f"; with the words of the prompt, {told.accuracy:.1%}"
    return True


def _not_in_states(case: Case) -> str | None:
    """Return how little of the labels an untrained model's own states tell, None where they tell something."""
    pairs = case.sample[:PROBED_STATES]
    chosen, rejected = pair_states(case, pairs)
    signal = checks.label_signal(pairs, (chosen - rejected).double().cpu().numpy())
    right = int((rewards_of(case, pairs) > 0).sum())
    told = round(signal.accuracy * signal.num_pairs)
    # In a small set the pairs seldom reach so many deviations.
    is_told = len(case.sample) < checks.FEWEST_PAIRS and wilson_interval(told, signal.num_pairs)[0] > 0.5
    if is_told or signal.deviations >= checks.SIGNAL or wilson_interval(right, len(pairs), checks.SIGNAL)[0] > 0.5:
        return None
    return f", and from what the head sees {signal.accuracy:.1%} of {len(pairs):,}"


def rewards_of(case: Case, pairs: list[dict]) -> Tensor:
    """Return the reward differences of pairs, shape (num_pairs,), four at a time."""
    with torch.no_grad():
        parts = [rewards(case.model, case.batch(pairs[at : at + 4])).chunk(2) for at in range(0, len(pairs), 4)]
    return torch.cat([chosen - rejected for chosen, rejected in parts])


def _tells_unseen(case: Case) -> bool:
    """Tell whether the run itself was better than chance on pairs that it had not seen, so that there is a rule."""
    total = min(len(case.sample), 200)
    evaluated = [
        value
        for entry in case.log_history
        for name, value in entry.items()
        if name.startswith("eval_") and name.endswith("accuracy") and isinstance(value, float)
    ]
    if any(wilson_interval(round(value * total), total, checks.SIGNAL)[0] > 0.5 for value in evaluated):
        return True
    # In the first epoch each pair is new when its reward is computed.
    first = [entry for entry in case.log_history if "accuracy" in entry and 0 < entry.get("epoch", 2) <= 1]
    if not first or case.args is None:
        return False
    per_step = case.args.train_batch_size * case.args.gradient_accumulation_steps * case.args.world_size
    seen = first[-1]["step"] * per_step
    mean = sum(entry["accuracy"] for entry in first) / len(first)
    return wilson_interval(round(mean * seen), seen, checks.SIGNAL)[0] > 0.5


def check_overfit(case: Case, evidence: list[str]) -> list[Finding]:
    """Return a finding where eight pairs cannot be learnt by heart, as any run that is put together rightly can."""
    pairs = _distinct(case.sample, OVERFIT)
    trained, what = _trained_in_test(case.model)
    if not trained:
        return []
    kept = [each.detach().clone() for each in trained]
    reached = math.inf
    for rate in RATES:
        try:
            reached = min(reached, _overfit(case, pairs, trained, rate))
        finally:
            with torch.no_grad():
                for each, value in zip(trained, kept, strict=True):
                    each.copy_(value)
        if reached < LEARNT:
            break
    outcome = f"loss {reached:.3g} after at most {STEPS} steps on {len(pairs)} pairs, training {what}"
    evidence.append(f"overfit test: {outcome}")
    if reached < LEARNT:
        return []
    return [
        Finding(
            f"{len(pairs)} pairs cannot be learnt by heart",
            f"{outcome}, at the rates {', '.join(f'{rate:g}' for rate in RATES)}",
            "look at which weights are trained and whether the forward passes gradients on",
        )
    ]


def _distinct(pairs: list[dict], count: int) -> list[dict]:
    """Return the first pairs of which no two hold the same two answers, the shorter ones of the first few."""
    found = [pairs[place] for place in checks.distinct(pairs[: 4 * count])]
    return sorted(found, key=lambda pair: len(pair["chosen_ids"]) + len(pair["rejected_ids"]))[:count]


def _trained_in_test(model: nn.Module) -> tuple[list[nn.Parameter], str]:
    """Return the weights that the overfit test trains, and in words which they are."""
    every = [each for each in model.parameters() if each.requires_grad]
    if sum(each.numel() for each in every) <= MOST_TRAINED:
        return every, "all trainable weights"
    head = {id(each) for _, module in head_modules(model) for each in module.parameters()}
    return [each for each in every if id(each) in head], "the head alone, because all trainable weights are too many"


def _overfit(case: Case, pairs: list[dict], trained: list[nn.Parameter], rate: float) -> float:
    """Return the lowest mean loss of the pairs while they are learnt by heart, without margins."""
    optimizer = torch.optim.Adam(trained, lr=rate)
    batches = [case.batch(pairs[at : at + 2]) for at in range(0, len(pairs), 2)]
    lowest = math.inf
    for _ in range(STEPS):
        total = 0.0
        for batch in batches:
            chosen, rejected = rewards(case.model, batch).chunk(2)
            loss = losses.bradley_terry(chosen, rejected, 0.0).sum() / len(pairs)
            if not loss.requires_grad:
                return math.inf
            found = torch.autograd.grad(loss, trained, allow_unused=True)
            for each, gradient in zip(trained, found, strict=True):
                if gradient is not None:
                    each.grad = gradient if each.grad is None else each.grad + gradient
            total += float(loss.detach())
        lowest = min(lowest, total) if math.isfinite(total) else lowest
        if lowest < LEARNT or not math.isfinite(total):
            break
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    for each in trained:
        each.grad = None
    return lowest
