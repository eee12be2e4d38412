"""RewardModel: every way to ask for a reward gives the same one, in whatever company, and nothing is mended in silence."""

import copy
import json
import pickle
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHAT_TEMPLATE, conversations, make_model, make_tokenizer, text_pairs
from datasets import Dataset
from processes import config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from plaudit import RewardModel, RewardTrainer, inference, scorable
from plaudit.collate import Padded, TreeRow
from plaudit.proof import PROOF_FILE, Contract, make_proof
from plaudit.scoring import RewardScorer, RowScorer, Scored
from plaudit.tree import num_common

# Rewards of float32 weights are the same in any company within this.
SAME = 1e-5
THINKING = "{% if thinking %}think {{ thinking }}.{% endif %}" + CHAT_TEMPLATE
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"required": ["city"]}}}]
SYSTEM = "You are a reward model that likes short answers better than long ones. "


def talk(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def answers_to(prompt, count, seed=0):
    return [row["chosen"] for row in text_pairs(count, seed)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Checkpoints that the trainer saved: of conversations, of texts, with pad == eos, with a BOS, and an encoder."""
    folder = tmp_path_factory.mktemp("checkpoints")
    kinds = {
        "conversations": ({"chat_template": THINKING}, "qwen3", conversations(8)),
        "texts": ({}, "qwen3", text_pairs(8)),
        "pad is eos": ({"pad": "<|eos|>"}, "qwen3", conversations(8)),
        "bos": ({"bos": "<|bos|>"}, "qwen3", text_pairs(8)),
        "encoder": ({}, "bert", conversations(8)),
    }
    for name, (special, kind, rows) in kinds.items():
        tokenizer = make_tokenizer(**special)
        trainer = RewardTrainer(
            make_model(tokenizer, kind),
            config(folder, max_length=None),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trainer.save_model(str(folder / name))
    return folder


@pytest.fixture
def load(checkpoints):
    """RewardModel.from_pretrained by the name of one of the checkpoints."""

    def loaded(name="conversations", **options):
        return RewardModel.from_pretrained(str(checkpoints / name), **options)

    return loaded


@pytest.fixture
def copied(checkpoints, tmp_path):
    """A copy of a checkpoint, to be changed."""

    def copy_of(name="conversations"):
        return Path(shutil.copytree(checkpoints / name, tmp_path / name))

    return copy_of


def built(tokenizer=None, kind="conversational", seed=0, template_kwargs=None, sample=(), is_proven=True, **options):
    """A reward model of objects in memory, with the proof of one trained on rows of this kind."""
    tokenizer = tokenizer or make_tokenizer(THINKING)
    model = make_model(tokenizer, seed=seed).eval()
    proof = make_proof(model, tokenizer, Contract(kind, template_kwargs or {}), sample) if is_proven else None
    return RewardModel(model, tokenizer, proof=proof, **options)


def plain_rewards(path, sequences):
    """The rewards that transformers' own class gives to each sequence alone, shape (num_sequences,)."""
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.no_grad():
        return np.array([model(input_ids=torch.tensor([ids])).logits.item() for ids in sequences])


@pytest.fixture
def batches(monkeypatch):
    """The shape of the input of each batch that reaches the model."""
    seen = []
    rewards = inference.rewards

    def counting(model, batch):
        seen.append(tuple(batch["input_ids"].shape))
        return rewards(model, batch)

    monkeypatch.setattr(inference, "rewards", counting)
    return seen


def said(caplog):
    return [record.getMessage() for record in caplog.records]


def assert_same(found, expected):
    found, expected = np.atleast_1d(found), np.atleast_1d(expected)
    assert len(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=SAME)


def shared_conversations(count=64, prompts=5, seed=0):
    """Conversations of varying length of which many share their prompt, and all its beginning."""
    rows = text_pairs(count, seed)
    return [
        talk(SYSTEM + rows[i % prompts]["prompt"], row["chosen"] + row["rejected"] * (i % 4))
        for i, row in enumerate(rows)
    ]


@pytest.mark.parametrize("name", ["conversations", "texts", "pad is eos", "bos", "encoder"])
@pytest.mark.parametrize("packing", ["auto", "off"])
def test_a_reward_is_the_same_alone_in_a_batch_of_64_and_in_any_order_as_transformers_gives(
    load, checkpoints, name, packing
):
    model = load(name, packing=packing)
    items = shared_conversations()
    if name in ("texts", "bos"):
        items = [turns[0]["content"] + turns[1]["content"] for turns in items]
    found = scorable.of_items(items, {}, True)
    expected = plain_rewards(checkpoints / name, model.fitted(found).sequences)
    whole = model.score(items)
    assert isinstance(model.inference.layout, Padded if packing == "off" or name == "encoder" else TreeRow)
    assert whole.dtype == np.float32
    assert expected.std() > 0.05, "the rewards tell the conversations apart"
    assert_same(whole, expected)
    assert_same(np.concatenate([model.score([item]) for item in items[::4]]), expected[::4])
    order = random.Random(0).sample(range(len(items)), len(items))
    assert_same(model.score([items[i] for i in order]), expected[order])
    small = load(name, packing=packing, max_batch_tokens=150)
    assert_same(small.score(items), expected)


def test_every_form_of_a_conversation_gets_the_same_reward(load, checkpoints):
    model = load()
    prompt, answer = "What color is the sky?", "It is blue."
    turns = talk(prompt, answer)
    tokenizer = model.tokenizer
    ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
    expected = plain_rewards(checkpoints / "conversations", [ids])
    batch = tokenizer.pad({"input_ids": [ids, ids * 2]}, padding_side="left", return_tensors="pt")
    for found in (
        model.score(turns),
        model.score([turns]),
        model.score({"messages": turns}),
        model.score([{"prompt": prompt, "response": answer}]),
        model.score(prompt=prompt, responses=[answer]),
        model.score(prompt=turns[:1], responses=[answer]),
        model.score(prompt=prompt, responses=[turns[1:]]),
        model.score(prompt=prompt, responses=np.array([answer])),
        model.score(prompt=prompt, responses=[turns]),
        model.score(prompts=[prompt], responses=[answer]),
        model.score(prompts=[prompt], responses=[[answer]])[0],
        model.score(prompts=[turns[:1]], responses=[[turns[1:]]])[0],
        model.score(input_ids=ids),
        model.score(input_ids=[ids]),
        model.score(input_ids=torch.tensor([ids])),
        model.score(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[:1],
        np.array(model.as_reward_function()(prompts=[prompt], completions=[answer]), np.float32),
    ):
        assert found.dtype == np.float32
        assert found.shape == (1,)
        assert_same(found, expected)


def test_every_form_of_a_text_gets_the_same_reward_and_a_text_prompt_is_joined_to_its_answer(load, checkpoints):
    model = load("texts")
    prompt, answer = "What color is the sky?", " It is blue."
    ids = [*model.tokenizer(prompt + answer)["input_ids"], model.tokenizer.eos_token_id]
    expected = plain_rewards(checkpoints / "texts", [ids])
    for found in (
        model.score(prompt + answer),
        model.score([prompt + answer]),
        model.score([{"text": prompt + answer}]),
        model.score(prompt=prompt, responses=[answer]),
        model.score(prompts=[prompt], responses=[[answer]])[0],
        model.score(input_ids=ids),
        model.as_reward_function()(prompts=[prompt], completions=[answer]),
    ):
        assert_same(found, expected)


def test_a_text_prompt_is_a_users_turn_unless_the_model_was_trained_on_texts_or_has_no_template():
    assert built(kind="conversational").as_turns
    assert built(kind="tokenized").as_turns
    assert built(is_proven=False).as_turns
    assert not built(kind="standard").as_turns
    assert not built(make_tokenizer(None), kind="tokenized").as_turns


def test_ragged_prompts_give_an_array_of_rewards_each_in_their_order(load):
    model = load()
    prompts = ["What color is the sky?", "Hello", "Tell me a story"]
    responses = [["It is blue.", "It is black."], [], ["Once upon a time."]]
    found = model.score(prompts=prompts, responses=responses)
    assert [each.shape for each in found] == [(2,), (0,), (1,)]
    assert {each.dtype for each in found} == {np.dtype(np.float32)}
    lone = [[model.score(prompt=p, responses=[r])[0] for r in each] for p, each in zip(prompts, responses, strict=True)]
    assert_same(np.concatenate(found), [value for each in lone for value in each])
    generated = model.score(prompts=prompts, responses=(each for each in responses))
    assert [each.shape for each in generated] == [(2,), (0,), (1,)]
    assert_same(model.score(prompt=prompts[0], responses=np.array(responses[0])), found[0])
    flat = model.score(prompts=prompts, responses=("a", "b", "c"))
    assert flat.shape == (3,)
    mixed = model.score(prompts=prompts[:2], responses=["a", ["b"]])
    assert_same(np.concatenate(mixed), flat[:1].tolist() + model.score(prompt="Hello", responses=["b"]).tolist())


def test_nothing_to_score_gives_an_empty_array_and_no_prompts_an_empty_list(load, batches):
    model = load()
    for found in (model.score([]), model.score(prompt="a", responses=[]), model.score(input_ids=[])):
        assert found.shape == (0,)
        assert found.dtype == np.float32
    assert model.score(prompts=[], responses=[]) == []
    assert model.as_reward_function()(prompts=[], completions=[]) == []
    assert not batches


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give one of: conversations or texts, prompt= with responses=, prompts= with responses=, input_ids="),
        ({"conversations": "a", "input_ids": [5]}, "give one of: conversations or texts"),
        ({"prompt": "a", "prompts": ["a"], "responses": ["b"]}, "give one of"),
        ({"prompt": "a"}, "responses= goes with prompt= or prompts=; give both, or whole conversations"),
        ({"prompts": ["a"]}, "responses= goes with prompt= or prompts="),
        ({"conversations": "a", "responses": ["b"]}, "responses= goes with prompt= or prompts="),
        ({"conversations": "a", "attention_mask": [[1]]}, "attention_mask= goes with input_ids="),
        ({"prompt": "a", "responses": ""}, "the prompt: responses must be a list of answers, not str ''"),
        (
            {"prompts": ["a", "b"], "responses": [["c"]]},
            "there are 2 prompts and 1 entries of responses; give one list",
        ),
        ({"prompts": ["a", "b"], "responses": [["c"], 7]}, "prompt 1: responses must be a list of answers, not int 7"),
        ({"prompts": ["a"], "responses": [["c", 7]]}, "prompt 0, response 1: the response must be text"),
        ({"prompts": "ab", "responses": ["c", "d"]}, "prompts is one prompt; give it as prompt=, or wrap it"),
        ({"conversations": "a", "truncation": "right"}, "truncation is 'right'"),
        ({"input_ids": [5, 100_000]}, "row 0: token id 100000 is outside the model's vocabulary"),
        ({"conversations": ["a", "b"], "max_length": 1}, "row 0: 2 tokens are more than max_length 1"),
    ],
)
def test_a_call_that_cannot_be_meant_is_an_error_that_tells_the_cure(load, arguments, message):
    with pytest.raises(ValueError, match=message):
        load().score(**arguments)


@pytest.mark.parametrize("form", ["prompt", "prompts", "conversations", "input_ids", "reward function"])
def test_a_prompt_reaches_the_model_once_for_all_its_answers(load, batches, form):
    model = load()
    prompt, answers = SYSTEM * 3, answers_to("", 16)
    ids = model.fitted(scorable.of_items([talk(prompt, answer) for answer in answers], {}, True)).sequences
    shared = min(num_common(np.array(ids[0]), np.array(each)) for each in ids[1:])
    model.score("warm up")
    batches.clear()
    if form == "prompt":
        model.score(prompt=prompt, responses=answers)
    elif form == "prompts":
        model.score(prompts=[prompt, prompt], responses=[answers[:9], answers[9:]])
    elif form == "conversations":
        model.score([talk(prompt, answer) for answer in answers])
    elif form == "input_ids":
        model.score(input_ids=ids)
    else:
        model.as_reward_function()(prompts=[prompt] * 16, completions=answers)
    (shape,) = batches
    assert shared > 60
    assert shape[1] <= shared + sum(len(each) - shared for each in ids)
    assert shape[0] == 1


def test_prompts_that_arrive_mingled_are_each_computed_once_though_they_do_not_fill_whole_batches(load, batches):
    prompts = [letter + SYSTEM for letter in "abcde"]
    items = [talk(prompt, f"answer {number}") for number in range(8) for prompt in prompts]
    once = 0
    for start in range(len(prompts)):
        load().score(items[start :: len(prompts)])
        once += batches[-1][1]
    batches.clear()
    # Room for the answers to a prompt and half of the next one's.
    load(max_batch_tokens=9 * once // 25).score(items)
    assert len(batches) == len(prompts)
    assert sum(tokens for _, tokens in batches) <= once


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_batches_hold_as_many_tokens_as_the_budget_allows_or_one_sequence(load, batches, packing):
    items = shared_conversations()
    model = load(packing=packing, max_batch_tokens=300)
    long = talk("a", "The sky is green. " * 60)
    model.score([*items, long])
    sizes = [rows * tokens for rows, tokens in batches]
    alone = len(model.fitted(scorable.of_items([long], {}, True)).sequences[0])
    assert alone > 300
    # A few tokens that sequences share are stored again, which the budget leaves out.
    assert [size for size in sizes if size > 315] in ([alone], [])
    assert sum(sizes) >= alone
    assert sum(size > 150 for size in sizes) >= len(sizes) - 2, "batches are filled"
    if packing == "off":
        assert sum(rows for rows, _ in batches) == 65
        assert (1, alone) in batches


def test_without_a_budget_a_cpu_takes_4096_tokens_at_a_time(load):
    assert load().inference.max_tokens == 4096
    assert load(max_batch_tokens=7).inference.max_tokens == 7


def test_the_layout_is_tried_once_and_again_for_longer_sequences(load, monkeypatch):
    tried = []
    choose = inference.choose_layout

    def choosing(*arguments, **options):
        tried.append(options["longest"])
        return choose(*arguments, **options)

    monkeypatch.setattr(inference, "choose_layout", choosing)
    monkeypatch.setattr(inference, "FIRST_TRIED", 100)
    model = load(max_length=300)
    model.score(["a", "b"])
    model.score(input_ids=[5] * 100)
    assert tried == [100]
    expected = model.score(input_ids=[7] * 103)
    assert tried == [100, 206]
    model.score(input_ids=[7] * 200)
    assert tried == [100, 206]
    assert_same(load(max_length=300, packing="off").score(input_ids=[7] * 103), expected)


def test_a_model_on_several_devices_is_padded_without_a_trial(load, monkeypatch):
    tried = []
    monkeypatch.setattr(inference, "choose_layout", lambda *arguments, **options: (tried.append(1), None))
    model = load()
    model.model.score.to("meta")
    assert isinstance(model.inference._layout_for(8), Padded)
    assert not tried


def test_an_unknown_packing_or_a_budget_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="packing is 'on'; it must be 'auto' or 'off'"):
        built(packing="on")
    for budget in (0, -5):
        with pytest.raises(ValueError, match=f"max_batch_tokens is {budget}; it must be at least 1"):
            built(max_batch_tokens=budget)


def test_the_model_is_scored_without_dropout_gradients_or_autocast_and_left_as_it_was(load):
    model = load()
    items = shared_conversations(8)
    expected = model.score(items)
    for module in model.model.modules():
        for name, value in vars(module).items():
            if name == "attention_dropout" and isinstance(value, float):
                setattr(module, name, 0.9)
    model.model.train().requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.score(items)
    assert_same(found, expected)
    assert model.model.training
    assert all(each.grad is None for each in model.model.parameters())


def test_its_model_and_tokenizer_are_plain_objects_of_transformers(load):
    model = load()
    assert isinstance(model.model, PreTrainedModel)
    assert isinstance(model.tokenizer, PreTrainedTokenizerBase)
    assert not isinstance(model, torch.nn.Module)
    assert not model.model.training
    assert not any(each.requires_grad for each in model.model.parameters())


def test_a_trainers_layout_before_scoring_makes_no_difference(checkpoints):
    tokenizer = make_tokenizer(THINKING)
    trainer = RewardTrainer(
        str(checkpoints / "conversations"),
        config(checkpoints / "run", max_steps=1, per_device_train_batch_size=4, learning_rate=1e-12),
        train_dataset=Dataset.from_list(conversations(4)),
        processing_class=tokenizer,
    )
    trainer.train()
    items = shared_conversations(8)
    model = RewardModel(trainer.model, tokenizer)
    expected = plain_rewards(checkpoints / "conversations", model.fitted(scorable.of_items(items, {}, True)).sequences)
    assert_same(model.score(items), expected)


# What is too long.


def test_too_long_a_sequence_is_an_error_by_default_and_left_cuts_and_counts_and_says_it(load, caplog):
    model = load()
    items = [talk("Hello", "A cat."), talk("Hello", "A cat. " * 20), talk("Hello", "A dog. " * 20)]
    with pytest.raises(
        ValueError, match=r"row 1: \d+ tokens are more than max_length 30 \(2 of 3 sequences are too long"
    ):
        model.score(items, max_length=30)
    assert model.num_truncated == 0
    found = model.score(items, truncation="left", max_length=30)
    assert said(caplog) == ["truncated 2 of 3 sequences to 30 tokens (left); 2 so far"]
    assert model.num_truncated == 2
    assert_same(found[:1], model.score(items[:1]))
    ids = model.fitted(scorable.of_items(items, {}, True)).sequences
    assert_same(found, model.score(input_ids=[each[-30:] for each in ids]))
    model.score(items[1:2], truncation="left", max_length=30)
    assert said(caplog)[1:] == ["truncated 1 of 1 sequences to 30 tokens (left); 3 so far"]
    model.score(items, truncation="left")
    assert len(said(caplog)) == 2, "nothing is said of what fits"


def test_answers_to_one_prompt_are_cut_at_the_same_place_in_every_form_that_names_it(load):
    model = load()
    prompt, short, long = "The sky is green. " * 3, "No.", "The grass is blue. " * 2
    pieces = model.fitted(scorable.of_items([talk(prompt, short), talk(prompt, long)], {}, True)).sequences
    limit = len(pieces[1]) - 5
    assert len(pieces[0]) <= limit
    expected = model.score(input_ids=[each[5:] for each in pieces])
    options = {"truncation": "left", "max_length": limit}
    alone = model.score([talk(prompt, short), talk(prompt, long)], **options)
    assert abs(alone[0] - expected[0]) > 1e-3, "conversations on their own are cut on their own"
    assert_same(model.score(prompt=prompt, responses=[short, long], **options), expected)
    assert_same(model.score(prompts=[prompt], responses=[[short, long]], **options)[0], expected)
    function = model.as_reward_function(**options)
    assert_same(function(prompts=[prompt, "Hello", prompt], completions=[short, "No.", long])[::2], expected)
    rows = [{"prompt": prompt, "responses": [short, long]}]
    assert_same(RowScorer(model, **options)(rows, [0])[0]["rewards"], expected)
    pair = [{"prompt": talk(prompt, "")[:1], "chosen": talk("", short)[1:], "rejected": talk("", long)[1:]}]
    assert_same(list(RowScorer(model, **options)(pair, [0])[0].values()), expected)


def test_the_answers_to_another_prompt_are_not_cut_with_those_that_are_too_long(load, caplog):
    model = load()
    prompts, responses = ["Hello", "Hello cat"], [["A cat. " * 20], ["A cat."]]
    found = model.score(prompts=prompts, responses=responses, truncation="left", max_length=40)
    assert_same(found[1], model.score(prompt=prompts[1], responses=responses[1]))
    assert said(caplog) == ["truncated 1 of 2 sequences to 40 tokens (left); 1 so far"]


def test_drop_turns_reaches_the_score(load, caplog):
    model = load()
    turns = [*talk("Hello", "A cat. " * 9), *talk("And at night?", "A dog.")]
    found = model.score([turns, turns[2:]], truncation="drop_turns", max_length=40)
    assert_same(found[:1], found[1:])
    assert said(caplog) == ["truncated 1 of 2 sequences to 40 tokens (drop_turns); 1 so far"]


def test_the_limit_is_the_one_given_else_the_recorded_one_else_what_model_and_tokenizer_take():
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    assert RewardModel(model, tokenizer).max_length == 512
    tokenizer.model_max_length = 100
    assert RewardModel(model, tokenizer).max_length == 100
    tokenizer.model_max_length = 1000
    assert RewardModel(model, tokenizer).max_length == 512
    proof = make_proof(model.eval(), tokenizer, Contract("conversational", max_length=30), [])
    assert RewardModel(model, tokenizer, proof=proof).max_length == 30
    assert RewardModel(model, tokenizer, proof=proof, max_length=40).max_length == 40
    assert RewardModel(model, None).max_length == 512


def test_a_roberta_takes_as_many_tokens_as_it_has_positions_behind_the_padding_id():
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "<|end|>"
    model = RewardModel(make_model(tokenizer, "roberta", max_position_embeddings=40), tokenizer)
    assert model.inference.pad_token_id == 2
    assert model.max_length == 37
    assert np.isfinite(model.score(input_ids=[5] * 37)).all()
    with pytest.raises(ValueError, match="38 tokens are more than max_length 37"):
        model.score(input_ids=[5] * 38)


# What is not finite, and the scale of what is.


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_a_reward_that_is_not_finite_is_an_error_that_names_its_row_and_no_other(packing):
    model = built(packing=packing)
    model.score("warm up")
    with torch.no_grad():
        model.model.get_input_embeddings().weight[300] = torch.inf
    with pytest.raises(
        ValueError,
        match="row 2: the reward is (nan|inf).*; the weights are broken, or their precision is too low for this model",
    ):
        model.score(input_ids=[[5, 6, 7, 8, 9], [5, 6, 7, 8], [5, 6, 7, 8, 300], [5, 300, 7]])
    with pytest.raises(ValueError, match="row 9: the reward is (nan|inf)"):
        RowScorer(model, bad_rows="null")([{"input_ids": [5]}, {"input_ids": [300]}], [8, 9])


def test_an_infinite_reward_is_an_error_too(monkeypatch):
    model = built()
    model.score("warm up")
    monkeypatch.setattr(inference, "rewards", lambda model, batch: torch.tensor([-torch.inf]))
    with pytest.raises(ValueError, match="row 0: the reward is -inf"):
        model.score("a text")


def test_normalise_gives_the_recorded_sample_mean_0_and_deviation_1_and_raw_is_the_default():
    sample = [[5 + i, 9, 30 + 2 * i] for i in range(20)]
    model = built(sample=sample)
    raw, normal = model.score(input_ids=sample), model.score(input_ids=sample, normalise=True)
    assert normal.dtype == np.float32
    assert (normal.mean(), normal.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))
    assert_same(normal, (raw - raw.mean()) / raw.std())
    assert abs(raw.mean()) > 0.01
    assert_same(RowScorer(model, normalise=True)([{"input_ids": sample[0]}], [0])[0]["reward"], normal[0])
    talks = model.score(talk("a", "b"), normalise=True)
    assert_same(model.as_reward_function(normalise=True)(prompts=["a"], completions=["b"]), talks)


def test_normalise_without_a_proof_is_an_error_even_of_nothing():
    model = built(is_proven=False)
    for items in ([], ["a"]):
        with pytest.raises(
            ValueError, match=f"normalise needs the mean and scale of {PROOF_FILE}, which this model does"
        ):
            model.score(items, normalise=True)


# How conversations are rendered.


def test_tools_and_template_variables_of_the_call_change_the_text_that_is_scored(load):
    model = load()
    turns = talk("What is the weather?", "Sunny.")
    plain = model.score(turns)
    for options in ({"tools": TOOLS}, {"chat_template_kwargs": {"thinking": "long"}}):
        text = model.tokenizer.apply_chat_template(
            turns, tokenize=False, **{"tools": options.get("tools")}, **options.get("chat_template_kwargs", {})
        )
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        expected = model.score(input_ids=ids)
        assert abs(expected - plain) > 1e-3
        for found in (
            model.score(turns, **options),
            model.score([{"messages": turns}], **options),
            model.score([{"messages": turns, **options}]),
            model.score(prompt=turns[0]["content"], responses=["Sunny."], **options),
            model.score(prompts=[turns[:1]], responses=[["Sunny."]], **options)[0],
            model.as_reward_function()(
                prompts=[turns[:1]],
                completions=[turns[1:]],
                other=[1],
                **{name: [value] for name, value in options.items()},
            ),
            RowScorer(model)([{"messages": turns, **options}], [0])[0]["reward"],
        ):
            assert_same(found, expected)


def test_recorded_template_variables_are_used_unless_the_call_sets_them():
    model, plain = built(template_kwargs={"thinking": "long"}), built()
    turns = talk("Hello", "A cat.")
    expected = plain.score(turns, chat_template_kwargs={"thinking": "long"})
    assert abs(expected - plain.score(turns)) > 1e-3
    assert_same(model.score(turns), expected)
    assert_same(model.score(turns, tools=[]), expected)
    assert_same(
        model.score(turns, chat_template_kwargs={"thinking": "short"}),
        plain.score(turns, chat_template_kwargs={"thinking": "short"}),
    )


def test_what_cannot_be_asked_of_a_model_is_an_error_before_any_row_is_seen(load):
    model, unproven = load(), built(is_proven=False)
    for make in (model.as_reward_function, lambda **options: RowScorer(model, **options)):
        with pytest.raises(ValueError, match="truncation is 'right'; it must be one of"):
            make(truncation="right")
        with pytest.raises(ValueError, match="max_length is 0; it must be a whole number from 1"):
            make(max_length=0)
    for make in (unproven.as_reward_function, lambda **options: RowScorer(unproven, **options)):
        with pytest.raises(ValueError, match="normalise needs the mean and scale"):
            make(normalise=True)


def test_texts_for_a_model_of_conversations_and_the_other_way_round_are_said_once(load, caplog):
    for name, item, other in (("conversations", "a text", talk("a", "b")), ("texts", talk("a", "b"), "a text")):
        caplog.clear()
        model = load(name)
        model.score([other, other])
        assert not said(caplog)
        model.score([item, other])
        model.score(item)
        assert len(said(caplog)) == 1


# Order and preference.


def test_rank_gives_the_numbers_of_the_answers_best_first_and_the_earlier_of_equal_ones_first(load):
    model = load()
    # Of so many equal ones a sort that is not stable mixes some up.
    answers = answers_to("", 9) * 8
    values = model.score(prompt="Hello", responses=answers)
    assert len(set(values.tolist())) == 9
    found = model.rank("Hello", answers)
    assert found == sorted(range(72), key=lambda number: (-values[number], number))
    assert all(type(number) is int for number in found)
    assert model.rank("Hello", []) == []


def test_rank_and_prefer_take_the_options_of_score(load):
    model = load()
    with pytest.raises(ValueError, match="are more than max_length 9"):
        model.rank("Hello", ["a cat"], max_length=9)
    with pytest.raises(ValueError, match="are more than max_length 9"):
        model.prefer("a cat", "a dog", prompt="Hello", max_length=9)
    with pytest.raises(ValueError, match="row 0, 'chosen': .* are more than max_length 2 "):
        model.prefer(["a cat"], ["a dog"], max_length=2)
    assert model.rank("Hello", ["a cat"], truncation="left", max_length=9) == [0]


def test_prefer_gives_the_sigmoid_of_the_difference_for_one_pair_or_many(load):
    model = load()
    chosen, rejected = (talk("Hello", answer) for answer in ("A cat.", "A dog and a story."))
    gap = float(model.score(chosen)[0]) - float(model.score(rejected)[0])
    assert abs(gap) > 0.01
    expected = 1 / (1 + np.exp(-gap))
    one = model.prefer(chosen, rejected)
    assert isinstance(one, float)
    for found in (
        one,
        1 - model.prefer(rejected, chosen),
        model.prefer("A cat.", "A dog and a story.", prompt="Hello"),
        model.prefer(chosen[1:], rejected[1:], prompt=chosen[:1]),
        model.prefer({"messages": chosen}, {"messages": rejected}),
    ):
        assert found == pytest.approx(expected, abs=SAME)
    many = model.prefer([chosen, rejected, chosen], [rejected, chosen, chosen])
    assert isinstance(many, np.ndarray)
    assert many == pytest.approx([expected, 1 - expected, 0.5], abs=SAME)
    assert model.prefer([], []).shape == (0,)
    texts = model.prefer("a cat", "a dog")
    assert isinstance(texts, float)
    assert model.prefer(("a cat",), ["a dog"]).tolist() == pytest.approx([texts], abs=SAME)


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        ("a", ["b"], "chosen is one conversation and rejected several, or the other way round; give as many of each"),
        (["a"], talk("a", "b"), "chosen is one conversation and rejected several"),
        ({"role": "assistant", "content": "a"}, "b", r"row 0: .* is one message, not a list; wrap it as \[message\]"),
        (["a", "b"], ["c"], "there are 2 chosen and 1 rejected; give as many of each"),
    ],
)
def test_prefer_of_unlike_sides_is_an_error(load, chosen, rejected, message):
    with pytest.raises(ValueError, match=message):
        load().prefer(chosen, rejected)


def test_preferences_of_far_apart_rewards_neither_overflow_nor_leave_0_and_1(monkeypatch):
    model = built()
    values = np.array([5e3, -5e3, 40, 0, -5e3, 5e3, 0, 0], np.float32)
    monkeypatch.setattr(model, "rewards_of", lambda *arguments: Scored(values, np.ones(8, int), np.zeros(8, bool)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.prefer(["a"] * 4, ["b"] * 4)
    assert found.tolist() == [1.0, 0.0, 1.0, 0.5]


# Other tools: reward functions, processes, memory.


def test_a_reward_function_gives_floats_under_its_name_and_leaves_other_columns_alone(load):
    model = load()
    function = model.as_reward_function()
    assert function.__name__ == "reward_model"
    assert model.as_reward_function("judge").__name__ == "judge"
    plain = function(prompts=["Hello", "Hello"], completions=["A cat.", "A dog."], trainer_state=None, solution=[1, 2])
    chats = function(
        [talk("Hello", "")[:1]] * 2, [talk("", "A cat.")[1:], talk("", "A dog.")[1:]], completion_ids=[[1], [2]]
    )
    assert [type(value) for value in plain] == [float, float]
    assert_same(plain, model.score(prompt="Hello", responses=["A cat.", "A dog."]))
    assert_same(chats, plain)
    with pytest.raises(ValueError, match="prompt 1, response 0: the response must be text"):
        function(prompts=["Hello", "Hello"], completions=["A cat.", None])


def test_a_reward_function_cuts_only_if_asked_and_says_it(load, caplog):
    model = load(max_length=30)
    arguments = {"prompts": ["Hello"], "completions": ["A cat. " * 20]}
    with pytest.raises(ValueError, match="prompt 0, response 0: .* tokens are more than max_length 30"):
        model.as_reward_function()(**arguments)
    model.as_reward_function(truncation="left")(**arguments)
    assert said(caplog) == ["truncated 1 of 1 sequences to 30 tokens (left); 1 so far"]
    model.as_reward_function(truncation="left", max_length=15)(**arguments)
    assert said(caplog)[1:] == ["truncated 1 of 1 sequences to 15 tokens (left); 2 so far"]


def test_a_loaded_model_pickles_as_its_name_and_options_and_comes_back_with_its_rewards(load, checkpoints):
    model = load(max_length=200, packing="off", max_batch_tokens=99)
    items = shared_conversations(8)
    expected = model.score(items)
    function = model.as_reward_function("judge", truncation="left")
    for value in (model, function):
        assert len(pickle.dumps(value)) < 2000
    found = pickle.loads(pickle.dumps(model))
    assert (found.max_length, found.inference.packing, found.inference.max_tokens) == (200, "off", 99)
    assert_same(found.score(items), expected)
    again = pickle.loads(pickle.dumps(function))
    assert again.__name__ == "judge"
    assert again.truncation == "left"
    arguments = {"prompts": [turns[:1] for turns in items], "completions": [turns[1:] for turns in items]}
    assert_same(again(**arguments), expected)


def test_a_model_that_has_changed_since_it_was_pickled_is_refused(load, copied):
    folder = copied()
    sent = pickle.dumps(RewardModel.from_pretrained(str(folder)))
    pickle.loads(sent)
    weights = load_file(folder / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / PROOF_FILE).unlink()
    with pytest.raises(ValueError, match="is not the model that was sent here: it has changed since; load it again"):
        pickle.loads(sent)


@pytest.mark.parametrize("copied_by", ["pickle", "deepcopy"])
@pytest.mark.parametrize("is_warm", [False, True])
def test_a_model_of_objects_is_copied_with_its_rewards_before_and_after_its_first_score(copied_by, is_warm):
    model = built(max_length=200)
    items = shared_conversations(8)
    if is_warm:
        model.score(items)
    found = pickle.loads(pickle.dumps(model)) if copied_by == "pickle" else copy.deepcopy(model)
    assert_same(found.score(items), model.score(items))
    assert found.max_length == 200
    assert found.model is not model.model


def test_the_fingerprint_tells_weights_tokenizer_padding_and_template_variables_apart(load):
    first = load()
    assert first.fingerprint == load().fingerprint
    assert first.fingerprint == load(max_batch_tokens=7, packing="off", max_length=9).fingerprint
    template = make_tokenizer(CHAT_TEMPLATE)
    padding = built()
    padding.model.config.pad_token_id = 7
    others = [
        built(),
        built(seed=1),
        built(template),
        built(template_kwargs={"thinking": "long"}),
        padding,
        built(is_proven=False, tokenizer=make_tokenizer(THINKING, bos="<|bos|>")),
    ]
    found = [model.fingerprint for model in others]
    assert len(set(found)) == len(found)
    assert all(len(each) == 64 for each in found)


class OutOfMemory:
    """The model's rewards on a device that takes batches of so many tokens."""

    def __init__(self, monkeypatch, limit):
        self.limit, self.failures, self.sizes = limit, 0, []
        self.rewards = inference.rewards
        monkeypatch.setattr(inference, "rewards", self)

    def __call__(self, model, batch):
        if batch["input_ids"].numel() > self.limit:
            self.failures += 1
            raise torch.OutOfMemoryError("out of memory")
        self.sizes.append(batch["input_ids"].numel())
        return self.rewards(model, batch)


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_out_of_memory_halves_batches_from_then_on_and_changes_no_reward(load, monkeypatch, caplog, packing):
    items = shared_conversations()
    expected = load(packing=packing).score(items)
    model = load(packing=packing, max_batch_tokens=1000)
    caplog.clear()
    device = OutOfMemory(monkeypatch, 300)
    assert_same(model.score(items), expected)
    told = [line for line in said(caplog) if line.startswith("out of memory")]
    assert 1 <= device.failures <= 6, "smaller batches follow in the same call"
    assert len(told) == device.failures
    assert (
        told[-1]
        == f"out of memory: batches are of {model.inference.max_tokens:,} tokens from now on (max_batch_tokens)"
    )
    assert 100 <= model.inference.max_tokens <= 500, "no smaller than a batch that fits"
    failures = device.failures
    assert_same(model.score(items), expected)
    assert device.failures <= failures + (model.inference.max_tokens > 300)


def test_out_of_memory_for_one_sequence_is_the_error_it_is(load, monkeypatch):
    model = load(packing="off")
    OutOfMemory(monkeypatch, 5)
    with pytest.raises(torch.OutOfMemoryError):
        model.score([talk("Hello", "A cat."), talk("Hello", "A dog.")])


@pytest.mark.parametrize(("delay", "is_wanted", "shows"), [(0, True, True), (3, True, False), (0, False, False)])
def test_long_work_shows_a_bar_of_its_sequences_and_short_work_none(load, monkeypatch, capsys, delay, is_wanted, shows):
    counted = []

    class Bar(inference.tqdm):
        def update(self, count):
            counted.append(count)
            return super().update(count)

    monkeypatch.setattr(inference, "tqdm", Bar)
    monkeypatch.setattr(inference, "SECONDS_WITHOUT_BAR", delay)
    model = load(max_batch_tokens=200)
    model.inference.shows_progress = is_wanted
    capsys.readouterr()
    model.score(shared_conversations(16))
    assert ("Scoring:   0%|          | 0/16" in capsys.readouterr().err) == shows
    assert 1 < len(counted) < 16
    assert sum(counted) == 16


# Checkpoints.


def test_a_model_without_a_tokenizer_scores_ids_alone(checkpoints):
    classifier = AutoModelForSequenceClassification.from_pretrained(checkpoints / "texts")
    model = RewardModel(classifier, None)
    assert_same(model.score(input_ids=[[5, 6, 7], [8, 9]]), plain_rewards(checkpoints / "texts", [[5, 6, 7], [8, 9]]))
    for call in (
        lambda: model.score("a text"),
        lambda: model.score(talk("a", "b")),
        lambda: model.score(prompt="a", responses=["b"]),
    ):
        with pytest.raises(
            ValueError, match=r"this reward model has no tokenizer, so it scores token ids only: score\(inp"
        ):
            call()


def test_a_checkpoint_without_tokenizer_files_is_loaded_for_ids_and_says_so(copied, load, caplog):
    folder = copied()
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", PROOF_FILE):
        (folder / file).unlink()
    model = RewardModel.from_pretrained(str(folder))
    assert model.tokenizer is None
    assert any(
        line.startswith(f"'{folder}' is scored by token ids only: no tokenizer could be") for line in said(caplog)
    )
    assert_same(model.score(input_ids=[5, 6]), load().score(input_ids=[5, 6]))


def test_a_tokenizer_without_a_padding_token_is_given_one(copied):
    folder = copied("texts")
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    del tokenizer_config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / PROOF_FILE).unlink()
    model = RewardModel.from_pretrained(str(folder))
    assert model.tokenizer.pad_token is not None


def test_further_arguments_of_loading_reach_transformers_and_are_kept_when_pickled(load):
    model = load(device="cpu", attn_implementation="eager")
    for each in (model, pickle.loads(pickle.dumps(model))):
        assert each.model.config._attn_implementation == "eager"
        assert each.device == torch.device("cpu")


def test_strict_loading_refuses_other_rewards_than_recorded_and_loads_them_if_not_strict(copied):
    folder = copied()
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = -weights["score.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError,
        match=r"is not as it was saved: .*head.* \(golden rewards differ by up to [\d.]+, allowed is [\d.e-]+\); restore the "
        "checkpoint, or load it all the same with strict=False",
    ):
        RewardModel.from_pretrained(str(folder))
    model = RewardModel.from_pretrained(str(folder), strict=False)
    assert not model.verify().passed


def test_strict_loading_in_lower_precision_warns_once(load):
    with pytest.warns(
        UserWarning, match="lower precision: the weights are bfloat16, and float32 was recorded"
    ) as caught:
        model = load(dtype="bfloat16")
    assert len([each for each in caught if "lower precision" in str(each.message)]) == 1
    assert {each.dtype for each in model.model.parameters()} == {torch.bfloat16}
    assert model.score("a").dtype == np.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(dtype="bfloat16", strict=False)
        load()


def test_without_a_proof_loading_says_in_one_line_that_rewards_cannot_be_checked(copied, load, caplog):
    folder = copied()
    (folder / PROOF_FILE).unlink()
    model = RewardModel.from_pretrained(str(folder))
    assert said(caplog) == [
        f"'{folder}' has no {PROOF_FILE}, so its rewards cannot be checked; its reward head was loaded"
    ]
    caplog.clear()
    RewardModel.from_pretrained(str(folder), strict=False)
    load()
    assert not said(caplog)
    with pytest.raises(
        ValueError, match=f"there is no {PROOF_FILE} that can be read, so there is nothing to verify; every save"
    ):
        model.verify()
    items = shared_conversations(8)
    assert_same(model.score(items), load().score(items))


def test_a_base_model_is_no_reward_model(language_model_path):
    with pytest.raises(ValueError, match="this checkpoint has no reward head; its rewards would be random"):
        RewardModel.from_pretrained(language_model_path)
    with pytest.raises(ValueError, match="the directory './nowhere' does not exist"):
        RewardModel.from_pretrained("./nowhere")


def test_a_loaded_model_verifies_and_a_served_reward_that_is_not_recorded_does_not(load):
    model = load()
    result = model.verify()
    assert result.passed
    assert result.num_golden == len(model.proof.golden) >= 8
    assert model.verify(served=model.proof.golden_rewards).passed
    assert not model.verify(served=1 / (1 + np.exp(-model.proof.golden_rewards))).passed


# Rows of data.


def rows_of_each_kind():
    turns, worse = talk("Hello", "A cat."), talk("Hello", "A dog and a story.")
    ids = [5, 6, 7]
    single = [{"messages": turns}, {"messages": worse}]
    return {
        "messages": (single, "single", ("reward",), [[turns], [worse]]),
        "text": ([{"text": "a cat"}, {"text": "a dog"}], "single", ("reward",), [["a cat"], ["a dog"]]),
        "answer": (
            [{"prompt": "Hello", "response": "A cat."}, {"prompt": "Hello", "response": "A dog and a story."}],
            "single",
            ("reward",),
            [[turns], [worse]],
        ),
        "ids": ([{"input_ids": ids}], "single", ("reward",), [ids]),
        "pair": (
            [{"chosen": turns, "rejected": worse}, {"chosen": worse, "rejected": turns}],
            "pair",
            ("reward_chosen", "reward_rejected"),
            [[turns, worse], [worse, turns]],
        ),
        "answers": (
            [{"prompt": "Hello", "responses": ["A cat."]}, {"prompt": "Hello", "responses": ["A dog and a story.", "A cat."]}],
            "answers",
            ("rewards",),
            [[turns], [worse, turns]],
        ),
    }  # fmt: skip


@pytest.mark.parametrize("kind", rows_of_each_kind())
def test_rows_of_every_kind_get_the_rewards_of_what_they_hold(load, kind):
    model = load()
    rows, shape, columns, held = rows_of_each_kind()[kind]
    scorer = RowScorer(model)
    found = scorer(rows, range(len(rows)))
    assert (scorer.kind, scorer.reward_columns) == (shape, columns)
    assert len(found) == len(rows)
    for row, items in zip(found, held, strict=True):
        assert tuple(row) == columns
        values = row["rewards"] if shape == "answers" else list(row.values())
        assert all(type(value) is float for value in values)
        assert_same(values, model.score(input_ids=items) if kind == "ids" else model.score(items))
    if shape == "answers":
        assert scorer.answers_column == "responses"
    assert scorer.counts["rows"] == len(rows)
    assert scorer.counts["sequences"] == (1 if kind == "ids" else sum(map(len, held)))


def test_counts_add_up_over_calls_and_tokens_count_what_is_shared_each_time(load):
    model = load()
    scorer = RowScorer(model, truncation="left", max_length=15)
    rows = [{"messages": talk("Hello", "A cat.")}, {"messages": talk("Hello", "A cat. " * 9)}]
    lengths = [
        min(15, len(ids))
        for ids in model.fitted(scorable.of_items([row["messages"] for row in rows], {}, True)).sequences
    ]
    for _ in range(2):
        scorer(rows, [0, 1])
    assert scorer([], []) == []
    assert scorer.counts == {
        "rows": 4,
        "sequences": 4,
        "tokens": 2 * sum(lengths),
        "truncated": 2 * sum(length == 15 for length in lengths),
        "bad": 0,
        "without_preference": 0,
    }


def test_the_first_row_of_all_decides_what_every_row_gives_and_it_is_said(load, caplog):
    model = load()
    scorer = RowScorer(model)
    scorer([{"text": "a cat"}], [0])
    assert "rows are scored by 'text', as the first of them shows" in said(caplog)
    found = scorer([{"text": "a cat", "messages": talk("Hello", "A cat.")}], [1])
    assert_same(found[0]["reward"], model.score("a cat"))


def test_a_column_that_the_reward_would_replace_is_an_error(load):
    with pytest.raises(
        ValueError, match="row 1 has a column 'reward' already; rename or drop it, so that it is not lost"
    ):
        RowScorer(load())([{"text": "a"}, {"text": "b", "reward": 7}], [0, 1])


def test_a_vote_without_a_preference_gets_no_reward_and_is_counted(load):
    vote = {"prompt": "Hello", "response_1": "A cat.", "response_2": "A dog.", "preference_strength": -1}
    model = load()
    scorer = RowScorer(model)
    found = scorer([vote, {**vote, "preference_strength": 0}], [0, 1])
    assert_same(list(found[0].values()), model.score(prompt="Hello", responses=["A cat.", "A dog."]))
    assert found[1] == {"reward_chosen": None, "reward_rejected": None}
    assert (scorer.counts["without_preference"], scorer.counts["bad"]) == (1, 0)


def test_a_bad_row_is_an_error_with_its_number_in_the_data_set(load):
    model = load()
    good = {"messages": talk("Hello", "A cat.")}
    with pytest.raises(ValueError, match="row 41: 'messages' is None"):
        RowScorer(model)([good, {"messages": None}], [40, 41])
    with pytest.raises(ValueError, match="row 41: .* tokens are more than max_length 30"):
        RowScorer(model, max_length=30)([good, {"messages": talk("Hello", "A cat. " * 20)}], [40, 41])
    with pytest.raises(ValueError, match="row 41: input_ids is empty"):
        RowScorer(model)([{"input_ids": [5]}, {"input_ids": []}], [40, 41])
    with pytest.raises(ValueError, match="data: .*colour"):
        RowScorer(model)([{"colour": "blue"}], [40])
    with pytest.raises(ValueError, match="bad_rows is 'skip'; it must be one of 'error', 'null'"):
        RowScorer(model, bad_rows="skip")


def test_bad_rows_as_null_get_no_reward_and_cost_the_others_nothing(load):
    model = load()
    rows = [
        {"messages": talk("Hello", "A cat.")},
        {"messages": None},
        {"messages": talk("Hello", "A cat. " * 20)},
        {"messages": talk("Hello", "A dog.")},
    ]
    scorer = RowScorer(model, max_length=30, bad_rows="null")
    found = [row["reward"] for row in scorer(rows, range(4))]
    assert (found[1], found[2]) == (None, None)
    assert_same([found[0], found[3]], model.score([rows[0]["messages"], rows[3]["messages"]]))
    assert (scorer.counts["bad"], scorer.counts["without_preference"]) == (2, 0)
    assert (scorer.counts["rows"], scorer.counts["sequences"]) == (4, 2)
    answers = RowScorer(model, bad_rows="null")(
        [{"prompt": "Hello", "responses": ["A cat."]}, {"prompt": "Hello", "responses": ["A cat.", 7]}], [0, 1]
    )
    assert answers[1] == {"rewards": None}


def as_columns(rows, as_arrays):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if not as_arrays:
        return columns
    import pyarrow as pa

    return {name: pa.array(values).to_numpy(zero_copy_only=False) for name, values in columns.items()}


@pytest.mark.parametrize("as_arrays", [False, True])
@pytest.mark.parametrize("kind", rows_of_each_kind())
def test_a_reward_scorer_gives_the_batch_back_with_the_rewards_of_its_rows(load, checkpoints, kind, as_arrays):
    rows, shape, columns, held = rows_of_each_kind()[kind]
    batch = as_columns([{**row, "id": number} for number, row in enumerate(rows)], as_arrays)
    found = RewardScorer(str(checkpoints / "conversations"))(batch)
    assert tuple(found) == (*batch, *columns)
    assert all(found[name] is batch[name] for name in batch)
    model = load()
    for number, items in enumerate(held):
        values = found["rewards"][number] if shape == "answers" else [found[name][number] for name in columns]
        assert_same(values, model.score(input_ids=items) if kind == "ids" else model.score(items))
    assert {found[name].dtype for name in columns} == {np.dtype(object if shape == "answers" else np.float32)}


@pytest.mark.parametrize("as_arrays", [False, True])
def test_a_reward_scorer_reads_tools_deep_in_arrays(load, checkpoints, as_arrays):
    turns = talk("What is the weather?", "Sunny.")
    found = RewardScorer(str(checkpoints / "conversations"))(
        as_columns([{"messages": turns, "tools": TOOLS}], as_arrays)
    )
    assert_same(found["reward"], load().score(turns, tools=TOOLS))


def test_a_reward_scorer_hands_its_options_on_and_marks_bad_rows(checkpoints, load):
    path = str(checkpoints / "conversations")
    batch = {"messages": [talk("Hello", "A cat."), talk("Hello", "A cat. " * 20)]}
    marked = RewardScorer(path, max_length=30, bad_rows="null")(batch)["reward"]
    assert np.isnan(marked).tolist() == [False, True]
    assert np.isnan(RewardScorer(path, "left", 30)(batch)["reward"]).tolist() == [False, False]
    normal = RewardScorer(path, normalise=True, packing="off", max_batch_tokens=7)
    assert normal._score.reward_model.inference.max_tokens == 7
    assert_same(normal(batch)["reward"], load().score(batch["messages"], normalise=True))
    with pytest.raises(ValueError, match="row 1: .* tokens are more than max_length 30"):
        RewardScorer(path, max_length=30)(batch)
    assert RewardScorer(path)({"messages": []}) == {"messages": []}


@pytest.mark.parametrize("length", ["5", 2.5, True, -1])
def test_a_length_that_is_none_is_refused_on_loading_and_scoring(load, length):
    for ask in (lambda: load(max_length=length), lambda: load().score(["a"], max_length=length)):
        with pytest.raises(ValueError, match=f"max_length is {length!r}; it must be a whole number from 1"):
            ask()


@pytest.mark.parametrize("kind", ["gpt2", "bert", "opt", "roberta"])
def test_a_length_beyond_the_models_table_of_positions_is_refused(kind):
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, kind, max_position_embeddings=64)
    reach = 63 if kind == "roberta" else 64
    message = f"max_length is 65, but the model's positions reach {reach} tokens; lower it"
    with pytest.raises(ValueError, match=message):
        RewardModel(model, tokenizer, max_length=65)
    scored = RewardModel(model, tokenizer)
    with pytest.raises(ValueError, match=message):
        scored.score(["a"], max_length=65)
    assert scored.max_length == reach
    assert np.isfinite(scored.score(input_ids=[5] * reach)).all()


def test_a_recorded_length_gives_way_to_the_end_of_a_table_of_positions_and_to_no_other():
    tokenizer = make_tokenizer()
    for kind, longest in (("gpt2", 64), ("qwen3", 1024)):
        model = make_model(tokenizer, kind, max_position_embeddings=64)
        proof = make_proof(model, tokenizer, Contract("conversational", {}, 1024), [])
        assert RewardModel(model, tokenizer, proof=proof).max_length == longest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bf16"}, "dtype is 'bf16'; it must be 'auto', 'float32', 'bfloat16' or 'float16'"),
        ({"device": "gpu"}, "device is 'gpu', which is not on this machine"),
    ],
)
def test_a_precision_or_place_that_there_is_not_is_refused_before_the_weights_are_read(load, options, message):
    with pytest.raises(ValueError, match=message):
        load(**options)


def test_a_data_frame_is_scored_by_its_rows(load):
    import pandas

    rows = [{"prompt": "Hello", "response": "a cat"}, {"prompt": "Hello", "response": "a dog"}]
    model = load()
    assert_same(model.score(pandas.DataFrame(rows)), model.score(rows))


def test_loading_without_strict_says_what_does_not_verify(copied, caplog):
    folder = copied()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": None}))
    RewardModel.from_pretrained(str(folder), strict=False)
    assert any("is not as it was saved, and loaded all the same" in line and "sigmoid" in line for line in said(caplog))


def test_the_fingerprint_knows_the_configuration(load):
    model, other = load(), load()
    assert model.fingerprint == other.fingerprint
    other.model.config.rope_theta = 5.0
    other._fingerprint = None
    assert model.fingerprint != other.fingerprint
