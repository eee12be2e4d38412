"""Benchmarks as evaluation sets of a training: their sequences as prepared pairs in, the rewards back out as figures."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from plaudit import figures
from plaudit.benchmarks import load_benchmarks
from plaudit.prepare import SIDES, Rules
from plaudit.rendering import Renderer
from plaudit.results import flat_figures, snake
from plaudit.say import say
from plaudit.score_rows import ScoredRow
from plaudit.sequences import Scores, scored_rows, sequences_of


class BenchmarkSets:
    """Benchmarks that a trainer scores beside its evaluation sets, with its own batches and on all its processes.

    sources: what `benchmarks.load_benchmarks` takes. rules: of the prepared pairs; a sequence longer than its max_length
    loses its beginning, which is counted and said. as_turns: whether a text prompt is a user's turn.

    `dataset` holds every text once, two of them a prepared pair, so that whatever evaluates pairs can score them.
    """

    def __init__(
        self,
        sources: Sequence[str],
        tokenizer: PreTrainedTokenizerBase | None,
        rules: Rules,
        template_kwargs: Mapping[str, Any],
        as_turns: bool,
    ) -> None:
        self.benchmarks = load_benchmarks(list(sources))
        self._to_score = sequences_of(self.benchmarks, as_turns)
        render = Renderer(tokenizer, template_kwargs, rules.vocabulary_size)
        fitted = render(self._to_score.sequences, "left", rules.max_length)
        self._truncated = fitted.truncated
        if fitted.num_truncated:
            say(
                f"{fitted.num_truncated:,} of {len(fitted.sequences):,} sequences of the benchmarks are longer than "
                f"max_length {rules.max_length:,}, and lose their beginning"
            )
        self._lengths = [len(ids) for ids in fitted.sequences]
        # By sequence: the first whose token ids are the same, and so is its reward.
        first: dict[tuple[int, ...], int] = {}
        self._same_as = [first.setdefault(tuple(ids), place) for place, ids in enumerate(fitted.sequences)]
        self._scored = {place: number for number, place in enumerate(first.values())}
        self.dataset = _two_by_two([fitted.sequences[place] for place in self._scored])

    @property
    def names(self) -> list[str]:
        """The benchmarks' names as the logged figures have them."""
        return [snake(one.name) for one in self.benchmarks]

    def require_other_names(self, names: Iterable[str]) -> None:
        """Raise ValueError where an evaluation set or another benchmark has a benchmark's name, and so its figures' names."""
        taken = [snake(name) for name in names]
        for name in self.names:
            if name in taken:
                raise ValueError(
                    f"eval_benchmarks: {name!r} is the name of another evaluation set or benchmark, and both would be logged "
                    f"as eval_{name}_accuracy; name one of them otherwise, as in NAME=PATH"
                )
            taken.append(name)

    def rows(self, rewards: np.ndarray) -> dict[str, list[ScoredRow]]:
        """Return each benchmark's scored rows. rewards: of the data set's pairs, shape (num_pairs, 2)."""
        flat = np.asarray(rewards, np.float64).reshape(-1)
        scores = Scores(
            rewards=[float(flat[self._scored[same]]) for same in self._same_as],
            tokens=self._lengths,
            truncated=self._truncated,
            # Texts that a cut has made equal; others may be the same tokens by themselves.
            same_as={
                place: same for place, same in enumerate(self._same_as) if place != same and self._truncated[place]
            },
        )
        return {one.name: scored_rows(one, self._to_score.places[one.name], scores) for one in self.benchmarks}

    def figure_names(self) -> list[str]:
        """Return the names of what `logged_figures` gives."""
        return list(self.logged_figures(np.zeros((len(self.dataset), 2))))

    def logged_figures(self, rewards: np.ndarray) -> dict[str, float]:
        """Return what an evaluation logs, as `<name>_<figure>`. rewards: as in `rows`."""
        found: dict[str, float] = {}
        for one, rows in zip(self.benchmarks, self.rows(rewards).values(), strict=True):
            # No interval is logged, so that few resamples do.
            entry = figures.results_of(rows, one.kind, num_resamples=100)
            found |= {f"{snake(one.name)}_{name}": value for name, value in flat_figures(entry).items()}
        return found


def _two_by_two(sequences: list[list[int]]) -> Dataset:
    """Return prepared pairs that hold the sequences in order; the last one stands beside itself if need be."""
    left_over = sequences[-1:] if len(sequences) % 2 else []
    columns = dict(zip(SIDES, (sequences[::2], [*sequences[1::2], *left_over]), strict=True))
    return Dataset.from_dict(columns, features=Features({name: List(Value("int32")) for name in SIDES}))
