"""What a report says and shows: from the files of a directory of results to plain data for the template."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from plaudit import wording
from plaudit.audit_page import audit_context
from plaudit.gallery import benchmark_pictures, training_pictures
from plaudit.listing import Table, facts_of, figure_words, shown
from plaudit.listing import words as words_of
from plaudit.metrics import LN_2
from plaudit.readable import decisive, mistake, one_line, room_for
from plaudit.wording import decimal, is_number, number, percent

# With more mistakes than this nobody would read the page to its end.
MOST_MISTAKES = 20
# With more benchmarks than this the summary keeps to their faults, and to so many of them.
FEW_BENCHMARKS, FAULTS_EACH = 2, 3

TERMS = (
    ("Official figure", "What the benchmark itself counts, by its own rule for ties. Compare it with published numbers."),
    ("Half credit", "The recommended figure: a tie counts as half a point, or as one over the number tied at the top."),
    (
        "95 % interval",
        "If rows of the same kind were drawn again and again, 95 of 100 such intervals would hold the true figure. Wilson's "
        "for plain shares, a bootstrap over prompts for composites and best-of-n.",
    ),
    ("Longer wins", "The figure of a rule that reads nothing and always prefers the longer answer."),
    ("Picks longer", "In how many of the comparisons of unlike length the model prefers the longer answer."),
    ("Confidence", "What the reward difference says about the chance that the preferred answer is the better one: the logistic function of it."),
    ("Calibration error", "The mean distance between confidence and accuracy over ten bins of confidence (ECE)."),
    ("Loss, Brier score", f"Mean of minus log of the chance given to the right answer, in nats (guessing gives {LN_2:.3f}), and mean square of what was missing to certainty."),
    ("Temperature", "The number that rewards would have to be divided by to be as sure as they are right; fitted on other rows than it is judged on."),
    ("KL", "How far the best of k is from the policy that the answers are drawn from, at most: log k minus (k - 1)/k nats."),
)  # fmt: skip


def report_context(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template shows, all of it text, from what `read_folder` found."""
    results = dict(found.get("results.json") or {})
    summary = found.get("summary.json") or {}
    if not results and is_number(summary.get("accuracy")):
        results = {"held-out pairs": _as_results(summary)}
    mistakes = _mistakes_by_benchmark(found.get("mistakes.jsonl") or [])
    benchmarks = [
        _benchmark(name, entry, f"benchmark-{place}", mistakes.get(name, []), len(results))
        for place, (name, entry) in enumerate(results.items(), start=1)
    ]
    state = found.get("trainer_state.json") or {}
    training = training_pictures(state.get("log_history") or [])
    model = next((one["model"] for one in benchmarks if one["model"]), "")
    audit = audit_context(found.get("audit.json"))
    run_facts = _run_facts(summary, state)
    subject, heading, opening = _subject(found, benchmarks, audit)
    return {
        "title": one_line(f"plaudit report: {subject}", 120),
        "heading": heading,
        "model": model,
        "opening": opening,
        "benchmarks": benchmarks,
        "training": training,
        "examples": _examples(summary),
        "audit": audit,
        "run_facts": run_facts,
        "terms": TERMS if benchmarks else (),
        "contents": [
            *((one["key"], one["name"]) for one in benchmarks),
            *([("training", "Training")] if training else []),
            *([("data", "The data")] if audit else []),
            *([("how", "How this was computed")] if run_facts or benchmarks else []),
        ],
    }


def _subject(
    found: Mapping[str, Any], benchmarks: Sequence[Mapping[str, Any]], audit: Mapping[str, Any] | None
) -> tuple[str, str, list[str]]:
    """Return what a page is about, its heading, and the paragraphs that open it where no benchmark does."""
    if benchmarks:
        return ", ".join(one["name"] for one in benchmarks), "How good is this reward model?", []
    if audit is not None and "trainer_state.json" not in found:
        return "data", "What is in this data?", [audit["summary"]] if audit["summary"] else []
    log_history = (found.get("trainer_state.json") or {}).get("log_history") or []
    return "training", "How did this training go?", _training_words(log_history)


def _benchmark(
    name: str, entry: Mapping[str, Any], key: str, mistakes: list[dict], num_benchmarks: int
) -> dict[str, Any]:
    """Return what the page shows of one benchmark."""
    provenance = entry.get("provenance") or {}
    name = one_line(name, 80)
    found = wording.failings(entry)
    if num_benchmarks > FEW_BENCHMARKS:
        found = [point for point in found if point.is_fault][:FAULTS_EACH] or found[:1]
    return {
        "name": name,
        "key": key,
        "figure": {"official": None, "interval": None, **wording.figure_of(entry)},
        "incomplete": one_line(entry["incomplete"], 600).rstrip(".") + "." if entry.get("incomplete") else None,
        "chance": wording.chance_of(entry),
        "rule": wording.length_rule(entry),
        "opening": wording.opening(name, entry),
        "certainty": wording.certainty(entry),
        "points": found,
        "table": _figure_table(entry),
        "tables": _extra_tables(entry),
        "pictures": benchmark_pictures(entry, key),
        "mistakes": mistakes,
        "worst": [] if mistakes else _worst(entry.get("worst") or []),
        "counts": _counts(entry),
        "provenance": facts_of(provenance),
        "model": one_line(provenance.get("model") or "", 200) if isinstance(provenance.get("model"), str) else "",
    }


# The columns of the table of figures after the interval: title, how it is shown, and which value of a part it is.
COLUMNS = (
    ("Half credit", percent, lambda part: part.figure.get("half_credit")),
    ("Rows", number, lambda part: part.figure.get("n")),
    ("Ties", number, lambda part: part.figure.get("ties")),
    ("Longer wins", percent, lambda part: part.baselines.get("longer_wins_half_credit")),
    ("Shorter wins", percent, lambda part: part.baselines.get("shorter_wins_half_credit")),
    ("Picks longer", percent, lambda part: part.baselines.get("chooses_longer")),
    ("Right when longer", percent, lambda part: part.baselines.get("accuracy_correct_longer")),
    ("Right when shorter", percent, lambda part: part.baselines.get("accuracy_correct_shorter")),
)


def _figure_table(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of figures: those columns of which at least one part has a value, and its rows in groups."""
    groups, rule = wording.parts_of(entry), wording.length_rule(entry)
    # Of the two rules of length, the one that goes further.
    other = {"longer": "Shorter wins", "shorter": "Longer wins", None: None}[rule and rule.word]
    kept = [
        one
        for one in COLUMNS
        if one[0] != other and any(is_number(one[2](part)) for parts in groups.values() for part in parts)
    ]
    return {
        "columns": [title for title, _, _ in kept],
        "groups": [(title, [_figure_row(part, kept, rule) for part in parts]) for title, parts in groups.items()],
    }


def _figure_row(
    part: wording.Part, columns: Sequence[tuple[str, Any, Any]], rule: wording.LengthRule | None
) -> dict[str, Any]:
    value = part.baselines.get(f"{rule.word}_wins_half_credit") if rule else None
    return {
        "name": one_line(part.name, 80),
        "figure": {"official": None, "interval": None, **part.figure},
        "rule": value if is_number(value) else None,
        "cells": [show(take(part)) for _, show, take in columns],
    }


def _extra_tables(entry: Mapping[str, Any]) -> list[Table]:
    """Return a benchmark's other numbers as tables: one of single numbers, one of sets, and the shares of cut texts."""
    figures = dict(entry.get("figures") or {})
    sets, cut = figures.pop("sets", None), entry.get("truncation") or {}
    made = []
    if figures:
        made.append(Table("Other figures", ("Figure", "Value"), facts_of(figures)))
    if sets:
        keys = list(dict.fromkeys(key for one in sets.values() for key, value in one.items() if is_number(value)))
        rows = [(one_line(name), *(shown(key, one.get(key)) for key in keys)) for name, one in sets.items()]
        made.append(Table("Figures of each set", ("Set", *map(figure_words, keys)), rows))
    if (cut.get("overall") or {}).get("n_truncated"):
        parts = {"Overall": cut["overall"], **(cut.get("subsets") or {})}
        rows = [
            (
                one_line(name),
                number(one["n_truncated"]),
                *map(percent, (one["share"], one["official_without_truncated"])),
            )
            for name, one in parts.items()
        ]
        made.append(Table("Rows with a text that was cut", ("Part", "Rows", "Share", "Official without them"), rows))
    return made


def _worst(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    made: list[tuple[str, ...]] = []
    for row in rows[:MOST_MISTAKES]:
        rewards, margin = row.get("rewards") or [], row.get("margin")
        chosen = decisive(rewards, row.get("labels") or [], margin)
        sides = (wording.ABSENT if place is None else wording.reward(rewards[place]) for place in chosen)
        subset = one_line(row.get("subset") or wording.ABSENT)
        made.append((one_line(row.get("id", "")), subset, wording.reward(size(margin)), *sides))
    return made


def _mistakes_by_benchmark(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(str(row.get("benchmark")), []).append(row)
    kept = {name: ones[:MOST_MISTAKES] for name, ones in grouped.items()}
    longest = room_for([row for ones in kept.values() for row in ones])
    return {name: [mistake(row, longest) for row in ones] for name, ones in kept.items()}


def _counts(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {
        "n": "rows",
        "n_tied": "rows with a tie",
        "n_nonfinite": "rows with an infinite or undefined reward",
        "n_truncated": "rows with a cut text",
        "n_template_missing": "rows without a chat template",
        "n_identical_texts": "rows with identical right and wrong answers",
    }
    counts = entry.get("counts") or {}
    return [(names.get(key, words_of(key)), number(value)) for key, value in counts.items() if is_number(value)]


def _as_results(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a demo's summary in the form of results.json."""
    accuracy, ends = summary["accuracy"], summary.get("accuracy_interval_95")
    figure = {"official": accuracy, "interval": list(ends) if ends else None, "n": summary.get("num_held_out_pairs")}
    return {
        "kind": "pairs",
        "chance": 0.5,
        "overall": figure,
        "baselines": {"longer_wins": summary.get("longer_wins_accuracy")},
    }


def _examples(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    made: list[tuple[str, ...]] = []
    for row in summary.get("examples") or []:
        chosen, rejected = row.get("chosen_reward"), row.get("rejected_reward")
        verdict = "right" if is_number(chosen) and is_number(rejected) and chosen > rejected else "a mistake"
        made.append(
            (
                one_line(row.get("chosen"), 300),
                wording.reward(chosen),
                one_line(row.get("rejected"), 300),
                wording.reward(rejected),
                verdict,
            )
        )
    return made


def _run_facts(summary: Mapping[str, Any], state: Mapping[str, Any]) -> list[tuple[str, str]]:
    left_out = ("examples", "accuracy", "accuracy_interval_95", "longer_wins_accuracy", "output_dir")
    facts = facts_of({key: value for key, value in summary.items() if key not in left_out})
    known = (
        ("global_step", "steps"),
        ("epoch", "epochs"),
        ("best_metric", "best metric"),
        ("total_flos", "floating point operations"),
    )
    facts += [(name, shown(key, state[key])) for key, name in known if state.get(key)]
    return facts


def _training_words(log_history: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the summary of a training that nothing else was measured of."""
    records = list(log_history)
    texts = []
    for key, words in (("loss", "The loss"), ("eval_loss", "On held-out pairs the loss")):
        values = [record[key] for record in records if is_number(record.get(key))]
        if values:
            texts.append(
                f"{words} went from {decimal(values[0])} to {decimal(values[-1])} nats; guessing gives {LN_2:.3f}."
            )
    for key, words in (("accuracy", "accuracy in training"), ("eval_accuracy", "accuracy on held-out pairs")):
        values = [record[key] for record in records if is_number(record.get(key))]
        if values:
            texts.append(f"The {words} was {percent(values[-1])} at the end.")
    return [" ".join(texts)] if texts else ["Nothing was logged that a page could show."]


def size(value: Any) -> float | None:
    """Return how far a margin is from 0, None for what is no number."""
    return abs(value) if is_number(value) else None
