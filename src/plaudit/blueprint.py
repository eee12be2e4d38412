"""A model's shape as its config describes it: every parameter counted on the meta device, no weight read."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from plaudit import adapters, trust
from plaudit.model import require_path
from plaudit.rewards import head_names, reads_last_token
from plaudit.shapes import Linear, Shape

# How far a layer's matrices may be from all of its parameters: norms and biases, first layers without experts.
UNLIKE = 0.1
_LAYER = re.compile(r"^(.*?\.(?:layers|layer|h|blocks))\.(\d+)\.")


class Blueprint(NamedTuple):
    """A model's config and shape, the matrices that peft adapts in it unless told, and why it cannot take the tree."""

    config: Any
    shape: Shape
    targets: tuple[str, ...]
    padded_because: str | None


def read(name: str, trust_remote_code: bool = False) -> Blueprint:
    """Return the blueprint of the model at a directory or a Hub id, as a classifier with one output; of an adapter, its base's.

    ValueError where there is no config that makes a classifier, or one whose layers are not alike; trust.Refused where
    that takes code of the model's own.
    """
    folder = adapters.folder_of(require_path(name))
    if adapters.is_adapter(folder):
        folder = require_path(str(adapters.config_of(folder).base_model_name_or_path))
    trust.require_no_code_from_hub(folder, {"trust_remote_code": trust_remote_code})
    try:
        config = AutoConfig.from_pretrained(folder, num_labels=1, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
    # Configs that make no model raise errors of every kind.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise trust.refused_code(folder, error, trust_remote_code) or ValueError(
            f"model {name!r} is no shape that is known by name, and its config cannot be read as a classifier's ({reason}); "
            "name a shape, a directory or a Hub id, or give layers=..,hidden=..,heads=..,intermediate=..,vocab=.."
        ) from error
    return Blueprint(config, shape_of(model, name), _targets(config), _padded_because(model))


def shape_of(model: PreTrainedModel, name: str) -> Shape:
    """Return the shape of a classifier, whose weights need not be there. ValueError where it has no layers of one kind."""
    config = model.config.get_text_config()
    if not getattr(config, "num_attention_heads", None):
        raise _not_planned(model, "its layers have no heads of attention")
    parameters = dict(model.named_parameters())
    stack = _stack(parameters)
    if stack is None:
        raise _not_planned(model, "it has no list of layers")
    layers = sorted({int(found[2]) for key in parameters if (found := _LAYER.match(key)) and found[1] == stack})
    one = model.get_submodule(f"{stack}.{layers[-1]}")
    linears, experts = _matrices(one)
    inside = sum(parameter.numel() for key, parameter in parameters.items() if key.startswith(f"{stack}."))
    each = round(inside / len(layers))
    _require_alike(model, linears, experts, each)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    norms = _norms(one, config.hidden_size)
    return Shape(
        name=name,
        hidden=config.hidden_size,
        layers=len(layers),
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=head_dim,
        intermediate=_width(config, linears),
        linears=tuple(linears),
        small=each - sum(linear.inputs * linear.outputs for linear in linears) - experts,
        outside=sum(parameter.numel() for parameter in parameters.values()) - each * len(layers),
        embedding=model.get_input_embeddings().weight.numel(),
        experts=experts,
        active_experts=_active_share(config) if experts else 1.0,
        pre_norms=min(2, len(norms)),
        post_norms=max(0, len(norms) - 2),
        norm="layer" if any(isinstance(norm, nn.LayerNorm) for norm in norms) else "rms",
        qk_norm=any("q_norm" in key or "q_layernorm" in key for key, _ in one.named_modules()),
        softcap=getattr(config, "attn_logit_softcapping", None) is not None,
        gated=any("gate" in linear.name for linear in linears) or bool(experts),
    )


def _stack(parameters: Mapping[str, Any]) -> str | None:
    """Return the name of the longest list of layers, None where there is none."""
    found = [match[1] for key in parameters if (match := _LAYER.match(key))]
    return max(set(found), key=found.count) if found else None


def _require_alike(model: PreTrainedModel, linears: list[Linear], experts: int, each: int) -> None:
    """Raise ValueError where the matrices of the last layer are not what the mean layer consists of."""
    found = sum(linear.inputs * linear.outputs for linear in linears) + experts
    if getattr(model.config, "is_encoder_decoder", False):
        raise _not_planned(model, "it has an encoder and a decoder")
    if abs(found / each - 1) > UNLIKE:
        raise _not_planned(model, "its layers are not alike")


def _not_planned(model: PreTrainedModel, reason: str) -> ValueError:
    return ValueError(
        f"the cost of {type(model).__name__} cannot be planned, because {reason}; give the sizes of a model like it, as "
        "layers=..,hidden=..,heads=..,intermediate=..,vocab=.."
    )


def _matrices(layer: nn.Module) -> tuple[list[Linear], int]:
    """Return a layer's matrices that every token meets, and how many parameters its experts have."""
    linears, experts = [], 0
    for key, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        # GPT-2 writes its matrices the other way round, in a class of its own.
        if isinstance(weight, nn.Parameter) and weight.dim() == 2 and "experts" not in key.split("."):
            is_turned = type(module).__name__ == "Conv1D"
            rows, columns = weight.shape if is_turned else weight.T.shape
            linears.append(Linear(key.rpartition(".")[2], rows, columns))
    for key, parameter in layer.named_parameters():
        if "experts" in key.split("."):
            experts += parameter.numel()
    return linears, experts


def _norms(layer: nn.Module, hidden: int) -> list[nn.Module]:
    """Return a layer's norms of what goes through it, those of its heads left out."""
    named = [(key, module) for key, module in layer.named_modules() if "norm" in type(module).__name__.lower()]
    return [module for key, module in named if getattr(module, "weight", torch.empty(0)).shape == (hidden,)]


def _width(config: Any, linears: list[Linear]) -> int:
    """Return the width of the MLP between its matrices: of the experts that a token meets, where there are some."""
    active = getattr(config, "num_experts_per_tok", None)
    own = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", None)
    if own is None:
        own = max(linear.outputs for linear in linears)
    return own * (active or 1)


def _active_share(config: Any) -> float:
    number = next((getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")
                   if getattr(config, name, None)), None)  # fmt: skip
    return config.num_experts_per_tok / number if number else 1.0


def _targets(config: Any) -> tuple[str, ...]:
    """Return the matrices that peft adapts in this kind of model; all, where it knows of none."""
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(config.get_text_config().model_type)
    return tuple(known) if isinstance(known, (list, tuple, set)) else ("all-linear",)


def _padded_because(model: PreTrainedModel) -> str | None:
    """Return why the tree cannot be taken, as far as the classes say it; the trial before a training decides."""
    if not reads_last_token(model):
        return f"{type(model).__name__} is not a decoder that reads its reward at the last token"
    if not model._supports_attention_backend:
        return f"{type(model).__name__} does not let its attention be exchanged"
    return None if head_names(model) else f"{type(model).__name__} has no reward head"
