"""RewardTrainer: the glue between data, collator, rewards, loss and logged metrics, on top of transformers' Trainer."""

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.trainer_utils import EvalPrediction

from plaudit import (
    adapters,
    audit,
    checkpoints,
    compat,
    doctor,
    faults,
    formats,
    inside,
    losses,
    setup,
    sharding,
    trust,
    watch,
)
from plaudit import model as models
from plaudit.attempts import AttemptingTrainer
from plaudit.batches import PairRows, Share, StreamedPairs, by_length, make_loader, train_order
from plaudit.benchmark_sets import BenchmarkSets
from plaudit.card import model_card
from plaudit.collate import DataCollatorForPreference, Padded, PairCollator, TreeRow
from plaudit.config import RewardConfig
from plaudit.facts import card_facts, run_facts
from plaudit.metrics import mean_loss
from plaudit.prepare import Rules, StreamCounts, common_template_kwargs, prepare
from plaudit.probe import layout_of_run
from plaudit.proof import Contract, Proof, data_facts, make_proof, sample_of, weight_fingerprints, write_proof
from plaudit.resumable import ResumableTrainer
from plaudit.rewards import classifier_of, outputs, read, reads_last_token
from plaudit.running import RunningMetrics
from plaudit.say import say

# Methods that are handed a batch: a subclass that replaces one may expect it padded.
READ_BATCHES = ("compute_loss", "prediction_step", "training_step")


class RewardTrainer(AttemptingTrainer, ResumableTrainer):
    """A Trainer for outcome reward models, with all of Trainer's attributes and methods.

    model: a Hub id or directory (of a whole model or an adapter), a sequence-classification model with one label, a
    PeftModel of one, or any module whose forward takes `input_ids` and `attention_mask` and returns one logit a row.
    args: a RewardConfig, or a TrainingArguments whose values are taken over; None for the defaults.
    train_dataset, eval_dataset: preference pairs in any format of docs/formats.md, prepared here; evaluation sets may
    come as a dict of name to data set. processing_class: the tokenizer, None for the model's own.
    peft_config: a PeftConfig or a dict of one; the caller's object is not changed.
    tokenizer, max_length: older names of processing_class and args.max_length.

    Raises ValueError or TypeError, saying what to change, for anything that cannot be trained on.
    Loss: Bradley and Terry (1952), in float32, the mean over all pairs of an optimizer step.
    """

    args: RewardConfig
    model: Any
    control: Any
    train_dataset: Any
    eval_dataset: Any
    _tr_loss: Tensor
    # compute_loss itself divides by the pairs of the whole optimizer step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: str | os.PathLike | PreTrainedModel | PeftModel | nn.Module | None = None,
        args: RewardConfig | TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | Mapping[str, Dataset | IterableDataset] | None = None,
        processing_class: Any = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        optimizer_cls_and_kwargs: tuple[type, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        peft_config: Any = None,
        *,
        model_init: Callable[..., nn.Module] | None = None,
        tokenizer: Any = None,
        max_length: int | None = None,
    ) -> None:
        processing_class = compat.older_argument("tokenizer", tokenizer, "processing_class", processing_class)
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        setup.check_models(model, model_init)
        setup.check_datasets(train_dataset, eval_dataset)
        self.args = setup.reward_config(args, model, max_length)
        setup.check_stream(train_dataset, self.args)
        setup.check_processes(self.args)
        faults.keep_to_timeout(self.args)
        if self.args.should_save:
            checkpoints.require_folder(cast(str, self.args.output_dir))
        inside.require_no_way_out(cast(str, self.args.output_dir))
        # A new head is drawn from this seed, so it must be set before the model is loaded.
        set_seed(self.args.seed)
        self.model_init = model_init
        self._peft_config = peft_config
        if model_init is not None:
            model = super().call_model_init()
        source = model if isinstance(model, str) else setup.name_of(model)
        model = setup.model_of(model, self.args)
        self.processing_class, self._new_tokens = setup.processing_class_of(
            processing_class, source, data_collator, self.args
        )
        self.args = setup.fit_to_model(self.args, model)
        model = self._adapt(model)
        self._prepare_all(model, train_dataset, eval_dataset)
        self.newest_rewards = {}
        self._running, self._watch = RunningMetrics(), watch.Watch()
        self._proof: Proof | None = None
        self._fingerprints: dict[str, str] | None = None
        self._sample: list[list[int]] | None = None
        self._data_facts: dict[str, Any] = {}
        self._batch_layout: Padded | TreeRow | None = None
        self._made: nn.Module | None = model if model_init is not None else None
        super().__init__(
            model=model if model_init is None else None,
            args=self.args,
            data_collator=self._collator(data_collator),
            train_dataset=self.train_dataset,
            eval_dataset=self.eval_dataset,
            processing_class=self.processing_class,
            model_init=model_init,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self._take_over_sigterm()
        if adapters.allocates_ranks(self.model):
            self.add_callback(adapters.RankAllocation())
        if self.args.activation_offloading and self.accelerator.device.type == "cpu":
            say("activation_offloading has no effect on a CPU: the activations are in host memory already", once=True)

    def create_accelerator_and_postprocess(self) -> None:
        """Overridden because rewards are to be float32 under FSDP too."""
        sharding.quiet_deepspeed(self.args)
        super().create_accelerator_and_postprocess()
        sharding.say_if_whole(self.args, self.accelerator)
        sharding.keep_rewards_wide(self.accelerator)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Overridden because Trainer calls this for every run and trial, and every model it makes has to be adapted."""
        if self._made is not None:
            made, self._made = self._made, None
            return made
        self._batch_layout = None
        return self._adapt(setup.model_of(super().call_model_init(trial), self.args))

    def _adapt(self, model: nn.Module) -> nn.Module:
        return models.adapt(
            model,
            setup.tokenizer_of(self.processing_class),
            peft_config=self._peft_config,
            disable_dropout=self.args.disable_dropout,
            disable_adapter_dropout=self.args.disable_dropout and "disable_dropout" in self.args.given,
            checkpointing=bool(self.args.activation_checkpointing),
            reentrant=bool(cast(dict, self.args.activation_checkpointing_kwargs or {}).get("use_reentrant", False)),
            new_tokens=self._new_tokens,
        )

    def _prepare_all(self, model: nn.Module, train_dataset: Any, eval_dataset: Any) -> None:
        tokenizer = setup.tokenizer_of(self.processing_class)
        self._pad_token_id = 0 if tokenizer is None else tokenizer.pad_token_id
        pad_token_id = self._pad_token_id if reads_last_token(model) else None
        self._rules = Rules(self.args.max_length, models.vocabulary_size(model), pad_token_id)
        self._layout: Any = None
        self._template_kwargs: dict[str, Any] = {}
        self._dropped = StreamCounts()
        self._raw_train = train_dataset
        self.train_dataset = None if train_dataset is None else self._prepare(train_dataset, "train")
        if isinstance(eval_dataset, dict):
            self.raw_eval_sets = {f"eval_{name}": data for name, data in eval_dataset.items()}
            self.eval_dataset = {name: self._prepare(data, f"eval_{name}") for name, data in eval_dataset.items()}
        else:
            self.raw_eval_sets = {} if eval_dataset is None else {"eval": eval_dataset}
            self.eval_dataset = None if eval_dataset is None else self._prepare(eval_dataset, "eval")
        self.benchmark_sets = self._load_benchmarks()
        if self.eval_dataset is None and self.benchmark_sets is not None:
            # Trainer wants a set where there is an eval_strategy.
            self.eval_dataset = {}

    def _load_benchmarks(self) -> BenchmarkSets | None:
        if not self.args.eval_benchmarks:
            return None
        tokenizer = setup.tokenizer_of(self.processing_class)
        as_turns = self.data_kind != "standard" and bool(getattr(tokenizer, "chat_template", None))
        # The first process writes datasets' cache, the others read it.
        with self.args.main_process_first(desc="loading the benchmarks"):
            sets = BenchmarkSets(self.args.eval_benchmarks, tokenizer, self._rules, self._template_kwargs, as_turns)
        sets.require_other_names(self.eval_dataset if isinstance(self.eval_dataset, dict) else ())
        return sets

    @property
    def data_kind(self) -> str:
        """How the first data set's rows were written: "standard", "conversational" or "tokenized"."""
        return self._layout.kind

    def _prepare(self, dataset: Any, split: str, drop: bool = True) -> Dataset | IterableDataset:
        formats.check_type(dataset, f"{split}_dataset", split)
        tokenizer = setup.tokenizer_of(self.processing_class)
        # The first process writes datasets' cache, the others read it.
        with self.args.main_process_first(desc=f"preparing {split}"):
            prepared, layout = prepare(dataset, split, tokenizer, self._rules, self.args.dataset_num_proc, drop)
        if self._layout is None:
            self._layout = layout
            self._template_kwargs = common_template_kwargs(dataset)
        return prepared

    def _collator(self, data_collator: Callable | None) -> Callable:
        self._own_collator = data_collator is None or type(data_collator) is DataCollatorForPreference
        if data_collator is None:
            return DataCollatorForPreference(self._pad_token_id, self.args.pad_to_multiple_of)
        if not self._own_collator:
            say(f"the data collator {type(data_collator).__name__} is used as it is, on the padded path", once=True)
        return data_collator

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader:
        """Overridden because Trainer's loader repeats pairs to make processes even and cannot say which are repeats."""
        share = Share(batch_size, self.args.world_size, self.args.process_index)
        layout = self._layout_of(dataset)
        keep = "inputs" in self.args.include_for_metrics
        collate = PairCollator(layout, self._pad_token_id, self._user_columns(), keep_sequences=keep)
        if isinstance(dataset, IterableDataset):
            pairs: Any = StreamedPairs(dataset, share, repeat=is_training)
        elif is_training:
            pairs = PairRows(dataset, train_order(dataset, self.args), share)
        else:
            pairs = PairRows(dataset, range(len(dataset)) if isinstance(layout, TreeRow) else by_length(dataset), share)
        pairs.drop_last = is_training and self.args.dataloader_drop_last
        return make_loader(pairs, collate, self.args, self.accelerator.device, is_training)

    def _layout_of(self, dataset: Any) -> Any:
        """Return what makes batches of pairs: the layout that suits the model, found out once, or a collator of the user's."""
        if not self._own_collator:
            return self.data_collator
        if self._batch_layout is None:
            replaced = [name for name in READ_BATCHES if getattr(type(self), name) is not getattr(RewardTrainer, name)]
            if replaced and self.args.packing == "auto":
                self._batch_layout = Padded(self._pad_token_id, self.args.pad_to_multiple_of)
                reason: str | None = f"{type(self).__name__} replaces {', '.join(replaced)}, which may read them"
            else:
                found = layout_of_run(self.model, dataset, self.args, self.accelerator, self._pad_token_id)
                self._batch_layout, reason = found
            if reason is not None:
                say(f"packing: the batches are padded, because {reason}", once=True)
        return self._batch_layout

    def _user_columns(self) -> dict[str, str]:
        """Return the token columns' names in the user's own data set, which a collator of the user's expects."""
        if self._own_collator or self._layout is None or self._layout.kind != "tokenized":
            return {}
        return {name: column for name, column in self._layout.columns.items() if name.endswith(("_ids", "_mask"))}

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Train as Trainer does. Overridden to raise ValueError where only evaluation was set up."""
        if self.train_dataset is None:
            raise ValueError("`train_dataset` is required to train; this trainer was given an eval_dataset only")
        resume_from_checkpoint = compat.older_argument(
            "model_path", kwargs.pop("model_path", None), "resume_from_checkpoint", resume_from_checkpoint
        )
        if kwargs:
            raise TypeError(f"train() got unexpected arguments {sorted(kwargs)}")
        # In a hyperparameter search there is no model yet: every trial makes its own.
        if self.model is not None:
            setup.require_trainable(self.model)
            sharding.reshard(self.model)
            if self.args.world_size > 1:
                sharding.forget_evaluation(self)
        if self._raw_train is not None and self.is_world_process_zero():
            audit.say_summary(self._raw_train, next(iter(self.raw_eval_sets.values()), None), self.args.max_length)
        # A search trains many times on the same data, which are looked through once.
        self._raw_train = None
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self._dropped.say()
        return output

    def hyperparameter_search(
        self, hp_space: Any = None, compute_objective: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Search as Trainer does. Overridden because its own objective is the sum of all metrics, token counts included.

        compute_objective: from an evaluation's metrics to a number; None for the mean of the evaluation losses.
        """
        return super().hyperparameter_search(hp_space, compute_objective or mean_loss, *args, **kwargs)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Overridden because what an attempt saw that auto_find_batch_size gave up goes with it."""
        self._watch = watch.Watch()
        return super()._init_training_state(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Overridden because Trainer reads pickled weights where a checkpoint has no others."""
        trust.require_safe_checkpoint(resume_from_checkpoint, cast(dict | None, self.args.model_init_kwargs) or {})
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Overridden because what goes wrong is to be seen however seldom a run logs."""
        watch.attend(self)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> int | None:
        """Overridden because what is averaged over are pairs; every loader knows how many, so nothing is gathered.

        Returns the pairs of the optimizer step over all processes.
        """
        for batch in batch_samples:
            if "error" in batch:
                raise ValueError(batch["error"])
            self._dropped.note("train", batch.pop("counts", None))
        if not batch_samples or "num_pairs" not in batch_samples[0]:
            return None
        return sum(batch["num_pairs"] for batch in batch_samples)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Overridden because a tree's row does not show how many tokens its sequences have."""
        if "num_tokens" in inputs:
            inputs = {**inputs, "attention_mask": torch.tensor(inputs["num_tokens"])}
        super()._track_num_input_tokens(inputs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Any:
        """Overridden because the loss is of pairs: scaled so that micro-batches and processes add up to the step's mean.

        num_items_in_batch: pairs of the whole optimizer step; None for the mean over this micro-batch alone.
        """
        with self._activations_offloaded():
            output = outputs(model, inputs)
        chosen, rejected = read(output).chunk(2)
        weight = inputs.get("pair_weight", torch.ones_like(chosen))
        pair_losses = torch.where(weight > 0, self._pair_losses(chosen, rejected, inputs.get("margin")), 0.0)
        total = pair_losses.sum()
        if num_items_in_batch is None:
            loss = total / weight.sum().clamp_min(1.0)
        else:
            loss = total * self.accelerator.num_processes / num_items_in_batch
        balance = self._balance_loss(model, output, inputs)
        if balance is not None:
            loss = loss + balance / (1 if num_items_in_batch is None else self.current_gradient_accumulation_steps)
        if model.training and self.is_in_train:
            self._running.add(chosen.detach(), rejected.detach(), weight, inputs.get("num_tokens", 0))
            self._watch.add(pair_losses, weight, inputs.get("pair_index"))
            if self.accelerator.gradient_state.sync_gradients:
                self._running.end_step()
                self._watch.end_step()
        return (loss, output) if return_outputs else loss

    def _pair_losses(self, chosen: Tensor, rejected: Tensor, margin: Tensor | None) -> Tensor:
        """Return the loss of each pair, shape (num_pairs,), in float32."""
        pair_losses = losses.bradley_terry(chosen, rejected, 0.0 if margin is None else margin.float())
        if self.args.center_rewards_coefficient is not None:
            centering = losses.centering(chosen, rejected)
            pair_losses = pair_losses + self.args.center_rewards_coefficient * centering
        return pair_losses

    def _balance_loss(self, model: nn.Module, output: Any, inputs: Mapping[str, Any]) -> Tensor | None:
        """Return the experts' load-balancing loss, times its coefficient, of a model that gives its router's logits."""
        router_logits = getattr(output, "router_logits", None)
        if not router_logits:
            return None
        config = cast(PreTrainedModel, classifier_of(model)).config.get_text_config()
        token_weight = inputs["token_weight"] if "token_weight" in inputs else inputs["attention_mask"]
        balance = losses.load_balancing(router_logits, config.num_experts_per_tok, token_weight)
        return config.router_aux_loss_coef * balance.to(token_weight.device)

    def _activations_offloaded(self) -> contextlib.AbstractContextManager:
        if self.args.activation_offloading and self.accelerator.device.type != "cpu" and torch.is_grad_enabled():
            return torch.autograd.graph.save_on_cpu(pin_memory=True)
        return contextlib.nullcontext()

    def _facts_of_run(self) -> dict[str, Any]:
        return run_facts(self, self._facts_of_data(self.train_dataset))

    def _facts_of_data(self, dataset: Any) -> dict[str, Any]:
        """Return what identifies the data that this trainer trains on, or evaluates on alone; found out once."""
        self._data_facts = self._data_facts or data_facts(dataset)
        return self._data_facts

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Overridden to add the interval's reward metrics, also those still open when a run ends."""
        if self.is_in_train and ("loss" in logs or "train_loss" in logs):
            if self._running.num_steps:
                logs.update(self._running.logs(self._running.reduce(self._gather_rows)))
                self._running.clear()
            self._dropped.say()
            if not self.args.logging_nan_inf_filter:
                # With a loss scaler an infinite gradient is an ordinary event: the step is skipped, the scale lowered.
                scaled = ("grad_norm",) if self.accelerator.scaler is not None else ()
                watch.require_finite(self, {k: v for k, v in logs.items() if k not in scaled})
        super().log(logs, start_time)

    def diagnose(self) -> doctor.Diagnosis:
        """Return what is wrong with this run, before, during or after training, each cause with evidence and cure; the model,
        the optimizer and the random numbers are left as they were."""
        return doctor.diagnose(watch.case_of(self))

    def _gather_rows(self, row: Tensor) -> Tensor:
        return self.accelerator.gather(row.unsqueeze(0))

    def _require_finite_run(self, processes: list[dict[str, Any]]) -> None:
        """Overridden to look at the open sums, which show it before a log does, and at the weights."""
        if not self.args.logging_nan_inf_filter:
            rewards, loss = (float(sum(np.sum(each[name]) for each in processes)) for name in ("sums", "loss"))
            watch.require_finite(self, {"reward": rewards, "loss": loss})
            watch.require_finite_weights(self)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Overridden to make the checkpoint's proof, for which a sharded model needs every process, and to save it whole."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        with self._written_aside(output_dir) as folder:
            if self.args.should_save or sharded:
                self._proof = self._make_proof(sharded)
            if sharded:
                weights, self._fingerprints = sharding.weights_to_save(self)
                self._save(folder, weights)
            else:
                super().save_model(folder, _internal_call=True)
        self._proof = self._fingerprints = None
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _make_proof(self, sharded: bool) -> Proof:
        model = (
            self._model_for_evaluation()
            if sharded
            else self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        )
        datasets = self.eval_dataset if self.train_dataset is None else self.train_dataset
        dataset = next(iter(datasets.values())) if isinstance(datasets, dict) else datasets
        if self._sample is None:
            self._sample = sample_of(dataset)
        contract = Contract(self.data_kind, self._template_kwargs, self.args.max_length)
        layout = self._batch_layout if isinstance(self._batch_layout, TreeRow) else None
        # FSDP computes in half precision whatever the context; elsewhere autocast is left out.
        mixed = {"bf16": "bfloat16", "fp16": "float16"}.get(self.accelerator.mixed_precision)
        precision = mixed if self.is_fsdp_enabled else None
        tokenizer = setup.tokenizer_of(self.processing_class)
        proof = make_proof(
            model, tokenizer, contract, self._sample, self._facts_of_data(dataset), layout, precision=precision
        )
        if sharded:
            sharding.reshard(model)
        return proof

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Overridden to save the card, and beside an adapter what its base's config lacks."""
        output_dir = os.fspath(output_dir or cast(str, self.args.output_dir))
        inside.require_no_way_out(self._final_place(output_dir))
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        inner = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if isinstance(inner, PeftModel):
            adapters.save_base_values(inner, output_dir)
        if self._proof is not None:
            write_proof(self._proof, output_dir, self._fingerprints or weight_fingerprints(inner, state_dict))
        self._write_card(output_dir)

    def create_model_card(  # type: ignore[override]  # the contract's order of arguments; push_to_hub names them
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Overridden because Trainer's card knows nothing of rewards. kwargs: `language`, `license` and the like, for the card's header."""
        if self.is_world_process_zero():
            self._write_card(cast(str, self.args.output_dir), model_name, dataset_name, tags, **kwargs)

    def _write_card(self, output_dir: str, *args: Any, **kwargs: Any) -> None:
        facts = card_facts(self, self._final_place(output_dir), *args, **kwargs)
        with open(os.path.join(output_dir, "README.md"), "w", encoding="utf-8") as file:
            file.write(model_card(facts))
