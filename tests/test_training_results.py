"""What a training's evaluations leave behind: rows, figures and texts of the pairs that were scored, and of no others."""

import json

import numpy as np
import pytest
from conftest import conversations, text_pairs
from datasets import Dataset
from test_trainer import make

from plaudit import RewardModel, formats, training_results
from plaudit.evaluation import evaluate
from plaudit.training_results import write_training_results


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def evaluated(model_path, folder, eval_rows, rows=None, **values):
    """A trainer that has evaluated, and what it then writes: results, scored rows, worst mistakes."""
    trainer = make(model_path, folder / "run", rows or conversations(4), eval_rows, **values)
    metrics = trainer.evaluate()
    results = write_training_results(trainer, folder / "run", with_report=False)
    assert json.loads((folder / "run/results.json").read_text()) == results
    return trainer, metrics, results, lines(folder / "run/scores.jsonl"), lines(folder / "run/mistakes.jsonl")


def test_figures_are_those_that_were_logged_and_rows_those_of_the_saved_model(model_path, tmp_path):
    rows = conversations(9, seed=1)
    trainer, metrics, results, scored, _ = evaluated(model_path, tmp_path, rows)
    overall = results["eval"]["overall"]
    assert (overall["official"], overall["n"]) == (pytest.approx(metrics["eval_accuracy"]), 9)
    trainer.save_model()
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate(RewardModel.from_pretrained(tmp_path / "run"), file, output_dir=tmp_path / "out", with_report=False)
    for mine, other in zip(scored, lines(tmp_path / "out/scores.jsonl"), strict=True):
        np.testing.assert_allclose(mine["rewards"], other["rewards"], atol=1e-5)
        assert mine["extra"].pop("kind") == "pairs", "which the name does not say"
        assert all(mine[name] == other[name] for name in ("id", "labels", "tokens"))
        assert mine["extra"].items() <= other["extra"].items()


def test_a_mistake_shows_the_conversation_whose_rewards_it_has_though_others_were_dropped(model_path, tmp_path):
    rows = conversations(8, seed=2)
    for number in (1, 4):
        rows[number] = rows[number] | {"rejected": rows[number]["chosen"]}
    trainer, _, results, scored, mistakes = evaluated(model_path, tmp_path, rows)
    kept = [0, 2, 3, 5, 6, 7]
    assert [int(row["id"]) for row in scored] == kept
    assert results["eval"]["provenance"]["data"]["rows_left_out"] == 2
    assert mistakes, "a model of random weights makes some"
    trainer.save_model()
    model = RewardModel.from_pretrained(tmp_path / "run")
    for mistake in mistakes:
        row = rows[int(mistake["id"])]
        assert mistake["prompt"] == row["prompt"]
        for candidate, side in zip(mistake["candidates"], ("chosen", "rejected"), strict=True):
            assert candidate["text"] in (row[side], row[side][0]["content"])
            reward = model.score([row["prompt"] + row[side]])[0]
            assert candidate["reward"] == pytest.approx(float(reward), abs=1e-5)


def test_rows_of_another_format_are_the_pairs_that_they_hold(model_path, tmp_path):
    rated = {"prompt": "q", "responses": ["low", "high"], "scores": [1, 2]}
    rows = [rated | {"scores": [1, 1]}, rated, rated | {"responses": ["same", "same"]}, rated | {"prompt": "other"}]
    for number, data in enumerate(
        (Dataset.from_list(rows), formats.convert(Dataset.from_list(rows), keep_dropped=True))
    ):
        *_, scored, mistakes = evaluated(model_path, tmp_path / str(number), data)
        assert len(scored) == 2
        for mistake in mistakes:
            texts = [candidate["text"] for candidate in mistake["candidates"]]
            assert any("high" in str(text) for text in texts)


def test_texts_of_a_stream_are_decoded(model_path, tmp_path):
    rows = text_pairs(40, seed=4)
    stream = Dataset.from_list(rows).to_iterable_dataset()
    _, metrics, results, scored, mistakes = evaluated(model_path, tmp_path, stream, text_pairs(4))
    assert results["eval"]["overall"]["official"] == pytest.approx(metrics["eval_accuracy"])
    assert [row["tokens"] for row in scored] == [None] * 40
    whole = {str(number): row["prompt"] + row["chosen"] for number, row in enumerate(rows)}
    assert mistakes
    for each in mistakes:
        assert each["candidates"][0]["text"].startswith(whole[each["id"]])
        assert each["prompt"] is None


def test_token_ids_are_decoded_where_there_is_a_tokenizer(model_path, tmp_path, tokenizer):
    ids = [
        {"chosen_ids": tokenizer(f"good {i}")["input_ids"], "rejected_ids": tokenizer("bad")["input_ids"]}
        for i in range(5)
    ]
    *_, scored, mistakes = evaluated(model_path, tmp_path, ids, ids)
    assert len(scored) == 5
    assert scored[0]["tokens"] == [len(ids[0]["chosen_ids"]), len(ids[0]["rejected_ids"])]
    assert mistakes
    assert all("good" in str(each["candidates"][0]["text"]) for each in mistakes)


def test_each_named_set_has_its_own_results_and_other_evaluations_none(model_path, tmp_path):
    sets = {name: Dataset.from_list(conversations(count, seed=count)) for name, count in (("short", 3), ("long", 5))}
    trainer = make(model_path, tmp_path, conversations(4), sets)
    trainer.evaluate()
    trainer.evaluate(Dataset.from_list(conversations(7)), metric_key_prefix="eval_other")
    trainer.predict(Dataset.from_list(conversations(2)))
    results = write_training_results(trainer, tmp_path, with_report=False)
    assert {name: entry["overall"]["n"] for name, entry in results.items()} == {"short": 3, "long": 5}


def test_another_set_evaluated_under_the_same_name_is_not_taken_for_the_trainers(model_path, tmp_path):
    trainer = make(model_path, tmp_path, conversations(4), conversations(5, seed=1))
    trainer.evaluate(Dataset.from_list(conversations(7)))
    assert training_results.write_training_results(trainer, tmp_path, with_report=False) == {}


def test_subsets_of_the_rows_have_figures_of_their_own(model_path, tmp_path):
    rows = [row | {"subset": "ab"[number % 2]} for number, row in enumerate(conversations(6, seed=5))]
    _, _, results, *_ = evaluated(model_path, tmp_path, rows)
    assert {name: part["n"] for name, part in results["eval"]["subsets"].items()} == {"a": 3, "b": 3}


def test_an_evaluation_from_a_loader_of_the_users_own_is_left_out(model_path, tmp_path):
    trainer = make(model_path, tmp_path, conversations(4), conversations(5, seed=1))
    trainer.evaluate()
    # What it read from is not known.
    trainer.newest_rewards["test"] = (None, np.zeros((3, 2)))
    assert list(write_training_results(trainer, tmp_path, with_report=False)) == ["eval"]
