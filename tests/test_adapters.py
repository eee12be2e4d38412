"""Adapters: every kind trains and keeps its reward head, and adapters of every origin are loaded."""

import copy
import json
import os
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
import transformers
from conftest import make_model, make_tokenizer, text_pairs
from datasets import Dataset
from processes import config
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from plaudit import RewardTrainer, adapters
from plaudit import model as models

DATA = Dataset.from_list(text_pairs(8))
KINDS = {
    "lora": lambda: peft.LoraConfig(),
    "lora for a language model": lambda: peft.LoraConfig(task_type="CAUSAL_LM", r=4),
    "lora naming the head": lambda: peft.LoraConfig(modules_to_save=["score"]),
    "dora": lambda: peft.LoraConfig(use_dora=True),
    "all linear layers": lambda: peft.LoraConfig(target_modules="all-linear"),
    "ia3": lambda: peft.IA3Config(),
    "loha": lambda: peft.LoHaConfig(target_modules=["q_proj", "v_proj"]),
    "lokr": lambda: peft.LoKrConfig(),
    "oft": lambda: peft.OFTConfig(),
    "vera": lambda: peft.VeraConfig(target_modules=["q_proj"]),
    "adalora": lambda: peft.AdaLoraConfig(total_step=10),
    "layer norms": lambda: peft.LNTuningConfig(),
}


def trained(model, folder, **kwargs):
    """A trainer after two steps, saved in folder."""
    values = {name: kwargs.pop(name) for name in ("disable_dropout", "model_init_kwargs") if name in kwargs}
    trainer = RewardTrainer(
        model, config(folder, max_steps=2, learning_rate=1e-2, **values), train_dataset=DATA, **kwargs
    )
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.fixture(scope="module")
def saved(language_model_path, tmp_path_factory):
    """A directory with a trained LoRA adapter, and the rewards of DATA, shape (num_pairs, 2)."""
    folder = str(tmp_path_factory.mktemp("adapter"))
    trainer = trained(language_model_path, folder, peft_config=peft.LoraConfig())
    return SimpleNamespace(path=folder, rewards=trainer.predict(DATA).predictions)


@pytest.fixture(scope="module")
def causal_adapter(language_model_path, tmp_path_factory):
    """A directory with an adapter of a language model, which has no reward head."""
    folder = str(tmp_path_factory.mktemp("causal"))
    torch.manual_seed(1)
    values = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(language_model_path), values).save_pretrained(folder)
    return folder


def rewards_of(model, folder, **kwargs):
    return RewardTrainer(model, config(folder), eval_dataset=DATA, **kwargs).predict(DATA).predictions


def trainable(model):
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_of_the_weights_trains_saves_and_reloads_with_its_head(kind, language_model_path, tmp_path):
    given = KINDS[kind]()
    before = copy.deepcopy(given)
    folder = str(tmp_path / "out")
    trainer = RewardTrainer(
        language_model_path, config(folder, max_steps=2, learning_rate=1e-2), train_dataset=DATA, peft_config=given
    )
    start = trainable(trainer.model)
    trainer.train()
    trainer.save_model()
    heads = [name for name in start if ".score." in name]
    assert len(heads) == 1
    assert len(start) > 1
    end = dict(trainer.model.named_parameters())
    assert [name for name in start if torch.equal(start[name], end[name])] == []
    expected = trainer.predict(DATA).predictions
    np.testing.assert_allclose(rewards_of(folder, tmp_path / "again"), expected, atol=1e-5)
    reloaded = models.load(folder)
    assert any(value.requires_grad for name, value in reloaded.named_parameters() if ".score." in name)
    assert given == before
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"


def test_plain_peft_returns_the_same_rewards(saved, tmp_path):
    plain = peft.AutoPeftModelForSequenceClassification.from_pretrained(saved.path, num_labels=1, pad_token_id=0)
    tokenizer = make_tokenizer()
    found = []
    for row in DATA:
        for side in ("chosen", "rejected"):
            ids = torch.tensor([[*tokenizer(row["prompt"] + row[side])["input_ids"], tokenizer.eos_token_id]])
            found.append(plain.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.item())
    np.testing.assert_allclose(np.array(found).reshape(-1, 2), saved.rewards, atol=1e-5)


def test_a_new_head_is_said_in_one_line_unless_it_was_asked_for(tiny_model, caplog):
    adapters.wrap(copy.deepcopy(tiny_model), peft.LoraConfig(), False, False)
    assert [r.message for r in caplog.records if "saves the reward head (score)" in r.message]
    caplog.clear()
    wrapped = adapters.wrap(tiny_model, peft.LoraConfig(modules_to_save=["score"]), False, False)
    assert not caplog.records
    assert "score" in wrapped.peft_config["default"].modules_to_save


@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        ("bert", ["classifier"]),
        ("roberta", ["classifier"]),
        ("distilbert", ["pre_classifier", "classifier"]),
        ("deberta-v2", ["pooler", "classifier"]),
    ],
)
def test_all_of_an_encoders_head_is_trained_and_saved(kind, heads, tmp_path):
    model = make_model(make_tokenizer(), kind)
    wrapped = adapters.wrap(model, peft.LoraConfig(), False, False)
    wrapped.save_pretrained(tmp_path)
    saved = peft.utils.load_peft_weights(str(tmp_path), device="cpu")
    for head in heads:
        assert any(f".{head}.modules_to_save." in name for name in trainable(wrapped))
        assert any(f".{head}." in name for name in saved)


def test_a_dict_is_a_lora_config_or_that_of_its_peft_type(tiny_model):
    assert adapters.config_from_dict({"r": 4, "lora_alpha": 8}).r == 4
    assert isinstance(adapters.config_from_dict({"r": 4}), peft.LoraConfig)
    assert isinstance(adapters.config_from_dict({"peft_type": "ia3"}), peft.IA3Config)
    assert isinstance(adapters.config_from_dict({"peft_type": peft.PeftType.LOHA, "r": 2}), peft.LoHaConfig)
    given = {"r": 4, "modules_to_save": []}
    adapters.wrap(tiny_model, given, False, False)
    assert given == {"r": 4, "modules_to_save": []}


def test_an_unknown_key_of_a_dict_is_an_error_that_lists_the_right_ones():
    with pytest.raises(ValueError, match=r"LORA has no field \['lora_aplha'\]; did you mean 'lora_alpha'\?.*lora_drop"):
        adapters.config_from_dict({"lora_aplha": 8})
    with pytest.raises(ValueError, match=r"unknown peft_type 'LORAA'; did you mean 'LORA'"):
        adapters.config_from_dict({"peft_type": "loraa"})


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (lambda: peft.PromptTuningConfig(num_virtual_tokens=3), "PROMPT_TUNING puts virtual tokens before the prompt"),
        (lambda: peft.PrefixTuningConfig(num_virtual_tokens=3), "PREFIX_TUNING puts virtual tokens before the prompt"),
        (lambda: {"peft_type": "p_tuning", "num_virtual_tokens": 3}, "P_TUNING puts virtual tokens before the prompt"),
        (lambda: peft.TrainableTokensConfig(token_indices=[1]), "the trained reward head would be lost"),
        (
            lambda: peft.LoraConfig(target_modules=["nowhere"]),
            r"peft_config: No modules were targeted.*\(target_modules: .*nowhere",
        ),
    ],
)
def test_what_cannot_carry_a_reward_head_is_an_error_that_says_why(given, why, tiny_model):
    with pytest.raises(ValueError, match=why):
        adapters.wrap(tiny_model, given(), False, False)


def test_an_architecture_unknown_to_peft_gets_adapters_on_all_linear_layers(caplog):
    model = make_model(make_tokenizer(), "olmo2")
    if "olmo2" in peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        pytest.skip("PEFT has learned olmo2's usual target modules")
    wrapped = adapters.wrap(model, peft.LoraConfig(), False, False)
    assert any("no usual target modules for 'olmo2'" in record.message for record in caplog.records)
    assert any("down_proj" in name for name in trainable(wrapped))


def test_a_peft_model_with_a_peft_config_is_an_error(tiny_model, tokenizer, tmp_path):
    wrapped = peft.get_peft_model(tiny_model, peft.LoraConfig(task_type="SEQ_CLS"))
    with pytest.raises(ValueError, match="peft_config: the model is a PeftModelForSequenceClassification already"):
        RewardTrainer(
            wrapped, config(tmp_path), train_dataset=DATA, processing_class=tokenizer, peft_config=peft.LoraConfig()
        )


def test_an_adapter_named_by_its_directory_is_trained_on_with_its_head(saved, tmp_path):
    trainer = RewardTrainer(saved.path, config(tmp_path, max_steps=1, learning_rate=1e-2), train_dataset=DATA)
    np.testing.assert_allclose(trainer.predict(DATA).predictions, saved.rewards, atol=1e-5)
    start = trainable(trainer.model)
    trainer.train()
    end = dict(trainer.model.named_parameters())
    assert any(".score." in name for name in start)
    assert [name for name in start if torch.equal(start[name], end[name])] == []


def test_a_peft_model_of_a_classifier_is_trained_on_with_its_head(saved, tmp_path):
    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(saved.path, num_labels=1, is_trainable=True)
    trainer = trained(model, tmp_path, processing_class=make_tokenizer())
    assert trainer.model is model
    np.testing.assert_allclose(
        rewards_of(str(tmp_path), tmp_path / "again"), trainer.predict(DATA).predictions, atol=1e-5
    )


def test_a_peft_model_loaded_for_inference_is_scored_but_an_error_to_train(saved, tmp_path):
    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(saved.path, num_labels=1)
    trainer = RewardTrainer(model, config(tmp_path), train_dataset=DATA, processing_class=make_tokenizer())
    np.testing.assert_allclose(trainer.predict(DATA).predictions, saved.rewards, atol=1e-5)
    with pytest.raises(ValueError, match="none of the weights .* are trainable; load it with is_trainable=True"):
        trainer.train()


@pytest.mark.parametrize("is_trainable", [True, False])
def test_a_peft_model_of_a_language_model_is_rebuilt_with_its_weights_and_a_new_head(
    is_trainable, causal_adapter, language_model_path, tmp_path
):
    given = peft.AutoPeftModelForCausalLM.from_pretrained(causal_adapter, is_trainable=is_trainable)
    weights = {name: value.detach().clone() for name, value in given.named_parameters() if "lora_" in name}
    arguments = {"train_dataset": DATA, "processing_class": make_tokenizer()}
    with pytest.warns(UserWarning, match="rebuilt as a classifier .* the head is new") as caught:
        trainer = RewardTrainer(given, config(tmp_path, max_steps=1, learning_rate=1e-2), **arguments)
    assert sum("rebuilt" in str(one.message) for one in caught) == 1
    assert isinstance(trainer.model, peft.PeftModelForSequenceClassification)
    assert models.classifier_of(trainer.model).config._name_or_path == language_model_path
    found = dict(trainer.model.named_parameters())
    assert weights
    for name, value in weights.items():
        assert torch.equal(found[name], value)
        assert found[name].requires_grad == is_trainable
    start = trainable(trainer.model)
    assert any(".score." in name for name in start)
    trainer.train()
    assert [name for name in start if torch.equal(start[name], found[name])] == []
    trainer.save_model()
    expected = trainer.predict(DATA).predictions
    np.testing.assert_allclose(rewards_of(str(tmp_path), tmp_path / "again"), expected, atol=1e-5)


def test_the_new_head_of_a_rebuilt_model_is_the_same_for_the_same_seed(causal_adapter, tmp_path):
    heads = []
    for seed in (1, 1, 2):
        given = peft.AutoPeftModelForCausalLM.from_pretrained(causal_adapter, is_trainable=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = RewardTrainer(
                given, config(tmp_path, seed=seed), train_dataset=DATA, processing_class=make_tokenizer()
            )
        heads.append(next(value for name, value in trainable(trainer.model).items() if ".score." in name))
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_an_adapter_directory_without_a_head_is_loaded_with_a_warning(causal_adapter):
    with pytest.warns(UserWarning, match=r"holds no trained reward head \(score\); the head is new"):
        model = models.load(causal_adapter)
    given = peft.AutoPeftModelForCausalLM.from_pretrained(causal_adapter)
    found = dict(model.named_parameters())
    compared = [name for name in dict(given.named_parameters()) if "lora_" in name]
    assert compared
    assert all(torch.equal(found[name], given.get_parameter(name)) for name in compared)
    assert any(".score." in name for name in trainable(model))


def test_saved_embeddings_of_a_language_models_adapter_are_kept(language_model_path, tmp_path):
    values = peft.LoraConfig(task_type="CAUSAL_LM", modules_to_save=["embed_tokens", "lm_head"])
    given = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(language_model_path), values)
    name = "base_model.model.model.embed_tokens.modules_to_save.default.weight"
    with torch.no_grad():
        given.get_parameter(name).mul_(2)
    given.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no trained reward head"):
        found = models.load(str(tmp_path))
    assert torch.equal(found.get_parameter(name), given.get_parameter(name))


def test_a_merged_adapter_is_a_whole_model_with_the_same_rewards(saved, tmp_path):
    merged = models.load(saved.path).merge_and_unload()
    merged.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    np.testing.assert_allclose(rewards_of(str(tmp_path), tmp_path / "again"), saved.rewards, atol=1e-5)


def test_lora_dropout_stays_unless_all_dropout_is_asked_to_go(language_model_path, tmp_path):
    def dropouts(**values):
        trainer = RewardTrainer(
            language_model_path,
            config(tmp_path, **values),
            train_dataset=DATA,
            peft_config=peft.LoraConfig(lora_dropout=0.25),
        )
        return {module.p for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout)}

    assert dropouts() == {0.25}
    assert dropouts(disable_dropout=True) == {0.0}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/nowhere/base", "the directory '/nowhere/base' does not exist"),
        ("owner/base", "could not be loaded from the Hub"),
        (None, "does not say which base it belongs to"),
    ],
)
def test_an_adapter_whose_base_is_missing_is_an_error_that_names_it(name, reason, saved, tmp_path):
    folder = shutil.copytree(saved.path, tmp_path / "copy")
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**values, "base_model_name_or_path": name}))
    with pytest.raises(ValueError, match=reason) as caught:
        models.load(str(folder))
    assert str(folder) in str(caught.value)


def test_what_the_base_lacks_is_recorded_beside_the_adapter_and_never_as_config_json(saved):
    files = set(os.listdir(saved.path))
    assert adapters.BASE_FILE in files
    assert "config.json" not in files
    recorded = adapters.base_values(saved.path)
    assert recorded == {
        **{"num_labels": 1, "problem_type": "regression", "pad_token_id": 0, "eos_token_id": 1, "dtype": "float32"},
        "vocab_size": 400,
    }
    loaded = models.load(saved.path)
    assert models.classifier_of(loaded).config.pad_token_id == 0
    assert models.classifier_of(loaded).config.problem_type == "regression"


def test_quantized_bases_are_prepared_as_peft_asks(tiny_model, monkeypatch):
    calls = []
    monkeypatch.setattr(
        adapters, "prepare_model_for_kbit_training", lambda model, **kwargs: calls.append(kwargs) or model
    )
    adapters.wrap(copy.deepcopy(tiny_model), peft.LoraConfig(), True, False)
    assert calls == []
    tiny_model.is_loaded_in_4bit = True
    adapters.wrap(tiny_model, peft.LoraConfig(), True, False)
    assert calls == [
        {"use_gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    ]


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_trains_the_adapter(reentrant, language_model_path, tmp_path):
    """Re-entrant checkpointing stops gradients where no input asks for one, and a frozen embedding does not."""
    values = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    trainer = RewardTrainer(
        language_model_path,
        config(tmp_path, max_steps=2, learning_rate=1e-2, **values),
        train_dataset=DATA,
        peft_config=peft.LoraConfig(),
    )
    assert trainer.args.activation_checkpointing
    start = trainable(trainer.model)
    trainer.train()
    end = dict(trainer.model.named_parameters())
    assert [name for name in start if torch.equal(start[name], end[name])] == []


def test_an_adapter_of_a_classifier_with_a_trained_head_starts_from_that_head(tiny_model, tokenizer, tmp_path):
    head = tiny_model.score.weight.detach().clone()
    assert isinstance(tiny_model, AutoModelForSequenceClassification._model_mapping[type(tiny_model.config)])
    trainer = RewardTrainer(
        tiny_model, config(tmp_path), train_dataset=DATA, processing_class=tokenizer, peft_config=peft.LoraConfig()
    )
    assert torch.equal(next(value for name, value in trainable(trainer.model).items() if ".score." in name), head)


def test_adalora_moves_its_ranks_as_it_trains(language_model_path, tmp_path):
    values = peft.AdaLoraConfig(init_r=4, target_r=1, tinit=1, tfinal=1, deltaT=1, total_step=6, orth_reg_weight=0.1)
    trainer = RewardTrainer(
        language_model_path, config(tmp_path, max_steps=6, learning_rate=1e-2), train_dataset=DATA, peft_config=values
    )
    trainer.train()
    ranks = [module.lora_E["default"] for module in trainer.model.modules() if hasattr(module, "lora_E")]
    assert sum(int((rank == 0).sum()) for rank in ranks) > 0
    assert trainer.model.peft_config["default"].rank_pattern


def test_an_adapter_is_made_without_warnings_of_the_libraries(language_model_path, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        trained(language_model_path, str(tmp_path), peft_config=peft.LoraConfig())
        models.load(str(tmp_path))


def test_an_adapter_that_needs_task_ids_is_refused(language_model_path, tmp_path):
    with pytest.raises(ValueError, match="POLY needs a task id"):
        RewardTrainer(language_model_path, config(tmp_path), train_dataset=DATA, peft_config=peft.PolyConfig())


def test_a_peft_model_that_does_not_keep_its_head_is_made_to(language_model_path, tmp_path, caplog):
    classifier = AutoModelForSequenceClassification.from_pretrained(language_model_path, num_labels=1)
    model = peft.get_peft_model(classifier, peft.LoraConfig())
    before = model.base_model.model.score.weight.clone()
    tokenizer = make_tokenizer()
    trainer = trained(model, str(tmp_path), processing_class=tokenizer)
    assert "did not keep the reward head (score)" in caplog.text
    score = trainer.model.base_model.model.score
    assert not torch.equal(score.modules_to_save["default"].weight, before)
    reloaded = RewardTrainer(str(tmp_path), config(tmp_path / "again", seed=7), train_dataset=DATA)
    np.testing.assert_allclose(reloaded.predict(DATA).predictions, trainer.predict(DATA).predictions, atol=1e-5)


def test_a_pooler_that_a_checkpoint_does_not_bring_is_saved_with_the_adapter(tmp_path):
    tokenizer = make_tokenizer()
    encoder = make_model(tokenizer, "bert")
    transformers.BertForMaskedLM(encoder.config).save_pretrained(tmp_path / "mlm")
    tokenizer.save_pretrained(tmp_path / "mlm")
    trainer = trained(str(tmp_path / "mlm"), str(tmp_path / "out"), peft_config=peft.LoraConfig())
    reloaded = RewardTrainer(str(tmp_path / "out"), config(tmp_path / "again", seed=7), train_dataset=DATA)
    np.testing.assert_allclose(reloaded.predict(DATA).predictions, trainer.predict(DATA).predictions, atol=1e-5)


def test_an_adapter_remembers_the_precision_of_its_base(language_model_path, tmp_path):
    kwargs = {"model_init_kwargs": {"dtype": torch.bfloat16}}
    trainer = trained(language_model_path, str(tmp_path), peft_config=peft.LoraConfig(), **kwargs)
    reloaded = RewardTrainer(str(tmp_path), config(tmp_path / "again"), train_dataset=DATA)
    np.testing.assert_array_equal(reloaded.predict(DATA).predictions, trainer.predict(DATA).predictions)
    assert ").float()" in (tmp_path / "README.md").read_text()
    assert models.load(str(tmp_path), {"dtype": torch.float32}).dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (peft.LoraConfig, TypeError, "expected a PeftConfig such as LoraConfig"),
        ("lora", TypeError, "got 'lora'"),
        ({"r": "x"}, ValueError, "peft_config: .*target_modules"),
        (peft.LoraConfig(modules_to_save=["nope"]), ValueError, r"modules_to_save names \['nope'\]"),
    ],
)
def test_an_adapter_configuration_that_is_none_is_an_error(language_model_path, tmp_path, given, error, message):
    with pytest.raises(error, match=message):
        RewardTrainer(language_model_path, config(tmp_path), train_dataset=DATA, peft_config=given)


def test_an_adapter_without_weights_is_an_error_that_names_it(saved, tmp_path):
    shutil.copytree(saved.path, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"the adapter '.*adapter' has no weights that can be read.*restore them"):
        models.load(str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config.json of '.*adapter' cannot be read"):
        models.load(str(tmp_path / "adapter"))


def test_an_adapter_with_a_name_of_its_own_comes_back_too(language_model_path, tmp_path, capfd):
    classifier = AutoModelForSequenceClassification.from_pretrained(language_model_path, num_labels=1)
    model = peft.get_peft_model(classifier, peft.LoraConfig(task_type="SEQ_CLS"), adapter_name="reward")
    trainer = trained(model, str(tmp_path), processing_class=make_tokenizer())
    rewards = trainer.predict(DATA).predictions
    reloaded = RewardTrainer(str(tmp_path), config(tmp_path / "again"), train_dataset=DATA)
    np.testing.assert_allclose(reloaded.predict(DATA).predictions, rewards, atol=1e-5)
    code = (tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    capfd.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    ids = [*trainer.processing_class("The sky is blue.")["input_ids"], trainer.processing_class.eos_token_id]
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=torch.tensor([ids])).logits.item()
    assert float(capfd.readouterr().out.strip().splitlines()[-1]) == pytest.approx(expected, abs=1e-5)


def test_nothing_is_said_of_a_missing_head_that_the_adapter_brings(saved, language_model_path, caplog):
    models.load(saved.path)
    assert "brings no reward head" not in caplog.text
    models.load(language_model_path)
    assert "brings no reward head: a new one is drawn from the seed" in caplog.text


def test_an_adapter_takes_nothing_from_another_that_lies_above_it(saved, causal_adapter, tmp_path):
    shutil.copytree(saved.path, tmp_path / "above")
    shutil.copytree(causal_adapter, tmp_path / "above" / "foreign")
    (tmp_path / "above" / adapters.BASE_FILE).write_text(json.dumps({"pad_token_id": 7}))
    with pytest.warns(UserWarning, match="holds no trained reward head"):
        loaded = models.load(str(tmp_path / "above" / "foreign"))
    assert models.classifier_of(loaded).config.pad_token_id != 7
