"""RewardModel: conversations in, one float32 reward each out, in the order given, the same in whatever company."""

import hashlib
import itertools
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from plaudit import model as models
from plaudit import scorable, tokens
from plaudit.calibration import sigmoid
from plaudit.diagnosis import Verification, verify
from plaudit.inference import Inference
from plaudit.proof import PROOF_FILE, Proof, read_proof, weight_fingerprints
from plaudit.rendering import Fitted, Renderer, check_limits
from plaudit.rewards import classifier_of
from plaudit.say import say
from plaudit.scorable import BAD_ROWS, Scorable
from plaudit.trust import Refused

# What a configuration holds beside what the rewards depend on: where it was, by whom it was written, how attention is computed.
OF_NO_MATTER = (
    "_name_or_path",
    "transformers_version",
    "base_model_name_or_path",
    "_attn_implementation",
    "inference_mode",
)


class Scored(NamedTuple):
    """Of each sequence its reward, float32, how many tokens it has, and whether it was cut; each shape (num_sequences,)."""

    rewards: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray

    @property
    def num_truncated(self) -> int:
        """How many sequences were cut."""
        return int(self.truncated.sum())

    @property
    def num_tokens(self) -> int:
        """The tokens of all sequences, what they share counted each time."""
        return int(self.lengths.sum())


class RewardModel:
    """A trained reward model that scores conversations and texts; not a torch module.

    model: the classifier, or the PeftModel of one. tokenizer: its tokenizer; None where only token ids are scored.
    proof: what was recorded at its training, which decides how texts are rendered. max_length: the longest sequence
    taken, in tokens; None for the recorded one, or else the model's. packing: "auto" computes what sequences share once,
    where a trial shows the padded rewards; "off" pads. max_batch_tokens: tokens computed at a time.

    `model` and `tokenizer` are plain transformers objects. `num_truncated` counts the sequences that were cut;
    `inference.shows_progress` turns the progress bar of long work off.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        proof: Proof | None = None,
        max_length: int | None = None,
        packing: str = "auto",
        max_batch_tokens: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.proof = model, tokenizer, proof
        self.inference = Inference(model, tokenizer, packing, max_batch_tokens)
        self.num_truncated = 0
        self.max_length = self._limit(max_length) or self._longest()
        self._fingerprint: tuple[list, str] | None = None
        self._loaded_with: tuple[str, dict[str, Any]] | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        strict: bool = True,
        *,
        max_length: int | None = None,
        packing: str = "auto",
        max_batch_tokens: int | None = None,
        trust_remote_code: bool = False,
        **model_init_kwargs: Any,
    ) -> "RewardModel":
        """Return the reward model at a directory or a Hub id: a whole model, an adapter, or another tool's one-output head.

        device: None for the accelerator if there is one, "auto" to spread the model over all. dtype: None for the saved
        one. strict: replay the checkpoint's proof and refuse what `verify` would; False loads it all the same.
        model_init_kwargs: further arguments of transformers' `from_pretrained`, such as `revision`.

        Raises ValueError for a checkpoint without a head, whose rewards would be random, and, if strict, for one that
        does not give its recorded rewards.
        """
        name = str(path_or_name)
        kept = {"device": device, "dtype": dtype, "strict": strict, "trust_remote_code": trust_remote_code}
        kept |= {"max_length": max_length, "packing": packing, "max_batch_tokens": max_batch_tokens}
        hub = {key: model_init_kwargs[key] for key in models.HUB_KEYS if key in model_init_kwargs}
        proof = _read_proof(models.require_path(name), strict, hub)
        model = models.load_trained(name, device, dtype, trust_remote_code, model_init_kwargs)
        tokenizer = _load_tokenizer(name, model_init_kwargs, trust_remote_code)
        found = cls(
            model, tokenizer, proof=proof, max_length=max_length, packing=packing, max_batch_tokens=max_batch_tokens
        )
        # A worker may have another working directory.
        place = os.path.abspath(os.path.expanduser(name)) if os.path.isdir(os.path.expanduser(name)) else name
        found._loaded_with = (place, {**kept, **model_init_kwargs})
        if strict:
            found._require_verified(name)
        elif proof is not None and not (result := found.verify()).passed:
            say(f"'{name}' is not as it was saved, and loaded all the same (strict=False): {'; '.join(result.causes)}")
        return found

    def _require_verified(self, name: str) -> None:
        if self.proof is None:
            say(f"'{name}' has no {PROOF_FILE}, so its rewards cannot be checked; its reward head was loaded")
            return
        result = self.verify()
        if not result.passed:
            raise ValueError(
                f"'{name}' is not as it was saved: {'; '.join(result.causes)} (golden rewards differ by up to "
                f"{result.largest_difference:.3g}, allowed is {result.tolerance:.3g}); restore the checkpoint, or load it all "
                "the same with strict=False"
            )
        for note in result.notes:
            warnings.warn(f"'{name}': {note}", UserWarning, stacklevel=3)

    def verify(self, served: Sequence[float] | None = None) -> Verification:
        """Replay the golden conversations of the checkpoint's proof; print what it returns to read it.

        served: their rewards as another tool gave them, in the proof's order, to be told what that tool does otherwise.
        Raises ValueError where there is no proof.
        """
        if self.proof is None:
            raise ValueError(
                f"there is no {PROOF_FILE} that can be read, so there is nothing to verify; every save of plaudit writes one"
            )
        return verify(self.proof, self.model, self.tokenizer, served)

    def score(
        self,
        conversations: Any = None,
        *,
        prompt: Any = None,
        responses: Sequence[Any] | None = None,
        prompts: Sequence[Any] | None = None,
        input_ids: Any = None,
        attention_mask: Any = None,
        tools: Any = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        truncation: str = "error",
        max_length: int | None = None,
        normalise: bool = False,
    ) -> Any:
        """Return one float32 reward a sequence, shape (num_sequences,), in the order given.

        conversations: a text or a message list, or a sequence of them (also of dicts with `messages`, `tools`, `text`
        and the like). prompt with responses: answers to one prompt, which is computed once; prompts with responses, one
        list of answers a prompt: a list of arrays. input_ids: token ids, with attention_mask where they are padded.
        A text prompt is a user's turn for a model of conversations, and is joined to its response for one of texts.

        truncation: what happens to a sequence longer than max_length: "error"; "left" cuts its beginning; "drop_turns"
        leaves out the oldest turns. Both are counted and said; answers to one prompt are cut at the same place.
        normalise: subtract the recorded mean and divide by the recorded scale.

        Raises ValueError naming the row for what cannot be scored and for a reward that is not finite.
        """
        if sum(value is not None for value in (conversations, prompt, prompts, input_ids)) != 1:
            raise ValueError(
                "give one of: conversations or texts, prompt= with responses=, prompts= with responses=, input_ids="
            )
        extras = {"tools": tools, "chat_template_kwargs": chat_template_kwargs}
        if (prompt is None and prompts is None) != (responses is None):
            raise ValueError("responses= goes with prompt= or prompts=; give both, or whole conversations")
        if attention_mask is not None and input_ids is None:
            raise ValueError("attention_mask= goes with input_ids=; texts and conversations need none")
        sizes: list[int] | None = None
        if input_ids is not None:
            found = scorable.of_ids(input_ids, attention_mask, self.inference.pad_token_id)
        elif prompt is not None:
            found = scorable.of_answers(prompt, cast(Sequence, responses), "the prompt", 0, extras, self.as_turns)
        elif prompts is not None:
            if scorable.is_one(responses):
                raise ValueError("responses is one answer; give one list of answers a prompt")
            prompts = prompts if scorable.is_one(prompts) else list(prompts)
            responses = list(cast(Sequence, responses))
            groups = scorable.of_prompts(prompts, responses, extras, self.as_turns)
            is_flat = bool(responses) and all(isinstance(each, str) for each in responses)
            sizes = None if is_flat else [len(group) for group in groups]
            found = list(itertools.chain(*groups))
        else:
            found = scorable.of_items(conversations, extras, self.as_turns)
        scored = self.rewards_of(found, truncation, max_length, normalise)
        self.say_truncated(scored, truncation, max_length)
        if sizes is None:
            return scored.rewards
        return np.split(scored.rewards, np.cumsum(sizes)[:-1]) if sizes else []

    def rank(self, prompt: Any, responses: Sequence[Any], **options: Any) -> list[int]:
        """Return the responses' numbers, the best first; of equal rewards the earlier first. options: those of `score`."""
        return np.argsort(-self.score(prompt=prompt, responses=responses, **options), kind="stable").tolist()

    def prefer(
        self,
        chosen: Any,
        rejected: Any,
        prompt: Any = None,
        *,
        tools: Any = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        truncation: str = "error",
        max_length: int | None = None,
    ) -> Any:
        """Return the probability, 0 to 1, that chosen is preferred to rejected; for sequences of them an array.

        chosen, rejected: texts or conversations; with prompt, responses to it. Other options as in `score`. The two sides
        of a pair are cut at the same place. Source: Bradley and Terry (1952), Biometrika 39.
        """
        extras = {"tools": tools, "chat_template_kwargs": chat_template_kwargs}
        is_one = prompt is not None or scorable.is_one(chosen)
        if prompt is not None:
            found = scorable.of_answers(prompt, [chosen, rejected], "the prompt", 0, extras, self.as_turns)
        elif is_one != scorable.is_one(rejected):
            raise ValueError(
                "chosen is one conversation and rejected several, or the other way round; give as many of each"
            )
        else:
            sides = [scorable.of_items(side, extras, self.as_turns) for side in (chosen, rejected)]
            if len(sides[0]) != len(sides[1]):
                raise ValueError(
                    f"there are {len(sides[0]):,} chosen and {len(sides[1]):,} rejected; give as many of each"
                )
            named = zip(("chosen", "rejected"), sides, strict=True)
            found = [replace(one, where=f"{one.where}, {name!r}") for name, side in named for one in side]
        scored = self.rewards_of(found, truncation, max_length)
        self.say_truncated(scored, truncation, max_length)
        first, second = np.split(scored.rewards.astype(np.float64), 2)
        return float(sigmoid(first - second)[0]) if is_one else sigmoid(first - second)

    def as_reward_function(
        self,
        name: str = "reward_model",
        truncation: str = "error",
        max_length: int | None = None,
        normalise: bool = False,
    ) -> "RewardFunction":
        """Return `f(prompts, completions, **columns) -> list[float]`, as TRL's GRPO and RLOO take reward functions.

        name: its `__name__`, under which trainers log it. Other options as in `score`.
        """
        return RewardFunction(self, name, truncation, max_length, normalise)

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return self.inference.device

    @property
    def as_turns(self) -> bool:
        """Whether a text prompt is taken as a user's turn: in models trained on conversations, or that do not say."""
        return self._recorded("kind") != "standard" and bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def fingerprint(self) -> str:
        """A hash of the weights, the configuration, and what decides how texts become token ids."""
        known = [(each.data_ptr(), each._version) for each in self.model.parameters()]
        # Made anew only after a change: pickling asks for it, also in threads beside forks, where torch must not compute.
        if self._fingerprint is None or self._fingerprint[0] != known:
            self._fingerprint = (known, self._made_fingerprint())
        return self._fingerprint[1]

    def _made_fingerprint(self) -> str:
        configs = [getattr(classifier_of(self.model), "config", None), *getattr(self.model, "peft_config", {}).values()]
        state = [
            *sorted(weight_fingerprints(self.model).items()),
            *(
                {k: v for k, v in each.to_dict().items() if k not in OF_NO_MATTER}
                for each in configs
                if each is not None
            ),
            self.tokenizer and tokens.fingerprint(self.tokenizer),
            self.inference.pad_token_id,
            self._frozen_kwargs(),
            self._recorded("max_length"),
            self.proof and sorted(self.proof.normalisation.items()),
        ]
        return hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()

    def _recorded(self, name: str) -> Any:
        return None if self.proof is None else self.proof.rendering.get(name)

    def _frozen_kwargs(self) -> dict[str, Any]:
        return dict(self._recorded("template_kwargs") or {})

    def _limit(self, max_length: int | None) -> int | None:
        """Return a length that was given. Raises ValueError for one that is none, or beyond the model's table of positions."""
        check_limits("error", max_length)
        positions = models.max_positions(self.model)
        is_beyond = max_length is not None and positions is not None and max_length > positions
        if is_beyond and models.has_learned_positions(self.model):
            raise ValueError(
                f"max_length is {max_length:,}, but the model's positions reach {positions:,} tokens; lower it"
            )
        return max_length

    def _longest(self) -> int | None:
        """Return how many tokens are taken: as recorded, else what the model and its tokenizer say, None where nothing does."""
        positions = models.max_positions(self.model)
        recorded = self._recorded("max_length")
        if recorded is not None:
            # Trained with a limit that no row came near, a table of positions may still end before it.
            return min(recorded, positions) if positions and models.has_learned_positions(self.model) else recorded
        told = getattr(self.tokenizer, "model_max_length", None)
        limits = [limit for limit in (positions, told) if limit and 0 < limit < 1e9]
        return min(limits) if limits else None

    def rewards_of(
        self,
        found: Sequence[Scorable],
        truncation: str = "error",
        max_length: int | None = None,
        normalise: bool = False,
    ) -> Scored:
        """Return the rewards of what scorable.py made; options as in `score`."""
        self.check_normalise(normalise)
        if not found:
            return Scored(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, bool))
        scorable.say_how_texts_are_read(self._recorded("kind"), found)
        sequences, truncated = self.fitted(found, truncation, max_length)
        self.num_truncated += sum(truncated)
        values = self.inference(sequences)
        # One that is not finite can make others of its batch so: alone, each shows what it is.
        for i in np.flatnonzero(~np.isfinite(values)).tolist():
            values[i] = self.inference([sequences[i]])[0]
            if not np.isfinite(values[i]):
                raise ValueError(
                    f"{found[i].where}: the reward is {values[i]}; the weights are broken, or their precision is too low for "
                    "this model"
                )
        if normalise:
            normal = cast(Proof, self.proof).normalisation
            values = ((values.astype(np.float64) - normal["mean"]) / normal["scale"]).astype(np.float32)
        return Scored(values, np.array([len(ids) for ids in sequences]), np.array(truncated))

    def check_normalise(self, normalise: bool) -> None:
        """Raise ValueError where normalised rewards are asked for and nothing is recorded to normalise by."""
        if normalise and self.proof is None:
            raise ValueError(f"normalise needs the mean and scale of {PROOF_FILE}, which this model does not have")

    def fitted(self, found: Sequence[Scorable], truncation: str = "error", max_length: int | None = None) -> Fitted:
        """Return the token ids of what is to be scored, and which were cut. Raises ValueError naming the row."""
        render = Renderer(self.tokenizer, self._frozen_kwargs(), models.vocabulary_size(self.model))
        return render(found, truncation, self._limit(max_length) or self.max_length)

    def require_tokenizer(self, found: Sequence[Scorable]) -> None:
        """Raise ValueError where texts or conversations are to be scored without a tokenizer or a chat template."""
        Renderer(self.tokenizer, {}, None).require_tokenizer(found)

    def say_truncated(self, scored: Scored, truncation: str, max_length: int | None) -> None:
        """Say how many sequences were cut, if any were."""
        if scored.num_truncated:
            say(
                f"truncated {scored.num_truncated:,} of {len(scored.rewards):,} sequences to "
                f"{max_length or self.max_length:,} tokens ({truncation}); {self.num_truncated:,} so far"
            )

    def __reduce__(self) -> Any:
        """Pickle a model that was loaded by its name as that name, so that workers and caches do not carry the weights."""
        if self._loaded_with is None:
            return super().__reduce__()
        name, options = self._loaded_with
        return _reload, (type(self), name, options, self.fingerprint)


def _reload(cls: type[RewardModel], name: str, options: Mapping[str, Any], fingerprint: str) -> RewardModel:
    found = cls.from_pretrained(name, **options)
    if found.fingerprint != fingerprint:
        raise ValueError(f"'{name}' is not the model that was sent here: it has changed since; load it again")
    return found


def _read_proof(name: str, strict: bool, hub: Mapping[str, Any]) -> Proof | None:
    try:
        return read_proof(name, **hub)
    except ValueError as error:
        if strict:
            raise
        say(f"{error}; it is loaded without")
        return None


def _load_tokenizer(name: str, model_init_kwargs: Mapping[str, Any], trust_remote_code: bool) -> Any:
    try:
        tokenizer = models.load_tokenizer(name, dict(model_init_kwargs), trust_remote_code)
    except Refused:
        raise
    except ValueError as error:
        say(f"'{name}' is scored by token ids only: {error}")
        return None
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokens.set_special_tokens(tokenizer, None, None)
    return tokenizer


class RewardFunction:
    """A reward model as TRL's GRPO and RLOO call reward functions; it pickles as the model's name."""

    def __init__(
        self, reward_model: RewardModel, name: str, truncation: str, max_length: int | None, normalise: bool
    ) -> None:
        check_limits(truncation, max_length)
        reward_model.check_normalise(normalise)
        self.reward_model, self.__name__ = reward_model, name
        self.truncation, self.max_length, self.normalise = truncation, max_length, normalise

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return one reward a completion. columns: `tools` and `chat_template_kwargs`, one a row, are used; others not."""
        if len(prompts) != len(completions):
            raise ValueError(
                f"there are {len(prompts):,} prompts and {len(completions):,} completions; give one completion a prompt"
            )
        for name in scorable.EXTRAS:
            if columns.get(name) is not None and len(columns[name]) != len(prompts):
                raise ValueError(
                    f"{name} has {len(columns[name]):,} entries for {len(prompts):,} prompts; give one a prompt"
                )
        model, found = self.reward_model, []
        groups: dict[str, int] = {}
        for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            extras = {name: columns[name][number] for name in scorable.EXTRAS if columns.get(name) is not None}
            # Generations of one prompt come as many rows.
            group = groups.setdefault(repr(prompt), len(groups))
            found += scorable.of_answers(prompt, [completion], f"prompt {number}", group, extras, model.as_turns)
        scored = model.rewards_of(found, self.truncation, self.max_length, self.normalise)
        model.say_truncated(scored, self.truncation, self.max_length)
        return scored.rewards.tolist()


class RowScorer:
    """Rows of a data set in, their reward columns out, each kind of row as its first one showed.

    truncation, max_length, normalise: as in `RewardModel.score`. bad_rows: "error", or "null" to give a row that cannot
    be scored None. counts: `rows`, `sequences`, `tokens`, `truncated`, `bad`, `without_preference`.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        truncation: str = "error",
        max_length: int | None = None,
        normalise: bool = False,
        bad_rows: str = "error",
    ) -> None:
        if bad_rows not in BAD_ROWS:
            raise ValueError(f"bad_rows is {bad_rows!r}; it must be one of {', '.join(map(repr, BAD_ROWS))}")
        check_limits(truncation, max_length)
        reward_model.check_normalise(normalise)
        self.reward_model, self.bad_rows = reward_model, bad_rows
        self._options: dict[str, Any] = {"truncation": truncation, "max_length": max_length, "normalise": normalise}
        self._kind: scorable.RowKind | None = None
        self.counts: Counter = Counter()

    @property
    def kind(self) -> str:
        """What each row gives: "single", "pair" or "answers"; known after the first call."""
        return cast(scorable.RowKind, self._kind).shape

    @property
    def answers_column(self) -> str:
        """The rows' column that holds the list of answers."""
        return cast(scorable.RowKind, self._kind).columns["answers"]

    @property
    def reward_columns(self) -> tuple[str, ...]:
        """The columns that are added."""
        return cast(scorable.RowKind, self._kind).reward_columns

    def __call__(self, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return the new columns of each row. numbers: the rows' numbers in the data set, for errors."""
        if self._kind is None and rows:
            self._kind = scorable.row_kind(rows[0], "data")
            say(f"rows are scored by {self._kind.described}, as the first of them shows", once=True)
        for row, number in zip(rows, numbers, strict=True):
            if taken := row.keys() & set(self.reward_columns):
                raise ValueError(
                    f"row {number} has a column {min(taken)!r} already; rename or drop it, so that it is not lost"
                )
        parts = [self._of_row(row, number) for row, number in zip(rows, numbers, strict=True)]
        # What the model lacks is the fault of no row.
        self.reward_model.require_tokenizer([one for part in parts for one in part or ()])
        try:
            scored = self._scored(parts)
        except ValueError:
            if self.bad_rows == "error":
                raise
            # One by one, to tell the rows that cannot be rendered, or are too long, from the others.
            parts = [part if part is None or self._can_be_scored(part) else None for part in parts]
            scored = self._scored(parts)
        self.counts.update(
            rows=len(rows),
            sequences=len(scored.rewards),
            tokens=scored.num_tokens,
            truncated=scored.num_truncated,
            bad=sum(part is None for part in parts),
            without_preference=sum(part == [] for part in parts),
        )
        values = iter(scored.rewards.tolist())
        return [self._columns(part, values) for part in parts]

    def _of_row(self, row: Mapping[str, Any], number: int) -> list[Scorable] | None:
        """Return what a row holds, none for a vote without a preference, None for a bad row."""
        kind = cast(scorable.RowKind, self._kind)
        try:
            return scorable.of_row(row, kind, f"row {number}", number, self.reward_model.as_turns)
        except ValueError:
            if self.bad_rows == "error":
                raise
            return None

    def _scored(self, parts: Sequence[list[Scorable] | None]) -> Scored:
        return self.reward_model.rewards_of([one for part in parts if part for one in part], **self._options)

    def _can_be_scored(self, part: list[Scorable]) -> bool:
        try:
            self.reward_model.fitted(part, self._options["truncation"], self._options["max_length"])
        except ValueError:
            return False
        return True

    def _columns(self, part: list[Scorable] | None, values: Iterator[float]) -> dict[str, Any]:
        names = self.reward_columns
        if not part:
            return dict.fromkeys(names)
        if self.kind == "answers":
            return {names[0]: [next(values) for _ in part]}
        return {name: next(values) for name in names}


class RewardScorer:
    """A callable class for Ray Data's `map_batches`: batches of rows in, the same rows with their rewards out.

    model: what RewardModel.from_pretrained takes, loaded once an actor. truncation, max_length, normalise, bad_rows: as
    in RowScorer. model_options: further arguments of from_pretrained.

    `dataset.map_batches(RewardScorer, fn_constructor_kwargs={"model": path}, batch_size=256, batch_format="pyarrow",
    num_gpus=1, compute=ray.data.ActorPoolStrategy(size=4))`
    """

    def __init__(
        self,
        model: str,
        truncation: str = "error",
        max_length: int | None = None,
        normalise: bool = False,
        bad_rows: str = "error",
        **model_options: Any,
    ) -> None:
        self._score = RowScorer(
            RewardModel.from_pretrained(model, **model_options), truncation, max_length, normalise, bad_rows
        )
        self._score.reward_model.inference.shows_progress = False

    def __call__(self, batch: Any) -> Any:
        """Return the batch with the reward columns, float32; a row that cannot be scored has null, or NaN in NumPy's `reward`.

        batch: an Arrow table, whose other columns keep their types, or a dict of NumPy arrays or lists, as `batch_format`
        asks of Ray. Rows are numbered within it in errors.
        """
        if hasattr(batch, "to_pylist"):
            return self._of_table(batch)
        names = list(batch)
        rows = [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        found = self._score(rows, range(len(rows)))
        out = dict(batch)
        for name in self._score.reward_columns if found else ():
            values: Any = [row[name] for row in found]
            if name == "rewards":
                column = np.empty(len(values), object)
                column[:] = [None if value is None else np.asarray(value, np.float32) for value in values]
            else:
                column = np.array([np.nan if value is None else value for value in values], np.float32)
            out[name] = column
        return out

    def _of_table(self, table: Any) -> Any:
        import pyarrow as pa

        found = self._score(table.to_pylist(), range(table.num_rows))
        for name in self._score.reward_columns if found else ():
            kind = pa.list_(pa.float32()) if name == "rewards" else pa.float32()
            table = table.append_column(pa.field(name, kind), pa.array([row[name] for row in found], kind))
        return table
