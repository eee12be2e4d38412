"""The proof: every save writes it, it holds no training text, and its rewards are the model's own."""

import dataclasses
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
from conftest import CHAT_TEMPLATE, conversations, make_model, make_tokenizer, text_pairs
from datasets import Dataset
from test_trainer import PlainModule, make
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from plaudit import RewardModel, RewardTrainer, proof
from plaudit import model as models
from plaudit.collate import DataCollatorForPreference, Padded
from plaudit.proof import Contract, make_proof, read_proof, weight_fingerprints, write_proof

PICKY_TEMPLATE = "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}" + CHAT_TEMPLATE
REFUSING_TEMPLATE = (
    "{% for m in messages if 'sky' in m.content and m.role == 'user' %}{{ raise_exception('no skies') }}{% endfor %}"
    + CHAT_TEMPLATE
)


def trained(model, folder, rows=None, **kwargs):
    """A trainer after three steps on rows (12 conversations), saved in folder; kwargs as in test_trainer.make."""
    rows = conversations(12) if rows is None else rows
    values = {"max_steps": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 4, **kwargs}
    trainer = make(model, folder, rows, **values)
    trainer.train()
    trainer.save_model()
    return trainer


def base_in(folder, tokenizer, kind="qwen3", **overrides):
    """A directory with an untrained model and its tokenizer."""
    make_model(tokenizer, kind, **overrides).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def word_level_tokenizer(splits):
    """A tokenizer that knows none of the golden texts' words: it gives one unknown token a text or, if it splits, a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", "aa", "bb", "cc", "dd"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    if splits:
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def token_pairs():
    """Pairs of ids without texts."""
    generator = np.random.default_rng(0)
    return [
        {f"{side}_ids": generator.integers(5, 300, size=length).tolist() for side in ("chosen", "rejected")}
        for length in range(4, 16)
    ]


def by_hand(model, found):
    """The golden rewards by the model's own class in float32, each alone; model: a directory or a module."""
    if isinstance(model, str):
        model = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32)
    model = model.eval()
    out = []
    for one in found.golden:
        ids = torch.tensor([one.token_ids])
        with torch.no_grad():
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        out.append((output if isinstance(output, torch.Tensor) else output.logits).item())
    return np.array(out)


def stream(rows):
    return Dataset.from_list(rows).to_iterable_dataset()


@pytest.fixture(scope="module")
def case(model_path, tmp_path_factory):
    """A checkpoint of a decoder trained on conversations: path, trainer, proof and the raw file."""
    folder = str(tmp_path_factory.mktemp("proven") / "out")
    trainer = trained(model_path, folder, save_strategy="steps", save_steps=2, max_length=400)
    with open(os.path.join(folder, proof.PROOF_FILE), encoding="utf-8") as file:
        return SimpleNamespace(path=folder, trainer=trainer, proof=read_proof(folder), text=file.read())


# What every save writes.


def assert_proven(folder, kind, num_rendered):
    """The directory has a proof of that kind, with so many rendered conversations or texts, whose rewards are its own."""
    found = read_proof(folder)
    assert found.rendering["kind"] == kind
    assert len(found.golden) >= proof.MIN_GOLDEN
    assert len({tuple(one.token_ids) for one in found.golden}) >= proof.MIN_GOLDEN
    assert sum(one.messages is not None or one.text is not None for one in found.golden) == num_rendered
    assert len(set(found.golden_rewards.round(4))) >= proof.MIN_GOLDEN
    return found


@pytest.mark.parametrize("checkpoint", ["", "checkpoint-2", "checkpoint-3"])
def test_the_model_and_every_checkpoint_are_saved_with_the_rewards_of_that_moment(checkpoint, case):
    folder = os.path.join(case.path, checkpoint)
    found = assert_proven(folder, "conversational", len(proof.GOLDEN_TURNS))
    np.testing.assert_allclose(found.golden_rewards, by_hand(folder, found), atol=1e-5)
    assert RewardModel.from_pretrained(folder).verify().passed


def test_checkpoints_of_different_steps_have_different_golden_rewards_and_fingerprints(case):
    early = read_proof(os.path.join(case.path, "checkpoint-2"))
    assert np.abs(early.golden_rewards - case.proof.golden_rewards).max() > 0.01
    assert early.model["fingerprints"] != case.proof.model["fingerprints"]
    last = read_proof(os.path.join(case.path, "checkpoint-3"))
    assert last.model["fingerprints"] == case.proof.model["fingerprints"]


SAVES = {
    "adapter": lambda: {"peft_config": peft.LoraConfig()},
    "texts": lambda: {"rows": text_pairs(12), "kind": "standard"},
    "tokenized": lambda: {"rows": token_pairs(), "kind": "tokenized"},
    "stream": lambda: {"rows": stream(conversations(12))},
    "bfloat16": lambda: {"model_init_kwargs": {"dtype": "bfloat16"}},
}


@pytest.mark.parametrize("name", SAVES)
def test_every_form_of_training_saves_a_proof_that_its_reload_passes(name, model_path, tmp_path):
    options = SAVES[name]()
    kind = options.pop("kind", "conversational")
    trained(model_path, tmp_path, **options)
    found = assert_proven(str(tmp_path), kind, len(proof.GOLDEN_TURNS))
    result = RewardModel.from_pretrained(str(tmp_path)).verify()
    assert result.passed
    assert not result.notes
    assert ("adapter" in found.model) == (name == "adapter")
    assert found.model["dtype"] == ("bfloat16" if name == "bfloat16" else "float32")


def test_an_adapters_proof_names_its_kind_and_its_base(model_path, tmp_path):
    trained(model_path, tmp_path, peft_config=peft.IA3Config())
    found = read_proof(str(tmp_path))
    assert (found.model["adapter"], found.model["base_model"]) == ("IA3", model_path)
    assert set(found.model["fingerprints"]) == {"head", "body", "adapter"}


def test_an_adapter_with_a_name_of_its_own_is_saved_with_its_proof(model_path, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1)
    named = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS"), adapter_name="judge")
    trained(named, tmp_path, processing_class=make_tokenizer())
    assert (tmp_path / "judge" / "adapter_config.json").is_file()
    found = assert_proven(str(tmp_path), "conversational", len(proof.GOLDEN_TURNS))
    assert found.model["adapter"] == "LORA"
    assert RewardModel.from_pretrained(str(tmp_path)).verify().passed


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_an_encoder_is_saved_with_its_proof(kind, tmp_path):
    overrides = {"cls_token_id": 1, "sep_token_id": 1} if kind == "modernbert" else {}
    base = base_in(tmp_path / "base", make_tokenizer(), kind, **overrides)
    trained(base, tmp_path / "out")
    found = assert_proven(str(tmp_path / "out"), "conversational", len(proof.GOLDEN_TURNS))
    assert found.rendering["read_out"] == "the model's own head"
    assert "classifier" in found.model["head"]
    assert RewardModel.from_pretrained(str(tmp_path / "out")).verify().passed


def test_without_a_tokenizer_the_golden_conversations_are_drawn_ids(tmp_path):
    model = make_model(make_tokenizer())
    collator = DataCollatorForPreference(pad_token_id=0)
    trained(model, tmp_path, token_pairs(), data_collator=collator)
    found = assert_proven(str(tmp_path), "tokenized", 0)
    assert "eos_token_id" not in found.rendering
    np.testing.assert_allclose(found.golden_rewards, by_hand(str(tmp_path), found), atol=1e-5)
    assert RewardModel.from_pretrained(str(tmp_path)).verify().passed


def test_a_plain_module_is_saved_with_its_proof(tmp_path):
    tokenizer = make_tokenizer()
    model = PlainModule(len(tokenizer))
    trained(model, tmp_path, processing_class=tokenizer)
    found = assert_proven(str(tmp_path), "conversational", len(proof.GOLDEN_TURNS))
    assert found.model["class"] == "PlainModule"
    np.testing.assert_allclose(found.golden_rewards, by_hand(model, found), atol=1e-5)
    assert RewardModel(model, tokenizer, proof=found).verify().passed


@pytest.mark.parametrize("splits", [False, True])
def test_ids_are_drawn_where_the_tokenizer_knows_none_of_the_golden_words(splits, tmp_path):
    tokenizer = word_level_tokenizer(splits)
    base = base_in(tmp_path / "base", tokenizer, vocab_size=7)
    answers = (
        [("aa", "bb"), ("cc", "dd")] if not splits else [("aa bb" + " cc" * i, "dd" + " aa" * i) for i in range(4)]
    )
    rows = [dict(zip(("chosen", "rejected"), pair, strict=True)) for pair in answers]
    trained(base, tmp_path / "out", rows)
    found = read_proof(str(tmp_path / "out"))
    drawn = [one for one in found.golden if one.text is None]
    assert len({tuple(one.token_ids) for one in drawn}) >= proof.MIN_GOLDEN
    assert {token for one in drawn for token in one.token_ids} == {
        tokenizer.convert_tokens_to_ids(w) for w in ("aa", "bb", "cc", "dd")
    }
    assert len(found.golden) <= 16
    assert RewardModel.from_pretrained(str(tmp_path / "out")).verify().passed


@pytest.mark.parametrize(("template", "num_left"), [(PICKY_TEMPLATE, 10), (REFUSING_TEMPLATE, 10)])
def test_golden_conversations_that_the_template_refuses_are_left_out(template, num_left, tmp_path):
    base = base_in(tmp_path / "base", make_tokenizer(chat_template=template))
    rows = [row for row in conversations(30) if "sky" not in row["prompt"][0]["content"]][:8]
    trained(base, tmp_path / "out", rows)
    assert_proven(str(tmp_path / "out"), "conversational", num_left)
    assert RewardModel.from_pretrained(str(tmp_path / "out")).verify().passed


def test_ids_are_drawn_where_the_template_refuses_all_golden_conversations(tmp_path):
    template = "{% if 'cat' not in messages[0].content %}{{ raise_exception('cats only') }}{% endif %}" + CHAT_TEMPLATE
    base = base_in(tmp_path / "base", make_tokenizer(chat_template=template))
    rows = conversations(6)
    for row in rows:
        row["prompt"][0]["content"] += " cat"
    trained(base, tmp_path / "out", rows)
    assert_proven(str(tmp_path / "out"), "conversational", 0)
    assert RewardModel.from_pretrained(str(tmp_path / "out")).verify().passed


def test_no_golden_sequence_is_longer_than_the_models_positions(tmp_path):
    base = base_in(tmp_path / "base", make_tokenizer(), max_position_embeddings=16)
    rows = [{"prompt": "a", "chosen": f" {i}", "rejected": " no"} for i in range(6)]
    trained(base, tmp_path / "out", rows, max_length=16)
    found = read_proof(str(tmp_path / "out"))
    assert len(found.golden) >= proof.MIN_GOLDEN
    assert max(len(one.token_ids) for one in found.golden) <= 16


# What it says, and what not.


def test_the_proof_holds_none_of_the_training_texts(model_path, tmp_path):
    rows = [
        {key: [{**turn, "content": f"{turn['content']} zq{i}{key}"} for turn in turns] for key, turns in row.items()}
        for i, row in enumerate(conversations(8))
    ]
    trainer = trained(model_path, tmp_path, rows, save_strategy="steps", save_steps=1)
    known = {turn for turns in proof.GOLDEN_TURNS for turn in turns}
    seen = {tuple(row[f"{side}_ids"]) for row in trainer.train_dataset for side in ("chosen", "rejected")}
    assert seen
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        text = (folder / proof.PROOF_FILE).read_text(encoding="utf-8")
        assert "zq" not in text
        found = read_proof(str(folder))
        assert {turn["content"] for one in found.golden for turn in one.messages} == known
        assert not {tuple(one.token_ids) for one in found.golden} & seen


def test_the_rendering_contract_says_what_a_score_must_do(case):
    tokenizer = case.trainer.processing_class
    assert case.proof.rendering == {
        "kind": "conversational",
        "template_kwargs": {"add_generation_prompt": False},
        "max_length": 400,
        "read_out": "the last token whose id is not pad_token_id",
        "tokenizer_sha256": proof.tokens.fingerprint(tokenizer),
        "chat_template_sha256": proof.template_fingerprint(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "last_token_ids": [tokenizer.convert_tokens_to_ids("<|end|>")],
    }
    assert {"transformers", "torch", "datasets", "accelerate", "peft", "plaudit"} == set(case.proof.versions)
    assert case.proof.model["class"] == "Qwen3ForSequenceClassification"
    assert (case.proof.model["head"], case.proof.model["head_dtype"]) == (["score"], "float32")


def test_golden_conversations_are_rendered_as_in_training(case):
    tokenizer = AutoTokenizer.from_pretrained(case.path)
    for one in case.proof.golden:
        text = tokenizer.apply_chat_template(one.messages, tokenize=False)
        assert one.token_ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_golden_texts_end_with_the_end_token_and_begin_with_one_bos(tmp_path):
    base = base_in(tmp_path / "base", make_tokenizer(bos="<|bos|>"))
    trainer = trained(base, tmp_path / "out", text_pairs(6))
    found = read_proof(str(tmp_path / "out"))
    tokenizer = trainer.processing_class
    assert found.rendering["bos_token_id"] == tokenizer.bos_token_id
    assert found.rendering["last_token_ids"][-1:] == [tokenizer.eos_token_id]
    for one in found.golden:
        assert one.token_ids == [*tokenizer(one.text)["input_ids"], tokenizer.eos_token_id]
        assert one.token_ids.count(tokenizer.bos_token_id) == 1


def test_the_expected_last_tokens_are_those_that_all_sequences_end_with():
    assert proof._common_end([[9, 1, 5, 2, 3], [9, 1, 6, 2, 3], [1, 1, 7, 2, 3]]) == [2, 3]
    assert proof._common_end([[2, 3], [2, 3]]) == [2, 3]
    assert proof._common_end([[2, 3], [2, 4]]) == []


def test_the_template_fingerprint_tells_templates_apart_however_they_are_given():
    found = [proof.template_fingerprint(make_tokenizer(chat_template=one)) for one in (CHAT_TEMPLATE, "x", None)]
    assert len(set(found)) == 3
    assert found[2] is None
    several = [SimpleNamespace(chat_template={"default": "x", "tool": tool}) for tool in "yz"]
    assert proof.template_fingerprint(several[0]) != proof.template_fingerprint(several[1])
    assert found[0] == proof.template_fingerprint(make_tokenizer())


def test_the_figures_of_the_rewards_are_those_of_the_training_pairs(case):
    spread = case.trainer.predict(Dataset.from_list(conversations(12))).predictions.astype(np.float64).ravel()
    found = case.proof.reward
    assert found["num_sequences"] == len(spread) == 24
    assert found["mean"] == pytest.approx(spread.mean(), abs=1e-5)
    assert found["std"] == pytest.approx(spread.std(), abs=1e-5)
    assert list(found["quantiles"]) == ["0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"]
    assert found["quantiles"]["0.95"] == pytest.approx(np.quantile(spread, 0.95), abs=1e-5)
    assert case.proof.normalisation == {"mean": found["mean"], "scale": found["std"]}


def test_rewards_that_are_all_one_are_normalised_without_a_division_by_zero(tiny_model, tokenizer):
    torch.nn.init.zeros_(tiny_model.score.weight)
    made = make_proof(tiny_model, tokenizer, Contract("conversational"), [[5, 6], [7, 8]])
    assert made.reward["std"] == 0
    assert made.normalisation == {"mean": 0.0, "scale": 1.0}


def test_the_reference_sample_is_spread_over_the_data_within_its_limits():
    rows = [{"chosen_ids": [i], "rejected_ids": [i, i]} for i in range(1000)]
    found = proof.sample_of(Dataset.from_list(rows))
    assert len(found) == 2 * proof.SAMPLED_PAIRS
    assert (found[0], found[-1]) == ([0], [999, 999])
    first = proof.sample_of(Dataset.from_list(rows).to_iterable_dataset())
    assert first == [ids for row in rows[: proof.SAMPLED_PAIRS] for ids in (row["chosen_ids"], row["rejected_ids"])]


def test_the_reference_sample_of_long_rows_stops_at_its_tokens_but_holds_a_pair():
    rows = [{"chosen_ids": [1] * 3000, "rejected_ids": [2] * 3000} for _ in range(20)]
    assert len(proof.sample_of(Dataset.from_list(rows))) == 4
    rows = [{"chosen_ids": [1] * 30_000, "rejected_ids": [2]}] * 2
    assert len(proof.sample_of(Dataset.from_list(rows))) == 2


def test_the_data_fingerprint_tells_training_data_apart():
    rows = token_pairs()
    swapped = [{"chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]} for row in rows]
    joined = [{"chosen_ids": [1, 2], "rejected_ids": [3]}], [{"chosen_ids": [1], "rejected_ids": [2, 3]}]
    changed = [[*rows[:-1], {**rows[-1], side: [7, 8]}] for side in ("chosen_ids", "rejected_ids")]
    kinds = [rows, rows[:-1], rows[::-1], swapped, *changed, *joined]
    found = [proof.data_facts(Dataset.from_list(kind)) for kind in kinds]
    assert len({one["sha256"] for one in found}) == len(kinds)
    assert [one["num_pairs"] for one in found] == [12, 11, 12, 12, 12, 12, 1, 1]
    with_margin = Dataset.from_list([{**row, "margin": 0.5} for row in rows]).with_format("torch")
    assert proof.data_facts(with_margin) == found[0]
    streamed = proof.data_facts(Dataset.from_list(rows).to_iterable_dataset())
    assert streamed == {"num_pairs": None, "sha256": None, "streamed": True}


def test_the_saved_data_fingerprint_is_of_the_prepared_pairs(case, model_path, tmp_path):
    assert case.proof.data == proof.data_facts(case.trainer.train_dataset)
    assert case.proof.data["num_pairs"] == case.proof.data["num_hashed"] == 12
    again = make(model_path, tmp_path, conversations(12))
    again.save_model()
    assert read_proof(str(tmp_path)).data == case.proof.data


def test_a_trainer_that_only_evaluates_saves_a_proof_of_its_evaluation_data(model_path, tmp_path):
    sets = {"one": Dataset.from_list(conversations(5)), "two": Dataset.from_list(conversations(7, seed=1))}
    trainer = RewardTrainer(model_path, make(model_path, tmp_path).args, eval_dataset=sets)
    trainer.save_model()
    found = read_proof(str(tmp_path))
    assert found.data["num_pairs"] == 5
    assert found.reward["num_sequences"] == 10


# Template variables.

THINKING = "{% if thinking %}<|bos|>{% endif %}" + CHAT_TEMPLATE
KWARGS = {
    "all alike": ([{"thinking": True}] * 6, {"thinking": True}),
    "one differs": ([{"thinking": True}] * 5 + [{"thinking": False}], {}),
    "one has none": ([{"thinking": True}] * 5 + [None], {}),
    "the first has none": ([None] + [{"thinking": True}] * 5, {}),
    "none at all": ([None] * 6, {}),
}


@pytest.mark.parametrize("name", KWARGS)
def test_template_variables_are_frozen_only_where_all_rows_agree(name, tmp_path):
    given, frozen = KWARGS[name]
    tokenizer = make_tokenizer(chat_template=THINKING)
    base = base_in(tmp_path / "base", tokenizer)
    rows = [
        {**row, "chat_template_kwargs": kwargs} for row, kwargs in zip(conversations(6, seed=2), given, strict=True)
    ]
    trainer = trained(base, tmp_path / "out", rows)
    found = read_proof(str(tmp_path / "out"))
    assert found.rendering["template_kwargs"] == {"add_generation_prompt": False, **frozen}
    bos = tokenizer.convert_tokens_to_ids("<|bos|>")
    assert {one.token_ids[0] == bos for one in found.golden} == {bool(frozen)}
    plain = Dataset.from_list([{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows])
    want = trainer.predict(Dataset.from_list(rows)).predictions[1, 0]
    item = rows[1]["prompt"] + rows[1]["chosen"]
    got = RewardModel.from_pretrained(str(tmp_path / "out")).score([item])[0]
    if frozen:
        assert got == pytest.approx(want, abs=1e-5)
    else:
        assert got == pytest.approx(trainer.predict(plain).predictions[1, 0], abs=1e-5)


# The moment of the save.


@pytest.mark.parametrize("options", [{"bf16": True}, {"peft_config": peft.LoraConfig(lora_dropout=0.5)}], ids=str)
def test_golden_rewards_are_made_outside_autocast_and_dropout(options, model_path, tmp_path):
    trainer = trained(model_path, tmp_path, save_strategy="steps", save_steps=2, **options)
    if "bf16" in options:
        assert "_original_forward" in vars(trainer.model_wrapped) or "_original_forward" in vars(trainer.model)
    for folder in (tmp_path / "checkpoint-2", tmp_path):
        found = read_proof(str(folder))
        model = models.load(str(folder))
        np.testing.assert_allclose(found.golden_rewards, by_hand(model, found), atol=2e-6)
        sample = [ids for row in trainer.train_dataset for ids in (row["chosen_ids"], row["rejected_ids"])]
        with proof.evaluating(model):
            values = proof.sample_rewards(model, sample, Padded(0))
        assert found.reward["mean"] == pytest.approx(values.mean(), abs=2e-6)


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_a_save_changes_nothing_in_the_training_that_goes_on(packing, model_path, tmp_path):
    weights = []
    for steps in (1, 3):
        trainer = trained(
            model_path,
            tmp_path / str(steps),
            packing=packing,
            save_strategy="steps",
            save_steps=steps,
            peft_config=peft.LoraConfig(lora_dropout=0.5),
        )
        assert trainer.model.training
        weights.append({name: value.clone() for name, value in trainer.model.named_parameters()})
    assert os.path.isfile(tmp_path / "1" / "checkpoint-1" / proof.PROOF_FILE)
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_training_data_are_sampled_and_hashed_for_the_first_save_alone(model_path, tmp_path, monkeypatch):
    sampled = []
    given = proof.sample_of
    monkeypatch.setattr("plaudit.trainer.sample_of", lambda dataset: sampled.append(dataset) or given(dataset))
    trainer = trained(model_path, tmp_path, save_strategy="steps", save_steps=1)
    assert len(list(tmp_path.glob(f"*/{proof.PROOF_FILE}"))) == 3
    assert sampled == [trainer.train_dataset]


def test_evaluating_leaves_the_model_as_it_was_also_after_an_error(tiny_model):
    tiny_model.train()
    tiny_model.score.eval()
    wide = tiny_model.forward
    tiny_model._original_forward = wide
    tiny_model.forward = wrapped = lambda *args, **kwargs: wide(*args, **kwargs)
    modes = [module.training for module in tiny_model.modules()]
    assert set(modes) == {True, False}

    def fail():
        with proof.evaluating(tiny_model):
            assert not any(module.training for module in tiny_model.modules())
            assert tiny_model.forward == wide
            assert not torch.is_grad_enabled()
            raise KeyboardInterrupt

    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(KeyboardInterrupt):
        fail()
    assert [module.training for module in tiny_model.modules()] == modes
    assert tiny_model.forward is wrapped
    assert torch.is_grad_enabled()


def test_golden_rewards_are_those_outside_an_autocast_that_is_on(tiny_model, tokenizer):
    plain = make_proof(tiny_model, tokenizer, Contract("conversational"), [])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = make_proof(tiny_model, tokenizer, Contract("conversational"), [])
    np.testing.assert_array_equal(found.golden_rewards, plain.golden_rewards)


def test_without_a_sample_the_figures_are_of_the_golden_conversations(tiny_model, tokenizer):
    made = make_proof(tiny_model, tokenizer, Contract("conversational"), [])
    assert made.reward["num_sequences"] == len(made.golden)
    assert made.reward["mean"] == pytest.approx(made.golden_rewards.mean())


def test_the_reward_is_read_at_a_place_that_is_asked_for(tiny_model):
    ids = [5, 6, 7, 8]
    with proof.evaluating(tiny_model):
        shorter = proof.lone_rewards(tiny_model, [ids[:3]], 0)
        models.attach(tiny_model)
        np.testing.assert_allclose(proof.lone_rewards(tiny_model, [ids], 0, read_at=2), shorter, atol=1e-6)


# Fingerprints.


def test_fingerprints_are_the_same_after_a_reload_and_in_any_wrapper(case):
    recorded = case.proof.model["fingerprints"]
    plain = AutoModelForSequenceClassification.from_pretrained(case.path)
    wrapped = torch.nn.Module()
    wrapped.module = plain
    scored = RewardModel.from_pretrained(case.path)
    compiled = torch.compile(AutoModelForSequenceClassification.from_pretrained(case.path))
    for model in (plain, wrapped, scored.model, compiled):
        assert weight_fingerprints(model) == recorded
    assert weight_fingerprints(plain, plain.state_dict()) == recorded
    named = peft.get_peft_model(plain, peft.LoraConfig(task_type="SEQ_CLS"))
    found = weight_fingerprints(named)
    assert {key: found[key] for key in ("head", "body")} == recorded


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("head", ".score.modules_to_save.default.weight"),
        ("body", "layers.1.self_attn.q_proj.base_layer.weight"),
        ("body", "embed_tokens.weight"),
        ("adapter", "layers.0.self_attn.q_proj.lora_A.default.weight"),
    ],
)
@pytest.mark.parametrize("place", [0, -1])
def test_a_change_shows_in_the_fingerprint_of_its_own_part_alone(place, part, name, model_path):
    model = models.load(model_path)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS"))
    before = weight_fingerprints(model)
    (parameter,) = [value for key, value in model.named_parameters() if key.endswith(name)]
    with torch.no_grad():
        parameter.view(-1)[place] += 1.0
    found = weight_fingerprints(model)
    assert [key for key in before if before[key] != found[key]] == [part]


def test_a_head_that_an_adapter_has_replaced_is_not_in_its_fingerprint(model_path):
    model = peft.get_peft_model(models.load(model_path), peft.LoraConfig(task_type="SEQ_CLS"))
    before = weight_fingerprints(model)
    with torch.no_grad():
        model.base_model.model.score.original_module.weight.add_(1.0)
    assert weight_fingerprints(model) == before


def test_weights_of_the_same_values_in_another_shape_have_another_fingerprint():
    one, other = torch.nn.Linear(4, 2, bias=False), torch.nn.Linear(2, 4, bias=False)
    other.weight.data = one.weight.data.reshape(4, 2)
    assert weight_fingerprints(one) != weight_fingerprints(other)


# The file.


def test_what_was_written_is_read(tiny_model, tokenizer, tmp_path):
    contract = Contract("conversational", {"thinking": "ü"}, 99)
    made = make_proof(tiny_model, tokenizer, contract, [[5, 6, 7], [8, 9]], {"sha256": "x"})
    assert read_proof(str(tmp_path)) is None
    write_proof(made, str(tmp_path), {"head": "a"})
    expected = dataclasses.replace(made, model={**made.model, "fingerprints": {"head": "a"}})
    assert read_proof(str(tmp_path)) == expected


def test_the_file_is_json_of_a_golden_conversation_a_line(case):
    values = json.loads(case.text)
    assert values["format"] == proof.FORMAT
    lines = case.text.splitlines()
    for one in values["golden"]:
        assert set(one) == {"token_ids", "reward", "messages"}
        assert [line for line in lines if json.dumps(one["token_ids"]) in line]
    assert any("今何時ですか" in line for line in lines)


def test_rewards_that_are_not_finite_make_no_proof(tiny_model, tokenizer):
    with torch.no_grad():
        tiny_model.score.weight.fill_(torch.nan)
    with pytest.raises(
        ValueError, match=r"are not finite, so they would have no proof; .* go on from the last checkpoint"
    ):
        make_proof(tiny_model, tokenizer, Contract("conversational"), [])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8])
def test_large_weights_have_a_fingerprint(dtype):
    large = torch.zeros(2**25 + 3, dtype=dtype)
    before = proof._digest(large)
    large[-1] = 1
    assert proof._digest(large) != before


def _set(*path, value):
    def spoil(values):
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    return spoil


BROKEN = {
    "no format": (lambda values: values.pop("format"), "KeyError: 'format'"),
    "newer": (_set("format", value=2), "it has format 2, and this plaudit reads 1; use a newer plaudit"),
    "no entry": (lambda values: values.pop("model"), "KeyError: 'model'"),
    "no golden": (_set("golden", value=[]), "it has no golden conversations"),
    "golden of none": (_set("golden", value=None), "TypeError"),
    "unknown key": (_set("golden", 0, "rewrad", value=1.0), "TypeError"),
    "reward not finite": (_set("golden", 3, "reward", value=float("nan")), "figures that are not finite numbers"),
    "deviation not finite": (_set("reward", "std", value=float("inf")), "figures that are not finite numbers"),
    "no deviation": (lambda values: values["reward"].pop("std"), "KeyError: 'std'"),
    "no scale": (lambda values: values["normalisation"].pop("scale"), "KeyError: 'scale'"),
    "no ids": (_set("golden", 0, "token_ids", value=[]), "a golden conversation has no token ids"),
    "negative id": (_set("golden", 0, "token_ids", value=[3, -1]), "a golden conversation has no token ids"),
    "ids as text": (_set("golden", 0, "token_ids", value=["3"]), "a golden conversation has no token ids"),
    "ids of bool": (_set("golden", 0, "token_ids", value=[True]), "a golden conversation has no token ids"),
    "no kind": (lambda values: values["rendering"].pop("kind"), "KeyError: 'kind'"),
    "kwargs a list": (_set("rendering", "template_kwargs", value=[]), r"rendering.template_kwargs is \[\]"),
    "no precision": (lambda values: values["model"].pop("dtype"), "KeyError: 'dtype'"),
    "unknown precision": (_set("model", "dtype", value="int3"), "model.dtype is 'int3'"),
    "no computation": (lambda values: values["model"].pop("computed_in"), "KeyError: 'computed_in'"),
    "unknown computation": (_set("model", "computed_in", value="tf32"), "model.computed_in is 'tf32'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_an_error_that_says_what_and_how_to_go_on(name, case, tmp_path):
    spoil, why = BROKEN[name]
    values = json.loads(case.text)
    spoil(values)
    (tmp_path / proof.PROOF_FILE).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"reward_model.json cannot be used .*{why}.*restore the file, or delete it"):
        read_proof(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_file_that_is_no_json_object_is_an_error_that_names_its_place(text, tmp_path):
    (tmp_path / proof.PROOF_FILE).write_text(text)
    with pytest.raises(ValueError, match=rf"'{tmp_path}': reward_model.json cannot be used"):
        read_proof(str(tmp_path))


def test_a_file_in_another_encoding_is_an_error(case, tmp_path):
    (tmp_path / proof.PROOF_FILE).write_bytes(case.text.encode("utf-16"))
    with pytest.raises(ValueError, match="reward_model.json cannot be used"):
        read_proof(str(tmp_path))


def test_a_broken_proof_is_an_error_of_loading(case, tmp_path):
    shutil.copytree(case.path, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint-*"))
    (tmp_path / "copy" / proof.PROOF_FILE).write_text("{")
    with pytest.raises(ValueError, match="reward_model.json cannot be used"):
        RewardModel.from_pretrained(str(tmp_path / "copy"))
    assert RewardModel.from_pretrained(str(tmp_path / "copy"), strict=False).proof is None


def test_drawn_ids_are_always_the_same_and_never_special(tiny_model, tokenizer):
    found = proof.drawn_sequences(tiny_model, tokenizer, 20)
    assert found == proof.drawn_sequences(tiny_model, tokenizer, 20)
    assert not {token for ids in found for token in ids} & set(tokenizer.all_special_ids)
    assert {len(ids) for ids in found} <= set(range(proof.DRAWN_TOKENS // 3, proof.DRAWN_TOKENS + 1))
    assert max(token for ids in found for token in ids) < tiny_model.config.vocab_size


STUMBLED_OVER = {
    "a golden text that is a number": (lambda values: values["golden"][0].update(text=3), "text or messages are none"),
    "golden messages that are a text": (
        lambda values: values["golden"][0].update(messages="x"),
        "text or messages are none",
    ),
    "a golden message without content": (
        lambda values: values["golden"][0].update(messages=[{"role": "user"}]),
        "text or messages are none",
    ),
    "an end token that is a text": (
        lambda values: values["rendering"].update(eos_token_id="x"),
        "rendering.eos_token_id is 'x'",
    ),
    "versions that are a list": (lambda values: values.update(versions=[1]), "versions is no object"),
    "half a surrogate pair": (lambda values: values["model"].update(head=["\ud800"]), "surrogates not allowed"),
    "a figure that is infinite": (lambda values: values["data"].update(n=float("inf")), "not JSON compliant"),
}


@pytest.mark.parametrize("name", STUMBLED_OVER)
def test_a_proof_that_a_replay_would_stumble_over_is_refused_by_what_is_wrong(name, case, tmp_path):
    spoil, said = STUMBLED_OVER[name]
    values = json.loads(case.text)
    spoil(values)
    (tmp_path / proof.PROOF_FILE).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=said):
        read_proof(str(tmp_path))


@pytest.mark.parametrize("content", ["[" * 100_000, '{"format": ' + "9" * 5_000 + "}"])
def test_a_proof_that_json_cannot_be_made_of_is_refused(content, tmp_path):
    (tmp_path / proof.PROOF_FILE).write_text(content)
    with pytest.raises(ValueError, match="reward_model.json cannot be used"):
        read_proof(str(tmp_path))
