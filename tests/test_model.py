"""Classifiers: loaded, checked, adapted, and saved so that plain transformers reads the same reward."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import make_model, make_tokenizer, text_pairs
from datasets import Dataset
from processes import config
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from plaudit import RewardTrainer
from plaudit import model as models
from plaudit.rewards import rewards

DATA = Dataset.from_list(text_pairs(8))
IDS = torch.arange(5, 25).reshape(2, 10)
DROPOUTS = {
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "bert": {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5, "classifier_dropout": 0.5},
    "llama": {"attention_dropout": 0.5},
    "gpt_neox": {"attention_dropout": 0.5, "hidden_dropout": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "word_embed_proj_dim": 32, "ffn_dim": 64},
    "deberta-v2": {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5, "pooler_dropout": 0.5},
}


@pytest.fixture(scope="module")
def saved(language_model_path, tmp_path_factory):
    """A trainer over a whole model, two steps trained and saved in its output_dir."""
    folder = str(tmp_path_factory.mktemp("full"))
    trainer = RewardTrainer(language_model_path, config(folder, max_steps=2, learning_rate=1e-2), train_dataset=DATA)
    trainer.train()
    trainer.save_model()
    return trainer


def lone_rewards(model, tokenizer, rows):
    """Plain transformers' rewards of text pairs, each text alone, shape (num_pairs, 2)."""
    found = []
    for row in rows:
        for side in ("chosen", "rejected"):
            ids = torch.tensor([[*tokenizer(row["prompt"] + row[side])["input_ids"], tokenizer.eos_token_id]])
            with torch.no_grad():
                found.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.item())
    return np.array(found).reshape(-1, 2)


def test_a_saved_model_says_all_that_other_tools_need(saved):
    values = json.loads((Path(saved.args.output_dir) / "config.json").read_text())
    loaded = AutoConfig.from_pretrained(saved.args.output_dir)
    assert loaded.num_labels == 1
    assert values["problem_type"] == "regression"
    assert (values["pad_token_id"], values["eos_token_id"]) == (0, 1)
    assert values["architectures"] == ["Qwen3ForSequenceClassification"]
    assert AutoTokenizer.from_pretrained(saved.args.output_dir).chat_template == make_tokenizer().chat_template


def test_plain_transformers_returns_the_trained_rewards(saved):
    expected = saved.predict(DATA).predictions
    plain = AutoModelForSequenceClassification.from_pretrained(saved.args.output_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(saved.args.output_dir)
    np.testing.assert_allclose(lone_rewards(plain, tokenizer, DATA), expected, atol=1e-5)
    assert np.ptp(expected) > 0.1


def test_a_saved_model_reloads_with_the_same_rewards(saved, tmp_path):
    again = RewardTrainer(saved.args.output_dir, config(tmp_path), eval_dataset=DATA)
    np.testing.assert_allclose(again.predict(DATA).predictions, saved.predict(DATA).predictions, atol=1e-6)


def test_a_plain_pipeline_returns_the_raw_reward(saved):
    row = DATA[0]
    expected = saved.predict(DATA.select([0])).predictions[0]
    pipe = transformers.pipeline("text-classification", model=saved.args.output_dir)
    found = [one["score"] for one in pipe([row["prompt"] + row[side] + "<|eos|>" for side in ("chosen", "rejected")])]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not all(0 < score < 1 for score in found), "a sigmoid would give such numbers too"


def test_a_new_head_is_drawn_from_the_seed(language_model_path, tmp_path):
    def head(seed):
        torch.rand(seed + 1)
        trainer = RewardTrainer(language_model_path, config(tmp_path, seed=seed), train_dataset=DATA)
        return trainer.model.score.weight.detach()

    assert torch.equal(head(3), head(3))
    assert not torch.equal(head(3), head(4))


@pytest.mark.parametrize("kind", DROPOUTS)
def test_no_dropout_is_left_anywhere(kind):
    model = make_model(make_tokenizer(), kind, **DROPOUTS[kind]).train()

    def runs():
        with torch.no_grad():
            return [model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits for _ in range(2)]

    assert not torch.equal(*runs()), "the model had no dropout to begin with"
    models.remove_dropout(model)
    assert torch.equal(*runs())


def test_dropout_stays_where_it_is_wanted(tmp_path):
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, "llama", attention_dropout=0.5)
    models.adapt(model, tokenizer, disable_dropout=False)
    assert model.model.layers[0].self_attn.attention_dropout == 0.5
    models.adapt(model, tokenizer)
    assert model.model.layers[0].self_attn.attention_dropout == 0.0


@pytest.fixture(scope="module")
def bfloat16_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("bfloat16")
    make_model(make_tokenizer()).to(torch.bfloat16).save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (None, torch.float32),
        ({}, torch.float32),
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "auto"}, torch.bfloat16),
    ],
)
def test_weights_are_float32_unless_a_dtype_is_given(given, dtype, bfloat16_path):
    before = None if given is None else dict(given)
    model = models.load(bfloat16_path, given)
    assert {value.dtype for value in model.parameters()} == {dtype}
    assert given == before


def test_torch_dtype_is_still_understood(bfloat16_path):
    assert models.load(bfloat16_path, {"torch_dtype": "bfloat16"}).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="both `dtype` .* and its older name `torch_dtype`"):
        models.load(bfloat16_path, {"torch_dtype": "bfloat16", "dtype": "float32"})


def test_a_config_among_the_keyword_arguments_is_used_and_not_changed(language_model_path):
    given = AutoConfig.from_pretrained(language_model_path, num_labels=2)
    given.attention_dropout = 0.25
    model = models.load(language_model_path, {"config": given})
    assert model.config.num_labels == 1
    assert model.score.weight.shape == (1, 32)
    assert model.config.attention_dropout == 0.25
    assert given.num_labels == 2


@pytest.mark.parametrize("labels", [2, 3])
def test_more_than_one_label_is_an_error(labels, tmp_path):
    model = make_model(make_tokenizer(), num_labels=labels)
    with pytest.raises(ValueError, match=f"has {labels} labels, but reward models require `num_labels=1`"):
        models.check(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="more than one output, but reward models require `num_labels=1`"):
        models.load(str(tmp_path))


def test_num_labels_is_always_one(language_model_path):
    assert models.load(language_model_path, {"num_labels": 3}).config.num_labels == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/model", "the directory '/nowhere/model' does not exist; correct the path"),
        ("./nowhere", "the directory './nowhere' does not exist"),
        ("owner/model", "'owner/model' is not a directory here and could not be loaded from the Hub"),
    ],
)
def test_a_model_that_does_not_exist_is_an_error_that_names_it(name, message):
    with pytest.raises(ValueError, match=message):
        models.load(name)


def test_a_language_model_object_is_an_error_that_names_its_path(language_model_path):
    given = AutoModelForCausalLM.from_pretrained(language_model_path)
    with pytest.raises(
        ValueError, match=f"Qwen3ForCausalLM is a causal language model.*instead \\('{language_model_path}"
    ):
        models.check(given)
    with pytest.raises(ValueError, match="instead \\('<name>'"):
        models.check(AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_embd=8, n_layer=1, n_head=1)))


def test_a_model_without_a_head_is_an_error(language_model_path):
    with pytest.raises(ValueError, match="Qwen3Model has no classification head; pass its name or path instead"):
        models.check(AutoModel.from_pretrained(language_model_path))


def test_what_is_no_model_is_a_type_error():
    with pytest.raises(TypeError, match="expected a name, a path.* got dict"):
        models.check({})


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, input_ids, attention_mask):
        return self.weight * (input_ids * attention_mask).float().sum(-1)


class WithoutMask(nn.Module):
    def forward(self, input_ids):
        return input_ids.float().sum(-1)


def test_a_plain_module_is_trained_and_one_that_takes_no_mask_is_an_error(tokenizer, tmp_path):
    trainer = RewardTrainer(
        Sum(), config(tmp_path, max_steps=1, learning_rate=1e-2), train_dataset=DATA, processing_class=tokenizer
    )
    trainer.train()
    assert trainer.model.weight.item() != 1.0
    with pytest.raises(ValueError, match=r"forward of WithoutMask takes no \['attention_mask'\]"):
        models.check(WithoutMask())


def test_embeddings_grow_for_new_tokens_and_never_shrink():
    tokenizer = make_tokenizer()
    roomy = make_model(tokenizer, vocab_size=len(tokenizer) + 10)
    tokenizer.add_tokens(["<|a|>", "<|b|>"])
    models.adapt(roomy, tokenizer, new_tokens=2)
    assert models.vocabulary_size(roomy) == len(tokenizer) + 8
    tight = make_model(make_tokenizer())
    models.adapt(tight, tokenizer, new_tokens=2)
    assert models.vocabulary_size(tight) == len(tokenizer) == tight.config.vocab_size


def test_the_config_learns_the_padding_token_that_the_reward_is_read_by():
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, pad_token_id=None).eval()
    models.adapt(model, tokenizer)
    batch = {"input_ids": torch.tensor([[7, 8, 9, 0, 0], [7, 8, 9, 10, 1]]), "attention_mask": torch.ones(2, 5).long()}
    batch["attention_mask"][0, 3:] = 0
    alone = {name: value[:1, :3] for name, value in batch.items()}
    torch.testing.assert_close(rewards(model, batch)[:1], rewards(model, alone))
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_the_vocabulary_size_of_a_plain_module_is_unknown():
    assert models.vocabulary_size(Sum()) is None
    assert models.stored_vocabulary_size(None) is None
    assert models.stored_vocabulary_size("owner/nothing") is None


def test_checkpointing_is_skipped_with_a_reason_where_a_module_lacks_it(tiny_model):
    assert models.skip_checkpointing(tiny_model) is None
    assert models.skip_checkpointing(Sum()) == "Sum has no activation checkpointing"


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_no_tokenizer_is_an_error_that_names_where_it_was_looked_for(kind, tmp_path):
    make_model(make_tokenizer(), kind).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer could be loaded from .*pass one as processing_class"):
        models.load_tokenizer(str(tmp_path), None, False)
