"""Results in, one self-contained HTML page out."""

import importlib.util
import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from plaudit import page, wording
from plaudit.options import option
from plaudit.say import say
from plaudit.score_rows import written_whole
from plaudit.wording import decimal, interval, number, percent

# What a page is made of, and its own names.
FILES = ("results.json", "mistakes.jsonl", "trainer_state.json", "summary.json", "audit.json")
PAGE, COMPARISON_PAGE = "report.html", "comparison.html"
MISSING_EXTRA = 'the report needs extra packages: pip install "plaudit[report]"'


@dataclass(frozen=True)
class ReportOptions:
    """The options of `plaudit report`."""

    folder: str = option(
        "Directory that evaluate, train or demo wrote, with results.json or trainer_state.json.",
        MISSING,
        positional=True,
        metavar="DIR",
    )


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Write report.html into a directory of results, from what is there, and return its path.

    Raises ValueError where nothing is there to report or a file is broken, and ImportError where matplotlib is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is no directory; name one that evaluate, train or demo wrote")
    _require_matplotlib()
    found = read_folder(folder)
    if not found:
        raise ValueError(
            f"{str(folder)!r} holds nothing to report: none of {', '.join(FILES)}; run plaudit evaluate --output_dir there first"
        )
    return _write(folder / PAGE, _page(folder, found))


def _page(folder: Path, found: Mapping[str, Any]) -> str:
    """Return the page of what a directory holds. ValueError where a file is JSON, but not what plaudit writes there."""
    from jinja2 import UndefinedError

    try:
        return _render(PAGE, page.report_context(found))
    except (AttributeError, LookupError, TypeError, ValueError, UndefinedError) as error:
        cause = " ".join(str(error).split())
        raise ValueError(
            f"{folder}: {' or '.join(found)} holds what no report can be made of ({type(error).__name__}: {cause}); make "
            "it again with plaudit, or move it away"
        ) from error


def try_report(folder: str | os.PathLike[str]) -> Path | None:
    """Write the page at the end of a run that is finished whatever happens here; where it fails, one line says so."""
    try:
        return write_report(folder)
    except Exception as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        say(f"no report: {cause}; plaudit report {shlex.quote(str(folder))} makes it later")
        return None


def write_comparison(comparison: Mapping[str, Any] | str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Write the page of a comparison of two score files. comparison: the dict, or a directory that holds comparison.json."""
    from plaudit.versus import comparison_context

    if not isinstance(comparison, Mapping):
        comparison = _read_json(Path(comparison) / "comparison.json")
    return _write(Path(path), _render(COMPARISON_PAGE, comparison_context(comparison)))


def run(**given: Any) -> Path:
    """Write the page that `plaudit report` was asked for."""
    return write_report(ReportOptions(**given).folder)


def _require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(MISSING_EXTRA)


def read_folder(folder: Path) -> dict[str, Any]:
    """Return what a directory of results holds, by file name; a training's log may also be in its newest checkpoint."""
    found: dict[str, Any] = {
        name: _read_json(folder / name) for name in FILES if name.endswith(".json") and (folder / name).is_file()
    }
    if (folder / "mistakes.jsonl").is_file():
        found["mistakes.jsonl"] = _read_lines(folder / "mistakes.jsonl")
    if "trainer_state.json" not in found:
        places = [folder / "model", *sorted(folder.glob("checkpoint-*"), key=_step_of, reverse=True)]
        state = next(
            (place / "trainer_state.json" for place in places if (place / "trainer_state.json").is_file()), None
        )
        if state is not None:
            found["trainer_state.json"] = _read_json(state)
    for name, entry in (found.get("results.json") or {}).items():
        if not isinstance(entry, Mapping):
            raise ValueError(
                f"{folder / 'results.json'}: {name!r} must hold a benchmark's results, not {type(entry).__name__}"
            )
    return found


def _step_of(checkpoint: Path) -> int:
    digits = checkpoint.name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); make it again, or move it away") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(value).__name__}; make it again, or move it away")
    return value


def _read_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    for place, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {place}: not JSON ({error}); make the file again, or move it away"
            ) from None
        candidates = row.get("candidates") if isinstance(row, dict) else None
        if not isinstance(candidates, list) or not all(isinstance(one, dict) for one in candidates):
            raise ValueError(
                f"{path}, line {place}: 'candidates' must be a list of objects; make the file again, or move it away"
            )
        rows.append(row)
    return rows


def place(share: float) -> str:
    """Return where a share stands on a line from 0 to 100 %, for what cannot leave it."""
    return f"{100 * min(1.0, max(0.0, share)):.2f}%"


def is_figure(cell: str) -> bool:
    """Whether a cell of a table is a number, which stands on the right."""
    return re.match(rf"[<+{wording.MINUS}]? ?\d[\d,.e+{wording.MINUS}]*(\s|$)|{wording.ABSENT}$", cell) is not None


def _render(template: str, context: Mapping[str, Any]) -> str:
    """Return the page; everything but our own pictures is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from plaudit import __version__

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shows = {"percent": percent, "interval": interval, "number": number, "decimal": decimal, "place": place}
    environment.filters.update(
        shows, is_figure=is_figure, reward=wording.reward, size=lambda value: wording.reward(page.size(value))
    )
    text = environment.get_template(template).render(version=__version__, **context)
    return re.sub(r"[\ud800-\udfff\x00]", "\N{REPLACEMENT CHARACTER}", text)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return path
