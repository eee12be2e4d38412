"""One conversation has one reward: in training, after a reload, in any batch, and in every tool that scores it."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peft
import pytest
import transformers
from conftest import conversations, make_tokenizer, text_pairs
from datasets import Dataset
from processes import config
from test_proof import base_in, trained

from plaudit import RewardModel, RewardTrainer, cli, inference
from plaudit.merging import merge
from plaudit.scoring import RewardScorer

KINDS = ("decoder", "pad is eos", "lora", "merged", "encoder")
FORMS = ("conversations", "texts")
SAVED = [(kind, form) for kind in KINDS for form in FORMS]
NUM_PROMPTS, NUM_ANSWERS = 8, 8
NUM_ITEMS = NUM_PROMPTS * NUM_ANSWERS


@dataclass
class Case:
    """A checkpoint and what it gave in training.

    rows: pairs, as trained on, each prompt with NUM_ANSWERS answers in all. rewards: of both sides, shape (num_pairs, 2).
    """

    kind: str
    form: str
    path: str
    rows: list[dict]
    rewards: np.ndarray

    @property
    def prompts(self):
        return [row["prompt"] for row in self.rows for _ in range(2)]

    @property
    def answers(self):
        return [row[side] for row in self.rows for side in ("chosen", "rejected")]

    @property
    def items(self):
        return [prompt + answer for prompt, answer in zip(self.prompts, self.answers, strict=True)]

    @property
    def card(self):
        return (Path(self.path) / "README.md").read_text(encoding="utf-8")

    def rendered(self, tokenizer):
        """The items as other tools take them: texts with all special tokens in them, and how they are tokenized."""
        if self.form == "texts":
            return [item + tokenizer.eos_token for item in self.items], {}
        texts = [tokenizer.apply_chat_template(item, tokenize=False) for item in self.items]
        return texts, {"add_special_tokens": False}


def pairs(form):
    """Pairs of NUM_PROMPTS prompts, several a prompt, so that all have NUM_ANSWERS answers."""
    make = conversations if form == "conversations" else text_pairs
    prompts = [row["prompt"] for row in make(NUM_PROMPTS, seed=1)]
    rows = make(NUM_ITEMS // 2)
    return [{**row, "prompt": prompts[i * NUM_PROMPTS // len(rows)]} for i, row in enumerate(rows)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function from kind and form to the Case, trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("saved")
    ready = {}

    def make(kind, form):
        path, rows = str(folder / f"{kind} {form}".replace(" ", "-")), pairs(form)
        if kind == "merged":
            adapter = get("lora", form)
            merge(adapter.path, path)
            return Case(kind, form, path, rows, adapter.rewards)
        tokenizer = make_tokenizer(
            **({} if form == "conversations" else {"chat_template": None}),
            **({"pad": "<|eos|>"} if kind == "pad is eos" else {}),
        )
        base = base_in(f"{path}-base", tokenizer, "bert" if kind == "encoder" else "qwen3")
        # As a newcomer writes it.
        options = {"peft_config": peft.LoraConfig()} if kind == "lora" else {}
        trainer = trained(base, path, rows, **options)
        return Case(kind, form, path, rows, trainer.predict(Dataset.from_list(rows)).predictions)

    def get(kind, form):
        if (kind, form) not in ready:
            ready[kind, form] = make(kind, form)
        return ready[kind, form]

    return get


# The ways to a reward: from a Case to the rewards of its items, in their order.


def reloaded_in_the_trainer(case, folder):
    data = Dataset.from_list(case.rows)
    return RewardTrainer(case.path, config(folder), eval_dataset=data).predict(data).predictions.ravel()


def in_one_batch(case, folder):
    return RewardModel.from_pretrained(case.path, max_batch_tokens=100_000).score(case.items)


def in_one_padded_batch(case, folder):
    return RewardModel.from_pretrained(case.path, packing="off", max_batch_tokens=100_000).score(case.items)


def alone(case, folder):
    model = RewardModel.from_pretrained(case.path)
    return [model.score([item])[0] for item in case.items]


def as_answers_to_prompts(case, folder):
    prompts = case.prompts[::NUM_ANSWERS]
    responses = [case.answers[start : start + NUM_ANSWERS] for start in range(0, NUM_ITEMS, NUM_ANSWERS)]
    model = RewardModel.from_pretrained(case.path)
    if case.form == "texts":
        assert not model.as_turns
    first = model.score(prompt=prompts[0], responses=responses[0])
    return np.concatenate([first, *model.score(prompts=prompts[1:], responses=responses[1:])])


def by_the_command(case, folder):
    data, output = folder / "rows.jsonl", folder / "scored.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in case.rows))
    assert cli.main(["score", "--model", case.path, "--data", str(data), "--output", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows] == case.rows
    return [row[name] for row in rows for name in ("reward_chosen", "reward_rejected")]


def by_the_reward_function(case, folder):
    function = RewardModel.from_pretrained(case.path).as_reward_function()
    found = function(prompts=case.prompts, completions=case.answers, source=["x"] * NUM_ITEMS)
    assert type(found) is list
    assert {type(value) for value in found} == {float}
    return found


def by_the_reward_function_pickled(case, folder):
    sent = pickle.dumps(RewardModel.from_pretrained(case.path).as_reward_function(name="judge"))
    assert len(sent) < 2_000
    function = pickle.loads(sent)
    assert function.__name__ == "judge"
    return function(case.prompts, case.answers)


def by_the_cards_pipeline(case, folder):
    (call,) = re.findall(r"`(transformers\.pipeline\(.*?\))` returns", case.card)
    assert ("model_kwargs" in call) == (case.kind == "lora")
    pipe = eval(call, {"transformers": transformers})
    return piped(case, pipe)


def by_a_pipeline_of_its_objects(case, folder):
    model = RewardModel.from_pretrained(case.path)
    return piped(case, transformers.pipeline("text-classification", model=model.model, tokenizer=model.tokenizer))


def piped(case, pipe):
    texts, options = case.rendered(pipe.tokenizer)
    assert ("`add_special_tokens=False`" in case.card) == bool(options)
    return [one["score"] for one in pipe(texts, batch_size=8, **options)]


def by_a_cross_encoder(case, folder):
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(case.path)
    if case.form == "conversations":
        assert "CrossEncoder" in case.card
        return encoder.predict(case.items, batch_size=8)
    eos = encoder.tokenizer.eos_token
    return encoder.predict([(p, a + eos) for p, a in zip(case.prompts, case.answers, strict=True)], batch_size=8)


WAYS = [
    reloaded_in_the_trainer,
    in_one_batch,
    in_one_padded_batch,
    alone,
    as_answers_to_prompts,
    by_the_command,
    by_the_reward_function,
    by_the_reward_function_pickled,
    by_the_cards_pipeline,
    by_a_pipeline_of_its_objects,
    by_a_cross_encoder,
]


def assert_trained_rewards(found, case):
    # Apart by far more than the difference that is allowed.
    assert np.unique(case.rewards.round(3)).size > NUM_ITEMS // 2
    np.testing.assert_allclose(np.asarray(found), case.rewards.ravel(), atol=1e-5, rtol=0)


# CrossEncoder opens no adapter; the test after this one is of what the card says then.
TAKEN = [(kind, form, way) for kind, form in SAVED for way in WAYS if (kind, way) != ("lora", by_a_cross_encoder)]


@pytest.mark.parametrize(("kind", "form", "way"), TAKEN)
def test_every_way_gives_the_trained_reward(kind, form, way, saved, tmp_path):
    case = saved(kind, form)
    assert_trained_rewards(way(case, tmp_path), case)


@pytest.mark.parametrize("form", FORMS)
def test_an_adapters_card_says_to_merge_it_for_cross_encoder_and_how(form, saved, tmp_path):
    from sentence_transformers import CrossEncoder

    case = saved("lora", form)
    with pytest.raises(ValueError, match="Unrecognized model"):
        CrossEncoder(case.path)
    assert (
        "`CrossEncoder` of sentence-transformers, and servers that take whole models only, cannot open an" in case.card
    )
    (command,) = re.findall(r"`(plaudit merge .*?)`", case.card)
    words = command.replace("DIRECTORY", str(tmp_path / "merged")).split()
    assert cli.main(words[1:]) == 0
    merged = Case("merged", form, str(tmp_path / "merged"), case.rows, case.rewards)
    assert_trained_rewards(by_a_cross_encoder(merged, tmp_path), case)


@pytest.mark.parametrize(("kind", "form"), SAVED)
def test_the_batches_compared_are_of_one_and_of_64_and_a_decoders_a_tree(kind, form, saved, monkeypatch, tmp_path):
    case, made, sizes = saved(kind, form), [], []
    given = inference.rewards

    def spied(model, batch):
        found = given(model, batch)
        made.append("tree" in batch)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(inference, "rewards", spied)
    is_tree = kind != "encoder"
    for way, expected, in_trees in (
        (in_one_batch, [NUM_ITEMS], is_tree),
        (in_one_padded_batch, [NUM_ITEMS], False),
        (alone, [1] * NUM_ITEMS, is_tree),
        (as_answers_to_prompts, [NUM_ANSWERS, NUM_ITEMS - NUM_ANSWERS], is_tree),
    ):
        made.clear(), sizes.clear()
        way(case, tmp_path)
        assert sizes == expected, way
        assert set(made) == {in_trees}, way


# Ray.


@pytest.fixture(scope="module")
def scored_by_ray(saved):
    """The rows as Ray's actors score them: `reward` by RewardScorer alone, and a column for each checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray.data

        # In a function, so that it is sent to the actor as it is, not by this module's name.
        class AllCheckpoints:
            def __init__(self, paths):
                self.scorers = {names: RewardScorer(path) for names, path in paths.items()}

            def __call__(self, batch):
                for (kind, form), scorer in self.scorers.items():
                    scored = scorer({"messages" if form == "conversations" else "text": batch[form]})
                    batch[f"{kind} {form}"] = scored["reward"]
                return batch

        items = zip(saved("lora", "conversations").items, saved("lora", "texts").items, strict=True)
        rows = [{"number": i, "messages": m, "conversations": m, "texts": t} for i, (m, t) in enumerate(items)]
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
        try:
            ray.data.DataContext.get_current().enable_progress_bars = False
            one = ray.data.ActorPoolStrategy(size=1)
            lora = {"model": saved("lora", "conversations").path}
            paths = {"paths": {names: saved(*names).path for names in SAVED}}
            found = (
                ray.data.from_items(rows)
                .map_batches(RewardScorer, fn_constructor_kwargs=lora, batch_size=7, compute=one)
                .map_batches(AllCheckpoints, fn_constructor_kwargs=paths, batch_size=16, compute=one)
                .take_all()
            )
        finally:
            ray.shutdown()
    return sorted(found, key=lambda row: row["number"])


def test_ray_data_takes_the_scorer_as_it_is_and_gives_the_trained_rewards(scored_by_ray, saved):
    assert [row["number"] for row in scored_by_ray] == list(range(NUM_ITEMS))
    case = saved("lora", "conversations")
    assert [list(row["messages"]) for row in scored_by_ray] == case.items
    assert_trained_rewards([row["reward"] for row in scored_by_ray], case)


@pytest.mark.parametrize(("kind", "form"), SAVED)
def test_ray_data_gives_the_trained_rewards_of_every_checkpoint(kind, form, scored_by_ray, saved):
    assert_trained_rewards([row[f"{kind} {form}"] for row in scored_by_ray], saved(kind, form))


# datasets.


@pytest.mark.parametrize("kind", ["decoder", "lora"])
def test_datasets_map_gives_the_trained_rewards(kind, saved):
    case = saved(kind, "conversations")
    model = RewardModel.from_pretrained(case.path)
    rows = Dataset.from_list([{"messages": item} for item in case.items])
    found = rows.map(lambda batch: {"reward": model.score(batch["messages"])}, batched=True, batch_size=10)
    assert found.features["reward"].dtype == "float32"
    assert_trained_rewards(found["reward"], case)


IN_PROCESSES = """
import json, sys
from datasets import Dataset
from plaudit import RewardModel

path, data, output = sys.argv[1:]
model = RewardModel.from_pretrained(path)
found = Dataset.from_json(data, cache_dir=output + ".cache").map(
    lambda batch: {"reward": model.score(batch["messages"])}, batched=True, batch_size=10, num_proc=2
)
open(output, "w").write(json.dumps(found["reward"][:]))
"""


def test_datasets_map_in_processes_gives_the_trained_rewards_also_where_torch_has_threads(saved, tmp_path):
    case = saved("lora", "conversations")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": item}) + "\n" for item in case.items))
    arguments = [sys.executable, "-c", IN_PROCESSES, case.path, tmp_path / "rows.jsonl", tmp_path / "rewards.json"]
    # A forked process inherits torch's pool of threads without the threads, and may wait for them for ever.
    running = subprocess.Popen(arguments, env={**os.environ, "OMP_NUM_THREADS": "2"}, start_new_session=True)
    try:
        assert running.wait(timeout=60) == 0
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert_trained_rewards(json.loads((tmp_path / "rewards.json").read_text()), case)


def test_datasets_map_gives_the_trained_rewards_row_by_row(saved):
    case = saved("decoder", "texts")
    model = RewardModel.from_pretrained(case.path)
    found = Dataset.from_list([{"text": item} for item in case.items]).map(
        lambda row: {"reward": model.score(row["text"])[0]}
    )
    assert_trained_rewards(found["reward"], case)


# TRL.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["GRPO", "RLOO"])
def test_trl_logs_the_mean_reward_of_the_completions(method, form, saved, language_model_path, tmp_path):
    import trl

    case = saved("decoder", form)
    model = RewardModel.from_pretrained(case.path)
    seen = []

    def witness(prompts, completions, **columns):
        seen.append((list(prompts), list(completions)))
        return [0.0] * len(prompts)

    tokenizer = transformers.AutoTokenizer.from_pretrained(language_model_path, padding_side="left")
    options = {"num_generations": 4, "per_device_train_batch_size": 4, "max_completion_length": 8, "max_steps": 2}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False, "logging_steps": 1}
    trainer = getattr(trl, f"{method}Trainer")(
        model=language_model_path,
        reward_funcs=[model.as_reward_function(name="judge"), witness],
        args=getattr(trl, f"{method}Config")(output_dir=str(tmp_path), save_strategy="no", **options, **quiet),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in case.rows[::4]]),
        processing_class=tokenizer,
    )
    trainer.train()
    logged = [entry["rewards/judge/mean"] for entry in trainer.state.log_history if "rewards/judge/mean" in entry]
    assert len(logged) == len(seen) == 2
    for value, (prompts, completions) in zip(logged, seen, strict=True):
        wholes = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        assert len({json.dumps(whole) for whole in wholes}) > 1
        assert isinstance(wholes[0], list) == (form == "conversations")
        assert value == pytest.approx(model.score(wholes).mean(), abs=1e-5)
    assert abs(logged[0] - logged[1]) > 1e-3
