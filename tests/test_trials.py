"""What only the model can show, each fault on its own, and the promise that a trial changes no weight."""

import math

import pytest
import torch
from processes import config

from plaudit import checks, trials
from plaudit.case import Case

PAIRS = [{"chosen_ids": [5, 6, 7 + i, 9], "rejected_ids": [5, 6, 60 + i]} for i in range(12)]


@pytest.fixture
def case(tiny_model, tokenizer):
    return Case(tiny_model.eval(), PAIRS, tokenizer)


def causes(findings):
    return [one.cause for one in findings]


def test_weights_that_are_not_finite_are_named(case):
    assert trials.check_weights(case.model) == []
    case.model.score.weight.data[0, 0] = math.inf
    (finding,) = trials.check_weights(case.model)
    assert finding.evidence == "1 of the model's tensors hold NaN or infinity, such as score.weight"
    assert "last good checkpoint" in finding.cure


def test_a_heads_gradient_is_shown_and_a_fault_of_it_named(case):
    evidence = []
    assert trials.check_head(case, evidence) == []
    assert evidence[0].startswith("gradient norm of the head (score.weight): ")
    assert float(evidence[0].split(": ")[1].split(",")[0]) > 0
    hook = case.model.score.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))
    assert causes(trials.check_head(case, [])) == ["no gradient goes through the head into the rest of the model"]
    hook.remove()
    hook = case.model.score.register_forward_hook(lambda _, __, output: output.detach())
    assert causes(trials.check_head(case, [])) == ["the head is detached"]
    hook.remove()
    case.optimizer = torch.optim.SGD(case.model.model.parameters(), lr=1.0)
    assert causes(trials.check_head(case, [])) == ["the head is not in the optimizer"]
    case.model.score.requires_grad_(False)
    assert causes(trials.check_head(case, [])) == ["the head is frozen"]


def test_a_head_that_begins_at_zero_is_no_fault(case):
    case.model.score.weight.data.zero_()
    assert trials.check_head(case, []) == []


def test_rewards_that_are_not_finite_are_named_although_the_weights_are(case):
    case.model.score.register_forward_hook(lambda _, __, output: output / 0.0)
    (finding,) = trials.check_head(case, [])
    assert finding.cause == "rewards that are not finite"
    assert finding.evidence.startswith("4 of 4, although all weights are finite")


@pytest.mark.parametrize(("rate", "is_lost"), [(1e-7, True), (1e-2, False)])
def test_a_step_that_rounding_swallows_is_named(case, tmp_path, rate, is_lost):
    case.args = config(tmp_path, learning_rate=rate)
    assert trials.check_precision(case) == []
    case.model.to(torch.bfloat16)
    assert causes(trials.check_precision(case)) == ["steps too small for the weights' precision"] * is_lost


def test_a_reward_that_depends_on_the_place_in_the_batch_is_named(case):
    evidence = []
    assert trials.check_exchange(case, evidence) == []
    first, second = (float(word.strip()) for word in evidence[0].partition("difference")[2].split("becomes"))
    assert first == pytest.approx(-second, rel=1e-2)
    places = torch.arange(2.0 * trials.OVERFIT).unsqueeze(1)
    case.model.register_forward_hook(lambda _, __, output: output.logits + places)
    (finding,) = trials.check_exchange(case, [])
    assert finding.cause == "the reward depends on a sequence's place in the batch"
    # The second half's places are eight above the first's, once on either side.
    assert "off by up to 16" in finding.evidence


def test_a_collator_that_exchanges_the_sides_is_named(case):
    whole = case.collate
    case.collate = lambda pairs: whole(
        [{"chosen_ids": one["rejected_ids"], "rejected_ids": one["chosen_ids"]} for one in pairs]
    )
    (finding,) = trials.check_exchange(case, [])
    assert finding.evidence == "in 8 of 8 pairs the first half of the batch holds the rejected side"


def test_eight_pairs_are_learnt_and_every_weight_is_put_back(case):
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    evidence = []
    assert trials.check_overfit(case, evidence) == []
    assert "on 8 pairs, training all trainable weights" in evidence[0]
    assert float(evidence[0].split("loss ")[1].split()[0]) < trials.LEARNT
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())
    assert all(each.grad is None for each in case.model.parameters())


def test_weights_are_put_back_where_the_trial_itself_fails(case, monkeypatch):
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    calls = []

    def fails_later(model, batch, real=trials.rewards):
        calls.append(1)
        if len(calls) == 10:
            assert not torch.equal(model.score.weight, before["score.weight"]), "nothing was trained yet"
            raise MemoryError
        return real(model, batch)

    monkeypatch.setattr(trials, "rewards", fails_later)
    with pytest.raises(MemoryError):
        trials.check_overfit(case, [])
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())


def test_pairs_that_cannot_be_learnt_are_named_with_what_was_tried(case):
    case.model.score.register_forward_hook(lambda _, __, output: output * 0.0)
    (finding,) = trials.check_overfit(case, [])
    assert finding.cause == "8 pairs cannot be learnt by heart"
    assert "loss 0.693" in finding.evidence
    assert "at the rates 0.001, 0.0001, 0.01" in finding.evidence


def test_of_too_many_weights_the_head_alone_is_trained_and_that_is_said(case, monkeypatch):
    monkeypatch.setattr(trials, "MOST_TRAINED", 1_000)
    evidence = []
    trials.check_overfit(case, evidence)
    assert "training the head alone, because all trainable weights are too many" in evidence[0]


def test_few_pairs_say_nothing_of_their_labels(case, monkeypatch):
    monkeypatch.setattr(checks, "label_signal", lambda *_: pytest.fail("probed"))
    evidence = []
    assert trials.check_labels(case, evidence) == []
    assert evidence == []


@pytest.mark.parametrize(
    ("signal", "is_said"),
    [
        (checks.Signal(300, 0.5, 0.3), True),
        (checks.Signal(300, 0.7, 3.0), False),
        (checks.Signal(900, 0.6, 3.0), False),
    ],
)
def test_too_few_pairs_to_tell_random_labels_are_said_to_be_too_few(case, monkeypatch, signal, is_said):
    monkeypatch.setattr(checks, "label_signal", lambda *_: signal)
    case.sample *= 4
    evidence = []
    assert trials.check_labels(case, evidence) == []
    assert ("whether they are random cannot be told from fewer than 400 such pairs" in evidence[-1]) is is_said


@pytest.mark.parametrize(
    ("history", "is_told"),
    [
        ([], False),
        ([{"eval_accuracy": 0.52}], False),
        ([{"eval_accuracy": 0.8}], True),
        ([{"eval_easy_accuracy": 0.8}], True),
        ([{"accuracy": 0.8, "epoch": 0.5, "step": 40}], True),
        ([{"accuracy": 0.8, "epoch": 3.0, "step": 240}], False),
    ],
)
def test_a_run_that_was_better_than_chance_on_new_pairs_shows_that_there_is_a_rule(case, tmp_path, history, is_told):
    case.sample = PAIRS * 10
    case.log_history, case.args = history, config(tmp_path)
    assert trials._tells_unseen(case) is is_told


def test_reward_differences_are_those_of_the_sides_whatever_the_batches(case):
    found = trials.rewards_of(case, PAIRS[:6])
    with torch.no_grad():
        chosen, rejected = trials.rewards(case.model, case.batch(PAIRS[:6])).chunk(2)
    assert torch.allclose(found, chosen - rejected, atol=1e-6)


def test_weights_that_have_grown_beyond_all_bounds_are_named(case):
    case.model.score.weight.data[0, 0] = -2e9
    (finding,) = trials.check_weights(case.model)
    assert finding.cause == "weights that have grown beyond all bounds"
    assert finding.evidence.startswith("the largest, in score.weight, is 2e+09")


def test_a_head_whose_gradient_is_made_zero_is_named(case):
    case.model.score.weight.register_hook(torch.zeros_like)
    (finding,) = trials.check_head(case, [])
    assert finding.cause == "the head's gradient is 0"
    assert finding.evidence.startswith("score.weight gets a gradient of exactly 0")


def test_a_gradient_that_cancels_between_the_sides_is_no_fault_of_the_head(case):
    # Both sides read at a token that they share, so that the head sees the same of both.
    case.model.score.register_forward_pre_hook(lambda _, inputs: (inputs[0][:1, :1].expand_as(inputs[0]),))
    evidence = []
    assert trials.check_head(case, evidence) == []
    assert evidence[0].startswith("gradient norm of the head (score.weight): 0, ")


def test_a_head_in_a_parameter_group_that_does_not_move_is_named(case):
    rest = [each for name, each in case.model.named_parameters() if name != "score.weight"]
    groups = [{"params": rest, "lr": 1e-3}, {"params": [case.model.score.weight], "lr": 0.0}]
    case.optimizer = torch.optim.AdamW(groups)
    (finding,) = trials.check_head(case, [])
    assert finding.cause == "the head's learning rate is 0"
    assert "while others have up to 0.001" in finding.evidence
    # Of a warm-up's first step, whose rates are 0 by right.
    for group in case.optimizer.param_groups:
        group["initial_lr"], group["lr"] = 1e-3, 0.0
    assert trials.check_head(case, []) == []
