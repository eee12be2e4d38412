"""An audit in words: one paragraph, and the whole of it for people to read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FAULTS = {
    "empty": "with an empty answer",
    "identical": "identical",
    "duplicates": "repeated",
    "contradictory": "contradictory",
    "prompts_differ": "whose sides' prompts differ",
}
RULES = {
    "longer_wins": "longer answer",
    "shorter_wins": "shorter answer",
    "markdown_wins": "more Markdown",
    "first_word_wins": "first word",
}
FORMS = {
    "standard": "texts",
    "conversational": "message lists",
    "tokenized": "token ids",
    "transcript": "transcripts",
}


def percent(share: float | None) -> str:
    """Return a share as people read it."""
    return "none" if share is None else f"{100 * share:.2f} %"


def summarise(found: Mapping[str, Any]) -> str:
    """Return an audit as one paragraph: size, faults, the shortcut of length, leaks, and what sharing saves."""
    return " ".join(_sentences(found))


def _sentences(found: Mapping[str, Any]) -> Iterator[str]:
    part = ""
    if "of_rows" in found:
        whole = "of a stream" if found["of_rows"] is None else f"of {found['of_rows']:,}"
        part = f" (the first {found['rows']:,} rows {whole})"
    yield f"{found['split']}: {found['pairs']:,} pairs of {FORMS.get(found['form'], found['form'])}{part}."
    left_out = sum(found["dropped"].values()) + found["malformed"]["count"]
    if left_out:
        yield f"{left_out:,} rows or pairs hold no pair to train on."
    if not found["pairs"]:
        return
    faults = [
        f"{found['faults'][name]['count']:,} {words}" for name, words in FAULTS.items() if name in found["faults"]
    ]
    some = any(one["count"] for one in found["faults"].values())
    yield f"Of these {_listed(faults)}." if some else "None is empty, identical, repeated or contradictory."
    yield _lengths(found)
    longer = found["baselines"]["longer_wins"]
    yield f"The longer answer is the chosen one in {percent(longer['official'])} ({percent(longer['half_credit'])} with ties as half)."
    yield from _leaks(found)
    sharing = found["tokens"]["sharing"] if "tokens" in found else found["sharing"]
    if sharing["real_to_unique"] is not None:
        yield (
            f"The sides of a pair have {percent(sharing['within_pairs'])} of their {sharing['unit']} in common; in batches "
            f"of {sharing['batch_size']} padding computes {sharing['padded_to_unique']:.2f} times as many as the tree layout."
        )


def _lengths(found: Mapping[str, Any]) -> str:
    unit = next(iter(found["lengths"]))
    chosen, rejected = (found["lengths"][unit][side]["median"] for side in ("chosen", "rejected"))
    what = "Sides" if unit == "tokens" else "Answers"
    return f"{what} have a median of {chosen:,} (chosen) and {rejected:,} (rejected) {unit}."


def _leaks(found: Mapping[str, Any]) -> Iterator[str]:
    over = found.get("over") or found.get("tokens", {}).get("over")
    if over is not None:
        yield f"{percent(over['pairs']['share'])} of the pairs are longer than {over['max_length']:,} tokens."
    if "test_overlap" in found:
        tests = found["test_overlap"]
        yield f"{tests['prompts']['count']:,} of {tests['pairs']:,} test pairs have a prompt of the training data."
    for name, one in found.get("benchmark_overlap", {}).items():
        yield f"{one['rows_found']:,} of {one['rows']:,} rows of {name} share {one['words']} words in a row with the training data."


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def describe(found: Mapping[str, Any]) -> str:
    """Return an audit as a text to read: the paragraph, then each part with its figures."""
    parts = [[summarise(found)], _faults(found), _length_table(found), _rules(found), _groups(found)]
    parts += [_margins(found), _overlaps(found), _sharing(found)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines, the first column to the left, the others to the right; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _faults(found: Mapping[str, Any]) -> list[str]:
    rows = [("pairs", "count", "share", "first rows")]
    for name, words in FAULTS.items():
        if name in found["faults"]:
            one = found["faults"][name]
            rows.append((words, f"{one['count']:,}", percent(one["share"]), row_list(one["rows"])))
    malformed = found["malformed"]
    if malformed["count"]:
        rows.append(
            (
                "rows that are no pair",
                f"{malformed['count']:,}",
                percent(malformed["share"]),
                row_list(malformed["rows"]),
            )
        )
    lines = ["Faults", *table(rows)]
    if malformed["count"]:
        lines.append(f"  row {malformed['rows'][0]}: {malformed['problem']}")
    lines += [f"  left out: {count:,} {reason}" for reason, count in found["dropped"].items()]
    return lines


def row_list(rows: Sequence[int]) -> str:
    """Return the numbers of rows as people read them."""
    return ", ".join(map(str, rows)) or "-"


def _length_table(found: Mapping[str, Any]) -> list[str]:
    names = ("min", "p25", "median", "p75", "p95", "p99", "max")
    rows: list[tuple[str, ...]] = [("", *("least", "25 %", "median", "75 %", "95 %", "99 %", "most"))]
    units = {**found["lengths"], **({"tokens": found["tokens"]["lengths"]} if "tokens" in found else {})}
    for unit, sides in units.items():
        rows += [(f"{side}, {unit}", *(f"{one[name]:,}" for name in names)) for side, one in sides.items()]
    lines = ["Lengths", *table(rows)]
    if "tokens" in found:
        lines.append(
            f"  tokens: of {found['tokens']['pairs']:,} pairs, with the tokenizer {found['tokens']['tokenizer']}, prompts included"
        )
    over = found.get("over") or found.get("tokens", {}).get("over")
    if over is not None:
        shares = ", ".join(
            f"{percent(over[name]['share'])} of {words}"
            for name, words in (("pairs", "pairs"), ("chosen", "chosen sides"), ("rejected", "rejected sides"))
        )
        lines.append(f"  over max_length {over['max_length']:,}: {shares}")
    return lines


def _rules(found: Mapping[str, Any]) -> list[str]:
    rows = [("prefer the", "right", "ties as half", "95 % interval", "ties")]
    for name, words in RULES.items():
        if name in found["baselines"]:
            one = found["baselines"][name]
            low, high = one["interval"]
            rows.append(
                (
                    words,
                    percent(one["official"]),
                    percent(one["half_credit"]),
                    f"{100 * low:.2f} to {100 * high:.2f}",
                    f"{one['ties']:,}",
                )
            )
    lines = ["Rules that read no meaning: how often they pick the chosen answer", *table(rows)]
    words = found["baselines"].get("first_word_wins", {}).get("words", [])[:5]
    if words:
        told = ", ".join(f"{one['word']!r} ({one['chosen']:,} chosen, {one['rejected']:,} rejected)" for one in words)
        lines.append(f"  first words that tell most: {told}")
    return lines


def _groups(found: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    if found["sources"] is not None:
        rows = [(found["sources"]["column"], "pairs", "share", "longer wins", "ties as half")]
        for one in found["sources"]["listed"][:20]:
            longer = one["longer_wins"]
            rows.append(
                (
                    str(one["source"]),
                    f"{one['n']:,}",
                    percent(one["share"]),
                    percent(longer["official"]),
                    percent(longer["half_credit"]),
                )
            )
        lines += ["By source", *table(rows), *_more(found["sources"])]
    if found["models"] is not None:
        models = [("model", "answers", "chosen")]
        models += [(one["model"], f"{one['n']:,}", percent(one["share"])) for one in found["models"]["listed"][:20]]
        lines += ["By model", *table(models), *_more(found["models"])]
    return lines


def _more(groups: Mapping[str, Any]) -> list[str]:
    return [f"  and {groups['groups'] - 20:,} more"] if groups["groups"] > 20 else []


def _margins(found: Mapping[str, Any]) -> list[str]:
    one = found["margins"]
    if one is None:
        return []
    quartiles = " ".join(
        "none" if one[name] is None else f"{one[name]:g}" for name in ("min", "p25", "median", "p75", "max")
    )
    faults = ", ".join(
        f"{one[name]:,} {name.replace('_', ' ')}" for name in ("missing", "not_finite", "negative", "zero")
    )
    return ["Margins", f"  least, quartiles and most: {quartiles}; {faults}"]


def _overlaps(found: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    if "test_overlap" in found:
        tests = found["test_overlap"]
        for name, words in (("prompts", "have a prompt of the training data"), ("same_pairs", "are training pairs")):
            one = tests[name]
            lines.append(
                f"  {one['count']:,} of {tests['pairs']:,} pairs of {tests.get('test', 'test')} ({percent(one['share'])}) {words}: rows {row_list(one['rows'])}"
            )
    for name, one in found.get("benchmark_overlap", {}).items():
        lines.append(
            f"  {name}: {one['prompts_found']:,} of {one['prompts']:,} prompts and {one['answers_found']:,} of "
            f"{one['answers']:,} answers share {one['words']} words in a row with the training data"
        )
        lines += [
            f"    row {each['row']} ({each['in']}), training row {each['train_row']}: {each['run']}"
            for each in one["examples"]
        ]
    return ["Overlap", *lines] if lines else []


def _sharing(found: Mapping[str, Any]) -> list[str]:
    parts = [found["sharing"], *([found["tokens"]["sharing"]] if "tokens" in found else [])]
    rows = [
        (
            "batches of " + str(parts[0]["batch_size"]),
            "within pairs",
            "padded / real",
            "real / unique",
            "padded / unique",
        )
    ]
    for one in parts:
        if one["real_to_unique"] is not None:
            ratios = (f"{one[name]:.2f}" for name in ("padded_to_real", "real_to_unique", "padded_to_unique"))
            rows.append((one["unit"], percent(one["within_pairs"]), *ratios))
    lines = ["Sharing: what the tree layout saves", *table(rows)]
    if "prompts" in parts[0]:
        lines.append(
            f"  {parts[0]['prompts']:,} prompts, {parts[0]['pairs_a_prompt']:.2f} pairs each; {percent(parts[0]['pairs_with_others'])} of the pairs share theirs"
        )
    return lines
