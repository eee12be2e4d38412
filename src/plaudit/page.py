"""What a report says and shows: from the files of a directory of results to plain data for the template."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from plaudit import wording
from plaudit.gallery import benchmark_pictures, training_pictures
from plaudit.metrics import LN_2
from plaudit.readable import decisive, mistake, one_line, room_for
from plaudit.wording import decimal, interval, is_number, number, percent

# With more mistakes than this nobody would read the page to its end.
MOST_MISTAKES = 20
# Of an audit's sources and models, the largest.
MOST_GROUPS = 20
# With more benchmarks than this the summary keeps to their faults, and to so many of them.
FEW_BENCHMARKS, FAULTS_EACH = 2, 3

# Figures that are shares, shown in percent, and names that are no plain words yet.
SHARES = frozenset(
    "official half_credit share strict at_least one_over_tied overall4 overall5 flat double_game single_game pair_accuracy "
    "max end ties_v0_1_4".split()
)
FIGURE_WORDS = {
    "strict": "right answer above all wrong ones",
    "at_least": "right answer not below any wrong one",
    "one_over_tied": "one over the number tied at the top",
    "mrr": "mean reciprocal rank (ties count against it)",
    "wrong_tied_with_right": "wrong answers tied with the right one",
    "overall4": "mean of the four sections",
    "overall5": "mean with prior sets at half weight",
    "flat": "share of all rows",
    "double_game": "both orders (official: a tie is wrong)",
    "single_game": "one order (a tie is read as B>A)",
    "auc": "area under the ROC curve",
    "max": "best of k at its highest",
    "end": "best of all",
    "loss": "mean squared distance from a perfect choice",
    "ties_v0_1_4": "Ties by the rule of release 0.1.4",
    "sha256": "SHA-256",
}

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


class Table(NamedTuple):
    """A table for the page, all of it text."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


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
    log_history = (found.get("trainer_state.json") or {}).get("log_history") or []
    training = training_pictures(log_history)
    model = next((one["model"] for one in benchmarks if one["model"]), "")
    names = [one["name"] for one in benchmarks]
    return {
        "title": one_line(f"plaudit report: {', '.join(names) or 'training'}", 120),
        "heading": "How good is this reward model?" if benchmarks else "How did this training go?",
        "model": model,
        "opening": [] if benchmarks else _training_words(log_history),
        "benchmarks": benchmarks,
        "training": training,
        "examples": _examples(summary),
        "audit": _audit(found.get("audit.json")),
        "run_facts": _run_facts(summary, found.get("trainer_state.json") or {}),
        "terms": TERMS if benchmarks else (),
        "contents": [
            *((one["key"], one["name"]) for one in benchmarks),
            *([("training", "Training")] if training else []),
            *([("data", "The data")] if found.get("audit.json") else []),
            ("how", "How this was computed"),
        ],
    }


def _benchmark(
    name: str, entry: Mapping[str, Any], key: str, mistakes: list[dict], num_benchmarks: int
) -> dict[str, Any]:
    """Return what the page shows of one benchmark."""
    provenance = entry.get("provenance") or {}
    name = one_line(name, 80)
    found = wording.failings(entry)
    if num_benchmarks > FEW_BENCHMARKS:
        found = [point for point in found if point.is_fault][:FAULTS_EACH] or found[:1]
    longer = wording.baselines_of(entry).get("longer_wins")
    return {
        "name": name,
        "key": key,
        "figure": wording.figure_of(entry),
        "incomplete": one_line(entry["incomplete"], 600).rstrip(".") + "." if entry.get("incomplete") else None,
        "chance": wording.chance_of(entry),
        "longer": longer if is_number(longer) else None,
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
    ("Longer wins", percent, lambda part: part.baselines.get("longer_wins")),
    ("Picks longer", percent, lambda part: part.baselines.get("chooses_longer")),
    ("Right when longer", percent, lambda part: part.baselines.get("accuracy_correct_longer")),
    ("Right when shorter", percent, lambda part: part.baselines.get("accuracy_correct_shorter")),
)


def _figure_table(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of figures: those columns of which at least one part has a value, and its rows in groups."""
    groups = wording.parts_of(entry)
    kept = [one for one in COLUMNS if any(is_number(one[2](part)) for parts in groups.values() for part in parts)]
    return {
        "columns": [title for title, _, _ in kept],
        "groups": [(title, [_figure_row(part, kept) for part in parts]) for title, parts in groups.items()],
    }


def _figure_row(part: wording.Part, columns: Sequence[tuple[str, Any, Any]]) -> dict[str, Any]:
    longer = part.baselines.get("longer_wins")
    return {
        "name": one_line(part.name, 80),
        "figure": {"official": None, "interval": None, **part.figure},
        "longer": longer if is_number(longer) else None,
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
        rows = [(one_line(name), *(_shown(key, one.get(key)) for key in keys)) for name, one in sets.items()]
        made.append(Table("Figures of each set", ("Set", *map(_figure_words, keys)), rows))
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
    return [(names.get(key, _words(key)), number(value)) for key, value in counts.items() if is_number(value)]


def facts_of(value: Any, key: str = "", path: str = "") -> list[tuple[str, str]]:
    """Return nested values as a flat list of names and texts, the names of what is inside others with theirs before."""
    if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        value = {str(place): one for place, one in enumerate(value, start=1)}
    if isinstance(value, Mapping):
        before = f"{path}{_words(key)}, " if key else path
        return [fact for name, one in value.items() for fact in facts_of(one, str(name), before)]
    if isinstance(value, list):
        text = one_line(", ".join(str(one) for one in value[:20]) + (" …" if len(value) > 20 else ""), 400)
        text = interval(value) if key == "interval" else text
    elif isinstance(value, bool) or value is None:
        text = {True: "yes", False: "no", None: wording.ABSENT}[value]
    else:
        text = _shown(key, value) if isinstance(value, int | float) else one_line(value, 400)
    return [(one_line(path + _figure_words(key), 160), text)]


def _shown(key: str, value: Any) -> str:
    """Return a number as a figure of its name is shown."""
    if key in SHARES:
        return percent(value)
    return number(value) if is_number(value) and value == int(value) and abs(value) < 1e15 else decimal(value)


def _figure_words(key: str) -> str:
    return FIGURE_WORDS.get(key, _words(key))


def _words(key: str) -> str:
    return key.replace("_", " ")


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
    facts += [(name, _shown(key, state[key])) for key, name in known if state.get(key)]
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


def _audit(audit: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what the page shows of an audit: its paragraph, tables of its main parts, and the rest as plain facts."""
    if not audit:
        return None
    known = {"summary", "faults", "baselines", "lengths", "sources", "models"}
    parts = {name: audit[name] for name in known if isinstance(audit.get(name), Mapping)}
    tables = [_fault_table(parts.get("faults", {})), _rule_table(parts.get("baselines", {}))]
    tables += [_length_table(unit, sides) for unit, sides in parts.get("lengths", {}).items()]
    tables += [_group_table(f"By {name[:-1]}", parts.get(name, {})) for name in ("sources", "models")]
    summary = audit.get("summary")
    return {
        "summary": one_line(summary, 3_000) if isinstance(summary, str) else "",
        "tables": [table for table in tables if table.rows],
        "facts": facts_of({key: one for key, one in audit.items() if key not in known and one is not None}),
    }


def _entries(part: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the named parts of a part of an audit, whatever else a file by other hands may hold."""
    return [(name, one) for name, one in part.items() if isinstance(one, Mapping)] if isinstance(part, Mapping) else []


def _fault_table(faults: Mapping[str, Any]) -> Table:
    rows = [
        (
            one_line(_words(name)),
            number(one.get("count")),
            percent(one.get("share")),
            ", ".join(map(str, (one.get("rows") or [])[:5])) or wording.ABSENT,
        )
        for name, one in _entries(faults)
    ]
    return Table("Faults", ("Fault", "Pairs", "Share", "First rows"), rows)


def _rule_table(baselines: Mapping[str, Any]) -> Table:
    rows = [
        (
            one_line(_words(name)),
            percent(one.get("official")),
            percent(one.get("half_credit")),
            interval(one.get("interval")),
        )
        for name, one in _entries(baselines)
    ]
    return Table("What trivial rules would get right", ("Rule", "A tie is wrong", "Ties half", "95 % interval"), rows)


def _length_table(unit: str, sides: Any) -> Table:
    keys = list(dict.fromkeys(key for _, one in _entries(sides) for key in one))
    rows = [(one_line(side), *(_shown(key, one.get(key)) for key in keys)) for side, one in _entries(sides)]
    return Table(f"Lengths in {one_line(unit)}", ("Side", *map(_words, keys)), rows)


def _group_table(title: str, groups: Mapping[str, Any]) -> Table:
    """Return the pairs of each source, or the answers of each model, with what the audit counted of them."""
    listed = [one for one in groups.get("listed") or [] if isinstance(one, Mapping)]
    is_model = any("wins" in one for one in listed)
    rows = [
        (
            one_line(one.get("model" if is_model else "source")),
            number(one.get("n")),
            percent(one.get("share")),
            *([] if is_model else [percent((one.get("longer_wins") or {}).get("half_credit"))]),
        )
        for one in listed[:MOST_GROUPS]
    ]
    columns = ("Model", "Answers", "Chosen") if is_model else ("Source", "Pairs", "Share", "Longer wins, ties half")
    return Table(title, columns, rows)


def size(value: Any) -> float | None:
    """Return how far a margin is from 0, None for what is no number."""
    return abs(value) if is_number(value) else None
