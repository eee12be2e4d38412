"""An audit's part of a report: its paragraph, a table of each of its parts, and what is left as plain facts."""

from collections.abc import Callable, Mapping
from typing import Any

from plaudit.listing import Table, facts_of, words
from plaudit.readable import one_line
from plaudit.wording import ABSENT, decimal, interval, is_number, number, percent

# Of sources and models, the largest; of examples and of a fault's rows, the first.
MOST_GROUPS, MOST_EXAMPLES, MOST_ROWS = 20, 10, 5
Columns = Mapping[str, tuple[str, Callable[[Any], str]]]


def _size(value: Any) -> str:
    """Return a length or a margin: whole numbers as such."""
    return number(value) if is_number(value) and value == int(value) else decimal(value)


def _rows(rows: Any) -> str:
    return ", ".join(map(str, (rows or [])[:MOST_ROWS])) or ABSENT


# By the keys of audit.json: what stands above a column, and how its values are shown.
COUNTED: Columns = {"count": ("Pairs", number), "share": ("Share", percent), "rows": ("First rows", _rows)}
RULES: Columns = {
    "official": ("A tie is wrong", percent),
    "half_credit": ("Ties half", percent),
    "interval": ("95 % interval", interval),
}
SPREAD: Columns = {
    "min": ("Least", _size),
    "p25": ("25 %", _size),
    "median": ("Median", _size),
    "p75": ("75 %", _size),
    "p95": ("95 %", _size),
    "p99": ("99 %", _size),
    "max": ("Most", _size),
    "mean": ("Mean", decimal),
}
SOURCES: Columns = {
    "n": ("Pairs", number),
    "share": ("Share", percent),
    "longer_wins": ("Longer wins, ties half", lambda rule: percent((rule or {}).get("half_credit"))),
}
MODELS: Columns = {"n": ("Answers", number), "share": ("Chosen", percent)}
MARGINS: Columns = {
    **{key: (words(key).capitalize(), number) for key in ("missing", "not_finite", "negative", "zero")},
    **SPREAD,
}
FOUND: Columns = {
    "rows": ("Rows", number),
    "rows_found": ("Found rows", number),
    "rows_share": ("Share", percent),
    "prompts_found": ("Found prompts", number),
    "answers_found": ("Found answers", number),
}
SHARING: Columns = {
    "within_pairs": ("Shared within pairs", percent),
    "padded_to_real": ("Padded / real", decimal),
    "real_to_unique": ("Real / unique", decimal),
    "padded_to_unique": ("Padded / unique", decimal),
}
# What tables and the paragraph show, whole or in part.
WHOLLY_SHOWN = ("summary", "faults", "baselines", "lengths", "sources", "models", "margins", "benchmark_overlap")
PARTLY_SHOWN = {
    "sharing": (*SHARING, "unit"),
    "test_overlap": ("prompts", "same_pairs"),
    "tokens": ("lengths", "sharing"),
}


def audit_context(audit: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what the template shows of an audit, all of it text; None where there is none."""
    if not audit:
        return None
    tables = [table for table in _tables(audit, _part(audit, "tokens")) if table.rows]
    summary = audit.get("summary")
    return {
        "summary": one_line(summary, 3_000) if isinstance(summary, str) else "",
        "tables": tables,
        "facts": facts_of(_rest(audit)),
    }


def _tables(audit: Mapping[str, Any], tokens: Mapping[str, Any]) -> list[Table]:
    lengths = {**_part(audit, "lengths"), "tokens": tokens.get("lengths") or _part(audit, "lengths").get("tokens")}
    sharing = {str(one.get("unit")): one for one in (_part(audit, "sharing"), _part(tokens, "sharing")) if one}
    found = _part(audit, "benchmark_overlap")
    return [
        _table("Faults", "Fault", _in_words(_part(audit, "faults")), COUNTED),
        _table("What trivial rules would get right", "Rule", _in_words(_part(audit, "baselines")), RULES),
        *(_table(f"Lengths in {one_line(unit)}", "Side", sides or {}, SPREAD) for unit, sides in lengths.items()),
        _table("By source", "Source", _groups(_part(audit, "sources"), "source"), SOURCES),
        _table("By model", "Model", _groups(_part(audit, "models"), "model"), MODELS),
        _table("Margins", "", {"margin": audit.get("margins")}, MARGINS),
        _table("Test pairs found in the training data", "Found", _in_words(_part(audit, "test_overlap")), COUNTED),
        _table("Benchmarks found in the training data", "Benchmark", found, FOUND),
        _examples(found),
        _table("What is told twice, and what layouts cost", "Unit", sharing, SHARING),
    ]


def _table(title: str, name: str, entries: Any, columns: Columns) -> Table:
    """Return a table of a row an entry, with those columns of which an entry has a value."""
    named = entries.items() if isinstance(entries, Mapping) else ()
    rows = [(one_line(key), one) for key, one in named if isinstance(one, Mapping)]
    kept = {key: column for key, column in columns.items() if any(key in one for _, one in rows)}
    cells = [(key, *(show(one.get(column)) for column, (_, show) in kept.items())) for key, one in rows]
    return Table(title, (name, *(heading for heading, _ in kept.values())), cells)


def _part(audit: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of an audit, empty where it is absent or, in a file by other hands, no object."""
    found = audit.get(name)
    return found if isinstance(found, Mapping) else {}


def _in_words(part: Mapping[str, Any]) -> dict[str, Any]:
    return {words(key): one for key, one in part.items()}


def _groups(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    listed = [one for one in part.get("listed") or [] if isinstance(one, Mapping)]
    return {str(one.get(name)): one for one in listed[:MOST_GROUPS]}


def _examples(found: Mapping[str, Any]) -> Table:
    """Return texts of benchmarks and the training rows that hold the same words."""
    rows = [
        (one_line(name), *(one_line(each.get(key, "")) for key in ("row", "in", "train_row", "run")))
        for name, one in found.items()
        if isinstance(one, Mapping)
        for each in (one.get("examples") or [])[:MOST_EXAMPLES]
    ]
    return Table("Shared runs of words", ("Benchmark", "Row", "In", "Training row", "Words"), rows)


def _rest(audit: Mapping[str, Any]) -> dict[str, Any]:
    """Return what no table shows."""
    rest = {key: one for key, one in audit.items() if key not in WHOLLY_SHOWN and one is not None}
    for name, keys in PARTLY_SHOWN.items():
        if name in rest:
            rest[name] = {key: one for key, one in _part(audit, name).items() if key not in keys}
    return rest
