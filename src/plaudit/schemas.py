"""Rows of a benchmark's own columns in, prompts with labelled answers out; errors name row, column, value and cure."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plaudit import records
from plaudit.agreement import DOMAIN_COLUMNS, MODEL_COLUMNS
from plaudit.converters import ANSWER_MARK, RowProblem, too_deep
from plaudit.records import SIDES
from plaudit.ties import is_ties_id
from plaudit.values import shown

PPE_ANSWERS = 32
# A vote for neither is counted apart by the benchmark's figures.
WINNERS = {"model_a": [1, 0], "model_b": [0, 1]}
JUDGEMENTS = {"A>B": [1, 0], "B>A": [0, 1]}
_PROMPTS = ("prompt", "question", "problem", "instruction")
_ANSWER_LISTS = ("responses", "answers", "completions", "candidates")


@dataclass(frozen=True)
class BenchmarkRow:
    """One prompt and its candidates.

    prompt: messages, or a text, or None where each answer holds its own whole sequence. answers: texts, message lists or
    token ids. labels: 1 for a right answer, 0 for a wrong one. extra: what the benchmark's figures need beside them.
    is_text: the prompt is the beginning of a text and not a user's turn.
    """

    id: str
    subset: str | None
    prompt: str | list[dict[str, Any]] | None
    answers: list[Any]
    labels: list[int]
    extra: dict[str, Any] = field(default_factory=dict)
    is_text: bool = False
    tools: list[dict[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def contents(self, as_turns: bool = True) -> list[Any]:
        """Return what is scored, one a candidate: a text, a conversation, or token ids.

        as_turns: whether a text prompt is a user's turn and a text answer the assistant's, or both are joined as texts.
        """
        return [self._content(answer, as_turns) for answer in self.answers]

    def _content(self, answer: Any, as_turns: bool) -> Any:
        if self.prompt is None:
            return answer
        if isinstance(self.prompt, str) and isinstance(answer, str) and (self.is_text or not as_turns):
            return self.prompt + answer
        prompt = [_turn("user", self.prompt)] if isinstance(self.prompt, str) else self.prompt
        return [*prompt, *([_turn("assistant", answer)] if isinstance(answer, str) else answer)]


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


@dataclass(frozen=True)
class Schema:
    """A benchmark's columns. required: those that are read. recognises: whether a first row that has them is of this
    benchmark and no other. read: one row, and the part of the benchmark that its file is, to a prompt with labelled
    answers."""

    required: tuple[str, ...]
    recognises: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], str | None], BenchmarkRow]


def kind_of_row(first_row: Mapping[str, Any]) -> str:
    """Return which benchmark's columns a row has: a kind of SCHEMAS, or "pairs" for everything else."""
    found = (kind for kind, schema in SCHEMAS.items() if fits(kind, first_row) and schema.recognises(first_row))
    return next(found, "pairs")


def fits(kind: str, row: Mapping[str, Any]) -> bool:
    """Tell whether a row has the columns of a kind."""
    return kind in SCHEMAS and all(name in row for name in _required(kind, row))


def read_row(kind: str, row: Mapping[str, Any], where: str, part: str | None = None) -> BenchmarkRow:
    """Return one row of a benchmark of one's own columns. ValueError with where, column, value and cure.

    where: names the row, as in "benchmark 'x' row 17". part: the part of the benchmark that the row's file is.
    """
    try:
        missing = [name for name in _required(kind, row) if name not in row]
        if missing:
            raise RowProblem(
                f"the column{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))} of a {kind} row "
                f"{'are' if len(missing) > 1 else 'is'} missing (there are {', '.join(map(repr, row))}); add what is "
                "missing, or name the benchmark as what it is (pairs=PATH)"
            )
        return with_details(SCHEMAS[kind].read(row, part))
    except RowProblem as problem:
        raise ValueError(f"{where}: {problem}") from None
    except RecursionError:
        raise too_deep(where) from None


def _required(kind: str, row: Mapping[str, Any]) -> Sequence[str]:
    """Return the columns that are read of a row, by the names that this row has for them."""
    if kind == "rmb" and not _is_rmb_pair(row):
        return _RMB_BEST
    if kind in ("best-of-n", "rewardmath"):
        return [_first_of(row, names) or names[0] for names in (_PROMPTS, _ANSWER_LISTS, ("correct",))]
    return SCHEMAS[kind].required


def with_details(row: BenchmarkRow) -> BenchmarkRow:
    """Return the row with what every kind's figures use in `extra`: characters, a hash of the prompt, identical texts."""
    lengths = [_num_characters(answer) for answer in row.answers]
    if "characters" not in row.extra and None not in lengths:
        row.extra["characters"] = lengths
    if row.prompt is not None:
        row.extra["prompt"] = digest([row.prompt, row.tools])[:16]
    texts = [text_of(answer) for answer in row.answers]
    right = {text for text, label in zip(texts, row.labels, strict=True) if label}
    if any(text in right for text, label in zip(texts, row.labels, strict=True) if not label):
        row.extra["identical"] = True
    return row


def digest(value: Any) -> str:
    """Return a hash of a JSON value, the same however its dicts are ordered."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def text_of(content: Any) -> str:
    """Return one text for a content: as it is, or the JSON of messages or ids."""
    return content if isinstance(content, str) else json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)


def _num_characters(answer: Any) -> int | None:
    """Return how long an answer is; of a conversation its last turn, of token ids None."""
    if isinstance(answer, str):
        return len(answer)
    if not answer or isinstance(answer[0], int):
        return None
    content = answer[-1]["content"]
    return len(content) if isinstance(content, str) else sum(len(str(block.get("text", ""))) for block in content)


# What a column must hold.


def _text(row: Mapping[str, Any], column: str, may_be_empty: bool = True) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise RowProblem(f"{column!r} must be a text, not {shown(value)}; mend the row")
    if not may_be_empty and not value.strip():
        raise RowProblem(f"{column!r} is {value!r}, and must not be empty; mend the row")
    records.check_unicode(value, repr(column))
    return value


def _texts(value: Any, column: str) -> list[str]:
    if not isinstance(value, (list, tuple)) or not value:
        raise RowProblem(f"{column!r} must be a list of texts, not {shown(value)}; mend the row")
    for number, text in enumerate(value):
        if not isinstance(text, str):
            raise RowProblem(f"entry {number} of {column!r} must be a text, not {shown(text)}; mend the row")
        records.check_unicode(text, f"entry {number} of {column!r}")
    return list(value)


def _whole(row: Mapping[str, Any], column: str) -> int:
    value = row.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RowProblem(f"{column!r} must be a whole number, not {shown(value)}; mend the row")
    return value


def _labels(value: Any, column: str, count: int) -> list[int]:
    """Return true and false as 1 and 0; RowProblem for anything else, and for another number of them."""
    if not isinstance(value, (list, tuple)) or len(value) != count:
        found = f"{len(value):,} entries" if isinstance(value, (list, tuple)) else shown(value)
        raise RowProblem(
            f"{column!r} must say true or false of each of the {count} answers, but has {found}; mend the row"
        )
    for number, label in enumerate(value):
        if label not in (0, 1) or not isinstance(label, (bool, int, float)):
            raise RowProblem(f"entry {number} of {column!r} must be true or false, not {shown(label)}; mend the row")
    return [int(label) for label in value]


def _id(row: Mapping[str, Any], *columns: str) -> str:
    """Return what the first of the columns says; "" where the row has no such, to be numbered."""
    value = next((row[name] for name in columns if row.get(name) is not None), "")
    if (
        isinstance(value, bool)
        or not isinstance(value, (str, int, float))
        or (type(value) is int and abs(value) >= 1 << 64)
    ):
        raise RowProblem(f"the row's id must be text or a number, not {shown(value)}; mend the row or drop the column")
    return str(value)


def _prompt(row: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    """Return a prompt, a text or messages, as messages of which the last is the user's."""
    value = row.get(column)
    if isinstance(value, str):
        return [_turn("user", _text(row, column))]
    messages = records.messages_of(value, column)
    if messages[-1]["role"] != "user":
        raise RowProblem(
            f"{column!r} ends with a turn of {messages[-1]['role']!r}, but a prompt ends with the user's; drop what comes after it"
        )
    return messages


def _first_of(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


# One reader a benchmark.


def _rewardbench(row: Mapping[str, Any], part: str | None) -> BenchmarkRow:
    answers = [_text(row, side) for side in SIDES]
    return BenchmarkRow(
        _id(row, "id"), _text(row, "subset", may_be_empty=False), _prompt(row, "prompt"), answers, [1, 0]
    )


def _rewardbench2(row: Mapping[str, Any], part: str | None) -> BenchmarkRow:
    chosen, rejected = (_texts(row.get(side), side) for side in SIDES)
    counts = {"num_correct": len(chosen), "num_incorrect": len(rejected), "total_completions": len(chosen + rejected)}
    for column, count in counts.items():
        if column in row and _whole(row, column) != count:
            raise RowProblem(
                f"{column!r} is {row[column]}, but there are {len(chosen)} chosen and {len(rejected)} rejected answers, so it "
                f"should be {count}; mend the row"
            )
    labels = [1] * len(chosen) + [0] * len(rejected)
    row_id, subset = _id(row, "id"), _text(row, "subset", may_be_empty=False)
    if subset.lower() == "ties" and not is_ties_id(row_id):
        raise RowProblem(f"'id' of a row of Ties must be 'ref:NUMBER' or 'tied:NUMBER', not {row_id!r}; mend the row")
    if subset.lower() != "ties" and (len(chosen), len(rejected)) != (1, 3):
        raise RowProblem(
            f"outside Ties a row has 1 chosen and 3 rejected answers, but this one of {subset!r} has {len(chosen)} and "
            f"{len(rejected)}; mend the row"
        )
    return BenchmarkRow(row_id, subset, _prompt(row, "prompt"), chosen + rejected, labels)


def _rm_bench(row: Mapping[str, Any], part: str | None) -> BenchmarkRow:
    sides = {side: _texts(row.get(side), side) for side in SIDES}
    for side, texts in sides.items():
        if len(texts) != 3:
            raise RowProblem(
                f"{side!r} must hold three answers (concise, detailed, detailed with markdown), not {len(texts)}; mend the row"
            )
    column = _first_of(row, ("domain", "subset"))
    if column is None and part is None:
        raise RowProblem(
            "there is no 'domain'; add the column, or name the file by its domain (chat, math, code, safety-…)"
        )
    domain = part if column is None else _text(row, column, may_be_empty=False)
    answers = [*sides["chosen"], *sides["rejected"]]
    return BenchmarkRow(_id(row, "id"), domain, _prompt(row, "prompt"), answers, [1, 1, 1, 0, 0, 0])


def _judgebench(row: Mapping[str, Any], part: str | None) -> BenchmarkRow:
    label = row.get("label")
    if not isinstance(label, str) or label not in JUDGEMENTS:
        raise RowProblem(f"'label' must be 'A>B' or 'B>A', not {shown(label)}; mend the row")
    answers = [_text(row, "response_A"), _text(row, "response_B")]
    source = _text(row, "source", may_be_empty=False)
    row_id = _id(row, "pair_id", "original_id")
    return BenchmarkRow(row_id, source, _prompt(row, "question"), answers, list(JUDGEMENTS[label]), {"label": label})


def _ppe_correctness(row: Mapping[str, Any], part: str | None) -> BenchmarkRow:
    columns = [f"response_{number}" for number in range(1, PPE_ANSWERS + 1)]
    absent = [name for name in columns if row.get(name) is None]
    if absent:
        raise RowProblem(
            f"{absent[0]!r} is missing ({len(absent)} of the {PPE_ANSWERS} answers are); mend or drop the row"
        )
    answers = [_text(row, name) for name in columns]
    labels = _labels(row.get("scores"), "scores", PPE_ANSWERS)
    pairs = _conflict_pairs(row.get("sampled_conflict_pairs"), labels)
    subset = row["subset"] if isinstance(row.get("subset"), str) else part
    return BenchmarkRow(
        _id(row, "question_id", "id"),
        subset,
        _prompt(row, "prompt"),
        answers,
        labels,
        {"sampled_conflict_pairs": pairs},
    )


def _conflict_pairs(value: Any, labels: Sequence[int]) -> list[list[int]]:
    column = "'sampled_conflict_pairs'"
    if not isinstance(value, (list, tuple)):
        raise RowProblem(f"{column} must be a list of pairs of numbers, not {shown(value)}; mend the row")
    for pair in value:
        numbers = list(pair) if isinstance(pair, (list, tuple)) else []
        is_pair = len(numbers) == 2 and all(type(number) is int and 0 <= number < len(labels) for number in numbers)
        if not is_pair:
            raise RowProblem(
                f"{column} holds {shown(pair)}, which is no pair of numbers from 0 to {len(labels) - 1}; mend the row"
            )
        if labels[numbers[0]] == labels[numbers[1]]:
            raise RowProblem(
                f"{column} holds {shown(pair)}, of which both answers are scored {bool(labels[numbers[0]])}; mend the row"
            )
    return [list(pair) for pair in value]


def _ppe_human(row: Mapping[str, Any], part: str | None) -> BenchmarkRow:
    winner = row.get("winner")
    if not isinstance(winner, str) or not (winner in WINNERS or winner.startswith("tie")):
        raise RowProblem(f"'winner' must be 'model_a', 'model_b' or 'tie…', not {shown(winner)}; mend the row")
    answers = [_text(row, "response_1"), _text(row, "response_2")]
    extra: dict[str, Any] = {"winner": winner}
    for names in MODEL_COLUMNS:
        if all(isinstance(row.get(name), str) for name in names):
            extra["models"] = [row[name] for name in names]
    extra |= {column: True for column in DOMAIN_COLUMNS if row.get(column) in (True, 1)}
    column = _first_of(row, ("subset", "domain"))
    subset = part if column is None else _text(row, column)
    return BenchmarkRow(
        _id(row, "question_id", "id"), subset, _prompt(row, "prompt"), answers, list(WINNERS.get(winner, [0, 0])), extra
    )


_RMB_PAIR = ("conversation_input", "chosen", "reject")
_RMB_BEST = ("conversation_input", "bon_best", "loser_list")


def _is_rmb_pair(row: Mapping[str, Any]) -> bool:
    return row.get("bon_best") is None


def _rmb(row: Mapping[str, Any], part: str | None) -> BenchmarkRow:
    is_pair = _is_rmb_pair(row)
    if is_pair:
        answers = [_answer(row.get(side), repr(side)) for side in ("chosen", "reject")]
        row_id = _id(row, "pair_uid")
    else:
        losers = row.get("loser_list")
        if not isinstance(losers, (list, tuple)) or not losers:
            raise RowProblem(f"'loser_list' must be a list of answers, not {shown(losers)}; mend the row")
        others = [_answer(loser, f"entry {number} of 'loser_list'") for number, loser in enumerate(losers)]
        answers, row_id = [_answer(row.get("bon_best"), "'bon_best'"), *others], _id(row, "bon_uid")
    path = row.get("category_path")
    subset = path if isinstance(path, str) else part
    labels = [1] + [0] * (len(answers) - 1)
    extra = {"task": "pairwise" if is_pair else "best-of-n"}
    return BenchmarkRow(row_id, subset, _prompt(row, "conversation_input"), answers, labels, extra)


def _answer(value: Any, what: str) -> str:
    if not isinstance(value, Mapping) or not isinstance(value.get("answer"), str):
        raise RowProblem(f'{what} must be {{"answer": text}}, not {shown(value)}; mend the row')
    records.check_unicode(value["answer"], what)
    return value["answer"]


def _best_of_n(row: Mapping[str, Any], part: str | None) -> BenchmarkRow:
    prompt, column, _ = _required("best-of-n", row)
    answers = _texts(row[column], column)
    if len(answers) < 2:
        raise RowProblem(f"{column!r} holds one answer, so there is nothing to choose from; drop the row")
    labels = _labels(row["correct"], "correct", len(answers))
    subset = row.get("subset")
    if subset is not None and not isinstance(subset, str):
        raise RowProblem(f"'subset' must be a text, not {shown(subset)}; mend the row or drop the column")
    return BenchmarkRow(_id(row, "id", "question_id"), subset, _prompt(row, prompt), answers, labels)


def _is_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(text, str) for text in value)


def _always(row: Mapping[str, Any]) -> bool:
    return True


def _is_rm_bench(row: Mapping[str, Any]) -> bool:
    return "num_correct" not in row and all(_is_texts(row[side]) for side in SIDES)


def _is_rewardbench(row: Mapping[str, Any]) -> bool:
    # No figure needs these, but without them the columns are anybody's.
    return "chosen_model" in row and "rejected_model" in row


# The order is that in which a row is tried.
SCHEMAS: dict[str, Schema] = {
    "rewardbench2": Schema(("prompt", *SIDES, "subset", "num_correct", "total_completions"), _always, _rewardbench2),
    "rewardbench": Schema(("prompt", *SIDES, "subset"), _is_rewardbench, _rewardbench),
    "rm-bench": Schema(("prompt", *SIDES), _is_rm_bench, _rm_bench),
    "judgebench": Schema(("question", "response_A", "response_B", "label", "source"), _always, _judgebench),
    "ppe-correctness": Schema(("prompt", "response_1", "scores", "sampled_conflict_pairs"), _always, _ppe_correctness),
    "ppe-human": Schema(("prompt", "response_1", "response_2", "winner"), _always, _ppe_human),
    "rmb": Schema(_RMB_PAIR, _always, _rmb),
    "best-of-n": Schema(("prompt", "responses", "correct"), _always, _best_of_n),
}
# By its columns it is best-of-n; its name asks for its own figures.
SCHEMAS["rewardmath"] = SCHEMAS["best-of-n"]


# Plain pairs: every record format.


def pair_row(row: Mapping[str, Any], layout: records.Layout, where: str) -> BenchmarkRow:
    """Return one plain pair. ValueError naming row, column and cure.

    Where both sides begin alike, that is the prompt; of transcripts, up to the last "Assistant:". Sides that part before
    their last turn keep their own, and `extra` says so.
    """
    pair = records.canonical(row, layout, where)
    try:
        row_id = _id(row, "id")
    except RowProblem as problem:
        raise ValueError(f"{where}: {problem}") from None
    names: dict[str, Any] = {"id": row_id, "subset": _subset(row, where), "labels": [1, 0]}
    if layout.kind == "tokenized":
        return with_details(BenchmarkRow(**names, prompt=None, answers=[pair[f"{side}_ids"] for side in SIDES]))
    if layout.kind == "standard":
        prompt = row[layout.columns["prompt"]] if "prompt" in layout.columns else None
        if prompt is not None:
            return with_details(
                BenchmarkRow(**names, prompt=prompt, answers=[row[layout.columns[side]] for side in SIDES])
            )
        return with_details(_of_texts([pair[side] for side in SIDES], names))
    sides = [pair[side] for side in SIDES]
    names |= {"tools": pair["tools"], "template_kwargs": pair["chat_template_kwargs"]}
    if sides[0][:-1] != sides[1][:-1]:
        return with_details(BenchmarkRow(**names, prompt=None, answers=sides, extra={"prefix_differs": True}))
    prompt = sides[0][:-1] or None
    answers = [_answer_alone(messages) for messages in sides] if prompt else sides
    return with_details(BenchmarkRow(**names, prompt=prompt, answers=answers))


def _answer_alone(messages: list[dict[str, Any]]) -> Any:
    """Return a conversation's last turn, as a text where it is the assistant's text and no more."""
    last = messages[-1]
    is_plain = set(last) == {"role", "content"} and last["role"] == "assistant" and isinstance(last["content"], str)
    return last["content"] if is_plain else [last]


def _of_texts(texts: list[str], names: dict[str, Any]) -> BenchmarkRow:
    ends = [text.rfind(ANSWER_MARK) + len(ANSWER_MARK) if ANSWER_MARK in text else 0 for text in texts]
    prompts = [text[:end] for text, end in zip(texts, ends, strict=True)]
    answers = [text[end:] for text, end in zip(texts, ends, strict=True)]
    if prompts[0] == prompts[1] and prompts[0]:
        return BenchmarkRow(**names, prompt=prompts[0], answers=answers, is_text=True)
    extra: dict[str, Any] = {"characters": [len(answer) for answer in answers]}
    if any(prompts):
        extra["prefix_differs"] = True
    return BenchmarkRow(**names, prompt=None, answers=texts, extra=extra, is_text=True)


def _subset(row: Mapping[str, Any], where: str) -> str | None:
    subset = row.get("subset")
    if subset is None or isinstance(subset, str):
        return subset
    raise ValueError(f"{where}: 'subset' must be a text, not {shown(subset)}; mend the row or rename the column")
