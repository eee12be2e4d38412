"""Benchmarks in, scored rows out: each text scored once, by a RewardModel or any function, and what made the scores."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plaudit import __version__, schemas, suites
from plaudit.benchmarks import Benchmark
from plaudit.say import say
from plaudit.scorable import Scorable
from plaudit.score_rows import ScoredRow

RAW = "raw"


def score_benchmarks(
    score: Any, benchmarks: Sequence[Benchmark], *, truncation: str, max_length: int | None, template: str | None
) -> tuple[dict[str, list[ScoredRow]], dict[str, Any]]:
    """Return the scored rows of each benchmark by its name, and what made the scores.

    score: a RewardModel, or a function from a list of conversations to as many numbers. Other arguments: as in
    `evaluation.evaluate`.
    """
    # By what it has: to import RewardModel loads torch, which a function may do without.
    is_model = hasattr(score, "rewards_of")
    # A model's own method reads a text as its model does.
    owner = score if is_model else getattr(score, "__self__", None)
    as_turns = template is not None or getattr(owner, "as_turns", True)
    sequences, places = sequences_of(benchmarks, as_turns, template == RAW)
    started = time.perf_counter()
    if is_model:
        with _with_template(score, template):
            scores = _by_model(score, sequences, truncation, max_length)
            # Before the facts: the model's fingerprint takes a while too.
            speed = _speed(scores, time.perf_counter() - started)
            made = _facts_of(score, truncation, max_length, template)
    else:
        _refuse_for_function(truncation, max_length, template)
        scores = _by_function(score, sequences)
        speed = _speed(scores, time.perf_counter() - started)
        made = {"model": _name_of(score), "template": template}
    made |= {"plaudit": __version__, **speed, "equal_when_cut": len(scores.same_as)}
    return {one.name: scored_rows(one, places[one.name], scores, template == RAW) for one in benchmarks}, made


class ToScore(NamedTuple):
    """sequences: what is to be scored, each once, a prompt's answers side by side. places: by benchmark, of each row's
    candidates their places among the sequences."""

    sequences: list[Scorable]
    places: dict[str, list[list[int]]]


def sequences_of(benchmarks: Iterable[Benchmark], as_turns: bool = True, raw: bool = False) -> ToScore:
    """Return what is to be scored for benchmarks, each text once, and where each row's candidates are among it.

    as_turns: whether a text prompt is a user's turn. raw: everything as texts, without a chat template.
    """
    sequences: list[Scorable] = []
    known: dict[str, int] = {}
    places: dict[str, list[list[int]]] = {}
    for one in benchmarks:
        places[one.name] = []
        for row in one.rows:
            # The candidates of one row are held against each other, but each is cut alone, as it is scored alone.
            spots = []
            for number, content in enumerate(row.contents(as_turns and not raw)):
                content = _raw(content) if raw else content
                key = schemas.digest([content, row.tools, dict(row.template_kwargs)])
                if key not in known:
                    known[key] = len(sequences)
                    where = f"benchmark {one.name!r} row {row.id!r}, answer {number}"
                    sequences.append(Scorable(content, where, len(sequences), row.tools, row.template_kwargs))
                spots.append(known[key])
            places[one.name].append(spots)
    return ToScore(sequences, places)


def _raw(content: Any) -> Any:
    """Return a conversation as one text: what its turns say, one below the other."""
    if isinstance(content, str) or (content and isinstance(content[0], int)):
        return content
    texts = []
    for message in content:
        said = message["content"]
        texts.append(said if isinstance(said, str) else "\n".join(str(block.get("text", "")) for block in said))
    return "\n\n".join(texts)


class Scores(NamedTuple):
    """By sequence: its reward, and where a model tells, its length in tokens, whether it was cut, and the first sequence
    whose token ids are the same."""

    rewards: Sequence[float]
    tokens: Sequence[int] | None = None
    truncated: Sequence[bool] | None = None
    same_as: Mapping[int, int] = {}


def _by_model(model: Any, sequences: list[Scorable], truncation: str, max_length: int | None) -> Scores:
    """Return a RewardModel's scores; sequences that became equal when they were cut have one reward."""
    kinds = {one.kind for one in sequences}
    if "conversation" in kinds and not getattr(model.tokenizer, "chat_template", None):
        raise ValueError(
            "the benchmark's rows are conversations, but the model's tokenizer has no chat template; give one as a file "
            "(template, --template FILE), or ask for plain texts with template='raw' (--template raw)"
        )
    scored = model.rewards_of(sequences, truncation, max_length)
    model.say_truncated(scored, truncation, max_length)
    rewards = [float(reward) for reward in scored.rewards]
    same = _same_when_cut(model, sequences, scored.truncated, truncation, max_length)
    for place, first in same.items():
        rewards[place] = rewards[first]
    return Scores(rewards, scored.lengths.tolist(), scored.truncated.tolist(), same)


def _same_when_cut(
    model: Any, sequences: list[Scorable], truncated: Any, truncation: str, max_length: int | None
) -> dict:
    """Return which cut sequences have become others' equals: what told them apart is gone."""
    cut = [place for place, is_cut in enumerate(truncated) if is_cut]
    first: dict[tuple[int, ...], int] = {}
    same = {}
    fitted = model.fitted([sequences[place] for place in cut], truncation, max_length).sequences if cut else []
    for place, ids in zip(cut, fitted, strict=True):
        earlier = first.setdefault(tuple(ids), place)
        if earlier != place:
            same[place] = earlier
    if same:
        say(
            f"{len(same):,} of {len(cut):,} cut sequences have become equal to others, which makes ties; raise max_length"
        )
    return same


def _by_function(score: Callable[[list[Any]], Any], sequences: list[Scorable]) -> Scores:
    """Return what a function gives for all sequences at once. ValueError for another number of them, and none or infinite."""
    if not callable(score):
        raise TypeError(
            f"score must be a RewardModel or a function of a list of conversations, not {type(score).__name__}; "
            "RewardModel.from_pretrained(path) loads a model"
        )
    if any(one.tools or one.template_kwargs for one in sequences):
        count = sum(bool(one.tools or one.template_kwargs) for one in sequences)
        say(f"{count:,} conversations have tools or template variables, which a scoring function is not given")
    found = score([one.content for one in sequences])
    found = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(found, Iterable) or isinstance(found, (str, Mapping)):
        raise ValueError(
            f"the scoring function returned {type(found).__name__}; it must return one number a conversation"
        )
    values = [value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value for value in found]
    if len(values) != len(sequences):
        raise ValueError(
            f"the scoring function returned {len(values):,} rewards for {len(sequences):,} conversations; it must return "
            "one each, in their order"
        )
    return Scores([_reward(value, one.where) for value, one in zip(values, sequences, strict=True)])


def _reward(value: Any, where: str) -> float:
    try:
        reward = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: the reward is {value!r}, and must be a number; mend the scoring function") from None
    if not math.isfinite(reward):
        raise ValueError(
            f"{where}: the reward is {reward}, and must be finite; mend the scoring function or drop the row"
        )
    return reward


def scored_rows(
    benchmark: Benchmark, places: Sequence[Sequence[int]], scores: Scores, raw: bool = False
) -> list[ScoredRow]:
    """Return a benchmark's rows with their rewards, as scores.jsonl holds them.

    places: of each row's candidates their places among the scores, as `sequences_of` gives them. raw: whether the rows
    were scored as texts, which is counted for those that are conversations.
    """
    # A name that says the kind need not be told it.
    told = {} if suites.kind_of(benchmark.name) == benchmark.kind else {"kind": benchmark.kind}
    rows = []
    for row, spots in zip(benchmark.rows, places, strict=True):
        extra = {**told, **row.extra}
        if scores.truncated is not None and any(scores.truncated[spot] for spot in spots):
            extra["truncated"] = [bool(scores.truncated[spot]) for spot in spots]
        right = {scores.same_as.get(spot, spot) for spot, label in zip(spots, row.labels, strict=True) if label}
        wrong = {scores.same_as.get(spot, spot) for spot, label in zip(spots, row.labels, strict=True) if not label}
        if scores.same_as and right & wrong and not row.extra.get("identical"):
            extra["identical_when_cut"] = True
        if raw and row.prompt is not None and not row.is_text:
            extra["template_missing"] = True
        tokens = None if scores.tokens is None else [int(scores.tokens[spot]) for spot in spots]
        rewards = [float(scores.rewards[spot]) for spot in spots]
        rows.append(ScoredRow(benchmark.name, row.id, row.subset, rewards, list(row.labels), tokens, extra))
    return rows


# What made the scores.


@contextlib.contextmanager
def _with_template(model: Any, template: str | None) -> Iterator[None]:
    """Give a RewardModel's tokenizer the chat template of a file, for as long as it lasts."""
    if template in (None, RAW):
        yield
        return
    text = _read_template(str(template))
    if model.tokenizer is None:
        raise ValueError("a chat template needs a tokenizer, and this reward model has none; leave template out")
    own, model.tokenizer.chat_template = model.tokenizer.chat_template, text
    try:
        yield
    finally:
        model.tokenizer.chat_template = own


def _read_template(file: str) -> str:
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"template {file!r} is neither 'raw' nor a file; give a file with a chat template, in Jinja")
    return path.read_text(encoding="utf-8")


def _facts_of(model: Any, truncation: str, max_length: int | None, template: str | None) -> dict[str, Any]:
    """Return what a reader needs to make a RewardModel's scores again."""
    from plaudit import tokens
    from plaudit.proof import library_versions

    config = getattr(model.model, "config", None)
    used = None if template == RAW else getattr(model.tokenizer, "chat_template", None)
    return {
        "model": str(getattr(config, "_name_or_path", "") or type(model.model).__name__).rstrip("/").rpartition("/")[2],
        "model_fingerprint": model.fingerprint,
        "tokenizer_fingerprint": model.tokenizer and schemas.digest([tokens.fingerprint(model.tokenizer)]),
        "template_sha256": schemas.digest(str(used)) if used else None,
        "template": Path(template).name if template else "the tokenizer's own" if used else None,
        "dtype": str(next(model.model.parameters()).dtype).removeprefix("torch."),
        "attention": getattr(config, "_attn_implementation", None),
        "layout": type(model.inference.layout).__name__,
        "device": str(model.device),
        "max_length": max_length or model.max_length,
        "truncation": truncation,
        "versions": library_versions(),
    }


def _speed(scores: Scores, seconds: float) -> dict[str, Any]:
    total = None if scores.tokens is None else int(sum(scores.tokens))
    return {
        "seconds": seconds,
        "sequences": len(scores.rewards),
        "tokens": total,
        "tokens_per_second": None if total is None else total / max(seconds, 1e-9),
    }


def _refuse_for_function(truncation: str, max_length: int | None, template: str | None) -> None:
    """Raise ValueError for an option of models that was given; a function gets no template but "raw"."""
    idle = {"truncation": ("left",), "max_length": (None,), "template": (None, RAW)}
    for (name, values), value in zip(idle.items(), (truncation, max_length, template), strict=True):
        if value not in values:
            raise ValueError(
                f"{name}={value!r} has no effect on a scoring function, which gets whole conversations; leave it out"
            )


def _name_of(score: Any) -> str:
    return str(getattr(score, "__name__", type(score).__name__))
