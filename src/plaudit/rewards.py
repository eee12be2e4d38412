"""The only forward: a batch of sequences in, one float32 reward a sequence out.

Shapes: N sequences, T tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from plaudit import attention

HEAD_NAMES = ("score", "classifier", "classification_head")
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "read_out", "tree")
# Decoders that bring a forward of their own which reads, like the generic one, the last token that is not padding;
# tests/test_rewards.py compares each with it.
READS_LAST_TOKEN = frozenset(
    "biogpt bloom falcon gemma3 gpt2 gpt_bigcode gpt_neo gpt_neox gptj mpt openai-gpt opt zamba2".split()
)


@dataclass
class RewardOutput(SequenceClassifierOutputWithPast):
    """A classifier's output; `logits`, float32, shape (N, 1), are the rewards."""

    router_logits: tuple[Tensor, ...] | None = None


def classifier_of(model: nn.Module) -> nn.Module:
    """Return the classifier inside whatever adapters, compilers and parallel wrappers are round it."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(getattr(model, "module", None), nn.Module) and not isinstance(model, PreTrainedModel):
            model = model.module
        else:
            return model


def reads_last_token(model: nn.Module) -> bool:
    """Tell whether the reward is a linear head's value at the last token that is not padding (decoders do, encoders not)."""
    classifier = classifier_of(model)
    if not isinstance(classifier, PreTrainedModel) or not hasattr(classifier, "score"):
        return False
    generic = type(classifier).forward is GenericForSequenceClassification.forward
    return generic or classifier.config.model_type in READS_LAST_TOKEN


def head_names(model: nn.Module) -> list[str]:
    """Return the names of the classifier's top-level modules that make the reward from the base model's states."""
    classifier = classifier_of(model)
    base = getattr(classifier, getattr(classifier, "base_model_prefix", ""), None)
    children = {name: child for name, child in classifier.named_children() if child is not base}
    known = [name for name in HEAD_NAMES if name in children]
    if base is None:
        return known
    return [name for name, child in children.items() if name in known or any(True for _ in child.parameters())]


def attach(model: nn.Module) -> None:
    """Make the model's own call compute float32 rewards: head in float32, outside autocast, at the read-out only.

    Works on the instance, so that Trainer, DDP, FSDP, PEFT and checkpointing find the usual model. The head's weights
    keep their type and are widened as they are used. Encoders and unknown heads keep their own forward. A plain
    nn.Module is left as it is.
    """
    classifier = classifier_of(model)
    if not isinstance(classifier, PreTrainedModel):
        return
    for name in head_names(model):
        for module in getattr(classifier, name).modules():
            if type(module) in IN_FLOAT32:
                module.forward = MethodType(IN_FLOAT32[type(module)], module)
            elif not any(True for _ in module.children()):
                module.float()
    # What accelerate has wrapped round the forward is not to be lost.
    if reads_last_token(model) and "_original_forward" not in vars(classifier):
        classifier.forward = MethodType(_decoder_forward, classifier)


def rewards(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return one float32 reward a sequence of the batch, shape (N,), whichever layout of collate.py the batch has."""
    return read(outputs(model, batch))


def outputs(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    """Return what the model makes of the batch's tokens; everything else in the batch stays out of the model."""
    return model(**{name: batch[name] for name in MODEL_INPUTS if name in batch})


def read(output: Any) -> Tensor:
    """Return the rewards, float32, shape (N,), in a classifier's output, a tuple, or a bare tensor of one logit a row."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if logits is None:
        logits = output["logits"] if isinstance(output, Mapping) else output[0]
    if logits.dim() > 2 or (logits.dim() == 2 and logits.shape[1] != 1):
        raise ValueError(
            f"the model returned logits of shape {tuple(logits.shape)}; a reward model returns one logit a row"
        )
    return logits.reshape(-1).float()


def read_out_positions(input_ids: Tensor, pad_token_id: int | None, attention_mask: Tensor | None = None) -> Tensor:
    """Return each row's last position whose id is not padding, shape (N,); where all is padding, 0.

    By ids, as transformers does, and not by the mask: where padding is also EOS the two differ by one token. By the mask
    for a model that knows no padding id.
    """
    if pad_token_id is not None:
        is_real = input_ids != pad_token_id
    elif attention_mask is not None and attention_mask.dim() == 2:
        is_real = attention_mask.bool()
    else:
        is_real = torch.ones_like(input_ids, dtype=torch.bool)
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    return (positions * is_real).argmax(dim=-1)


def _decoder_forward(
    self: PreTrainedModel,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    read_out: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> Any:
    # PEFT's prefix tuning looks for past_key_values among the names.
    kwargs["past_key_values"] = past_key_values
    if input_ids is None or kwargs.get("labels") is not None:
        return type(self).forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
    kwargs = {name: value for name, value in kwargs.items() if value is not None and name != "labels"}
    as_tuple = kwargs.pop("return_dict", True) is False
    kwargs.setdefault("use_cache", False)
    if "tree" in kwargs:
        if not attention.is_enabled(self):
            raise ValueError(
                "the batch is a tree, but the model's attention is not enabled for it; choose the layout with "
                "plaudit.probe.choose_layout"
            )
        # A mask of four dimensions is handed on as it is; the tree's attention needs none.
        attention_mask = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=input_ids.device)
    base = getattr(self, self.base_model_prefix)(input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
    # Where the layers are on several devices, the last one's states are not where the ids are.
    states = base.last_hidden_state
    if read_out is None:
        last = read_out_positions(input_ids, self.config.get_text_config().pad_token_id, attention_mask)
        states = states[torch.arange(len(states), device=states.device), last.to(states.device)]
    else:
        states = states[0, read_out.to(states.device)]
    output = RewardOutput(
        logits=self.score(states),
        past_key_values=base.get("past_key_values"),
        hidden_states=base.get("hidden_states"),
        attentions=base.get("attentions"),
        router_logits=base.get("router_logits"),
    )
    return output.to_tuple() if as_tuple else output


# Pickle stores a bound method by its name: as "forward", a copied model finds its class's own, which gives the same reward.
_decoder_forward.__name__ = "forward"


def _linear(self: nn.Linear, states: Tensor) -> Tensor:
    with torch.autocast(device_type=states.device.type, enabled=False):
        return F.linear(states.float(), self.weight.float(), None if self.bias is None else self.bias.float())


def _layer_norm(self: nn.LayerNorm, states: Tensor) -> Tensor:
    weight, bias = (None if value is None else value.float() for value in (self.weight, self.bias))
    return F.layer_norm(states.float(), self.normalized_shape, weight, bias, self.eps)


_linear.__name__ = _layer_norm.__name__ = "forward"
# What heads are made of; anything else in a head has its weights cast to float32 instead.
IN_FLOAT32: dict[type, Callable] = {nn.Linear: _linear, nn.LayerNorm: _layer_norm}
