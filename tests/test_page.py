"""What a report shows of each file: tables of what is there, and words for what is not."""

import made_results as made

from plaudit.page import report_context


def shown(**files):
    names = {"results": "results.json", "mistakes": "mistakes.jsonl", "state": "trainer_state.json"}
    names |= {"summary": "summary.json", "audit": "audit.json"}
    return report_context({names[key]: value for key, value in files.items()})


def test_a_table_of_figures_has_only_columns_with_values():
    pairs = shown(results={"a": made.pairs_entry()})["benchmarks"][0]["table"]
    assert pairs["columns"][0] == "Half credit"
    assert "Shorter wins" in pairs["columns"], "the rule of length that goes further"
    assert "Longer wins" not in pairs["columns"]
    bare = shown(results={"a": {"kind": "pairs", "overall": made.figure(0.7, 50)}})["benchmarks"][0]["table"]
    assert bare["columns"] == ["Half credit", "Rows", "Ties"]
    assert [title for title, _ in bare["groups"]] == [""]


def test_mistakes_go_to_their_benchmark_and_replace_the_bare_rewards():
    results = {"a": made.pairs_entry(), "b": made.pairs_entry()}
    one, other = shown(results=results, mistakes=made.mistakes("a"))["benchmarks"]
    assert len(one["mistakes"]) == 8
    assert one["worst"] == []
    assert other["mistakes"] == []
    assert other["worst"][0][0] == "1000"
    assert other["worst"][0][2] == "6.20"


def test_of_many_rewards_the_two_are_shown_that_the_margin_is_between():
    entry = made.pairs_entry()
    row = {"id": "1", "subset": "x", "rewards": [9.0, 1.0, 5.0, 8.0], "labels": [1, 1, 0, 0], "margin": -7.0}
    entry["worst"] = [row]
    assert shown(results={"a": entry})["benchmarks"][0]["worst"][0] == ("1", "x", "7.00", "1.00", "8.00")


def test_many_benchmarks_keep_the_summary_short():
    context = shown(results={name: made.pairs_entry() for name in "abc"})
    assert all(len(one["points"]) == 3 for one in context["benchmarks"])
    assert all(point.is_fault for one in context["benchmarks"] for point in one["points"])


def test_other_figures_sets_and_cut_texts_get_tables():
    entry = made.best_of_entry()
    entry["figures"]["sets"] = {"MATH": {"pair_accuracy": 0.75, "auc": 0.8, "intervals": {}}, "GPQA": {"auc": 0.6}}
    part = {"n_truncated": 3, "share": 0.1, "official_without_truncated": 0.5}
    entry["truncation"] = {"overall": part, "subsets": {"x": part}}
    tables = {table.title: table for table in shown(results={"a": entry})["benchmarks"][0]["tables"]}
    assert ("mean reciprocal rank (ties count against it)", "0.458") in tables["Other figures"].rows
    assert tables["Figures of each set"].columns == ("Set", "pair accuracy", "area under the ROC curve")
    assert tables["Figures of each set"].rows[0] == ("MATH", "75.0\u00a0%", "0.800")
    assert tables["Rows with a text that was cut"].rows[1] == ("x", "3", "10.0\u00a0%", "50.0\u00a0%")


def test_a_demos_summary_stands_in_for_results_only_where_there_are_none():
    alone = shown(summary=made.demo_summary())
    assert alone["benchmarks"][0]["figure"]["official"] == 0.985
    assert alone["examples"][1][4] == "a mistake"
    both = shown(summary=made.demo_summary(), results={"a": made.pairs_entry()})
    assert [one["name"] for one in both["benchmarks"]] == ["a"]
    assert both["examples"]


def test_a_training_alone_is_told_in_words():
    context = shown(state=made.trainer_state())
    assert context["heading"] == "How did this training go?"
    assert context["opening"][0].startswith("The loss went from 0.689 to 0.397 nats")
    assert "guessing gives 0.693" in context["opening"][0]
    assert shown(state={"log_history": []})["opening"] == ["Nothing was logged that a page could show."]


def test_an_audit_alone_is_a_page_on_data_and_beside_other_results_a_part():
    audit = {"summary": "2,312 pairs."}
    alone = shown(audit=audit)
    assert (alone["heading"], alone["opening"]) == ("What is in this data?", ["2,312 pairs."])
    assert alone["contents"] == [("data", "The data")]
    assert alone["title"] == "plaudit report: data"
    assert shown(audit={"rows": 3})["opening"] == []
    beside = shown(audit=audit, state=made.trainer_state())
    assert beside["heading"] == "How did this training go?"
    assert beside["audit"]["summary"] == "2,312 pairs."
