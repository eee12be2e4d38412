"""PairEvaluator: transformers' Trainer as far as it evaluates, with each pair once and in order on whatever processes."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, denumpify_detensorize

from plaudit import faults, memory, sharding, shortage
from plaudit.benchmark_sets import BenchmarkSets
from plaudit.config import RewardConfig
from plaudit.metrics import pair_metrics, require_finite
from plaudit.prepare import ORIGINS, StreamCounts, rows_named
from plaudit.rewards import rewards
from plaudit.say import say
from plaudit.scored import PADDING, ScoredPairs


class PairEvaluator(Trainer):
    """The evaluation and prediction of RewardTrainer, which brings what is declared here.

    `newest_rewards`: by prefix, the prepared data set that was evaluated last and its rewards, shape (num_pairs, 2),
    chosen first; the benchmarks' are under BENCHMARKS. `benchmark_sets`: the benchmarks of args.eval_benchmarks.
    """

    BENCHMARKS = "benchmarks"

    args: RewardConfig
    model: Any
    control: Any
    eval_dataset: Any
    newest_rewards: dict[str, tuple[Any, Any]]
    benchmark_sets: BenchmarkSets | None
    _dropped: StreamCounts
    # From raw pairs to token ids; from rewards and margins to the loss of each pair.
    _prepare: Callable[..., Any]
    _pair_losses: Callable[..., Tensor]

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Overridden to take raw data. Returns the metrics of the evaluation sets, or of eval_dataset, set by set."""
        if isinstance(eval_dataset, str) and eval_dataset not in (self.eval_dataset or {}):
            raise ValueError(
                f"there is no evaluation set '{eval_dataset}'; the sets are {list(self.eval_dataset or {})}"
            )
        if isinstance(eval_dataset, dict) and not eval_dataset:
            raise ValueError("eval_dataset is an empty dict; give at least one named data set")
        if eval_dataset is not None and not isinstance(eval_dataset, (str, dict)):
            eval_dataset = self._prepare(eval_dataset, metric_key_prefix)
        with faults.explained(self):
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if eval_dataset is None and self.benchmark_sets is not None:
            metrics |= self._evaluate_benchmarks(metric_key_prefix)
        return metrics

    def _evaluate_benchmarks(self, prefix: str) -> dict[str, float]:
        """Log and return the benchmarks' figures, as `<prefix>_<benchmark>_<figure>`."""
        sets = cast(BenchmarkSets, self.benchmark_sets)
        whole = self._score(self.get_eval_dataloader(sets.dataset), self.BENCHMARKS)
        require_finite({"a benchmark's reward": float(whole["rewards"].sum())}, self.state.global_step)
        self.newest_rewards[self.BENCHMARKS] = (sets.dataset, whole["rewards"])
        metrics = {f"{prefix}_{name}": value for name, value in sets.logged_figures(whole["rewards"]).items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """Overridden to take raw data and to drop no pair: one longer than max_length is a ValueError.

        Returns rewards, shape (num_pairs, 2), chosen first, in the dataset's order, and metrics. Rows of another format
        that hold no pair, such as tied votes, are left out and counted.
        """
        prepared = self._prepare(test_dataset, metric_key_prefix, drop=False)
        with faults.explained(self):
            return super().predict(prepared, ignore_keys, metric_key_prefix)

    def _prepare_input(self, data: Any) -> Any:
        """Overridden because under DeepSpeed Trainer rounds numbers to the weights' precision; ours are margins and weights."""
        return data.to(self.args.device) if isinstance(data, Tensor) else super()._prepare_input(data)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Overridden because a batch holds two sequences a pair and no labels.

        Returns the mean loss, the rewards, shape (num_pairs, 2), and zeros for labels, shape (num_pairs,).
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = rewards(model, inputs).reshape(2, -1).T.contiguous()
        loss = self._pair_losses(logits[:, 0], logits[:, 1], inputs.get("margin")).mean()
        if prediction_loss_only:
            return loss, None, None
        return loss, logits, torch.zeros_like(logits[:, 0])

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Overridden because Trainer's means of batch means count repeats and weigh short batches like full ones."""
        whole = self._score(dataloader, metric_key_prefix, self.compute_metrics, ignore_keys)
        metrics = whole.pop("metrics", {})
        # A loader of the user's own may read from anything.
        dataset = getattr(dataloader.dataset, "dataset", None)
        self.newest_rewards[metric_key_prefix] = (dataset, whole["rewards"])
        self._judge_losses(whole["losses"], dataset, metric_key_prefix)
        prediction = self._prediction(whole)
        if self.compute_metrics is not None and not self.args.batch_eval_metrics:
            metrics = self.compute_metrics(prediction)
        figures = {
            "loss": float(whole["losses"].astype("float64").mean()),
            **pair_metrics(*whole["rewards"].T),
            "num_tokens": whole["num_tokens"],
            **denumpify_detensorize(metrics or {}),
        }
        prefix = f"{metric_key_prefix}_"
        named = {key if key.startswith(prefix) else prefix + key: value for key, value in figures.items()}
        loss_only = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        return EvalLoopOutput(
            predictions=cast(Any, None if loss_only else prediction.predictions),
            label_ids=None if loss_only else prediction.label_ids,
            metrics=named,
            num_samples=len(whole["rewards"]),
        )

    def _judge_losses(self, losses: np.ndarray, dataset: Any, name: str) -> None:
        """Raise FloatingPointError in a training, and say otherwise, which rows' losses are not finite, in the data's order."""
        bad = np.flatnonzero(~np.isfinite(losses))
        if not len(bad) or self.args.logging_nan_inf_filter:
            return
        origins = getattr(dataset, ORIGINS, None)
        rows = bad if origins is None else np.asarray(origins.rows)[bad]
        where = f"the loss of {len(bad):,} of {len(losses):,} pairs is not finite, {name} {rows_named(rows.tolist())}"
        if self.is_in_train:
            require_finite({f"{name}_loss": float("nan")}, self.state.global_step, where)
        say(f"{name}: {where}")

    def _score(
        self, dataloader: DataLoader, name: str, compute_metrics: Any = None, ignore_keys: list[str] | None = None
    ) -> dict[str, Any]:
        """Return the rewards of all pairs, shape (num_pairs, 2), their losses and labels, in the data set's order.

        name: under which dropped pairs are said. compute_metrics: with batch_eval_metrics, called for each batch; what it
        returns is in `metrics`.
        """
        model = self._model_for_evaluation()
        self.callback_handler.eval_dataloader = dataloader
        scored, metrics = ScoredPairs(), {}
        for inputs in dataloader:
            self._between_batches()
            self._dropped.note(name, inputs.pop("counts", None))
            with self._memory_told(inputs, dataloader, name):
                _, logits, labels = self.prediction_step(model, inputs, False, ignore_keys)
            batch = self._batch_columns(inputs, cast(Tensor, logits), cast(Tensor, labels))
            scored.add(inputs["pair_index"], inputs["num_tokens"], **batch)
            if self.args.batch_eval_metrics and compute_metrics is not None:
                one = ScoredPairs()
                one.add(inputs["pair_index"], 0, **batch)
                last = self.accelerator.gradient_state.end_of_dataloader
                metrics = compute_metrics(self._prediction(self._gathered(one)), compute_result=last)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        self._dropped.say()
        return {**self._gathered(scored), "metrics": metrics}

    def _memory_told(
        self, inputs: Mapping[str, Any], dataloader: DataLoader, name: str
    ) -> AbstractContextManager[None]:
        dataset = getattr(dataloader.dataset, "dataset", None)
        # A smaller batch of training would not make that of an evaluation smaller.
        searches = self.is_in_train and self.args.auto_find_batch_size
        return memory.explained(lambda: shortage.of_evaluation(self, inputs, dataset, name), lambda: not searches)

    def _between_batches(self) -> None:
        """Called before each batch, where a subclass may break the evaluation off."""

    def _batch_columns(self, inputs: Mapping[str, Any], logits: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return what is kept of a scored batch, each with the pairs as its first dimension."""
        processed = None
        if self.preprocess_logits_for_metrics is not None:
            processed = self.preprocess_logits_for_metrics(logits, labels)
        ids = None
        if "inputs" in self.args.include_for_metrics:
            # Tokens in the second dimension, the one that batches and processes are padded in.
            ids = inputs["sequences"].reshape(2, len(logits), -1).permute(1, 2, 0).contiguous()
        losses_of = self._pair_losses(logits[:, 0], logits[:, 1], inputs.get("margin"))
        return {"rewards": logits, "losses": losses_of, "labels": labels, "processed": processed, "inputs": ids}

    def _gathered(self, scored: ScoredPairs) -> dict[str, Any]:
        pad = partial(self.accelerator.pad_across_processes, dim=1, pad_index=PADDING)
        return scored.gather(self.accelerator.gather, pad)

    def _prediction(self, whole: Mapping[str, Any]) -> EvalPrediction:
        wanted = self.args.include_for_metrics
        return EvalPrediction(
            predictions=whole.get("processed", whole["rewards"]),
            label_ids=whole["labels"],
            inputs=whole["inputs"].transpose(0, 2, 1) if "inputs" in wanted else None,
            losses=whole["losses"] if "loss" in wanted else None,
        )

    def _model_for_evaluation(self) -> nn.Module:
        """Return the model in evaluation mode, prepared and cast as Trainer's own loop does before its first batch."""
        model = self._wrap_model(self.model, training=False)
        if not self.accelerator._models and model is self.model:
            if self.accelerator.is_fsdp2:
                model = sharding.shard_to_evaluate(self.accelerator, model)
            elif self.is_deepspeed_enabled:
                model = sharding.place_to_evaluate(self.accelerator, model)
            elif self.is_fsdp_enabled and not self.args.torch_compile:
                model = self.accelerator.prepare(model)
            else:
                model = self.accelerator.prepare_model(model, evaluation_mode=True)
            if self.is_fsdp_enabled:
                self.model = model
            if model is not self.model:
                self.model_wrapped = model
        if not self.is_in_train and (self.args.fp16_full_eval or self.args.bf16_full_eval):
            model = model.to(torch.float16 if self.args.fp16_full_eval else torch.bfloat16).to(self.args.device)
        model.eval()
        if callable(getattr(self.optimizer, "eval", None)):
            self.optimizer.eval()
        return model
