"""What the card of a trained model says, and what a run was told to do, gathered from a trainer's arguments, data and log."""

import os
from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from torch import nn

from plaudit import adapters
from plaudit import model as models
from plaudit.card import CardFacts
from plaudit.config import RewardConfig
from plaudit.proof import library_versions
from plaudit.rewards import classifier_of


def card_facts(
    trainer: Any,
    output_dir: str,
    model_name: str | None = None,
    dataset_name: str | None = None,
    tags: str | list[str] | None = None,
    **extra: Any,
) -> CardFacts:
    """Return what the card of a trainer's model says. extra: further keys of the card's header, such as `license`."""
    args, state = trainer.args, trainer.state
    inner = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    classifier = classifier_of(inner)
    is_adapter = isinstance(inner, PeftModel)
    base_values: dict[str, Any] = {}
    vocabulary_size, dtype = None, "float32"
    if is_adapter:
        base_values = adapters.base_values_of(inner)
        vocabulary_size, dtype = base_values.pop("vocab_size"), base_values.pop("dtype")
        # Growing to the size that the base has already would only puzzle the reader of the snippet.
        if vocabulary_size == models.stored_vocabulary_size(_base_name(inner, classifier)):
            vocabulary_size = None
    extra_tags = [tags] if isinstance(tags, str) else list(tags or [])
    pushed = trainer.hub_model_id or (args.hub_model_id if args.push_to_hub else None)
    return CardFacts(
        path=pushed or output_dir,
        model_name=model_name or os.path.basename(os.path.normpath(output_dir)),
        base_model=_base_name(inner, classifier),
        datasets=(dataset_name,) if dataset_name else (),
        tags=(*models.TAGS, *extra_tags),
        kind=trainer.data_kind,
        base_values=base_values,
        vocabulary_size=vocabulary_size,
        dtype=dtype,
        subfolder=_subfolder(inner),
        data=_data_facts(trainer),
        training=_training_facts(args, state),
        evaluation=_evaluation_figures(state.log_history),
        versions=library_versions(),
        extra=extra,
    )


# What decides what a run computes, of the options. The ways to compute the same, such as the layout, are not among them.
OPTIONS = """
learning_rate lr_scheduler_type warmup_steps weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm optim max_steps
num_train_epochs per_device_train_batch_size gradient_accumulation_steps train_sampling_strategy dataloader_drop_last seed
data_seed max_length center_rewards_coefficient disable_dropout bf16 fp16
""".split()


def run_facts(trainer: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return by name what a trainer's run is told to do, as JSON holds it. data: of `proof.data_facts`."""
    args = trainer.args
    found = {name: getattr(args, name) for name in OPTIONS}
    if args.auto_find_batch_size:
        del found["per_device_train_batch_size"]
    inner = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    base = _base_name(inner, classifier_of(inner))
    return {
        **{name: getattr(value, "value", value) for name, value in found.items()},
        "processes": args.world_size,
        "model": base and os.path.basename(os.path.normpath(base)),
        "adapter": isinstance(inner, PeftModel),
        "training pairs": data["num_pairs"],
        "hash of the training data": (data["sha256"] or "")[:12] or None,
    }


def _subfolder(model: nn.Module) -> str | None:
    name = model.active_adapter if isinstance(model, PeftModel) else "default"
    return None if name == "default" else name


def _base_name(model: nn.Module, classifier: nn.Module) -> str | None:
    if isinstance(model, PeftModel):
        return model.peft_config[model.active_adapter].base_model_name_or_path
    return getattr(getattr(classifier, "config", None), "_name_or_path", None) or None


def _data_facts(trainer: Any) -> dict[str, Any]:
    dataset = trainer.train_dataset
    pairs = len(dataset) if hasattr(dataset, "__len__") else ("streamed" if dataset is not None else None)
    return {"training pairs": pairs, "rows written as": trainer.data_kind}


def _training_facts(args: RewardConfig, state: Any) -> dict[str, Any]:
    last: dict = next((entry for entry in reversed(state.log_history) if "accuracy" in entry), {})
    pairs = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {
        "optimizer steps": state.global_step,
        "epochs": state.epoch,
        "pairs a step": pairs,
        "learning rate": float(args.learning_rate),
        "max_length": args.max_length,
        "center_rewards_coefficient": args.center_rewards_coefficient,
        "seed": args.seed,
        "tokens": last.get("num_tokens"),
        "last logged loss": last.get("loss"),
        "last logged accuracy": last.get("accuracy"),
    }


def _evaluation_figures(log_history: list[dict]) -> dict[str, dict[str, float]]:
    """Return the newest figures of each evaluation set, without their prefix; the one unnamed set is called `eval`."""
    sets: dict[str, dict[str, float]] = {}
    for entry in log_history:
        for prefix in [key.removesuffix("_mean_reward") for key in entry if key.endswith("_mean_reward")]:
            figures = {
                key.removeprefix(f"{prefix}_"): value for key, value in entry.items() if key.startswith(f"{prefix}_")
            }
            speed = ("runtime", "per_second")
            sets[prefix.removeprefix("eval_")] = {k: v for k, v in figures.items() if not k.endswith(speed)}
    return sets
