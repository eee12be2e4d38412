"""What a trainer says when memory runs out: which batch it was, and the options that help, in order, with their values."""

from collections.abc import Iterator, Mapping
from typing import Any

from datasets import Dataset
from peft import PeftModel

from plaudit import memory
from plaudit import model as models
from plaudit.memory import Shown
from plaudit.prepare import ORIGINS, pair_lengths


def of_training(trainer: Any, batch: Mapping[str, Any] | None) -> str:
    """Return the text for a training that ran out of memory. batch: the collated one, None before the first."""
    args = trainer.args
    if batch is None:
        return _text(f"the start of training{_on_process(args)}", None, list(_cures_of_weights(trainer)))
    what = f"step {trainer.state.global_step + 1} of training{_on_process(args)}"
    found = memory.shown(batch)
    row = _row(found.place, trainer.train_dataset, "train")
    size = args.per_device_train_batch_size
    told = memory.sentence(found, row, "per_device_train_batch_size", size)
    return _text(what, told, _cures_of_training(trainer, found, args), _why_not_found(args, size))


def of_evaluation(trainer: Any, batch: Mapping[str, Any] | None, dataset: Any, name: str) -> str:
    """Return the text for an evaluation, or a prediction, that ran out of memory."""
    args = trainer.args
    what = f"the evaluation of {name!r}{_on_process(args)}"
    if batch is None:
        return _text(what, None, [])
    found = memory.shown(batch)
    size = args.per_device_eval_batch_size
    told = memory.sentence(found, _row(found.place, dataset, name), "per_device_eval_batch_size", size)
    smaller = memory.fewer_pairs(size, 1)
    cures = [] if smaller is None else [f"per_device_eval_batch_size={smaller[0]} (the same rewards)"]
    return _text(what, told, [*cures, *_cures_of_layout(trainer, found, dataset)])


def may_try_again(trainer: Any) -> bool:
    """Tell whether a smaller batch of training may be tried: not on several processes, of which the others would wait."""
    args = trainer.args
    return not args.auto_find_batch_size or (args.world_size == 1 and args.per_device_train_batch_size > 1)


def _text(what: str, told: str | None, cures: list[str], note: str = "") -> str:
    numbered = "; ".join(f"({number}) {cure}" for number, cure in enumerate(cures, 1))
    helps = f"What helps, in this order: {numbered}" if cures else "A smaller model, or more memory, helps"
    return ". ".join(filter(None, [what, told and told.removesuffix("."), note, helps]))


def _on_process(args: Any) -> str:
    return f" on process {args.process_index} of {args.world_size}" if args.world_size > 1 else ""


def _why_not_found(args: Any, size: int) -> str:
    if args.auto_find_batch_size and args.world_size > 1:
        return (
            "auto_find_batch_size was not tried, because one process that starts again would leave the "
            f"other{'s' * (args.world_size > 2)} waiting"
        )
    return "auto_find_batch_size can go no lower" if args.auto_find_batch_size and size == 1 else ""


def _cures_of_training(trainer: Any, batch: Shown, args: Any) -> list[str]:
    cures = []
    fewer = memory.fewer_pairs(args.per_device_train_batch_size, args.gradient_accumulation_steps)
    if fewer is not None:
        cures.append(f"per_device_train_batch_size={fewer[0]}, gradient_accumulation_steps={fewer[1]} (the same steps)")
    if not args.activation_checkpointing and models.skip_checkpointing(trainer.model) is None:
        cures.append("activation_checkpointing=True (the same numbers, about a third slower)")
    cures += [*_cures_of_layout(trainer, batch, trainer.train_dataset), *_cures_of_weights(trainer)]
    if args.world_size == 1 and not args.auto_find_batch_size and fewer is not None:
        cures.append("auto_find_batch_size=True (starts again with smaller batches until one fits)")
    return cures


def _cures_of_layout(trainer: Any, batch: Shown, dataset: Any) -> Iterator[str]:
    if not batch.is_tree and trainer.args.packing == "off":
        yield 'packing="auto" (what the two sides share is computed once)'
    lengths = pair_lengths(dataset) if isinstance(dataset, Dataset) else None
    shorter = memory.shorter(lengths, max(batch.chosen, batch.rejected))
    if shorter is not None:
        yield shorter


def _cures_of_weights(trainer: Any) -> Iterator[str]:
    args = trainer.args
    if not isinstance(trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False), PeftModel):
        yield 'an adapter: peft_config=LoraConfig(task_type="SEQ_CLS") (--use_peft)'
    if args.device.type != "cpu" and trainer.accelerator.mixed_precision == "no":
        yield "bf16=True"
    if not trainer.is_fsdp_enabled and not trainer.is_deepspeed_enabled:
        several = f"the {args.world_size}" if args.world_size > 1 else "several"
        yield f"weights and optimizer divided between {several} processes, by FSDP2 or DeepSpeed (docs/scaling.md)"


def _row(place: int, dataset: Any, name: str) -> str:
    """Return what a user looks a pair up by: its row in their own data, or, of a stream, its place among the pairs."""
    if not isinstance(dataset, Dataset):
        return f"{name} pair {place} of the stream"
    origins = getattr(dataset, ORIGINS, None)
    return f"{name} row {place if origins is None else int(origins.rows[place])}"
