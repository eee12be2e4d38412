"""A table of one line a pair, and what is counted over it: DuckDB in a temporary file, so that memory stays flat."""

import math
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from plaudit.metrics import wilson_interval
from plaudit.records import SIDES
from plaudit.sides import DROPPED, MODELS, Reading

if TYPE_CHECKING:
    import pyarrow as pa

MEMORY_LIMIT = "800MB"
# How many rows are named, and how many groups listed, of those found.
NAMED_ROWS, LISTED_GROUPS = 10, 50
SHARES = (0.25, 0.5, 0.75, 0.95, 0.99)

_TABLE = """
CREATE TABLE {name} (
    row BIGINT, pair INTEGER, problem VARCHAR, prompt UHUGEINT, prompts_differ BOOLEAN,
    chosen UHUGEINT, rejected UHUGEINT, said UHUGEINT, chosen_empty BOOLEAN, rejected_empty BOOLEAN,
    prompt_characters BIGINT, rejected_prompt_characters BIGINT, shared BIGINT,
    chosen_characters BIGINT, rejected_characters BIGINT, chosen_words BIGINT, rejected_words BIGINT,
    chosen_marks BIGINT, rejected_marks BIGINT, chosen_first VARCHAR, rejected_first VARCHAR,
    source VARCHAR, chosen_model VARCHAR, rejected_model VARCHAR, margin DOUBLE)
"""
# Identities are MD5 as 128-bit numbers: two texts of one number have not been seen unless somebody made them so.
_INSERT = r"""
INSERT INTO {name}
SELECT row, pair, problem, md5_number(p), problem IS NULL AND q IS NOT NULL,
    md5_number(md5(p) || md5(c)), md5_number(coalesce(md5(q), md5(p)) || md5(r)), md5_number(nullif(said, '')),
    chosen_empty, rejected_empty, prompt_characters, rejected_prompt_characters, shared,
    chosen_characters, rejected_characters, chosen_words, rejected_words, chosen_marks, rejected_marks,
    chosen_first, rejected_first, source, chosen_model, rejected_model, margin
FROM (SELECT *, chosen_prompt AS p, rejected_prompt AS q, chosen AS c, rejected AS r FROM {batch})
"""


class Census:
    """The table of pairs of one audit, and of its test rows beside it. Use as a context; the file goes with it."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._folder: Any = tempfile.TemporaryDirectory(prefix="plaudit-audit-")
        try:
            self._database = connect(self._folder.name, threads)
        except BaseException:
            self._folder.cleanup()
            raise
        self._local = threading.local()
        self._cursors: list[Any] = []

    def __enter__(self) -> "Census":
        return self

    def __exit__(self, *exception: Any) -> None:
        for cursor in self._cursors:
            cursor.close()
        self._database.close()
        self._folder.cleanup()

    def create(self, name: str) -> None:
        """Make an empty table of pairs. name: "pairs" or "tests", ours alone, so it may stand in a statement."""
        self._database.execute(f"DROP TABLE IF EXISTS {name}")
        self._database.execute(_TABLE.format(name=name))

    def add(self, name: str, batch: "pa.Table") -> None:
        """Add measured pairs; may be called in several threads."""
        cursor = getattr(self._local, "cursor", None)
        if cursor is None:
            cursor = self._local.cursor = self._database.cursor()
            self._cursors.append(cursor)
        cursor.register("batch", batch)
        cursor.execute(_INSERT.format(name=name, batch="batch"))
        cursor.unregister("batch")

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple]:
        """Return the rows of a statement."""
        return list(self._database.execute(statement, list(values)).fetchall())

    def row(self, statement: str, values: Sequence[Any] = ()) -> tuple:
        """Return the one row of a statement, None's as zeros."""
        return tuple(0 if value is None else value for value in self.rows(statement, values)[0])


def connect(folder: str, threads: int) -> Any:
    """Return a DuckDB of the folder's own, that reads no files, no network and no settings of the user's."""
    try:
        import duckdb
    except ImportError as error:
        raise ImportError('the audit needs an extra package: pip install "plaudit[audit]"') from error
    database = duckdb.connect(
        f"{folder}/pairs.duckdb",
        config={
            "threads": threads,
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": f"{folder}/spill",
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        },
    )
    database.execute("SET enable_progress_bar = false")
    return database


@contextmanager
def workers(threads: int) -> Iterator[Any]:
    """Give a function that runs others in threads, and waits where two for each thread are at hand; it raises their errors."""
    pending: set[Future] = set()
    with ThreadPoolExecutor(threads) as pool:

        def submit(work: Any, *arguments: Any) -> None:
            nonlocal pending
            while len(pending) >= 2 * threads:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for one in done:
                    one.result()
            pending.add(pool.submit(work, *arguments))

        try:
            yield submit
            for one in pending:
                one.result()
        finally:
            for one in pending:
                one.cancel()


def figures(census: Census, reading: Reading, batch_size: int) -> dict[str, Any]:
    """Return all that is counted over the pairs; shares are of the pairs, rows are numbered from zero."""
    total, pairs = census.row("SELECT count(DISTINCT row), count(*) FILTER (problem IS NULL) FROM pairs")
    found: dict[str, Any] = {"rows": total, "pairs": pairs, "form": reading.title}
    found |= _problems(census)
    if not pairs:
        return found
    found["faults"] = faults(census, reading, pairs)
    found["lengths"] = _lengths(census, reading)
    found["baselines"] = _baselines(census, reading, pairs)
    found["sources"] = _sources(census, reading, pairs)
    found["models"] = _models(census, reading)
    found["margins"] = _margins(census, pairs)
    found["sharing"] = _sharing(census, reading, pairs, batch_size)
    return found


def _problems(census: Census) -> dict[str, Any]:
    """Return how many rows were dropped, by reason, and how many are no pairs, with the first of them."""
    dropped = census.rows(
        "SELECT substr(problem, ?), count(*) FROM pairs WHERE starts_with(problem, ?) GROUP BY 1 ORDER BY 1",
        [len(DROPPED) + 1, DROPPED],
    )
    bad = "problem IS NOT NULL AND NOT starts_with(problem, ?)"
    (count,) = census.row(f"SELECT count(*) FROM pairs WHERE {bad}", [DROPPED])
    first = census.rows(f"SELECT row, problem FROM pairs WHERE {bad} ORDER BY row, pair LIMIT {NAMED_ROWS}", [DROPPED])
    (rows,) = census.row("SELECT count(DISTINCT row) FROM pairs")
    return {
        "dropped": dict(dropped),
        "malformed": {
            "count": count,
            "share": count / rows if rows else 0.0,
            "rows": [row for row, _ in first],
            "problem": first[0][1] if first else None,
        },
    }


def faults(census: Census, reading: Reading, pairs: int) -> dict[str, Any]:
    """Return count, share and first rows of each kind of pair that teaches nothing or the wrong thing."""
    repeats = (
        "SELECT row, pair FROM (SELECT row, pair, row_number() OVER (PARTITION BY chosen, rejected ORDER BY row, pair) "
        "AS time FROM pairs WHERE problem IS NULL) WHERE time > 1"
    )
    both = (
        "SELECT row, pair FROM pairs AS one WHERE problem IS NULL AND chosen <> rejected AND EXISTS (SELECT 1 FROM pairs "
        "AS other WHERE other.problem IS NULL AND other.chosen = one.rejected AND other.rejected = one.chosen)"
    )
    valid = "SELECT row, pair FROM pairs WHERE problem IS NULL AND"
    statements = {
        "empty": f"{valid} (chosen_empty OR rejected_empty)",
        "empty_chosen": f"{valid} chosen_empty",
        "empty_rejected": f"{valid} rejected_empty",
        "identical": f"{valid} chosen = rejected",
        "duplicates": repeats,
        "contradictory": both,
    }
    if reading.has_prompts:
        statements["prompts_differ"] = f"{valid} prompts_differ"
    return {name: _found(census, statement, pairs) for name, statement in statements.items()}


def _found(census: Census, statement: str, pairs: int, values: Sequence[Any] = ()) -> dict[str, Any]:
    (count,) = census.row(f"SELECT count(*) FROM ({statement})", values)
    rows = (
        census.rows(f"SELECT DISTINCT row FROM ({statement}) ORDER BY row LIMIT {NAMED_ROWS}", values) if count else []
    )
    return {"count": count, "share": count / pairs if pairs else 0.0, "rows": [row for (row,) in rows]}


def spread(counts: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Return quartiles, 95 and 99 %, least, most and mean of values given with how often each is there.

    The q-share value is the least that at least a share q of the values do not exceed, so it is one of them.
    """
    counts = sorted(counts)
    values, times = np.array([value for value, _ in counts]), np.cumsum([count for _, count in counts])
    total = int(times[-1])
    at = [int(np.searchsorted(times, math.ceil(share * total))) for share in SHARES]
    names = ("p25", "median", "p75", "p95", "p99")
    mean = sum(value * count for value, count in counts) / total
    return {
        "min": values[0].item(),
        **{name: values[one].item() for name, one in zip(names, at, strict=True)},
        "max": values[-1].item(),
        "mean": mean,
    }


def _lengths(census: Census, reading: Reading) -> dict[str, Any]:
    """Return the spread of each side's lengths. The prompt is the chosen side's."""
    units = {"tokens": "characters"} if reading.is_tokenized else {"characters": "characters", "words": "words"}
    columns = {(unit, side): f"{side}_{column}" for unit, column in units.items() for side in SIDES}
    if reading.has_prompts:
        columns["characters", "prompt"] = "prompt_characters"
    found: dict[str, Any] = {unit: {} for unit in units}
    for (unit, side), column in columns.items():
        counts = census.rows(f"SELECT {column}, count(*) FROM pairs WHERE problem IS NULL GROUP BY 1")
        found[unit][side] = spread(counts)
    return found


def over(census: Census, max_length: int, pairs: int) -> dict[str, Any]:
    """Return how many pairs of token ids have a side of more than max_length tokens, and how many of each side do."""
    valid = "SELECT row, pair FROM pairs WHERE problem IS NULL AND"
    sides = {side: f"{valid} {side}_characters > ?" for side in SIDES}
    either = f"{valid} greatest(chosen_characters, rejected_characters) > ?"
    found = {
        name: _found(census, statement, pairs, [max_length]) for name, statement in {"pairs": either, **sides}.items()
    }
    return {"max_length": max_length, **found}


def accuracy(wins: int, ties: int, total: int) -> dict[str, Any]:
    """Return how often a rule picks the chosen answer: ties as wrong, with the interval, and ties as half."""
    return {
        "official": wins / total,
        "half_credit": (wins + ties / 2) / total,
        "n": total,
        "ties": ties,
        "interval": list(wilson_interval(wins, total)),
    }


def _more(census: Census, what: str) -> tuple[int, int]:
    wins, ties = census.row(
        f"SELECT count(*) FILTER (chosen_{what} > rejected_{what}), count(*) FILTER (chosen_{what} = rejected_{what}) "
        "FROM pairs WHERE problem IS NULL"
    )
    return wins, ties


def _baselines(census: Census, reading: Reading, pairs: int) -> dict[str, Any]:
    """Return how well rules that read no meaning do; what a trained model has to beat."""
    wins, ties = _more(census, "characters")
    found = {"longer_wins": accuracy(wins, ties, pairs), "shorter_wins": accuracy(pairs - wins - ties, ties, pairs)}
    if reading.is_tokenized:
        return found
    found["markdown_wins"] = accuracy(*_more(census, "marks"), pairs)
    found["first_word_wins"] = _first_word(census, reading, pairs)
    return found


def _first_word(census: Census, reading: Reading, pairs: int) -> dict[str, Any]:
    """Return how well the answers' first words tell them apart, counted on one half of the prompts, tried on the other.

    A word's score is its share of chosen among the answers that begin with it, (chosen + 1) / (both + 2).
    """
    half = "prompt % 2" if reading.has_prompts else "(chosen % 2 + rejected % 2) % 2"
    word = "coalesce({side}_first, '')"
    statement = f"""
        WITH halves AS (SELECT {half} AS half, {word.format(side="chosen")} AS c, {word.format(side="rejected")} AS r
            FROM pairs WHERE problem IS NULL),
        counts AS (SELECT half, word, sum(chosen) AS chosen, sum(rejected) AS rejected FROM (
            SELECT half, c AS word, 1 AS chosen, 0 AS rejected FROM halves UNION ALL
            SELECT half, r, 0, 1 FROM halves) GROUP BY 1, 2),
        scores AS (SELECT 1 - half AS half, word, (chosen + 1)::DOUBLE / (chosen + rejected + 2)::DOUBLE AS score FROM counts),
        rated AS (SELECT coalesce(one.score, 0.5) AS chosen, coalesce(other.score, 0.5) AS rejected FROM halves
            LEFT JOIN scores AS one ON one.half = halves.half AND one.word = c
            LEFT JOIN scores AS other ON other.half = halves.half AND other.word = r)
        SELECT count(*) FILTER (chosen > rejected), count(*) FILTER (chosen = rejected) FROM rated"""
    wins, ties = census.row(statement)
    listed = census.rows(
        f"""SELECT word, sum(c)::BIGINT, sum(r)::BIGINT FROM (
            SELECT {word.format(side="chosen")} AS word, 1 AS c, 0 AS r FROM pairs WHERE problem IS NULL UNION ALL
            SELECT {word.format(side="rejected")}, 0, 1 FROM pairs WHERE problem IS NULL)
        GROUP BY 1 ORDER BY abs(sum(c) - sum(r)) DESC, word LIMIT {NAMED_ROWS}"""
    )
    words = [{"word": word, "chosen": chosen, "rejected": rejected} for word, chosen, rejected in listed]
    return {**accuracy(wins, ties, pairs), "words": words}


def _sources(census: Census, reading: Reading, pairs: int) -> dict[str, Any] | None:
    """Return by source how many pairs there are, and how often the longer answer is the chosen one."""
    if reading.source is None:
        return None
    counted = census.rows(
        "SELECT source, count(*), count(*) FILTER (chosen_characters > rejected_characters), "
        "count(*) FILTER (chosen_characters = rejected_characters) FROM pairs WHERE problem IS NULL GROUP BY 1 "
        f"ORDER BY 2 DESC, 1 LIMIT {LISTED_GROUPS}"
    )
    (groups,) = census.row("SELECT count(*) FROM (SELECT DISTINCT source FROM pairs WHERE problem IS NULL)")
    listed = [
        {"source": source, "n": n, "share": n / pairs, "longer_wins": accuracy(wins, ties, n)}
        for source, n, wins, ties in counted
    ]
    return {"column": reading.source, "groups": groups, "listed": listed}


def _models(census: Census, reading: Reading) -> dict[str, Any] | None:
    """Return by model how often its answer was the chosen one."""
    if not reading.models:
        return None
    parts = " UNION ALL ".join(
        f"SELECT {name} AS model, {int(name == MODELS[0])} AS won FROM pairs WHERE problem IS NULL" for name in MODELS
    )
    counted = census.rows(
        f"SELECT model, count(*), sum(won)::BIGINT FROM ({parts}) WHERE model IS NOT NULL GROUP BY 1 "
        f"ORDER BY 2 DESC, 1 LIMIT {LISTED_GROUPS}"
    )
    (groups,) = census.row(f"SELECT count(DISTINCT model) FROM ({parts})")
    listed = [
        {"model": model, "n": n, "wins": wins, "share": wins / n, "interval": list(wilson_interval(wins, n))}
        for model, n, wins in counted
    ]
    return {"groups": groups, "listed": listed}


def _margins(census: Census, pairs: int) -> dict[str, Any] | None:
    """Return the spread of the margins, and how many are missing, not finite, below zero or zero."""
    found = census.row(
        "SELECT count(margin), count(*) FILTER (NOT isfinite(margin)), count(*) FILTER (isfinite(margin) AND margin < 0), "
        "count(*) FILTER (margin = 0) FROM pairs WHERE problem IS NULL"
    )
    if not found[0]:
        return None
    at = ", ".join(map(str, (0.0, *SHARES, 1.0)))
    (values,) = census.rows(
        f"SELECT quantile_disc(margin, [{at}]) FROM pairs WHERE problem IS NULL AND isfinite(margin)"
    )[0]
    names = ("min", "p25", "median", "p75", "p95", "p99", "max")
    spread_of = dict(zip(names, values, strict=True)) if values else dict.fromkeys(names)
    return {
        "n": found[0],
        "missing": pairs - found[0],
        "not_finite": found[1],
        "negative": found[2],
        "zero": found[3],
        **spread_of,
    }


def _sharing(census: Census, reading: Reading, pairs: int, batch_size: int) -> dict[str, Any]:
    """Return how much of the pairs is told twice, within a pair and across pairs, and what a batch's layouts cost.

    A batch is so many pairs in the data's order. Padded: every side as long as the batch's longest. Unique: what a
    pair's sides begin with in common is counted once, and so is a prompt that several pairs of the batch have.
    """
    statement = f"""
        WITH numbered AS (SELECT (row_number() OVER (ORDER BY row, pair) - 1) // {int(batch_size)} AS batch, prompt,
                prompts_differ, prompt_characters AS before, shared,
                prompt_characters + chosen_characters AS one, rejected_prompt_characters + rejected_characters AS other
            FROM pairs WHERE problem IS NULL),
        grouped AS (SELECT batch, max(greatest(one, other)) AS longest, 2 * count(*) AS sides, sum(one + other) AS total,
                sum(one + other - shared) - CASE WHEN prompts_differ THEN 0 ELSE (count(*) - 1) * any_value(before) END
                AS single, sum(shared) AS shared FROM numbered GROUP BY batch, prompt, prompts_differ),
        batches AS (SELECT max(longest) * sum(sides) AS padded, sum(total) AS total, sum(single) AS single,
                sum(shared) AS shared FROM grouped GROUP BY batch)
        SELECT sum(padded)::DOUBLE, sum(total)::DOUBLE, sum(single)::DOUBLE, sum(shared)::DOUBLE FROM batches"""
    padded, real, unique, shared = census.row(statement)
    found: dict[str, Any] = {
        "unit": "tokens" if reading.is_tokenized else "characters",
        "batch_size": batch_size,
        "within_pairs": 2 * shared / real if real else None,
        **ratios(padded, real, unique),
    }
    if reading.has_prompts:
        (prompts,) = census.row("SELECT count(DISTINCT prompt) FROM pairs WHERE problem IS NULL")
        (several,) = census.row(
            "SELECT sum(n) FROM (SELECT count(*) AS n FROM pairs WHERE problem IS NULL GROUP BY prompt HAVING n > 1)"
        )
        found |= {"prompts": prompts, "pairs_a_prompt": pairs / prompts, "pairs_with_others": int(several) / pairs}
    return found


def ratios(padded: float, real: float, unique: float) -> dict[str, Any]:
    """Return what the layouts of a batch cost beside each other; None where there is nothing to lay out."""
    parts = {"padded_to_real": (padded, real), "real_to_unique": (real, unique), "padded_to_unique": (padded, unique)}
    return {name: above / below if below else None for name, (above, below) in parts.items()}


def overlap(census: Census) -> dict[str, Any]:
    """Return how many test pairs have a prompt that training pairs have too, whatever its case and spacing."""
    (tests,) = census.row("SELECT count(*) FROM tests WHERE problem IS NULL")
    alike = (
        "SELECT row, pair FROM tests WHERE problem IS NULL AND said IN "
        "(SELECT said FROM pairs WHERE problem IS NULL AND said IS NOT NULL)"
    )
    same = (
        "SELECT row, pair FROM tests AS test WHERE problem IS NULL AND EXISTS (SELECT 1 FROM pairs WHERE problem IS NULL "
        "AND pairs.chosen = test.chosen AND pairs.rejected = test.rejected)"
    )
    return {"pairs": tests, "prompts": _found(census, alike, tests), "same_pairs": _found(census, same, tests)}
