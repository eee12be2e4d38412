"""Two models on the same rows: who is better, by how much, how sure that is, and on which rows they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from plaudit.composites import overall_of, sections_of
from plaudit.figures import without_nan
from plaudit.metrics import spearman
from plaudit.readable import one_line
from plaudit.resampling import NUM_RESAMPLES, mcnemar_exact
from plaudit.score_rows import ScoredRow, require_unique
from plaudit.sheet import Sheet, kind_of_rows, sheet_of
from plaudit.strata import Sampler, Weighted

NUM_SHOWN = 20
RULES = {
    "pairs": "the right answer beats every wrong one of its row; a tie is wrong",
    "rewardbench2": "a right answer has the highest reward alone; in Ties, every right one beats every wrong one",
    "rm-bench": "all nine comparisons of the row are won",
    "judgebench": "the right answer wins in both orders, so a tie is wrong",
    "ppe-correctness": "all of the prompt's sampled pairs are won",
    "choice": "a right answer has the highest reward alone",
}


def compare(
    rows_a: Sequence[ScoredRow],
    rows_b: Sequence[ScoredRow],
    names: tuple[str, str] = ("A", "B"),
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    on_nonfinite: str = "error",
) -> dict[str, Any]:
    """Return the comparison of two files of scores, by benchmark; every difference is the first minus the second.

    Rows are matched by benchmark, subset and id; those of one file alone are counted and named under `only_a` and
    `only_b`. Each of `benchmarks` has: `overall` (null for an incomplete one, then `of_given`), `subsets` and
    `sections`, each with both figures (`a`, `b`), their `difference`, its 95 % `interval` and `p` by paired bootstrap;
    `mcnemar`, the exact test on whole rows right or wrong by `rule`; `rank_correlation` of the margins (Spearman); and
    `differ`, the rows that one alone got right, the strongest disagreement first.
    Raises ValueError where no row matches, or the labels of a matched row differ.
    """
    sampler = Sampler(num_resamples, seed)
    if names[0] == names[1]:
        names = (f"{names[0]} (first)", f"{names[1]} (second)")
    matched = _matched(rows_a, rows_b, names)
    return {
        "names": list(names),
        "signs": f"differences are {names[0]} minus {names[1]}: above 0, {names[0]} is better",
        "num_resamples": num_resamples,
        "seed": seed,
        "only_a": _unmatched(rows_a, rows_b),
        "only_b": _unmatched(rows_b, rows_a),
        "benchmarks": {name: _benchmark(pairs, sampler, names, on_nonfinite) for name, pairs in matched.items()},
    }


def _matched(
    rows_a: Sequence[ScoredRow], rows_b: Sequence[ScoredRow], names: tuple[str, str]
) -> dict[str, list[tuple[ScoredRow, ScoredRow]]]:
    """Return the rows that are in both files, by benchmark."""
    for rows in (rows_a, rows_b):
        require_unique(rows)
    by_key = {row.key: row for row in rows_b}
    matched: dict[str, list[tuple[ScoredRow, ScoredRow]]] = {}
    for row in rows_a:
        if row.key in by_key:
            matched.setdefault(row.benchmark, []).append((row, _checked(row, by_key[row.key], names)))
    if not matched:
        raise ValueError(
            f"no row of {names[0]} is in {names[1]}: rows match by benchmark, subset and id, which are "
            f"{_first_key(rows_a)} in the first row of one and {_first_key(rows_b)} in that of the other; compare two "
            "files of scores of the same benchmark"
        )
    return matched


def _first_key(rows: Sequence[ScoredRow]) -> str:
    return repr(rows[0].key) if rows else "of no row"


def _unmatched(rows: Sequence[ScoredRow], others: Sequence[ScoredRow]) -> list[dict[str, Any]]:
    keys = {row.key for row in others}
    return [{"benchmark": row.benchmark, "subset": row.subset, "id": row.id} for row in rows if row.key not in keys]


def _checked(row_a: ScoredRow, row_b: ScoredRow, names: tuple[str, str]) -> ScoredRow:
    labels_a, labels_b = (list(map(int, row.labels)) for row in (row_a, row_b))
    if labels_a != labels_b:
        raise ValueError(
            f"{row_a.where}: the labels are {labels_a} in {names[0]} and {labels_b} in "
            f"{names[1]}; score the same version of the benchmark with both models"
        )
    # What the figures need beside rewards is the benchmark's, so that both are judged on the same pairs and parts.
    return replace(row_b, extra={**row_b.extra, **row_a.extra})


def _benchmark(
    pairs: list[tuple[ScoredRow, ScoredRow]], sampler: Sampler, names: tuple[str, str], on_nonfinite: str
) -> dict[str, Any]:
    rows_a, rows_b = [row for row, _ in pairs], [row for _, row in pairs]
    kind = kind_of_rows(rows_a)
    a = sheet_of(rows_a, kind, on_nonfinite=on_nonfinite)
    b = sheet_of(rows_b, kind, on_nonfinite=on_nonfinite, clusters=a.arrays.clusters)
    missing, given = a.missing, _contrast(sampler, overall_of(a), overall_of(b))
    # Both have the same rows, so the same sections.
    sections = zip(*(sections_of(sheet).items() for sheet in (a, b)), strict=True)
    entry = {
        "kind": kind,
        "rule": RULES.get("pairs" if kind in ("rewardbench", "ppe-human") else kind, RULES["choice"]),
        "n": len(pairs),
        "overall": None if missing else given,
        "incomplete": missing,
        **({"of_given": given} if missing else {}),
        "sections": {
            name: None if of_a is None or of_b is None else _contrast(sampler, of_a, of_b)
            for (name, of_a), (_, of_b) in sections
        },
        "subsets": {
            name: {
                **_contrast(sampler, ({name: a.stratum(name, index)}, None), ({name: b.stratum(name, index)}, None)),
                "mcnemar": _mcnemar(a, b, index),
            }
            for name, index in a.subsets.items()
        },
        "mcnemar": _mcnemar(a, b, a.whole()),
        "rank_correlation": _rank_correlation(a, b),
        "differ": _differing(a, b, names),
    }
    return without_nan(entry)


def _contrast(sampler: Sampler, given_a: Weighted, given_b: Weighted) -> dict[str, Any]:
    figures = {"a": sampler.figure(*given_a), "b": sampler.figure(*given_b)}
    return {**figures, **sampler.difference(given_a[0], given_b[0], given_a[1])}


def _mcnemar(a: Sheet, b: Sheet, index: np.ndarray) -> dict[str, Any]:
    index = index[a.outcomes.weight[index] > 0]
    right_a, right_b = a.outcomes.is_right[index], b.outcomes.is_right[index]
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return {
        "both_right": int((right_a & right_b).sum()),
        "only_a": only_a,
        "only_b": only_b,
        "both_wrong": int((~right_a & ~right_b).sum()),
        "p": mcnemar_exact(only_a, only_b),
    }


def _rank_correlation(a: Sheet, b: Sheet) -> float | None:
    known = np.isfinite(a.outcomes.margin) & np.isfinite(b.outcomes.margin)
    return spearman(a.outcomes.margin[known], b.outcomes.margin[known]) if known.any() else None


def _differing(a: Sheet, b: Sheet, names: tuple[str, str]) -> list[dict[str, Any]]:
    """Return the rows that one model alone got right; strength: the distance of the two margins, each in its own spread."""
    margins = np.stack([a.outcomes.margin, b.outcomes.margin])
    spread = np.sqrt(np.nanmean(np.where(np.isfinite(margins), margins, 0.0) ** 2, axis=1, keepdims=True))
    scaled = np.nan_to_num(margins / np.where(spread > 0, spread, 1.0))
    strength = np.abs(scaled[0] - scaled[1])
    index = np.flatnonzero((a.outcomes.is_right != b.outcomes.is_right) & (a.outcomes.weight > 0))
    index = index[np.argsort(-strength[index], kind="stable")]
    return [
        {
            "id": a.arrays.rows[row].id,
            "subset": a.arrays.rows[row].subset,
            "right": names[0] if a.outcomes.is_right[row] else names[1],
            "labels": [int(label) for label in a.arrays.rows[row].labels],
            "rewards_a": [float(reward) for reward in a.arrays.rows[row].rewards],
            "rewards_b": [float(reward) for reward in b.arrays.rows[row].rewards],
            "margin_a": float(margins[0, row]),
            "margin_b": float(margins[1, row]),
            "strength": float(strength[row]),
        }
        for row in index.tolist()
    ]


def describe(comparison: Mapping[str, Any]) -> str:
    """Return a comparison as text for a terminal: verdicts first, then parts, then the first rows that differ."""
    first, second = comparison["names"]
    lines = [f"A is {first}, B is {second}; differences are A minus B: above 0, A is better."]
    for side, name in (("only_a", first), ("only_b", second)):
        if unmatched := comparison[side]:
            ids = ", ".join(one_line(row["id"], 60) for row in unmatched[:5])
            more = ", ..." if len(unmatched) > 5 else ""
            rows = "row is" if len(unmatched) == 1 else "rows are"
            lines.append(f"{len(unmatched):,} {rows} only in {name} and left out: {ids}{more}")
    for name, entry in comparison["benchmarks"].items():
        lines += ["", *_described(name, entry)]
    return "\n".join(lines)


def _described(name: str, entry: Mapping[str, Any]) -> list[str]:
    # Names and ids are data: those with line breaks or codes for a terminal stay what they are.
    lines = [f"{one_line(name)} ({entry['n']:,} rows in both)"]
    if entry["incomplete"]:
        lines.append(f"  incomplete, so without an overall figure: {entry['incomplete']}")
    whole = entry["overall"] or entry["of_given"]
    lines.append(f"  {verdict(whole)}")
    parts = {name: one_line(name, 60) for name in ("all rows", "overall", *entry["sections"], *entry["subsets"])}
    width = max(map(len, parts.values()))
    lines.append(f"  {'':<{width}}  {'A':>7}  {'B':>7}  {'A - B':>7}  {'95 % interval':>18}  {'p':>7}")
    shown = {"overall" if entry["overall"] else "all rows": whole, **entry["sections"]}
    shown.update({part: found for part, found in entry["subsets"].items() if part not in entry["sections"]})
    lines += [f"  {parts[part]:<{width}}  {_line(found)}" for part, found in shown.items() if found]
    table = entry["mcnemar"]
    lines.append(
        f"  McNemar's exact test over rows ({entry['rule']}): both right {table['both_right']:,}, only A "
        f"{table['only_a']:,}, only B {table['only_b']:,}, both wrong {table['both_wrong']:,}; p = {table['p']:.3g}"
    )
    if entry["rank_correlation"] is not None:
        lines.append(f"  Rank correlation of the margins (Spearman): {entry['rank_correlation']:.3f}")
    if entry["differ"]:
        rows = "row" if len(entry["differ"]) == 1 else "rows"
        lines.append(f"  They differ on {len(entry['differ']):,} {rows}; the strongest disagreements:")
    lines += [_differing_line(row) for row in entry["differ"][:NUM_SHOWN]]
    return lines


def verdict(found: Mapping[str, Any]) -> str:
    """Return in one sentence which model is better on a figure, and whether that is sure."""
    difference, interval = found["difference"], found["interval"]
    if difference is None:
        return "There is no figure to compare."
    if difference == 0:
        better = "A and B are equal"
    else:
        better = f"{'A' if difference > 0 else 'B'} is better by {100 * abs(difference):.1f} points"
    if interval is None:
        return f"{better}; too few rows to say how sure that is."
    spans = f"95 % interval of A - B {100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"
    sure = "" if interval[0] > 0 or interval[1] < 0 else ", which holds 0: chance alone may explain it"
    return f"{better} ({spans}{sure})."


def _line(found: Mapping[str, Any]) -> str:
    figures = [_shown(found[side]["official"], ".2f", 100) for side in ("a", "b")]
    difference = _shown(found["difference"], "+.2f", 100)
    ends = found["interval"]
    interval = "-" if ends is None else " to ".join(_shown(end, "+.2f", 100) for end in ends)
    return f"{figures[0]:>7}  {figures[1]:>7}  {difference:>7}  {interval:>18}  {_shown(found['p'], '.3g'):>7}"


def _shown(value: float | None, form: str, times: float = 1) -> str:
    return "-" if value is None else f"{times * value:{form}}"


def _differing_line(row: Mapping[str, Any]) -> str:
    subset = "" if row["subset"] is None else f" ({one_line(row['subset'], 60)})"
    margins = [_shown(row[key], "+.4g") for key in ("margin_a", "margin_b")]
    return f"    {one_line(row['id'], 60)}{subset}: only {row['right']} is right; margin A {margins[0]}, B {margins[1]}"
