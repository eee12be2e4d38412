"""Results from a file of scores, with no model: the same figures, whatever the benchmark's name is spelled like."""

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import rows_of_benchmarks as made

from plaudit import comparison, suites
from plaudit.evaluation import evaluate
from plaudit.options import UsageError, parse_fields
from plaudit.results import Comparing, compare_files, describe, flat_figures, recompute, write_lines
from plaudit.score_rows import ScoredRow, write_rows

DATA = Path(__file__).parents[2] / "shared" / "data"
HERE = "needs ../shared/data"


def by_hash(conversations):
    """Rewards that look like chance and are the same in every process."""
    return [(sum(map(ord, str(one))) * 7919) % 1009 / 100 for one in conversations]


def pairs(name, count=20, subset=None, kind=None, start=0.0):
    extra = {} if kind is None else {"kind": kind}
    return [
        ScoredRow(name, str(n), subset, [start + n % 3, 1.0 + (n % 5 == 0)], [1, 0], None, dict(extra))
        for n in range(count)
    ]


@pytest.fixture
def scores(tmp_path):
    def scores(*rows):
        write_rows(tmp_path / "scores.jsonl", rows)
        return tmp_path / "scores.jsonl"

    return scores


@pytest.mark.parametrize("spelling", ["rewardbench", "RewardBench", "allenai/reward-bench", "reward_bench"])
def test_a_benchmark_is_found_by_every_spelling_and_its_key_is_the_one_given(scores, spelling):
    rows = [ScoredRow("RewardBench", "1", "mt-bench-easy", [1.0, 0.0], [1, 0])]
    found = recompute(scores(*rows, *pairs("mine")), spelling, num_resamples=100)
    assert list(found) == [spelling]
    assert found[spelling]["kind"] == "rewardbench"
    assert found[spelling]["of_given"]["n"] == 1


def test_rows_without_a_name_belong_to_the_benchmark_that_is_asked_for(scores):
    rows = [ScoredRow("", "1", "mt-bench-easy", [1.0, 0.0], [1, 0])]
    assert recompute(scores(*rows), "rewardbench", num_resamples=100)["rewardbench"]["of_given"]["official"] == 1.0
    assert list(recompute(scores(*rows), num_resamples=100)) == ["scores"]


def test_a_name_of_ones_own_is_found_as_it_is_with_the_figures_of_its_kind(scores):
    rows = [ScoredRow("mine", "1", "chat", [1, 2, 3, 0, 2, 4], [1, 1, 1, 0, 0, 0], None, {"kind": "rm-bench"})]
    path = scores(*rows, *pairs("other"))
    assert recompute(path, "mine", num_resamples=100)["mine"]["kind"] == "rm-bench"
    assert recompute(path, "RM-Bench", num_resamples=100)["RM-Bench"]["sections"]["normal"][
        "official"
    ] == pytest.approx(1 / 3)
    assert list(recompute(path, num_resamples=100)) == ["mine", "other"]
    assert list(recompute(path, ["other", "rm-bench"], num_resamples=100)) == ["other", "rm-bench"]


def test_what_rows_say_that_they_are_goes_before_what_their_name_means(tmp_path):
    path = made.write(tmp_path / "reward-bench.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    own = evaluate(by_hash, path, output_dir=tmp_path, num_resamples=100, with_report=False)
    for again in (
        recompute(tmp_path / "scores.jsonl", num_resamples=100),
        recompute(tmp_path / "scores.jsonl", "reward-bench", num_resamples=100),
    ):
        assert again["reward-bench"]["kind"] == own["reward-bench"]["kind"] == "pairs"
        assert again["reward-bench"]["overall"] == own["reward-bench"]["overall"] is not None


def test_generic_figures_suit_any_rows(scores):
    rows = [
        ScoredRow("judgebench", str(n), "livebench-math", [1.0, n % 2], [1, 0], None, {"label": "A>B"})
        for n in range(8)
    ]
    path = scores(*rows)
    assert recompute(path, "judgebench", num_resamples=100)["judgebench"]["overall"] is None
    # Half of the rows are ties, which a pick from the highest gets right every other time.
    for name, official in (("pairs", 0.5), ("best-of-n", 0.75)):
        found = recompute(path, name, num_resamples=100)[name]
        assert found["kind"] == name
        assert (found["overall"]["official"], found["overall"]["n"]) == (official, 8)


def test_one_set_of_ppe_is_taken_out_of_all_of_them(scores):
    extra = {"sampled_conflict_pairs": [[0, 1]]}
    rows = [
        ScoredRow("ppe-correctness", "1", name, [float(place), 0.5], [1, 0], None, extra)
        for place, name in enumerate(suites.PPE_SETS)
    ]
    found = recompute(scores(*rows), "ppe-math", num_resamples=100)["ppe-math"]
    assert (found["of_given"]["n"], found["of_given"]["official"]) == (1, 1.0)


def test_a_benchmark_that_the_file_does_not_hold_is_an_error_that_says_what_it_holds(scores):
    with pytest.raises(
        ValueError, match="scores.jsonl has no rows of benchmark 'judgebench'; it holds 'mine', 'other'; name"
    ):
        recompute(scores(*pairs("mine"), *pairs("other")), "judgebench")


def test_without_a_model_neither_torch_nor_transformers_nor_datasets_is_loaded(scores, tmp_path):
    path = scores(*pairs("mine"))
    code = (
        "import sys; from plaudit import evaluation; "
        f"found = evaluation.run(scores={str(path)!r}, benchmark=['mine'], output_dir={str(tmp_path / 'out')!r}); "
        "print(evaluation.describe(found).splitlines()[0]); "
        "print(*sorted({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)), '.')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["mine (pairs)", "."]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["mine"]["overall"]["n"] == 20


def test_what_is_written_has_no_nan_and_says_where_it_is_from(scores, tmp_path):
    path = scores(ScoredRow("mine", "1", None, [1.0, 0.0], [1, 0]))
    found = recompute(path, output_dir=tmp_path / "out", with_report=False)
    text = (tmp_path / "out" / "results.json").read_text()
    assert "NaN" not in text
    assert json.loads(text) == found
    assert found["mine"]["provenance"]["scores"] == "scores.jsonl"
    assert str(tmp_path) not in text
    assert not (tmp_path / "out" / "report.html").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="output_dir .*file' is a file; name a directory"):
        recompute(path, output_dir=tmp_path / "file")


def test_an_output_below_a_file_is_an_error_with_its_cure(scores, tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(
        ValueError, match=r"output_dir '.*file/deep' cannot be written to \(Not a directory\); name another"
    ):
        recompute(scores(*pairs("mine")), output_dir=path / "deep")


def test_the_seed_decides_the_intervals_and_the_figures_do_not_change(scores):
    rows = [ScoredRow("b", str(n), None, [n % 3, 1.0, 0.5], [1, 0, 0], None, {"kind": "best-of-n"}) for n in range(40)]
    path = scores(*rows)
    one, same, other = (recompute(path, num_resamples=500, seed=seed)["b"]["overall"] for seed in (0, 0, 1))
    assert one == same
    assert one["official"] == other["official"]
    assert one["interval"] != other["interval"]


COMPLETE = {
    "rewardbench": (made.rewardbench, 2985),
    "rewardbench2": (made.rewardbench2, 1865),
    "rm-bench": (made.rm_bench, 1327),
    "judgebench": (made.judgebench, 350),
}


@pytest.mark.parametrize("kind", COMPLETE)
def test_a_whole_benchmark_gets_an_overall_figure_and_one_row_less_refuses_it(kind, tmp_path, caplog):
    rows, count = COMPLETE[kind][0](), COMPLETE[kind][1]
    assert len(rows) == count
    whole = evaluate(by_hash, made.write(tmp_path / "whole.jsonl", rows), num_resamples=100)["whole"]
    assert (whole["kind"], whole["incomplete"]) == (kind, None)
    assert whole["overall"]["n"] == count
    assert 0 < whole["overall"]["official"] < 1
    less = evaluate(by_hash, made.write(tmp_path / "less.jsonl", rows[:-1]), num_resamples=100)["less"]
    assert less["overall"] is None
    assert f"{count - 1:,}" in less["incomplete"]
    assert less["of_given"]["n"] == count - 1
    assert less["subsets"]
    lines = [line for line in caplog.messages if "is incomplete, so it gets no overall figure" in line]
    assert len(lines) == 1
    assert lines[0].startswith("benchmark 'less' is incomplete")
    assert "overall" in flat_figures(whole)
    assert "overall" not in flat_figures(less)
    assert flat_figures(less)["accuracy"] == less["of_given"]["official"]


def test_logged_names_are_small_letters_and_their_values_those_of_the_results(tmp_path):
    entry = evaluate(by_hash, made.write(tmp_path / "whole.jsonl", made.rewardbench()), num_resamples=100)["whole"]
    flat = flat_figures(entry)
    assert flat["accuracy"] == flat["overall"] == entry["overall"]["official"]
    assert flat["chat_hard"] == entry["sections"]["Chat Hard"]["official"]
    assert flat["llmbar_adver_gptinst"] == entry["subsets"]["llmbar-adver-GPTInst"]["official"]
    assert flat["flat"] == entry["figures"]["flat"]
    assert all(
        isinstance(value, float) and name.isidentifier() and name == name.lower() for name, value in flat.items()
    )


def test_the_table_names_every_part_with_its_figures_and_what_is_missing(tmp_path):
    rows = made.rewardbench({"mt-bench-easy": 28, "donotanswer": 5})
    text = describe(evaluate(by_hash, made.write(tmp_path / "mine.jsonl", rows), num_resamples=100))
    lines = text.splitlines()
    assert lines[0] == "mine (rewardbench)"
    assert lines[1].split() == ["official", "95", "%", "interval", "half", "credit", "rows", "ties", "longer", "wins"]
    assert any(line.startswith("  of what is given") for line in lines)
    assert any(line.startswith("  donotanswer") and " 5 " in line for line in lines)
    assert lines[-1].startswith("  no overall figure: 33 of 2,985 rows")


def test_names_with_codes_for_a_terminal_or_line_breaks_stay_one_line_of_text(tmp_path):
    name, subset = "two\nlines\x1b[31m", "w" * 500 + "\x1b]0;title\x07"
    rows = [ScoredRow(name, f"{n}\x1b[2J", subset, [n % 2, 0.5], [1, 0]) for n in range(9)]
    for side, start in (("one", 0.0), ("two", 0.2)):
        write_rows(tmp_path / f"{side}.jsonl", [replace(row, rewards=[row.rewards[0] + start, 0.1]) for row in rows])
    compared = compare_files(tmp_path / "one.jsonl", tmp_path / "two.jsonl", num_resamples=100)
    assert compared["benchmarks"][name]["differ"]
    for text in (describe(recompute(tmp_path / "one.jsonl")), comparison.describe(compared)):
        assert "two lines⟨U+001B⟩[31m" in text
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "w" * 61 not in text


def test_half_a_surrogate_pair_is_written_as_json_escapes_it(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(r'{"id": "1\ud800", "rewards": [0, 1], "labels": [1, 0]}')
    found = recompute(path, output_dir=tmp_path / "out", with_report=False)
    assert found["mine"]["worst"][0]["id"] == "1\ud800"
    assert json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8")) == found


def mistakes_of(rows):
    """The first two rows as mistakes.jsonl has them; a prompt may hold a line break that is none to JSON."""
    for row in rows[:2]:
        sides = zip(row.rewards, row.labels, strict=True)
        candidates = [{"text": "t", "reward": reward, "label": label} for reward, label in sides]
        yield {"benchmark": row.benchmark, "id": row.id, "subset": row.subset, "margin": -1, "prompt": "a\u2028b"} | {
            "candidates": candidates
        }


def test_mistakes_of_other_scores_leave_the_folder_and_its_scores_stay(tmp_path, caplog):
    folder, rows = tmp_path / "out", pairs("mine")
    folder.mkdir()
    for path in (folder / "scores.jsonl", tmp_path / "copy.jsonl"):
        write_rows(path, rows)
    write_rows(tmp_path / "other.jsonl", pairs("mine", start=0.5))
    write_lines(folder / "mistakes.jsonl", mistakes_of(rows))
    for path in (folder / "scores.jsonl", tmp_path / "copy.jsonl"):
        recompute(path, output_dir=folder, with_report=False)
        assert (folder / "mistakes.jsonl").read_text(encoding="utf-8").count("\n") == 2
    assert caplog.messages == []
    before = (folder / "scores.jsonl").read_bytes()
    recompute(tmp_path / "other.jsonl", output_dir=folder, with_report=False)
    assert not (folder / "mistakes.jsonl").exists()
    assert (folder / "scores.jsonl").read_bytes() == before
    (said,) = caplog.messages
    assert "scores.jsonl there is of another evaluation" in said
    assert "mistakes.jsonl, which was not of these scores, is removed" in said


def test_a_page_of_older_results_does_not_stay_beside_new_ones(scores, tmp_path):
    path = scores(*pairs("mine"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("older")
    recompute(path, output_dir=tmp_path / "out", with_report=False)
    assert not (tmp_path / "out" / "report.html").exists()


def test_comparing_two_files_says_how_they_differ_and_leaves_it_as_json(tmp_path):
    for name, start in (("one", 0.0), ("two", 0.5)):
        write_rows(tmp_path / f"{name}.jsonl", pairs("mine", start=start))
    found = compare_files(tmp_path / "one.jsonl", tmp_path / "two.jsonl", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == found
    assert list(found["names"]) == ["one", "two"]
    assert found["benchmarks"]["mine"]["mcnemar"]
    assert "one" in (tmp_path / "out" / "comparison.html").read_text()
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        write_rows(tmp_path / run / "scores.jsonl", pairs("mine"))
    again = compare_files(tmp_path / "first" / "scores.jsonl", tmp_path / "second" / "scores.jsonl", num_resamples=100)
    assert list(again["names"]) == ["first", "second"]


def test_a_nan_is_an_error_that_names_the_option_with_which_it_is_wrong(tmp_path):
    lines = ['{"id": "1", "rewards": [1, 0], "labels": [1, 0]}', '{"id": "2", "rewards": [NaN, 0], "labels": [1, 0]}']
    path, other = tmp_path / "mine.jsonl", tmp_path / "other.jsonl"
    path.write_text("\n".join(lines))
    other.write_text("\n".join(lines).replace("NaN", "1"))
    message = r"mine.jsonl, line 2: 'rewards' must be finite numbers, but holds nan; .*--on_nonfinite official"
    with pytest.raises(ValueError, match=message):
        recompute(path)
    found = recompute(path, output_dir=tmp_path / "out", on_nonfinite="official", with_report=False)["mine"]
    assert (found["overall"]["official"], found["counts"]["n_nonfinite"]) == (0.5, 1)
    with pytest.raises(ValueError, match=message):
        compare_files(other, path)
    found = compare_files(other, path, tmp_path / "compared", on_nonfinite="official")
    assert found["benchmarks"]["unnamed"]["overall"]["difference"] == 0.5


def test_the_options_of_compare_are_two_files_and_the_bootstraps(tmp_path):
    found = parse_fields(Comparing, "compare", "", "", ["a.jsonl", "b.jsonl", "--seed", "3"])
    assert found == {"first": "a.jsonl", "second": "b.jsonl", "seed": 3}
    with pytest.raises(UsageError, match="arguments are required: B"):
        parse_fields(Comparing, "compare", "", "", ["a.jsonl"])


@pytest.mark.skipif(not DATA.is_dir(), reason=HERE)
def test_real_reward_models_scores_give_the_published_figures(tmp_path):
    held = json.loads((DATA / "reference_scores.json").read_text())
    judged = held["judgebench_gpt4o"]
    names = [name for name, value in judged["scores"].items() if len(value) == 350]
    assert len(names) == 3
    expected = {225: [92, 65, 47, 21], 222: [96, 68, 37, 21], 208: [97, 52, 36, 23]}
    seen = set()
    for name in names:
        rows = [
            ScoredRow("judgebench", row_id, category, list(map(float, both)), [1, 0] if label else [0, 1], None, {})
            for row_id, category, both, label in zip(
                judged["pair_id"], judged["cat"], judged["scores"][name], judged["label"], strict=True
            )
        ]
        write_rows(tmp_path / "scores.jsonl", rows)
        found = recompute(tmp_path / "scores.jsonl", "JudgeBench", num_resamples=100)["JudgeBench"]
        correct = round(350 * found["overall"]["official"])
        sections = [found["sections"][part] for part in ("Knowledge", "Reasoning", "Math", "Coding")]
        assert [round(part["official"] * part["n"]) for part in sections] == expected[correct]
        seen.add(correct)
    assert seen == set(expected)


@pytest.mark.skipif(not DATA.is_dir(), reason=HERE)
def test_real_scores_of_ten_candidates_give_the_known_figures(tmp_path):
    expected = {
        20.50: (21.53, 21.01, 0.4218, 72, [13.628, 17.066, 20.282]),
        24.43: (24.84, 24.64, 0.4580, 5, [14.072, 18.555, 23.007]),
        7.04: (7.04, 7.04, 0.2703, 4, [9.984, 8.925, 7.621]),
    }
    held = json.loads((DATA / "reference_scores.json").read_text())["rewardmath"]["scores"]
    assert len(held) == 3
    for rewards in held.values():
        labels = [1] + [0] * 9
        rows = [ScoredRow("RewardMATH", str(n), None, row, labels, None, {}) for n, row in enumerate(rewards)]
        write_rows(tmp_path / "scores.jsonl", rows)
        found = recompute(tmp_path / "scores.jsonl", "rewardmath", num_resamples=100)["rewardmath"]
        strict = round(100 * found["overall"]["official"], 2)
        at_least, credit, mrr, tied, curve = expected.pop(strict)
        numbers = found["figures"]
        assert round(100 * numbers["at_least"], 2) == at_least
        assert round(100 * found["overall"]["half_credit"], 2) == credit
        assert (round(numbers["mrr"], 4), numbers["wrong_tied_with_right"]) == (mrr, tied)
        values = {point["k"]: point["value"] for point in found["curve"]}
        assert [round(100 * values[k], 3) for k in (2, 4, 8)] == curve


@pytest.mark.skipif(not DATA.is_dir(), reason=HERE)
def test_longer_wins_on_the_real_transcripts_is_the_known_share(tmp_path):
    with gzip.open(DATA / "hh_harmless_test.jsonl.gz", "rt") as file:
        (tmp_path / "hh.jsonl").write_text(file.read())
    found = evaluate(by_hash, str(tmp_path / "hh.jsonl"), num_resamples=100)["hh"]
    longer = found["baselines"]["overall"]
    assert round(100 * longer["longer_wins"], 2) == 44.25
    assert round(100 * longer["longer_wins_half_credit"], 2) == 44.49
    assert found["overall"]["n"] == 2312


def test_a_directory_of_results_stands_for_its_scores(scores, tmp_path):
    file = scores(*pairs("mine"))
    assert recompute(tmp_path)["mine"]["overall"] == recompute(file)["mine"]["overall"]
    assert compare_files(tmp_path, file)["benchmarks"]["mine"]["n"] == 20
