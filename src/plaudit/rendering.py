"""What is to be scored to token ids, made as in training, and none longer than the model takes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from plaudit import tokens
from plaudit.records import num_system_turns
from plaudit.scorable import TRUNCATIONS, Scorable
from plaudit.tree import num_common
from plaudit.values import brief


def check_limits(truncation: str, max_length: int | None) -> None:
    """Raise ValueError for a truncation that there is not, and a length below 1."""
    if truncation not in TRUNCATIONS:
        raise ValueError(f"truncation is {truncation!r}; it must be one of {', '.join(map(repr, TRUNCATIONS))}")
    if max_length is not None and (type(max_length) is not int or max_length < 1):
        raise ValueError(
            f"max_length is {max_length!r}; it must be a whole number from 1, or None for the model's own limit"
        )


class Fitted(NamedTuple):
    """Token ids, one list a sequence, and of each whether it was cut."""

    sequences: list[list[int]]
    truncated: list[bool]

    @property
    def num_truncated(self) -> int:
        """How many were cut."""
        return sum(self.truncated)


class Renderer:
    """Scorables to token ids.

    template_kwargs: variables of the chat template for conversations that bring none of their own. vocabulary_size: ids
    must be below it, None where that is not known.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        template_kwargs: Mapping[str, Any],
        vocabulary_size: int | None,
    ) -> None:
        self.tokenizer, self.template_kwargs, self.vocabulary_size = tokenizer, template_kwargs, vocabulary_size

    def __call__(self, found: Sequence[Scorable], truncation: str, max_length: int | None) -> Fitted:
        """Return the sequences, none longer than max_length. Raises ValueError naming the row.

        truncation: what happens to a longer one: "error"; "left" cuts its beginning, but for a BOS or CLS; "drop_turns"
        leaves out its oldest turns. Answers to one prompt, by their group, are cut at the same place.
        """
        check_limits(truncation, max_length)
        sequences = self.encode(found)
        long = [i for i, ids in enumerate(sequences) if max_length is not None and len(ids) > max_length]
        if not long or max_length is None:
            return Fitted(sequences, [False] * len(sequences))
        if truncation == "error":
            raise ValueError(
                f"{found[long[0]].where}: {len(sequences[long[0]]):,} tokens are more than max_length {max_length:,} "
                f"({len(long):,} of {len(sequences):,} sequences are too long); shorten it, or choose truncation='left' or "
                "'drop_turns'"
            )
        groups: dict[int, list[int]] = {}
        for i, one in enumerate(found):
            groups.setdefault(one.group, []).append(i)
        cut = list(sequences)
        for members in (groups[group] for group in dict.fromkeys(found[i].group for i in long)):
            if truncation == "left":
                parts = self._cut_left([sequences[i] for i in members], max_length)
            else:
                parts = self._drop_turns([found[i] for i in members], max_length)
            for i, ids in zip(members, parts, strict=True):
                cut[i] = ids
        return Fitted(cut, [new != old for new, old in zip(cut, sequences, strict=True)])

    def encode(self, found: Sequence[Scorable]) -> list[list[int]]:
        """Return the token ids of each, however long. Raises ValueError naming the row."""
        self.require_tokenizer(found)
        out: list[list[int]] = [cast(list[int], one.content) if one.kind == "ids" else [] for one in found]
        for kind, encode in (("text", self._texts), ("conversation", self._conversations)):
            places = [i for i, one in enumerate(found) if one.kind == kind]
            if places:
                for i, ids in zip(places, encode([found[i] for i in places]), strict=True):
                    out[i] = ids
        for one, ids in zip(found, out, strict=True):
            if not ids:
                raise ValueError(f"{one.where}: no token is left after tokenizing; give it something to score")
            if self.vocabulary_size is not None and max(ids) >= self.vocabulary_size:
                raise ValueError(
                    f"{one.where}: token id {brief(max(ids))} is outside the model's vocabulary of {self.vocabulary_size:,}; "
                    "tokenize with the model's own tokenizer"
                )
        return out

    def require_tokenizer(self, found: Sequence[Scorable]) -> None:
        """Raise ValueError where texts or conversations have no tokenizer, or conversations no chat template."""
        kinds = {one.kind for one in found}
        if self.tokenizer is None and kinds - {"ids"}:
            raise ValueError("this reward model has no tokenizer, so it scores token ids only: score(input_ids=...)")
        if self.tokenizer is not None and "conversation" in kinds and not self.tokenizer.chat_template:
            raise ValueError(
                f"conversations are to be scored, but the tokenizer '{self.tokenizer.name_or_path}' has no chat template; give "
                "texts as the model was trained on, or set tokenizer.chat_template"
            )

    def _texts(self, found: Sequence[Scorable]) -> list[list[int]]:
        return tokens.encode_texts(
            cast(PreTrainedTokenizerBase, self.tokenizer), [cast(str, one.content) for one in found]
        )

    def _conversations(self, found: Sequence[Scorable]) -> list[list[int]]:
        tokenizer = cast(PreTrainedTokenizerBase, self.tokenizer)
        return tokens.encode_conversations(
            tokenizer,
            [cast(list[dict], one.content) for one in found],
            [one.tools for one in found],
            [{**self.template_kwargs, **one.template_kwargs} for one in found],
            lambda i: found[i].where,
        )

    def _cut_left(self, members: list[list[int]], limit: int) -> list[list[int]]:
        """Return the answers to one prompt without its beginning, so that all fit; a BOS, or an encoder's CLS, stays."""
        opening = {getattr(self.tokenizer, name, None) for name in ("bos_token_id", "cls_token_id")} - {None}
        kept = 1 if limit > 1 and all(ids[0] in opening for ids in members) else 0
        first, *others = (np.asarray(ids) for ids in members)
        common = min((num_common(first, ids) for ids in others), default=len(first))
        # What they share is cut alike, so that they are still answers to one prompt; something stays of each.
        common = min(common, min(map(len, members)) - 1)
        shared = min(max(map(len, members)) - limit, max(0, common - kept))
        return [ids[:kept] + ids[kept + max(shared, len(ids) - limit) :] for ids in members]

    def _drop_turns(self, members: list[Scorable], limit: int) -> list[list[int]]:
        """Return the answers to one prompt without its oldest turns, as many as make all fit."""
        for one in members:
            if one.kind != "conversation":
                raise ValueError(
                    f"{one.where}: truncation='drop_turns' needs a message list, and this is {one.kind}; use 'left'"
                )
        first = cast(list[dict], members[0].content)
        num_system = num_system_turns(first)
        for start in range(num_system + 1, min(len(one.content) for one in members)):
            if all(cast(dict, one.content[start])["role"] == "user" for one in members):
                sequences = self._conversations([_without_turns(one, num_system, start) for one in members])
                if max(map(len, sequences)) <= limit:
                    return sequences
        lengths = [len(ids) for ids in self._conversations(members)]
        raise ValueError(
            f"{members[lengths.index(max(lengths))].where}: even its last turn alone is longer than max_length {limit:,} "
            "tokens; use truncation='left', or raise max_length"
        )


def _without_turns(one: Scorable, num_system: int, start: int) -> Scorable:
    """Return a conversation with its system turns, and the others from `start` on."""
    messages = cast(list[dict], one.content)
    return Scorable([*messages[:num_system], *messages[start:]], one.where, one.group, one.tools, one.template_kwargs)
