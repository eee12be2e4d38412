"""What makes an audit fail: conditions on its figures, such as duplicates>1%, read from text and judged."""

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plaudit.audit_text import FAULTS, RULES, percent, row_list
from plaudit.options import did_you_mean

COUNTS = (*FAULTS, "malformed", "dropped", "test_overlap", "benchmark_overlap", "over_max_length")
GROUPS = {"overlap": ("test_overlap", "benchmark_overlap")}
_COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@dataclass(frozen=True)
class Condition:
    """A condition of fail_on: a figure, a comparison and a bound, a count or a share."""

    text: str
    figures: tuple[str, ...]
    comparison: str
    bound: float
    is_share: bool

    @classmethod
    def of(cls, text: str) -> "Condition":
        """Return a condition from its text, such as 'identical' (any at all) or 'duplicates>1%'; ValueError for others."""
        number = r"(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?"
        parsed = re.fullmatch(rf"\s*([\w-]+)\s*(?:(>=|<=|>|<)\s*({number})\s*(%?))?\s*", text)
        known = (*COUNTS, *RULES, *GROUPS)
        if parsed is None:
            raise ValueError(
                f"fail_on {text!r} is no condition; write a name, or a name, > or < and a number, such as duplicates>1%"
            )
        name = parsed[1].replace("-", "_")
        if name not in known:
            raise ValueError(
                f"fail_on {text!r}: unknown name {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"
            )
        figures = GROUPS.get(name, (name,))
        if parsed[2] is None:
            if name in RULES:
                raise ValueError(f"fail_on {text!r} needs a bound, such as {name}>70%")
            return cls(text, figures, ">", 0.0, False)
        value, is_share = float(parsed[3]), bool(parsed[4]) or name in RULES
        bound = value / 100 if parsed[4] else value
        if is_share and bound > 1:
            raise ValueError(f"fail_on {text!r} asks for a share above 100 %; write a percentage such as {name}>70%")
        if not is_share and not value.is_integer():
            raise ValueError(
                f"fail_on {text!r} asks for a part of a pair; write a whole number, or a percentage such as {name}>1%"
            )
        return cls(text, figures, parsed[2], bound, is_share)

    def lines(self, found: Mapping[str, Any]) -> list[str]:
        """Return a line for each figure of an audit for which the condition holds."""
        return [
            f"{self.text}: {shown}"
            for figure in self.figures
            for value, shown in _values(found, figure, self.is_share)
            if _COMPARISONS[self.comparison](value, self.bound)
        ]


def _values(found: Mapping[str, Any], figure: str, is_share: bool) -> list[tuple[float, str]]:
    """Return what a condition compares, with how it is shown; nothing for what the audit did not look for."""
    if figure in RULES:
        rule = found["baselines"][figure]
        return [(rule["half_credit"], f"{percent(rule['half_credit'])} of {rule['n']:,} pairs, ties as half")]
    return [
        (one["share"] if is_share else one["count"], f"{one['count']:,} ({percent(one['share'])}){name}{_first(one)}")
        for name, one in _counted(found, figure)
    ]


def _first(one: Mapping[str, Any]) -> str:
    rows = one.get("rows", [])[:5]
    return f", first in row{'s' if len(rows) > 1 else ''} {row_list(rows)}" if rows else ""


def _counted(found: Mapping[str, Any], figure: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the counts of a figure, each with what it counts where that is not pairs of the data, a space in front."""
    if figure == "malformed":
        return [("", found["malformed"])]
    if figure == "dropped":
        count = sum(found["dropped"].values())
        return [("", {"count": count, "share": count / (count + found["pairs"])})]
    if figure == "test_overlap":
        return [(" test prompts", found["test_overlap"]["prompts"])] if "test_overlap" in found else []
    if figure == "benchmark_overlap":
        return [
            (f" rows of {name}", {"count": one["rows_found"], "share": one["rows_share"]})
            for name, one in found.get("benchmark_overlap", {}).items()
        ]
    if figure == "over_max_length":
        return [("", (found.get("over") or found["tokens"]["over"])["pairs"])]
    return [("", found["faults"][figure])]
