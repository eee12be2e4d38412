"""The replay: every planted fault gets its cause, loading refuses what it finds, and `plaudit verify` prints it."""

import dataclasses
import json
import os
import re
import shutil
import warnings

import numpy as np
import peft
import pytest
import torch
from conftest import CHAT_TEMPLATE, conversations, make_tokenizer, text_pairs
from safetensors.torch import load_file, save_file
from test_proof import base_in, trained

from plaudit import RewardModel, cli, diagnosis
from plaudit.merging import merge
from plaudit.proof import PROOF_FILE, evaluating, lone_rewards, read_proof

BOS_TEMPLATE = "{{ '<|bos|>' }}" + CHAT_TEMPLATE
# Name: options of the tokenizer, architecture, rows, options of the training.
TRAININGS = {
    "full": ({}, "qwen3", conversations(12), {}),
    "text": ({}, "qwen3", text_pairs(12), {}),
    "padeos": ({"pad": "<|eos|>"}, "qwen3", conversations(12), {}),
    "padeos text": ({"pad": "<|eos|>"}, "qwen3", text_pairs(12), {}),
    "bos": ({"bos": "<|bos|>", "chat_template": BOS_TEMPLATE}, "qwen3", conversations(12), {}),
    "bos text": ({"bos": "<|bos|>"}, "qwen3", text_pairs(12), {}),
    "lora": ({}, "qwen3", conversations(12), {"peft_config": peft.LoraConfig()}),
    "lora text": ({}, "qwen3", text_pairs(12), {"peft_config": peft.LoraConfig()}),
    "other lora": ({}, "qwen3", conversations(12, seed=5), {"peft_config": peft.LoraConfig(), "seed": 3}),
    "encoder": ({}, "bert", conversations(12), {}),
    "bfloat16": ({}, "qwen3", conversations(12), {"model_init_kwargs": {"dtype": "bfloat16"}}),
}
SAVED = [*TRAININGS, "merged"]
EOS, OTHER = 1, 7


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function from a name of SAVED to the directory of that checkpoint, trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("saved")
    ready = {}

    def base(tokenizer_options, kind):
        key = f"base of {kind} {sorted(tokenizer_options)}"
        if key not in ready:
            ready[key] = base_in(folder / f"base{len(ready)}", make_tokenizer(**tokenizer_options), kind)
        return ready[key]

    def make(name):
        path = str(folder / name.replace(" ", "-"))
        if name == "merged":
            merge(get("lora"), path)
        else:
            tokenizer_options, kind, rows, options = TRAININGS[name]
            trained(base(tokenizer_options, kind), path, rows, **options)
        return path

    def get(name):
        if name not in ready:
            ready[name] = make(name)
        return ready[name]

    return get


# Faults: functions of the directory that has them and of the fixture above.


def edited(file, **values):
    def plant(folder, saved):
        path = os.path.join(folder, file)
        with open(path, encoding="utf-8") as stream:
            found = json.load(stream)
        with open(path, "w", encoding="utf-8") as stream:
            json.dump({**found, **values}, stream)

    return plant


def weights(file, change):
    def plant(folder, saved):
        path = os.path.join(folder, file)
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return plant


def is_head(name):
    return any(f"{head}." in name for head in ("score", "classifier"))


def without_head(found):
    assert any(map(is_head, found))
    return {name: value for name, value in found.items() if not is_head(name)}


def foreign_head(found):
    torch.manual_seed(5)
    return {name: torch.randn_like(value) if is_head(name) else value for name, value in found.items()}


def foreign_body(found):
    torch.manual_seed(5)
    return {name: value if is_head(name) else torch.randn_like(value) * 0.2 for name, value in found.items()}


def rounded(dtype):
    return lambda found: {name: value.to(dtype).float() for name, value in found.items()}


def taken_from(name, *files):
    def plant(folder, saved):
        for file in files:
            shutil.copy(os.path.join(saved(name), file), folder)

    return plant


def template(change):
    def plant(folder, saved):
        path = os.path.join(folder, "chat_template.jinja")
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
        assert change(text) != text
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(change(text))

    return plant


def tokenizer(words=(), **options):
    def plant(folder, saved):
        made = make_tokenizer(**options)
        made.add_tokens(list(words))
        made.save_pretrained(folder)

    return plant


def no_tokenizer(folder, saved):
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        os.remove(os.path.join(folder, file))


def other_base(folder, saved):
    edited("adapter_config.json", base_model_name_or_path=saved("text"))(folder, saved)


WHOLE, ADAPTER = "model.safetensors", "adapter_model.safetensors"
# Checkpoints, fault, the beginning of its first cause, and whether it changes the rewards that plaudit itself gives.
FAULTS = {
    "no problem type": (
        ["full", "padeos", "merged", "encoder"],
        edited("config.json", problem_type=None),
        "sigmoid applied: the config's problem_type is None instead of 'regression'",
        False,
    ),
    "no problem type beside an adapter": (
        ["lora"],
        edited("reward_base.json", problem_type="single_label_classification"),
        "sigmoid applied: the config's problem_type is 'single_label_classification' instead of 'regression'",
        False,
    ),
    "sigmoid in CrossEncoder": (
        ["full", "padeos", "merged", "encoder"],
        edited("config.json", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Sigmoid"}),
        "sigmoid applied: the config's sentence_transformers.activation_fn is 'torch.nn.modules.activation.Sigmoid'; set",
        False,
    ),
    "no activation for CrossEncoder": (
        ["full", "encoder"],
        edited("config.json", sentence_transformers=None),
        "sigmoid applied: the config's sentence_transformers.activation_fn is None; set 'torch.nn.modules.linear.Id",
        False,
    ),
    "pad is eos": (
        ["text"],
        edited("config.json", pad_token_id=EOS),
        r"read one token early \(pad == eos\): the config's pad_token_id is 1, and 0 was recorded",
        True,
    ),
    "pad is eos, which conversations do not end with": (
        ["full", "merged"],
        edited("config.json", pad_token_id=EOS),
        r"read one token early \(pad == eos\): the config's pad_token_id is 1, and 0 was recorded",
        False,
    ),
    "pad is eos in an adapter's base": (
        ["lora text"],
        edited("reward_base.json", pad_token_id=EOS),
        r"read one token early \(pad == eos\): the config's pad_token_id is 1, and 0 was recorded",
        True,
    ),
    "pad was eos": (
        ["padeos text"],
        edited("config.json", pad_token_id=0),
        "read at another token: the config's pad_token_id is 0, and 1 was recorded",
        True,
    ),
    "extra BOS by the template": (
        ["full", "lora", "merged", "encoder", "padeos"],
        template(lambda text: "{{ '<|bos|>' }}" + text),
        r"another template: .*; it puts an extra BOS \(id 3\) in front",
        True,
    ),
    "second BOS by the template": (
        ["bos"],
        template(lambda text: "{{ '<|bos|>' }}" + text),
        r"another template: .*; it puts a second BOS \(id 3\) in front",
        True,
    ),
    "no BOS by the template": (
        ["bos"],
        template(lambda text: text.removeprefix("{{ '<|bos|>' }}")),
        r"another template: .*; it leaves out the first token \(id 3\), which was there in training",
        True,
    ),
    "extra BOS by the tokenizer": (
        ["text"],
        tokenizer(bos="<|bos|>"),
        r"the tokenizer puts an extra BOS \(id 3\) in front",
        True,
    ),
    "no BOS by the tokenizer": (
        ["bos text"],
        tokenizer(),
        r"the tokenizer leaves out the first token \(id 3\), which was there in training",
        True,
    ),
    "end token by the template": (
        ["full"],
        template(lambda text: text + "<|eos|>"),
        r"another template: .*; it adds an end token \(EOS\) that was not there in training",
        True,
    ),
    "no end token by the tokenizer": (
        ["text"],
        tokenizer(eos=None),
        r"the tokenizer leaves out the end token \(EOS\), which was there in training",
        True,
    ),
    "another template": (
        ["full", "lora", "merged", "encoder", "padeos"],
        template(lambda text: text.replace("<|end|>", "<|eos|>")),
        "another template: the tokenizer's chat template is not the recorded one$",
        True,
    ),
    "another template that gives the same ids": (
        ["full"],
        template(lambda text: text.replace("tools:", "tool list:")),
        "another template: the tokenizer's chat template is not the recorded one$",
        False,
    ),
    "another tokenizer": (
        ["full", "lora"],
        tokenizer(vocab_size=300),
        r"another tokenizer: 12 of 12 golden conversations get other token ids, such as \[.*\] … \[.*\] for \[",
        True,
    ),
    "a template that refuses": (
        ["full", "lora"],
        template(lambda text: "{{ raise_exception('no more') }}" + text),
        "another template: a golden conversation of reward_model.json: the chat template refuses this .*no more",
        False,
    ),
    "a tokenizer of more words": (
        ["full", "encoder"],
        tokenizer(vocab_size=450, words=["Hello", "egg", "sky"]),
        "another tokenizer: ",
        False,
    ),
    "no tokenizer": (["full", "encoder"], no_tokenizer, "the tokenizer is missing; restore its files", False),
    "foreign head": (
        ["full", "merged", "encoder", "padeos"],
        weights(WHOLE, foreign_head),
        "lost or foreign head: the head's weights are not the recorded ones, all others are",
        True,
    ),
    "foreign head in an adapter": (
        ["lora"],
        weights(ADAPTER, foreign_head),
        "lost or foreign head: the head's weights are not the recorded ones, all others are",
        True,
    ),
    "lost head where the base brings one": (
        ["lora"],
        weights(ADAPTER, without_head),
        "lost or foreign head: the head's weights are not the recorded ones, all others are",
        True,
    ),
    "another model": (
        ["full", "merged"],
        taken_from("text", WHOLE),
        "another model: its weights are not the recorded ones, nor are the head's",
        True,
    ),
    "another model under the same head": (
        ["full", "encoder"],
        weights(WHOLE, foreign_body),
        "another model: its weights are not the recorded ones$",
        True,
    ),
    "wrong adapter": (
        ["lora"],
        taken_from("other lora", ADAPTER),
        "wrong adapter: the adapter's weights are not the recorded ones, nor are the head's, which come with it",
        True,
    ),
    "wrong adapter under the same head": (
        ["lora"],
        weights(ADAPTER, foreign_body),
        "wrong adapter: the adapter's weights are not the recorded ones$",
        True,
    ),
    "wrong base": (["lora"], other_base, "another base model: its weights are not the recorded ones$", True),
    "rounded to bfloat16": (
        ["full", "merged", "encoder"],
        weights(WHOLE, rounded(torch.bfloat16)),
        "lower precision: the weights were rounded to bfloat16 or float16 and stored as float32",
        True,
    ),
    "rounded to float16": (
        ["full"],
        weights(WHOLE, rounded(torch.float16)),
        "lower precision: the weights were rounded to bfloat16 or float16 and stored as float32",
        True,
    ),
}
PLANTED = [(name, fault) for fault, (names, *_) in FAULTS.items() for name in names]


def planted(saved, tmp_path, name, plant):
    folder = str(tmp_path / "planted")
    shutil.copytree(saved(name), folder)
    plant(folder, saved)
    return folder


@pytest.mark.parametrize("name", SAVED)
def test_what_was_saved_is_verified_and_loaded_without_a_word_about_it(name, saved, caplog):
    path = saved(name)
    caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = RewardModel.from_pretrained(path).verify()
    assert result.passed
    assert result.num_golden == 12
    assert result.largest_difference <= result.tolerance
    assert result.rank_agreement == 1.0
    assert not result.causes
    assert not result.notes
    assert not caplog.records


@pytest.mark.parametrize(("name", "fault"), PLANTED)
def test_a_planted_fault_gets_its_cause_and_is_refused_with_it(name, fault, saved, tmp_path):
    _, plant, cause, changes_rewards = FAULTS[fault]
    folder = planted(saved, tmp_path, name, plant)
    result = RewardModel.from_pretrained(folder, strict=False).verify()
    assert not result.passed
    assert re.match(cause, result.causes[0]), result.causes
    assert (result.largest_difference > result.tolerance) == changes_rewards
    with pytest.raises(ValueError, match="is not as it was saved: ") as caught:
        RewardModel.from_pretrained(folder)
    assert all(one in str(caught.value) for one in result.causes)
    assert str(caught.value).endswith("restore the checkpoint, or load it all the same with strict=False")


def test_ids_that_the_model_does_not_know_are_told_instead_of_computed_with(saved, tmp_path):
    folder = planted(saved, tmp_path, "full", FAULTS["a tokenizer of more words"][1])
    causes = RewardModel.from_pretrained(folder, strict=False).verify().causes
    assert "another tokenizer: it gives ids that the model's vocabulary of 400 does not have" in causes


def test_a_fault_of_the_config_does_not_hide_one_of_the_weights(saved, tmp_path):
    folder = planted(saved, tmp_path, "full", weights(WHOLE, foreign_head))
    edited("config.json", problem_type=None)(folder, saved)
    template(lambda text: text.replace("<|end|>", "<|eos|>"))(folder, saved)
    causes = RewardModel.from_pretrained(folder, strict=False).verify().causes
    assert [cause.partition(":")[0] for cause in causes] == [
        "sigmoid applied",
        "another template",
        "lost or foreign head",
    ]


def test_another_padding_id_is_no_fault_of_an_encoder_which_does_not_read_by_it(saved, tmp_path):
    folder = planted(saved, tmp_path, "encoder", edited("config.json", pad_token_id=OTHER))
    assert RewardModel.from_pretrained(folder).verify().passed


def test_rewards_that_differ_for_no_known_reason_are_refused_as_unknown(saved, tmp_path):
    folder = planted(saved, tmp_path, "full", lambda *_: None)
    values = json.loads((tmp_path / "planted" / PROOF_FILE).read_text())
    for one in values["golden"]:
        one["reward"] = 3 - one["reward"] ** 2
    (tmp_path / "planted" / PROOF_FILE).write_text(json.dumps(values))
    with pytest.raises(
        ValueError, match="unknown: neither sigmoid, read-out, BOS, end token, scale nor precision explains it"
    ):
        RewardModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "file"), [("full", WHOLE), ("merged", WHOLE), ("encoder", WHOLE), ("lora on a language model", ADAPTER)]
)
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("is_proven", [True, False])
def test_a_lost_head_is_refused_however_it_is_loaded(
    name, file, strict, is_proven, saved, language_model_path, tmp_path
):
    if name == "lora on a language model":
        trained(language_model_path, tmp_path / "planted", peft_config=peft.LoraConfig())
        weights(file, without_head)(str(tmp_path / "planted"), saved)
    else:
        planted(saved, tmp_path, name, weights(file, without_head))
    if not is_proven:
        os.remove(tmp_path / "planted" / PROOF_FILE)
    with pytest.raises(ValueError, match="this checkpoint has no reward head; its rewards would be random"):
        RewardModel.from_pretrained(str(tmp_path / "planted"), strict=strict)


def test_a_language_model_is_refused_as_it_has_no_reward_head(language_model_path):
    with pytest.raises(ValueError, match=r"no reward head; its rewards would be random \(score.weight is not in it\)"):
        RewardModel.from_pretrained(language_model_path)


def test_without_a_proof_loading_says_in_one_line_that_rewards_cannot_be_checked(saved, tmp_path, caplog):
    folder = planted(saved, tmp_path, "full", lambda folder, _: os.remove(os.path.join(folder, PROOF_FILE)))
    scored = RewardModel.from_pretrained(folder)
    (line,) = [record.message for record in caplog.records if PROOF_FILE in record.message]
    assert line == f"'{folder}' has no {PROOF_FILE}, so its rewards cannot be checked; its reward head was loaded"
    with pytest.raises(ValueError, match=f"there is no {PROOF_FILE} that can be read, so there is nothing to verify"):
        scored.verify()
    caplog.clear()
    RewardModel.from_pretrained(folder, strict=False)
    assert not [record for record in caplog.records if PROOF_FILE in record.message]


# Precision.


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
@pytest.mark.parametrize("name", ["full", "lora", "merged", "encoder", "padeos"])
def test_loading_in_lower_precision_is_a_warning_and_no_refusal(name, dtype, saved):
    with pytest.warns(UserWarning, match="lower precision: the weights are .*float16, and float32 was recorded"):
        scored = RewardModel.from_pretrained(saved(name), dtype=dtype)
    result = scored.verify()
    assert result.passed
    assert len(result.notes) == 1
    assert result.largest_difference > diagnosis.tolerance(scored.proof, "float32")


def test_weights_that_were_saved_in_lower_precision_are_a_warning_and_no_refusal(saved, tmp_path):
    folder = planted(saved, tmp_path, "full", weights(WHOLE, lambda found: {k: v.bfloat16() for k, v in found.items()}))
    edited("config.json", dtype="bfloat16")(folder, saved)
    with pytest.warns(UserWarning, match="lower precision: the weights are bfloat16, and float32 was recorded"):
        assert RewardModel.from_pretrained(folder).verify().passed


def test_higher_precision_than_recorded_passes_within_the_recorded_ones_tolerance(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = RewardModel.from_pretrained(saved("bfloat16"), dtype="float32").verify()
    assert result.passed
    assert 0 < result.largest_difference <= result.tolerance
    assert result.tolerance >= 0.05 * read_proof(saved("bfloat16")).reward["std"]


@pytest.mark.parametrize("fault", ["foreign head", "another model", "extra BOS by the template", "no problem type"])
def test_lower_precision_excuses_no_other_fault(fault, saved, tmp_path):
    folder = planted(saved, tmp_path, "full", FAULTS[fault][1])
    with pytest.raises(ValueError, match="is not as it was saved"):
        RewardModel.from_pretrained(folder, dtype="bfloat16")


def test_coarse_rewards_of_half_precision_pass_with_a_note_up_to_half_a_deviation(saved):
    scored = RewardModel.from_pretrained(saved("full"), dtype="bfloat16", strict=False)
    with evaluating(scored.model):
        found = lone_rewards(scored.model, ids_of(scored), scored.tokenizer.pad_token_id)
    # In their order, and one of them off by more than rounding.
    golden = [dataclasses.replace(one, reward=value) for one, value in zip(scored.proof.golden, found, strict=True)]
    highest = int(found.argmax())
    golden[highest] = dataclasses.replace(golden[highest], reward=found[highest] + 1.0)

    def result(deviations, dtype="float32"):
        facts = {**scored.proof.model, "dtype": dtype, "computed_in": dtype}
        reward = {**scored.proof.reward, "std": 1.0 / deviations}
        proof = dataclasses.replace(scored.proof, golden=golden, reward=reward, model=facts)
        return diagnosis.verify(proof, scored.model, scored.tokenizer)

    allowed = result(0.4)
    assert allowed.largest_difference > allowed.tolerance
    assert allowed.passed
    assert "which is coarse beside the differences of its rewards" in allowed.notes[0]
    refused = result(0.6)
    assert not refused.passed
    assert refused.causes[0].startswith("unknown: ")
    # The same difference in the recorded precision is a fault.
    assert not result(0.4, "bfloat16").passed
    golden[:] = [dataclasses.replace(one, reward=-value) for one, value in zip(golden, found, strict=True)]
    backwards = result(0.4 / (2 * np.abs(found).max()))
    assert backwards.largest_difference < 0.5 * backwards.largest_difference / backwards.in_deviations
    assert not backwards.passed


@pytest.mark.parametrize(
    ("recorded", "computed_in", "loaded", "expected"),
    [
        ("float32", "float32", "float32", 1e-4 * 2),
        ("float32", "float32", "bfloat16", 0.05 * 2),
        ("float32", "float32", "float16", 0.05 * 2),
        ("float32", "float32", "quantized", 0.05 * 2),
        ("float32", "float32", "float64", 1e-4 * 2),
        ("bfloat16", "bfloat16", "float32", 0.05 * 2),
        ("float32", "bfloat16", "float32", 0.05 * 2),
        ("quantized", "quantized", "bfloat16", 0.05 * 2),
    ],
)
def test_the_tolerance_is_a_share_of_the_deviation_by_the_lowest_precision(
    recorded, computed_in, loaded, expected, saved
):
    proof = read_proof(saved("full"))
    facts = {**proof.model, "dtype": recorded, "computed_in": computed_in}
    proof = dataclasses.replace(proof, model=facts, reward={**proof.reward, "std": 2.0})
    assert diagnosis.tolerance(proof, loaded) == pytest.approx(expected)
    bits = {"float64": 64, "float32": 32, "bfloat16": 16, "float16": 16, "quantized": 4}
    assert diagnosis.is_lower(loaded, proof) == (bits[loaded] < bits[recorded])


def test_rounding_is_allowed_where_the_deviation_is_nothing(saved):
    proof = read_proof(saved("full"))
    proof = dataclasses.replace(proof, reward={**proof.reward, "std": 0.0})
    largest = np.abs(proof.golden_rewards).max()
    assert diagnosis.tolerance(proof, "float32") == pytest.approx(2e-6 * largest)
    assert diagnosis.tolerance(proof, "bfloat16") == pytest.approx(0.008 * largest)
    scored = RewardModel.from_pretrained(saved("full"))
    result = diagnosis.verify(proof, scored.model, scored.tokenizer)
    assert result.passed
    assert result.in_deviations in (0.0, float("inf"))


# Rewards of another tool.


def ids_of(scored):
    return [list(one.token_ids) for one in scored.proof.golden]


def last_token_read(scored):
    with evaluating(scored.model):
        return [float(lone_rewards(scored.model, [ids], EOS, len(ids) - 1)[0]) for ids in ids_of(scored)]


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


SERVED = {
    "sigmoid": (
        ["full", "padeos", "merged", "lora", "encoder"],
        lambda scored: sigmoid(scored.proof.golden_rewards),
        "sigmoid applied to the reward$",
    ),
    "early": (
        ["text", "lora text", "full"],
        lambda scored: scored.score(input_ids=[ids[:-1] for ids in ids_of(scored)]),
        r"read one token early \(pad == eos, or no end token\)",
    ),
    "late": (["padeos text"], last_token_read, "read one token late, at the last token"),
    "short": (
        ["encoder"],
        lambda scored: scored.score(input_ids=[ids[:-1] for ids in ids_of(scored)]),
        "the last token is missing",
    ),
    "extra eos": (
        ["full", "text", "merged", "lora", "encoder"],
        lambda scored: scored.score(input_ids=[[EOS, *ids] for ids in ids_of(scored)]),
        r"an extra BOS \(id 1\) in front",
    ),
    "second bos": (
        ["bos", "bos text"],
        lambda scored: scored.score(input_ids=[[3, *ids] for ids in ids_of(scored)]),
        r"an extra BOS \(id 3\) in front",
    ),
    "no bos": (
        ["bos", "bos text"],
        lambda scored: scored.score(input_ids=[ids[1:] for ids in ids_of(scored)]),
        "no BOS in front",
    ),
    "normalised": (
        ["full", "lora", "encoder"],
        lambda scored: (scored.proof.golden_rewards - scored.proof.reward["mean"]) / scored.proof.reward["std"],
        "normalised by the recorded mean and scale",
    ),
    "scaled": (
        ["full", "encoder"],
        lambda scored: 2.5 * scored.proof.golden_rewards - 3,
        r"scaled and shifted: each reward is 2.5 times the recorded one, plus -3$",
    ),
    "softmax": (
        ["full", "merged"],
        lambda scored: np.ones(12),
        "all rewards are 1, as a softmax over one output makes them",
    ),
    "near": (
        ["full", "encoder"],
        lambda scored: scored.proof.golden_rewards * 1.003,
        "lower precision: all rewards are near the recorded ones",
    ),
    "other text": (
        ["full", "merged"],
        lambda scored: scored.score(input_ids=[ids[::-1] for ids in ids_of(scored)]),
        "unknown: neither sigmoid",
    ),
    "backwards": (["full", "encoder"], lambda scored: -scored.proof.golden_rewards, "unknown: neither sigmoid"),
}


@pytest.mark.parametrize(("name", "how"), [(name, how) for how, (names, *_) in SERVED.items() for name in names])
def test_rewards_of_another_tool_get_their_cause(name, how, saved):
    _, serve, cause = SERVED[how]
    scored = RewardModel.from_pretrained(saved(name))
    result = scored.verify(list(serve(scored)))
    assert not result.passed
    assert len(result.causes) == 1
    assert re.match(cause, result.causes[0]), result.causes
    assert (result.rank_agreement == 0.0) == (how in ("backwards", "softmax"))


def test_a_cause_that_explains_rewards_no_better_than_none_is_not_named(saved):
    scored = RewardModel.from_pretrained(saved("full"))
    proof = dataclasses.replace(scored.proof, reward={**scored.proof.reward, "std": 1_000.0})
    given = proof.golden_rewards + 0.3 * (-1.0) ** np.arange(12)
    (cause,) = diagnosis.verify(proof, scored.model, scored.tokenizer, given).causes
    assert cause.startswith("lower precision: all rewards are near the recorded ones")


def test_rewards_of_another_tool_in_half_precision_are_told_so(saved):
    half = RewardModel.from_pretrained(saved("full"), dtype="bfloat16", strict=False)
    scored = RewardModel.from_pretrained(saved("full"))
    result = scored.verify(half.score(input_ids=ids_of(half)))
    assert result.causes[0].startswith("lower precision: all rewards are near the recorded ones")


@pytest.mark.parametrize("name", SAVED)
def test_the_recorded_rewards_pass_wherever_they_come_from(name, saved):
    scored = RewardModel.from_pretrained(saved(name))
    result = scored.verify(scored.proof.golden_rewards + 0.5 * result_tolerance(scored))
    assert result.passed
    assert not scored.verify(scored.proof.golden_rewards + 1.5 * result_tolerance(scored)).passed


def result_tolerance(scored):
    return diagnosis.tolerance(scored.proof, scored.proof.model["dtype"])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_served_reward_that_is_no_number_does_not_pass(wrong, saved):
    scored = RewardModel.from_pretrained(saved("full"))
    given = scored.proof.golden_rewards
    given[3] = wrong
    result = scored.verify(given)
    assert result.largest_difference > 1e9
    assert result.causes == (
        "rewards that are not finite numbers: broken weights, or a precision too low for this model",
    )


def test_served_rewards_must_be_as_many_as_the_golden_conversations(saved):
    scored = RewardModel.from_pretrained(saved("full"))
    with pytest.raises(ValueError, match="3 rewards were given for the 12 golden conversations of reward_model.json"):
        scored.verify([1.0, 2.0, 3.0])


def test_one_changed_reward_fails_and_lowers_the_rank_agreement(saved):
    scored = RewardModel.from_pretrained(saved("full"))
    given = scored.proof.golden_rewards
    first, last = given.argmin(), given.argmax()
    given[first], given[last] = given[last], given[first]
    result = scored.verify(given)
    assert not result.passed
    # Of 66 pairs, the two that change place with each of the ten others, and with one another.
    assert result.rank_agreement == pytest.approx(1 - 21 / 66)
    assert result.in_deviations == pytest.approx(result.largest_difference / scored.proof.reward["std"])


def test_ties_agree_with_no_order(saved):
    scored = RewardModel.from_pretrained(saved("full"))
    assert scored.verify([1.0] * 12).rank_agreement == 0.0
    tied = dataclasses.replace(
        scored.proof, golden=[dataclasses.replace(one, reward=1.0) for one in scored.proof.golden]
    )
    assert diagnosis.verify(tied, scored.model, scored.tokenizer, list(range(12))[::-1]).rank_agreement == 1.0


def test_verifying_leaves_the_model_in_training_as_it_was(saved):
    scored = RewardModel.from_pretrained(saved("lora"))
    scored.model.train()
    assert scored.verify().passed
    assert scored.model.training


def test_drawn_ids_are_replayed_as_they_are(saved):
    scored = RewardModel.from_pretrained(saved("full"))
    golden = [dataclasses.replace(one, messages=None) for one in scored.proof.golden]
    proof = dataclasses.replace(scored.proof, golden=golden)
    assert diagnosis.render(proof, scored.tokenizer) == ids_of(scored)
    assert diagnosis.render(scored.proof, None) == ids_of(scored)
    assert diagnosis.verify(proof, scored.model, scored.tokenizer).passed


# The command.


def run(capsys, *arguments):
    """Return the exit code and what was printed to stdout and stderr."""
    capsys.readouterr()
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("name", ["full", "lora", "encoder"])
def test_the_command_returns_0_and_says_verified(name, saved, capsys):
    code, out, err = run(capsys, "verify", saved(name))
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "golden conversations  12"
    assert re.match(r"largest difference    \S+ \(\S+ standard deviations; allowed: \S+\)$", lines[1])
    assert lines[2:] == [
        "rank agreement        100.0% of pairs in the recorded order",
        "verified: the rewards are the recorded ones",
    ]
    assert "error" not in err


def test_the_command_returns_1_and_prints_every_cause(saved, tmp_path, capsys):
    folder = planted(saved, tmp_path, "full", weights(WHOLE, foreign_head))
    edited("config.json", problem_type=None)(folder, saved)
    code, out, _ = run(capsys, "verify", folder)
    assert code == 1
    *_, first, second, last = out.splitlines()
    assert first.startswith("likely cause          sigmoid applied: ")
    assert second.startswith("likely cause          lost or foreign head: ")
    assert last == "NOT verified"


def test_the_command_prints_a_note_on_lower_precision_and_returns_0(saved, capsys):
    code, out, _ = run(capsys, "verify", saved("full"), "--dtype", "bfloat16")
    assert code == 0
    assert "note                  lower precision: the weights are bfloat16, and float32 was recorded" in out


@pytest.mark.parametrize("form", ["lines", "json"])
@pytest.mark.parametrize("change", [None, sigmoid])
def test_the_command_compares_rewards_from_a_file(form, change, saved, tmp_path, capsys):
    values = read_proof(saved("full")).golden_rewards
    values = (values if change is None else change(values)).tolist()
    file = tmp_path / "rewards.txt"
    file.write_text(json.dumps(values, indent=1) if form == "json" else "\n".join(map(str, values)) + "\n")
    code, out, _ = run(capsys, "verify", saved("full"), "--rewards", file)
    assert code == (0 if change is None else 1)
    assert ("likely cause          sigmoid applied to the reward" in out) == (change is not None)


def test_a_line_that_is_no_number_is_named(saved, tmp_path, capsys):
    file = tmp_path / "rewards.txt"
    file.write_text("0.5\n1e3\n -.25\nhigh\n")
    with pytest.raises(ValueError, match="rewards.txt', line 4: 'high' is not a number; give one reward a line"):
        diagnosis.read_rewards(str(file))
    code, _, err = run(capsys, "verify", saved("full"), "--rewards", file)
    assert code == 1
    assert (
        err.splitlines()[-1]
        == f"plaudit verify: error: '{file}', line 4: 'high' is not a number; give one reward a line"
    )


ERRORS = {
    "no directory": (["./nowhere"], 1, "model: the directory './nowhere' does not exist"),
    "no path": ([], 2, "the following arguments are required: PATH; see plaudit verify --help"),
    "unknown flag": (["x", "--reward", "y"], 2, "unknown argument '--reward'; did you mean '--rewards'?; see plaudit"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_mistake_on_the_command_line_is_one_line_that_names_it(name, capsys):
    arguments, expected, message = ERRORS[name]
    code, out, err = run(capsys, "verify", *arguments)
    assert code == expected
    assert not out
    assert message in err.splitlines()[-1]


def test_a_checkpoint_without_a_proof_cannot_be_verified_by_the_command(model_path, capsys):
    code, out, err = run(capsys, "verify", model_path)
    assert code == 1
    assert not out
    assert f"plaudit verify: error: there is no {PROOF_FILE} that can be read, so there is nothing" in err


def test_rewards_in_a_file_that_is_no_text_are_an_error_that_names_it(tmp_path):
    file = tmp_path / "rewards.txt"
    file.write_bytes(b"1.0\n\xff\n")
    with pytest.raises(ValueError, match="rewards.txt' is not UTF-8 text .*give one reward a line"):
        diagnosis.read_rewards(str(file))
