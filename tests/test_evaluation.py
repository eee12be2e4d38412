"""Evaluation from end to end: what is written, in which order, and that every number can be had again from the scores."""

import json

import pytest
import rows_of_benchmarks as made

from plaudit import RewardModel, evaluation, figures, options, report
from plaudit.evaluation import Evaluation, evaluate, recompute, run
from plaudit.score_rows import read_rows

ROWS = {
    "rewardbench": made.rewardbench({"mt-bench-easy": 3, "donotanswer": 2}),
    "rewardbench2": made.rewardbench2({"Focus": 2, "Ties": 4}),
    "rm-bench": made.rm_bench({"chat": 2, "safety-refuse": 1}),
    "judgebench": made.judgebench({"livebench-math": 3, "livecodebench": 2}),
    "ppe-math": made.ppe_correctness(2),
    "ppe-human": [row | {"prompt": "Why?"} for row in made.ppe_human()],
    "rmb": made.rmb_pairs(2),
    "best-of-n": made.best_of_n(3),
    "of-mine": [{"chosen": f"good {n}", "rejected": f"bad {n}", "subset": "ab"[n % 2]} for n in range(4)],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    return {name: made.write(folder / f"{name}.jsonl", rows) for name, rows in ROWS.items()}


@pytest.fixture(scope="module")
def model(model_path):
    return RewardModel.from_pretrained(model_path)


def without_provenance(results):
    """The figures, without what made them."""
    return {name: {key: part for key, part in entry.items() if key != "provenance"} for name, entry in results.items()}


def by_length(conversations):
    return [len(one) if isinstance(one, str) else len(one[-1]["content"]) for one in conversations]


def test_a_model_its_score_method_and_the_file_of_scores_give_exactly_the_same(model, files, tmp_path):
    sources = list(files.values())
    own = evaluate(model, sources, output_dir=tmp_path, num_resamples=200, seed=1)
    assert list(own) == list(ROWS)
    called = evaluate(model.score, sources, num_resamples=200, seed=1)
    again = recompute(tmp_path / "scores.jsonl", num_resamples=200, seed=1)
    assert without_provenance(again) == without_provenance(own)
    assert without_provenance(called) == without_provenance(own)
    assert json.loads((tmp_path / "results.json").read_text()) == own


def test_the_kind_of_each_benchmark_is_in_its_results(files):
    results = evaluate(by_length, list(files.values()), num_resamples=100)
    kinds = {name: entry["kind"] for name, entry in results.items()}
    assert kinds == {name: name for name in ROWS} | {"ppe-math": "ppe-correctness", "of-mine": "pairs"}
    assert results["rm-bench"]["matrix"]
    assert results["ppe-math"]["curve"]
    assert set(results["of-mine"]["subsets"]) == {"a", "b"}


def test_scores_are_on_the_disk_before_a_figure_is_computed(files, tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("no figures today")

    evaluate(by_length, files["of-mine"], output_dir=tmp_path, num_resamples=100, with_report=False)
    monkeypatch.setattr(figures, "results_of", fails)
    with pytest.raises(RuntimeError, match="no figures today"):
        evaluate(by_length, list(files.values()), output_dir=tmp_path)
    rows = read_rows(tmp_path / "scores.jsonl")
    assert len(rows) == sum(map(len, ROWS.values()))
    assert [path.name for path in tmp_path.iterdir()] == ["scores.jsonl"], "no figures stand beside other scores"


def test_rewards_are_written_at_full_precision_with_the_rows_labels(files, tmp_path):
    values = iter(0.1 + 0.2 * n for n in range(1000))
    evaluate(lambda texts: [next(values) for _ in texts], files["judgebench"], output_dir=tmp_path, num_resamples=100)
    rows = read_rows(tmp_path / "scores.jsonl")
    assert rows[1].rewards == [0.1 + 0.2 * 2, 0.1 + 0.2 * 3]
    assert [row.labels for row in rows] == [[1, 0] if row["label"] == "A>B" else [0, 1] for row in ROWS["judgebench"]]


def test_the_worst_mistakes_are_written_with_their_texts(files, tmp_path):
    results = evaluate(by_length, files["rewardbench2"], output_dir=tmp_path, num_resamples=100)
    mistakes = [json.loads(line) for line in (tmp_path / "mistakes.jsonl").read_text().splitlines()]
    assert [one["id"] for one in mistakes] == [row["id"] for row in results["rewardbench2"]["worst"]]
    assert mistakes
    row = next(
        row for row in ROWS["rewardbench2"] if row["id"] == mistakes[0]["id"] and row["subset"] == mistakes[0]["subset"]
    )
    assert mistakes[0]["prompt"] == [{"role": "user", "content": row["prompt"]}]
    assert [each["text"] for each in mistakes[0]["candidates"]] == [*row["chosen"], *row["rejected"]]
    assert [each["label"] for each in mistakes[0]["candidates"]] == [1] * len(row["chosen"]) + [0] * 3
    assert mistakes[0]["candidates"][0]["reward"] == len(row["chosen"][0])


def test_no_more_than_twenty_mistakes_of_a_benchmark_are_kept(tmp_path):
    rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b" * (n + 2)} for n in range(30)]
    evaluate(by_length, made.write(tmp_path / "mine.jsonl", rows), output_dir=tmp_path / "out", num_resamples=100)
    mistakes = [json.loads(line) for line in (tmp_path / "out" / "mistakes.jsonl").read_text().splitlines()]
    assert [one["margin"] for one in mistakes] == [-float(n) for n in range(30, 10, -1)]


def test_scores_that_are_replaced_are_named(files, tmp_path, caplog):
    for said in (0, 1):
        caplog.clear()
        evaluate(by_length, files["of-mine"], output_dir=tmp_path / "out", num_resamples=100, with_report=False)
        assert sum("held the scores of an earlier evaluation" in message for message in caplog.messages) == said


def test_a_report_is_left_and_a_missing_extra_costs_one_line_and_nothing_else(files, tmp_path, monkeypatch, caplog):
    evaluate(by_length, files["of-mine"], output_dir=tmp_path / "one", num_resamples=100)
    assert "of-mine" in (tmp_path / "one" / "report.html").read_text()
    monkeypatch.setattr(report, "_require_matplotlib", lambda: (_ for _ in ()).throw(ImportError(report.MISSING_EXTRA)))
    caplog.clear()
    evaluate(by_length, files["of-mine"], output_dir=tmp_path / "two", num_resamples=100)
    assert not (tmp_path / "two" / "report.html").exists()
    assert (tmp_path / "two" / "results.json").exists()
    assert [message for message in caplog.messages if "plaudit[report]" in message]
    evaluate(by_length, files["of-mine"], output_dir=tmp_path / "three", num_resamples=100, with_report=False)
    assert not (tmp_path / "three" / "report.html").exists()


def test_provenance_pins_data_and_model_and_names_no_folder(model, files, tmp_path):
    found = evaluate(model, files["rewardbench"], output_dir=tmp_path, num_resamples=100)["rewardbench"]["provenance"]
    assert found["model_fingerprint"] == model.fingerprint
    assert found["data"]["source"] == "rewardbench.jsonl"
    assert (found["data"]["rows"], found["data"]["subsets"]) == (5, {"donotanswer": 2, "mt-bench-easy": 3})
    assert len(found["data"]["sha256"]) == 64
    assert found["seconds"] > 0
    assert str(tmp_path.parent) not in json.dumps(found)


# The verb.


def parsed(*words):
    return options.parse_fields(Evaluation, "evaluate", "", "", list(words))


def test_the_command_gives_what_the_function_gives(model, model_path, files, tmp_path):
    words = ["--model", model_path, "--benchmark", files["judgebench"], files["of-mine"], "--output_dir", str(tmp_path)]
    found = run(**parsed(*words, "--num_resamples", "150", "--max_length", "30", "--seed", "3", "--no_report"))
    sources = [files["judgebench"], files["of-mine"]]
    expected = evaluate(model, sources, num_resamples=150, max_length=30, seed=3)
    assert without_provenance(found) == without_provenance(expected)
    assert not (tmp_path / "report.html").exists()
    again = run(**parsed("--scores", str(tmp_path / "scores.jsonl"), "--num_resamples", "150", "--seed", "3"))
    assert without_provenance(again) == without_provenance(found)


def test_every_option_is_read_in_its_type():
    found = Evaluation(
        **parsed("--model", "m", "--benchmark", "a", "b", "--limit", "3", "--no_strict", "--template", "raw")
    )
    assert (found.model, found.limit, found.strict, found.template, found.report) == ("m", 3, False, "raw", True)
    assert list(found.benchmark) == ["a", "b"]
    assert found.folder == "runs/evaluate-m"
    assert Evaluation(scores="x").folder is None
    assert parsed("--model_name_or_path", "m") == {"model": "m"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"give either a model \(--model\) to score with, or scores \(--scores\)"),
        ({"model": "m", "scores": "s", "benchmark": ["b"]}, "give either a model"),
        ({"model": "m"}, r"name at least one benchmark \(--benchmark\)"),
        (
            {"scores": "s", "truncation": "error"},
            r"truncation \('error'\) has no effect on scores that are there already",
        ),
        ({"scores": "s", "dtype": "bfloat16"}, r"dtype \('bfloat16'\) has no effect"),
        ({"scores": "s", "strict": False}, r"strict \(False\) has no effect"),
        ({"model": "m", "benchmark": ["b"], "limit": 0}, "limit is 0, but must be 1 or more"),
        ({"model": "m", "benchmark": ["b"], "num_resamples": 5}, "num_resamples=5 is too few for a 95 % interval"),
        ({"model": "m", "benchmark": ["b"], "seed": -1}, "seed=-1 cannot be below 0"),
        ({"model": "m", "benchmark": ["b"], "on_nonfinite": "official"}, r"is for scores that are there already"),
    ],
)
def test_options_that_cannot_be_together_are_an_error(given, message):
    with pytest.raises(ValueError, match=message):
        Evaluation(**given)


def test_bad_rows_are_found_before_the_model_is_loaded(tmp_path):
    broken = [{**ROWS["judgebench"][0], "label": "C"}]
    path = made.write(tmp_path / "broken.jsonl", broken)
    with pytest.raises(ValueError, match="row 0: 'label' must be 'A>B' or 'B>A'"):
        run(model=str(tmp_path / "no model here"), benchmark=[path])


def test_impossible_options_of_the_figures_are_found_before_anything_is_scored(files):
    def score(conversations):
        raise AssertionError("nothing is to be scored")

    for given, message in (({"num_resamples": 5}, "num_resamples=5"), ({"weights": "new"}, "weights='new' is not")):
        with pytest.raises(ValueError, match=message):
            evaluate(score, files, **given)


def test_the_public_names_are_there():
    assert all(callable(getattr(evaluation, name)) for name in evaluation.__all__)
