"""What is fuzzed of options: RewardConfig, config files, command lines, and what other verbs take."""

import contextlib
import dataclasses
import functools
import json
import math
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any

from fuzz_cases import target, unchanged, written
from fuzzing import (
    TEXTS,
    anything,
    attempt,
    broken_text,
    numbers,
    one_of_these,
    same,
    small_texts,
    texts,
)
from hypothesis import strategies as st

from plaudit import (
    compat,
    job,
    options,
)
from plaudit.conditions import Condition
from plaudit.config import RewardConfig

# Options.


def _enum_texts(hint: Any) -> list[str]:
    kinds = typing.get_args(hint) or (hint,)
    return [str(one.value) for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum) for one in kind]


FIELDS = {name: hint for name, hint in typing.get_type_hints(RewardConfig).items() if not name.startswith("_")}
# What would reach out: another machine, or this process's settings.
NOT_FUZZED = {"deepspeed", "local_rank", "ddp_backend", "full_determinism", "parallelism_config"}
CONFIG_FIELDS = sorted({each.name for each in dataclasses.fields(RewardConfig) if each.init} - NOT_FUZZED)
GIVEN_AS_TEXT = [
    "no",
    "steps",
    "epoch",
    "best",
    "adamw_torch",
    "linear",
    "auto",
    "off",
    "none",
    "all",
    "sgd",
    "{}",
    '{"a": 1}',
]


@st.composite
def config_values(draw: Any) -> dict[str, Any]:
    names = draw(st.lists(one_of_these([*CONFIG_FIELDS, *compat.OLDER_FIELDS]), min_size=1, max_size=3, unique=True))
    given = {}
    for name in names:
        usual = [*_enum_texts(FIELDS.get(name)), *GIVEN_AS_TEXT, 1, 2, 10, 0.1, True, False, None, {}, ["none"], []]
        fitting = one_of_these(_fitting(FIELDS.get(name)) or usual)
        given[name] = draw(fitting if draw(st.integers(0, 3)) else st.one_of(one_of_these(usual), anything))
    return given


def _fitting(hint: Any) -> list[Any]:
    """Return a few values of a field's type."""
    kinds = typing.get_args(hint) or (hint,)
    known = {bool: [True, False], int: [1, 2, 10], float: [0.1, 1, 2.5], str: ["x", "no"], dict: [{}, {"a": 1}]}
    return _enum_texts(hint) or [value for kind in kinds for value in known.get(typing.get_origin(kind) or kind, [])]


@target(config_values(), 15)
def config(given: dict[str, Any]) -> None:
    """RewardConfig with values of every type in every field: refused by its name, or kept as it was given."""
    todays = [compat.OLDER_FIELDS[name].today or name for name in given if name in compat.OLDER_FIELDS]
    with unchanged(given):
        made = attempt(lambda: RewardConfig(**given), *given, *todays, also=(ImportError,))
    for name, value in given.items():
        if name in compat.OLDER_FIELDS and name not in FIELDS:
            continue
        assert _is_kept(name, value, getattr(made, name), made), f"{name}={value!r} became {getattr(made, name)!r}"


def _is_kept(name: str, value: Any, kept: Any, made: Any) -> bool:
    """Whether a field holds what was given, or what the field's help says becomes of it."""
    kept = getattr(kept, "value", kept)
    value = getattr(value, "value", value)
    if kept == value and (type(kept) is type(value) or isinstance(value, (str, int, float, Mapping))):
        return True
    if value is None:
        # None asks for the default.
        return True
    if isinstance(value, str) and not isinstance(kept, str):
        with contextlib.suppress(ValueError):
            if json.loads(value) == kept:
                return True
    # Memory is pinned for an accelerator alone.
    is_without_effect = name == "dataloader_pin_memory" and made.use_cpu
    # Its help says that activation_checkpointing wins.
    is_without_effect |= name == "gradient_checkpointing" and kept == made.activation_checkpointing
    return is_without_effect or (name, type(kept)) in DERIVED or name in ALWAYS_DERIVED


# What transformers makes of a value, by its own documentation.
DERIVED: set[tuple[str, type]] = {
    ("report_to", list),
    ("debug", list),
    ("fsdp", bool),
    ("bf16", bool),
    ("include_num_input_tokens_seen", str),
}
ALWAYS_DERIVED = {"output_dir", "fsdp", "fsdp_config", "accelerator_config", "use_cpu", "report_to", "debug", "do_eval"}


# Files of options, and command lines.


@functools.cache
def train_parser() -> Any:
    return options.train_parser()


OPTION_NAMES = sorted({action.dest for action in train_parser()._actions} - {"help", "config"})
YAML_EXAMPLES = [
    "model_name_or_path: m\ndataset_name: d\nlearning_rate: 1e-4\nbf16: no\nmax_length: none\n",
    "eval_strategy: no\nlogging_steps: 0.5\nreport_to: [none]\nlora_target_modules: [q_proj, v_proj]\n",
    "model_init_kwargs:\n  dtype: bfloat16\n  rope_scaling: {factor: 2.0}\nseed: 3\n",
    '{"seed": 1, "output_dir": "x", "max_steps": 5}',
    "learning-rate: .5\nuse_peft: true\ntest_split_size: 0.1\n# a comment\n",
]
# Two to the fortieth words, were they written out.
LAUGHS = "&a0 [x, x]"
for _level in range(1, 40):
    LAUGHS = f"&a{_level} [{LAUGHS}, *a{_level - 1}]"
YAML_PIECES = [
    "&a ",
    "*a",
    "seed: &a [*a]\n",
    f"lora_target_modules: {LAUGHS}\n",
    f"model_init_kwargs: {{a: {LAUGHS}}}\n",
    f"seed: {LAUGHS}\n",
    "output_dir: &name x\nrun_name: *name\n",
    "model_init_kwargs: " + "{a: " * 40 + "1" + "}" * 40 + "\n",
    "<<: {seed: 1}\n",
    "seed: 1\nseed: 2\n",
    "\t",
    "\tseed: 1\n",
    "seed: !!python/object:os.system x\n",
    "output_dir: !!python/object/apply:os.system ['true']\n",
    "!!python/name:os.system ",
    "!!binary ",
    "!!set {a, b}\n",
    "!!int ",
    "!!float ",
    "!!timestamp ",
    "!!omap [a: 1]\n",
    "output_dir: 2020-01-01\n",
    "output_dir: 2020-13-45\n",
    "2020-01-01: x\n",
    "learning_rate: .inf\n",
    "learning_rate: -.inf\n",
    "learning_rate: .nan\n",
    "max_length: 0x1F\n",
    "max_length: 1_000\n",
    "max_length: 190:20:30\n",
    "seed: 0o7\nmax_steps: 010\n",
    "? [a, b]\n: c\n",
    "? {a: b}\n: c\n",
    "1: 2\n01: 3\n",
    "null: 1\n~: 2\n",
    "--- \n",
    "...\n",
    "%YAML 9.9\n",
    "@", "`", "\x00", "\x85", "\ufeff",
    "seed: |\n  1\n",
    "seed: >-\n  1\n",
    "report_to: [1, 2.5, null, {a: b}, [c]]\n",
    "model_init_kwargs: {1: 2, null: 3, 2020-01-01: 4, [a]: 5}\n",
    "model_init_kwargs: {a: 2020-01-01, b: !!binary aGk=, c: .nan}\n",
    "seed: " + "9" * 5_000 + "\n",
    "seed: " + "[" * 500 + "\n",
    "- " * 2_000,
    "config: other.yaml\n", "help: true\n",
]  # fmt: skip


@st.composite
def yaml_texts(draw: Any) -> bytes:
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        value = st.one_of(one_of_these(YAML_PIECES), small_texts, numbers.map(_short))
        line = st.builds("{}: {}\n".format, one_of_these(OPTION_NAMES), value)
        parts.append(draw(st.one_of(one_of_these(YAML_EXAMPLES), one_of_these(YAML_PIECES), line)))
    body = "".join(parts)
    if draw(st.integers(0, 3)) == 0:
        body = draw(broken_text(st.just(body), one_of_these([*YAML_PIECES, *TEXTS])))
    raw = body.encode("utf-8", "surrogatepass")
    odd_bytes = [body.encode("utf-16", "replace"), raw + b"\xff", b"\xef\xbb\xbf" + raw]
    return draw(one_of_these(odd_bytes)) if draw(st.integers(0, 9)) == 0 else raw


def _short(number: Any) -> str:
    return "1" if isinstance(number, int) and abs(number) > 10**4_000 else str(number)


@target(yaml_texts(), 6)
def config_files(content: bytes) -> None:
    """Config files in YAML and JSON: each option as its flag would read it, or an error that names the file."""
    path = written("fuzz.yaml", content)
    given = attempt(lambda: options._read_config(path, train_parser()), "fuzz.yaml")
    assert set(given) <= set(OPTION_NAMES)
    assert same(given, options._read_config(path, train_parser()))


WORDS = st.one_of(
    one_of_these(OPTION_NAMES).map(lambda name: f"--{name}"),
    one_of_these(OPTION_NAMES).map(lambda name: f"--{name.replace('_', '-')}=1"),
    st.builds("--{}={}".format, one_of_these(OPTION_NAMES), texts),
    one_of_these(
        ["--", "-", "-h1", "--no_such", "--bf16", "true", "-1e-3", "1e-4", "none", "@file", "--seed=\uff11\uff12"]
    ),
    texts,
)


@target(st.lists(WORDS, max_size=5), 8)
def command_lines(words: list[str]) -> None:
    """Words behind `plaudit train`: options in their types, or an error of the command."""
    if {"--help", "-h"} & set(words):
        return
    given = attempt(lambda: options._given(train_parser(), words), also=(options.UsageError, FileNotFoundError))
    assert set(given) <= {*OPTION_NAMES, "config"}


def _kinds_of_options() -> dict[str, Any]:
    from plaudit.audit import Audit
    from plaudit.evaluation import Evaluation
    from plaudit.report import ReportOptions
    from plaudit.results import Comparing

    return {"score": job.Job, "audit": Audit, "evaluate": Evaluation, "compare": Comparing, "report": ReportOptions}


OPTIONS = _kinds_of_options()
# Those that Python may make too, by the functions that take their fields.
CHECKED = ("score", "audit", "evaluate")
USUAL = {"model": "m", "data": "d.jsonl", "output": "out.jsonl", "benchmark": ("b",)}


@st.composite
def verb_options(draw: Any) -> tuple[str, dict[str, Any]]:
    verb = draw(one_of_these(CHECKED))
    fields = {each.name: each for each in dataclasses.fields(OPTIONS[verb])}
    given = {name: value for name, value in USUAL.items() if name in fields}
    for name in draw(st.lists(one_of_these(sorted(fields)), max_size=3, unique=True)):
        choices = [*(fields[name].metadata.get("choices") or ("x",)), fields[name].default, "top1", "0/2", "3/2", 4]
        given[name] = draw(
            st.one_of(one_of_these([one for one in choices if one is not dataclasses.MISSING]), anything)
        )
    return verb, given


@target(verb_options(), 8)
def options_of_verbs(case: tuple[str, dict[str, Any]]) -> None:
    """The options of the other verbs from Python, with values of every type: refused by name, or kept."""
    verb, given = case
    made = attempt(lambda: OPTIONS[verb](**given), *given, also=(FileNotFoundError,))
    for name, value in given.items():
        kept = getattr(made, name)
        value = (value,) if isinstance(value, str) and isinstance(kept, tuple) else value
        value = () if value is None and kept == () else value
        kept = tuple(kept) if isinstance(kept, list) else kept
        assert same(kept, tuple(value) if isinstance(value, list) else value), f"{name}={value!r} became {kept!r}"


GOOD_LINES = {
    "score": ["--model", "m", "--data", "d", "--output", "o"],
    "audit": ["data.jsonl"],
    "evaluate": ["--model", "m"],
    "compare": ["a", "b"],
    "report": ["folder"],
}


@target(st.tuples(one_of_these(sorted(GOOD_LINES)), st.lists(st.one_of(
    st.builds("--{}".format, one_of_these(sorted({each.name for kind in OPTIONS.values() for each in dataclasses.fields(kind)}))),
    one_of_these(["x", "1", "-1", "--max-length=3", "--seed=4", "--no_strict", "--format=jsonl"]), texts), max_size=3)), 4)  # fmt: skip
def verb_lines(case: tuple[str, list[str]]) -> None:
    """Words behind the other verbs: options in their types, or an error of the command."""
    verb, words = case
    if {"--help", "-h"} & set(words):
        return
    words = [*GOOD_LINES[verb], *words]
    given = attempt(lambda: options.parse_fields(OPTIONS[verb], verb, "", "x", words), also=(options.UsageError,))
    assert set(given) <= {each.name for each in dataclasses.fields(OPTIONS[verb])}


@target(
    st.one_of(texts, broken_text(one_of_these(["duplicates>1%", "longer_wins>=70%", "malformed", "identical < 3"]))), 2
)
def conditions(text: str) -> None:
    """Conditions of `audit --fail_on`."""
    made = attempt(lambda: Condition.of(text), "fail_on")
    assert made.text == text
    assert math.isfinite(made.bound)
