"""What is examined: pairs are made into batches as the run makes them, and everything is put back as it was."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from processes import config

from plaudit.case import Case, head_modules, untouched
from plaudit.checks import PROBED_PAIRS

PAIRS = [{"chosen_ids": [5, 6, 7 + i], "rejected_ids": [5, 6, 30 + i, 4]} for i in range(12)]


def test_no_pairs_are_an_error(tiny_model, tokenizer):
    with pytest.raises(ValueError, match="there are no pairs to examine; give the prepared pairs of the run"):
        Case(tiny_model, [], tokenizer)


def test_no_more_pairs_are_held_than_the_probe_reads(tiny_model):
    many = Dataset.from_list(PAIRS * (PROBED_PAIRS // len(PAIRS) + 1))
    assert len(Case(tiny_model, many, None).sample) == PROBED_PAIRS
    assert Case(tiny_model, PAIRS, None).sample == PAIRS
    assert Case(tiny_model, Dataset.from_list(PAIRS).to_iterable_dataset(), None).sample == PAIRS


def test_batches_are_padded_unless_the_run_makes_them_otherwise(tiny_model, tokenizer):
    batch = Case(tiny_model, PAIRS, tokenizer).batch(PAIRS[:2])
    assert batch["input_ids"].tolist()[1] == [5, 6, 8, tokenizer.pad_token_id]
    assert batch["attention_mask"].sum(dim=1).tolist() == [3, 3, 4, 4]
    made = Case(tiny_model, PAIRS, tokenizer, collate=lambda pairs: {"count": len(pairs), "ids": torch.ones(2)})
    assert made.batch(PAIRS[:2])["count"] == 2


def test_a_model_counts_as_trained_where_there_is_a_log_unless_said_otherwise(tiny_model):
    log = [{"loss": 0.6, "step": 1}]
    assert Case(tiny_model, PAIRS, None).is_trained is False
    assert Case(tiny_model, PAIRS, None, log_history=log).is_trained is True
    assert Case(tiny_model, PAIRS, None, log_history=log, is_trained=False).is_trained is False


def test_the_precision_is_that_of_the_weights_or_of_autocast(tiny_model, tmp_path):
    assert Case(tiny_model, PAIRS, None).dtype == torch.float32
    assert Case(tiny_model, PAIRS, None, config(tmp_path, bf16=True)).dtype == torch.bfloat16
    assert Case(tiny_model.double(), PAIRS, None).dtype == torch.float64


def meddle(model):
    """Change in an examination whatever one could change, and fail."""
    with untouched(model):
        assert not any(module.training for module in model.modules())
        assert all(each.grad is None for each in model.parameters())
        for draw in (lambda: torch.rand(3), lambda: np.random.rand(3), random.random):
            draw()
        model.seen += 1
        model.score.weight.grad = torch.zeros_like(model.score.weight)
        model.train()
        raise KeyError


def test_what_is_done_inside_leaves_no_trace_even_after_an_error(tiny_model):
    tiny_model.register_buffer("seen", torch.zeros(1))
    tiny_model.train()
    tiny_model.score.eval()
    tiny_model.score.weight.grad = torch.ones_like(tiny_model.score.weight)
    drawn = []
    for is_examined in (False, True):
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(0)
        if is_examined:
            with pytest.raises(KeyError):
                meddle(tiny_model)
        drawn.append((float(torch.rand(1)), float(np.random.rand()), random.random()))
    assert drawn[0] == drawn[1]
    assert tiny_model.seen == 0
    assert tiny_model.model.training
    assert not tiny_model.score.training
    assert torch.equal(tiny_model.score.weight.grad, torch.ones_like(tiny_model.score.weight))


def test_the_head_is_found_by_its_name(tiny_model):
    assert [(name, module) for name, module in head_modules(tiny_model)] == [("score", tiny_model.score)]
