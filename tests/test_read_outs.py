"""Where rewards are read: found from what they depend on, on every layout, and named where it is the wrong place."""

import pytest
import torch
from conftest import make_model, text_pairs

from plaudit.case import Case
from plaudit.collate import Padded, PairCollator, TreeRow
from plaudit.probe import choose_layout
from plaudit.read_outs import check_read_out, head_states, pair_states, read_outs
from plaudit.rewards import attach, rewards


@pytest.fixture
def pairs(tokenizer):
    return [
        {f"{side}_ids": tokenizer(row["prompt"] + row[side])["input_ids"] for side in ("chosen", "rejected")}
        for row in text_pairs(12)
    ]


@pytest.fixture
def case(tiny_model, tokenizer, pairs):
    attach(tiny_model)
    return Case(tiny_model.eval(), pairs, tokenizer)


@pytest.mark.parametrize("kind", [Padded, TreeRow])
def test_each_side_is_read_at_its_last_token(case, pairs, kind):
    pad = case.tokenizer.pad_token_id
    if kind is TreeRow:
        layout, reason = choose_layout(case.model, [ids for pair in pairs for ids in pair.values()], pad)
        assert isinstance(layout, TreeRow), reason
    else:
        layout = Padded(pad)
    case.collate = PairCollator(layout, pad)
    for pair in pairs[:4]:
        sides = read_outs(case, pair)
        assert [list(one.tokens) for one in sides] == [pair["chosen_ids"], pair["rejected_ids"]]
        assert {(one.following, one.is_padding) for one in sides} == {((), False)}
    evidence = []
    assert check_read_out(case, evidence) == []
    assert sum("read at token" in line for line in evidence) == 6
    assert evidence[-1] == "what the head sees differs between the sides in 12 of 12 pairs"


def cut(case, count):
    """Let the collator attend to a part of each side, counted by its number of tokens."""
    whole = case.collate

    def collate(examples):
        batch = whole(examples)
        for row, ids in enumerate(batch["input_ids"]):
            length = int(batch["attention_mask"][row].sum())
            ids[count(length) :] = case.tokenizer.pad_token_id
        return batch

    case.collate = collate


def test_a_read_out_before_the_end_is_named_with_what_follows(case, pairs):
    # All ids are attended to, but the reward is read at the last that is not padding.
    cut(case, lambda length: length - 3)
    (finding,) = check_read_out(case, [])
    assert finding.cause == "the read-out is before the answer's end"
    length = len(pairs[0]["chosen_ids"])
    assert f"6 of 6 rewards are read before the end, read at token {length - 3} of {length}" in finding.evidence
    assert ">>>" in finding.evidence


def test_a_read_out_inside_the_prompt_is_named(case):
    cut(case, lambda length: 1)
    evidence = []
    (finding,) = check_read_out(case, evidence)
    assert finding.cause == "the read-out is inside the prompt"
    assert "in 3 of 3 pairs both sides are read at the same shared token, read at token 1 of" in finding.evidence


def test_what_the_head_sees_is_caught_on_its_way(case, pairs):
    batch = case.batch(pairs[:3])
    states = head_states(case.model, batch)
    assert states.shape == (6, 32)
    assert torch.equal(case.model.score(states).flatten(), rewards(case.model, batch))
    chosen, rejected = pair_states(case, pairs[:6])
    assert torch.allclose(torch.cat([chosen[:3], rejected[:3]]), states, atol=1e-6)


def test_of_a_model_without_a_known_head_the_rewards_stand_for_its_states(case, pairs):
    class Bare(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.inner = model

        def forward(self, input_ids, attention_mask=None):
            return self.inner(input_ids, attention_mask=attention_mask).logits

    batch = case.batch(pairs[:2])
    assert torch.equal(head_states(Bare(case.model), batch).flatten(), rewards(case.model, batch))


def test_states_that_are_the_same_on_both_sides_are_named_whatever_the_model(tokenizer, pairs):
    model = make_model(tokenizer, "bert").eval()
    case = Case(model, pairs, tokenizer)
    assert check_read_out(case, []) == []
    whole = case.collate
    case.collate = lambda examples: whole([{**one, "rejected_ids": one["chosen_ids"]} for one in examples])
    (finding,) = check_read_out(case, [])
    assert finding.cause == "the read-out is inside the prompt, or the answers are cut away"
    assert "in 12 of 12 pairs the head sees exactly the same of both sides" in finding.evidence
