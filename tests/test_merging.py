"""Merging: an adapter becomes one classifier with the same rewards, or nothing; and training goes on from any reward model."""

import json
import os

import numpy as np
import peft
import pytest
import torch
from conftest import conversations, make_tokenizer, text_pairs
from datasets import Dataset
from processes import config
from safetensors.torch import load_file, save_file
from test_proof import base_in, trained
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from plaudit import RewardModel, RewardTrainer, cli, diagnosis, merging
from plaudit.merging import merge
from plaudit.proof import PROOF_FILE, read_proof

ROWS = conversations(12)
ITEMS = [row["prompt"] + row[side] for row in ROWS for side in ("chosen", "rejected")]
KINDS = {
    "lora": lambda: peft.LoraConfig(),
    "dora": lambda: peft.LoraConfig(use_dora=True),
    "all linear layers": lambda: peft.LoraConfig(target_modules="all-linear"),
    "ia3": lambda: peft.IA3Config(),
    "loha": lambda: peft.LoHaConfig(target_modules=["q_proj", "v_proj"]),
    "oft": lambda: peft.OFTConfig(),
}


@pytest.fixture(scope="module")
def adapter(model_path, tmp_path_factory):
    """A directory with a trained LoRA adapter; its rows all had one template variable."""
    folder = str(tmp_path_factory.mktemp("adapter"))
    rows = [{**row, "chat_template_kwargs": {"thinking": True}} for row in ROWS]
    trained(model_path, folder, rows, peft_config=peft.LoraConfig(), max_length=300)
    return folder


@pytest.fixture(scope="module")
def merged(adapter, tmp_path_factory):
    """What merging that adapter returned, whole and verified."""
    return merge(adapter, tmp_path_factory.mktemp("merged"))


def copied(source, folder, change=lambda found: found):
    """A copy of an adapter's directory, its weights changed."""
    os.makedirs(folder)
    for name in os.listdir(source):
        with open(os.path.join(source, name), "rb") as old, open(os.path.join(folder, name), "wb") as new:
            new.write(old.read())
    file = os.path.join(folder, "adapter_model.safetensors")
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return str(folder)


# What a merge leaves.


def test_the_merged_rewards_are_the_adapters(adapter, merged):
    want = RewardModel.from_pretrained(adapter).score(ITEMS)
    whole = RewardModel.from_pretrained(merged.path)
    assert not isinstance(whole.model, peft.PeftModel)
    assert want.std() > 0.1
    np.testing.assert_allclose(whole.score(ITEMS), want, atol=1e-5)
    assert 0 <= merged.largest_difference <= merged.tolerance < 1e-3
    assert merged.num_golden == 12
    assert str(merged).startswith(
        f"merged into {merged.path}: the rewards of 12 golden conversations differ by at most "
    )


def test_the_merged_directory_verifies_and_needs_nothing_of_the_adapter(merged):
    assert RewardModel.from_pretrained(merged.path).verify().passed
    names = set(os.listdir(merged.path))
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", PROOF_FILE} <= names
    assert not {"adapter_config.json", "adapter_model.safetensors", "reward_base.json"} & names
    plain = AutoModelForSequenceClassification.from_pretrained(merged.path)
    assert plain.config.problem_type == "regression"
    assert plain.config.sentence_transformers == {"activation_fn": "torch.nn.modules.linear.Identity"}
    assert plain.config.pad_token_id == AutoTokenizer.from_pretrained(merged.path).pad_token_id


def test_the_merged_proof_keeps_what_was_recorded_of_the_training(adapter, merged):
    before, after = read_proof(adapter), read_proof(merged.path)
    for name in ("rendering", "reward", "normalisation", "data"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.rendering["template_kwargs"]["thinking"] is True
    assert after.rendering["max_length"] == 300
    assert [one.token_ids for one in after.golden] == [one.token_ids for one in before.golden]
    np.testing.assert_allclose(after.golden_rewards, before.golden_rewards, atol=1e-5)
    assert "adapter" not in after.model
    assert set(after.model["fingerprints"]) == {"head", "body"}


def test_the_merged_card_names_the_adapter_and_loads_the_merged_directory(adapter, merged):
    with open(os.path.join(merged.path, "README.md"), encoding="utf-8") as file:
        card = file.read()
    assert f"| merged from the adapter | {adapter} |" in card
    assert f"RewardModel.from_pretrained({json.dumps(merged.path)})" in card
    assert "PeftModel" not in card


@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_of_the_weights_that_can_be_merged_keeps_its_rewards(kind, model_path, tmp_path):
    trained(model_path, tmp_path / "adapter", peft_config=KINDS[kind]())
    want = RewardModel.from_pretrained(str(tmp_path / "adapter")).score(ITEMS)
    merge(str(tmp_path / "adapter"), tmp_path / "merged")
    np.testing.assert_allclose(RewardModel.from_pretrained(str(tmp_path / "merged")).score(ITEMS), want, atol=1e-5)


def test_an_encoders_adapter_is_merged(tmp_path):
    base = base_in(tmp_path / "base", make_tokenizer(), "bert")
    trained(base, tmp_path / "adapter", peft_config=peft.LoraConfig(), learning_rate=0.05)
    want = RewardModel.from_pretrained(str(tmp_path / "adapter")).score(ITEMS)
    merge(str(tmp_path / "adapter"), tmp_path / "merged")
    np.testing.assert_allclose(RewardModel.from_pretrained(str(tmp_path / "merged")).score(ITEMS), want, atol=1e-5)


def test_an_adapter_with_a_name_of_its_own_is_merged(model_path, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1)
    named = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS"), adapter_name="judge")
    trained(named, tmp_path / "adapter", processing_class=make_tokenizer())
    want = RewardModel.from_pretrained(str(tmp_path / "adapter")).score(ITEMS)
    merge(str(tmp_path / "adapter"), tmp_path / "merged")
    np.testing.assert_allclose(RewardModel.from_pretrained(str(tmp_path / "merged")).score(ITEMS), want, atol=1e-5)


def test_another_tools_adapter_without_a_proof_is_merged_and_gets_one(model_path, tmp_path):
    torch.manual_seed(1)
    base = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1)
    given = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", init_lora_weights=False))
    given.save_pretrained(tmp_path / "adapter")
    make_tokenizer().save_pretrained(tmp_path / "adapter")
    want = RewardModel.from_pretrained(str(tmp_path / "adapter")).score(ITEMS)
    merge(str(tmp_path / "adapter"), tmp_path / "merged")
    found = RewardModel.from_pretrained(str(tmp_path / "merged"))
    assert found.verify().passed
    assert found.proof.rendering["kind"] == "conversational"
    np.testing.assert_allclose(found.score(ITEMS), want, atol=1e-5)


def test_an_adapter_over_a_language_model_is_merged_into_a_classifier(language_model_path, tmp_path):
    rows = text_pairs(8)
    trained(language_model_path, tmp_path / "adapter", rows, peft_config=peft.LoraConfig())
    texts = [row["prompt"] + row["chosen"] for row in rows]
    want = RewardModel.from_pretrained(str(tmp_path / "adapter")).score(texts)
    merge(str(tmp_path / "adapter"), tmp_path / "merged")
    found = RewardModel.from_pretrained(str(tmp_path / "merged"))
    assert found.proof.rendering["kind"] == "standard"
    np.testing.assert_allclose(found.score(texts), want, atol=1e-5)


# What is refused, and leaves nothing.


def assert_refused(source, folder, message, **options):
    with pytest.raises(ValueError, match=message):
        merge(source, folder, **options)
    assert not os.path.exists(folder)


def test_a_whole_model_is_not_merged(merged, tmp_path):
    assert_refused(merged.path, tmp_path / "x", "is a whole model already, not an adapter; there is nothing to merge")


def test_a_directory_that_holds_something_is_left_as_it_is(adapter, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=f"output_dir: '{tmp_path}' is not empty; name a new directory"):
        merge(adapter, tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_an_adapter_whose_kind_cannot_be_merged_is_an_error_that_says_why(model_path, tmp_path):
    trained(model_path, tmp_path / "adapter", peft_config=peft.BeftConfig())
    message = (
        r"the BEFT adapter '.*adapter' cannot be merged into its base \(Base layer has no bias.*score with the adapter"
    )
    assert_refused(str(tmp_path / "adapter"), tmp_path / "merged", message)


def test_an_adapter_with_broken_weights_is_not_merged(adapter, tmp_path):
    def broken(found):
        return {name: value * torch.nan if "lora_B" in name else value for name, value in found.items()}

    folder = copied(adapter, tmp_path / "adapter", broken)
    assert_refused(folder, tmp_path / "x", "is not as it was saved: wrong adapter")
    assert_refused(folder, tmp_path / "x", r"the LORA adapter .* cannot be merged .*NaNs detected", strict=False)


def test_an_adapter_that_does_not_verify_is_merged_only_without_strict(adapter, tmp_path):
    def foreign(found):
        return {name: value + 0.1 if "lora_B" in name else value for name, value in found.items()}

    folder = copied(adapter, tmp_path / "adapter", foreign)
    assert_refused(folder, tmp_path / "x", "is not as it was saved: wrong adapter")
    merge(folder, tmp_path / "x", strict=False)
    want = RewardModel.from_pretrained(folder, strict=False).score(ITEMS)
    np.testing.assert_allclose(RewardModel.from_pretrained(str(tmp_path / "x")).score(ITEMS), want, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*lower precision")
def test_rewards_that_change_by_more_than_the_tolerance_are_not_saved(adapter, tmp_path):
    message = (
        r"the merged rewards of '.*' differ by up to \S+ from the adapter's, more than \S+; merge in a higher prec"
    )
    assert_refused(adapter, tmp_path / "x", message, dtype="bfloat16")


def test_the_tolerance_of_a_merge_is_that_of_verify(adapter, merged, monkeypatch, tmp_path):
    assert merged.tolerance == diagnosis.tolerance(read_proof(adapter), "float32")
    monkeypatch.setattr(merging.diagnosis, "tolerance", lambda *_: -1.0)
    assert_refused(adapter, tmp_path / "x", "more than -1; merge in a higher precision", strict=False)


# The command.


def run(capsys, *arguments):
    """Return the exit code and what was printed to stdout and stderr."""
    capsys.readouterr()
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_the_command_merges_says_the_difference_and_the_result_verifies(adapter, tmp_path, capsys):
    folder = tmp_path / "merged"
    code, out, _ = run(capsys, "merge", adapter, "--output_dir", folder)
    assert code == 0
    assert out.startswith(f"merged into {folder}: the rewards of 12 golden conversations differ by at most ")
    assert "(allowed: " in out
    assert run(capsys, "verify", folder)[0] == 0


def test_the_command_merges_what_does_not_verify_only_with_no_strict(adapter, tmp_path, capsys):
    source = copied(adapter, tmp_path / "adapter", lambda found: {name: 1.1 * value for name, value in found.items()})
    code, _, err = run(capsys, "merge", source, "--output_dir", tmp_path / "x")
    assert code == 1
    assert "plaudit merge: error: " in err
    assert "is not as it was saved: wrong adapter" in err
    assert not (tmp_path / "x").exists()
    assert run(capsys, "merge", source, "--output_dir", tmp_path / "x", "--no_strict")[0] == 0


def test_the_command_without_a_directory_is_an_error(adapter, capsys):
    code, _, err = run(capsys, "merge", adapter)
    assert code == 2
    assert "plaudit merge: error: the following arguments are required: --output_dir; see plaudit merge --help" in err


# Training that goes on.


def rewards_of(trainer):
    return trainer.predict(Dataset.from_list(ROWS)).predictions


@pytest.mark.parametrize("start", ["merged", "adapter", "foreign"])
def test_training_goes_on_from_the_rewards_that_a_reward_model_gives(start, adapter, merged, model_path, tmp_path):
    path = {"merged": merged.path, "adapter": adapter, "foreign": model_path}[start]
    want = RewardModel.from_pretrained(path).score(ITEMS).reshape(-1, 2)
    trainer = RewardTrainer(
        path, config(tmp_path, max_steps=2, learning_rate=1e-2), train_dataset=Dataset.from_list(ROWS)
    )
    np.testing.assert_allclose(rewards_of(trainer), want, atol=1e-5)
    trainer.train()
    assert np.abs(rewards_of(trainer) - want).max() > 0.01
    trainer.save_model()
    again = RewardModel.from_pretrained(str(tmp_path))
    np.testing.assert_allclose(again.score(ITEMS).reshape(-1, 2), rewards_of(trainer), atol=1e-5)


def test_training_starts_from_the_rewards_of_another_tools_head(model_path, tmp_path, caplog):
    plain, tokenizer = AutoModelForSequenceClassification.from_pretrained(model_path), make_tokenizer()
    want = []
    for item in ITEMS:
        ids = tokenizer(tokenizer.apply_chat_template(item, tokenize=False), add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            want.append(plain.eval()(input_ids=torch.tensor([ids])).logits.item())
    trainer = RewardTrainer(model_path, config(tmp_path), train_dataset=Dataset.from_list(ROWS))
    np.testing.assert_allclose(rewards_of(trainer).ravel(), want, atol=1e-5)
    assert "brings no reward head" not in caplog.text


def test_a_foreign_reward_model_under_a_new_adapter_starts_from_its_rewards(model_path, tmp_path):
    want = RewardModel.from_pretrained(model_path).score(ITEMS).reshape(-1, 2)
    trainer = RewardTrainer(
        model_path, config(tmp_path), train_dataset=Dataset.from_list(ROWS), peft_config=peft.LoraConfig()
    )
    np.testing.assert_allclose(rewards_of(trainer), want, atol=1e-5)


def test_a_head_of_several_outputs_is_refused_to_train_on_and_to_score(tmp_path):
    base = base_in(tmp_path, make_tokenizer(), num_labels=3)
    for load in (
        lambda: RewardModel.from_pretrained(base),
        lambda: RewardTrainer(base, config(tmp_path / "out"), train_dataset=Dataset.from_list(ROWS)),
    ):
        with pytest.raises(ValueError, match="has a head with more than one output, but reward models require"):
            load()
