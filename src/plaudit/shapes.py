"""Shapes of models: the sizes that decide what a training costs, of published models by name, or as they are given.

Counts are of the model with one output instead of a language model's head. Plain sums: no torch, no weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from plaudit.options import did_you_mean


class Linear(NamedTuple):
    """A matrix that every token of a layer is multiplied with."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Shape:
    """What a model's cost depends on.

    heads, kv_heads, head_dim: of the attention. intermediate: the width between the MLP's matrices, of all experts that a
    token goes through. linears: one layer's matrices, experts apart. small: one layer's other parameters, norms and
    biases. experts: the parameters of one layer's experts together, of which a token meets `active_experts` (a share).
    outside: parameters outside the layers, of which `embedding` are looked up. pre_norms: one layer's norms before a
    block; post_norms: behind one. norm: "rms", in float32, or "layer". qk_norm: norms of the heads. gated: an MLP of
    three matrices. softcap: a limit on the scores, for which no fused attention exists.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    linears: tuple[Linear, ...]
    small: int
    outside: int
    embedding: int
    experts: int = 0
    active_experts: float = 1.0
    pre_norms: int = 2
    post_norms: int = 0
    norm: str = "rms"
    qk_norm: bool = False
    gated: bool = True
    softcap: bool = False

    @property
    def queries(self) -> int:
        """How wide the queries of all heads are together."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """How wide the keys, and the values, of all heads are together."""
        return self.kv_heads * self.head_dim

    @property
    def matrices(self) -> int:
        """The parameters of one layer's matrices that a token is multiplied with, experts it does not meet left out."""
        return sum(one.inputs * one.outputs for one in self.linears) + round(self.experts * self.active_experts)

    @property
    def layer_parameters(self) -> int:
        """The parameters of one layer."""
        return sum(one.inputs * one.outputs for one in self.linears) + self.small + self.experts

    @property
    def parameters(self) -> int:
        """All parameters, the head's included."""
        return self.layers * self.layer_parameters + self.outside

    def lora_targets(self, targets: tuple[str, ...]) -> list[Linear]:
        """Return one layer's matrices that an adapter is put on. ValueError for a name that no matrix has."""
        if targets == ("all-linear",):
            return list(self.linears)
        names = [one.name for one in self.linears]
        unknown = next((name for name in targets if name not in names), None)
        if unknown is not None:
            near = did_you_mean(unknown, [*names, "all-linear"])
            raise ValueError(
                f"lora_target_modules: {self.name} has no matrix {unknown!r}{near}; its layers have {', '.join(names)}"
            )
        return [one for one in self.linears if one.name in targets]

    def lora_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Return how many parameters a LoRA adapter of that rank trains, the reward head included."""
        return self.layers * sum(rank * (one.inputs + one.outputs) for one in self.lora_targets(targets)) + self.hidden


# The values of the published configs (config.json on each model's page), under transformers' own names.
_QWEN3 = {"model_type": "qwen3", "head_dim": 128, "vocab_size": 151_936}
_QWEN2 = {"model_type": "qwen2"}
_LLAMA3 = {"model_type": "llama", "vocab_size": 128_256}
_GEMMA2 = {"model_type": "gemma2", "vocab_size": 256_000}
_NAMES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)


def _config(family: Mapping[str, Any], *sizes: int, **others: Any) -> dict[str, Any]:
    """sizes: in the order of _NAMES."""
    return {**family, **dict(zip(_NAMES, sizes, strict=True)), **others}


CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": _config(_QWEN3, 28, 1024, 16, 8, 3072),
    "qwen3-1.7b": _config(_QWEN3, 28, 2048, 16, 8, 6144),
    "qwen3-4b": _config(_QWEN3, 36, 2560, 32, 8, 9728),
    "qwen3-8b": _config(_QWEN3, 36, 4096, 32, 8, 12_288),
    "qwen3-14b": _config(_QWEN3, 40, 5120, 40, 8, 17_408),
    "qwen3-32b": _config(_QWEN3, 64, 5120, 64, 8, 25_600),
    "qwen2.5-0.5b": _config(_QWEN2, 24, 896, 14, 2, 4864, vocab_size=151_936),
    "qwen2.5-1.5b": _config(_QWEN2, 28, 1536, 12, 2, 8960, vocab_size=151_936),
    "qwen2.5-3b": _config(_QWEN2, 36, 2048, 16, 2, 11_008, vocab_size=151_936),
    "qwen2.5-7b": _config(_QWEN2, 28, 3584, 28, 4, 18_944, vocab_size=152_064),
    "qwen2.5-14b": _config(_QWEN2, 48, 5120, 40, 8, 13_824, vocab_size=152_064),
    "qwen2.5-32b": _config(_QWEN2, 64, 5120, 40, 8, 27_648, vocab_size=152_064),
    "qwen2.5-72b": _config(_QWEN2, 80, 8192, 64, 8, 29_568, vocab_size=152_064),
    "llama-3.2-1b": _config(_LLAMA3, 16, 2048, 32, 8, 8192),
    "llama-3.2-3b": _config(_LLAMA3, 28, 3072, 24, 8, 8192),
    "llama-3.1-8b": _config(_LLAMA3, 32, 4096, 32, 8, 14_336),
    "llama-3.1-70b": _config(_LLAMA3, 80, 8192, 64, 8, 28_672),
    "llama-3.1-405b": _config(_LLAMA3, 126, 16_384, 128, 8, 53_248),
    "llama-2-7b": _config({"model_type": "llama"}, 32, 4096, 32, 32, 11_008, vocab_size=32_000),
    "llama-2-13b": _config({"model_type": "llama"}, 40, 5120, 40, 40, 13_824, vocab_size=32_000),
    "mistral-7b": _config({"model_type": "mistral"}, 32, 4096, 32, 8, 14_336, vocab_size=32_000),
    "gemma-2-2b": _config(_GEMMA2, 26, 2304, 8, 4, 9216, head_dim=256),
    "gemma-2-9b": _config(_GEMMA2, 42, 3584, 16, 8, 14_336, head_dim=256),
    "gemma-2-27b": _config(_GEMMA2, 46, 4608, 32, 16, 36_864, head_dim=128),
    "gemma-3-1b": _config({"model_type": "gemma3_text", "vocab_size": 262_144}, 26, 1152, 4, 1, 6912, head_dim=256),
}
# What people also call them.
_ALSO = {"llama-3-8b": "llama-3.1-8b", "llama-3-70b": "llama-3.1-70b", "llama-3.3-70b": "llama-3.1-70b"}


def config_values(text: str) -> dict[str, Any] | None:
    """Return the values of a config, under transformers' names, `model_type` among them; None where there are none.

    text: the name of a published model, in any case, or numbers as layers=..,hidden=..,heads=..,kv_heads=..,
    intermediate=..,vocab=.., of a Llama. kv_heads: as many as heads unless given; head_dim: hidden / heads unless given.
    ValueError for numbers that make no model.
    """
    key = text.lower().replace("_", "-")
    return _from_numbers(text) if "=" in text else CONFIGS.get(_ALSO.get(key, key))


def named(text: str) -> Shape | None:
    """Return the shape that `config_values` finds for a text; None where it finds none."""
    values = config_values(text)
    return None if values is None else _decoder(text, values)


def _decoder(name: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape that a decoder's config describes, of the families in CONFIGS."""
    hidden, heads, kv_heads = (config[key] for key in (_NAMES[1], _NAMES[2], _NAMES[3]))
    head_dim = config.get("head_dim", hidden // heads)
    width, kind = config["intermediate_size"], config["model_type"]
    queries, keys = heads * head_dim, kv_heads * head_dim
    linears = (
        Linear("q_proj", hidden, queries),
        Linear("k_proj", hidden, keys),
        Linear("v_proj", hidden, keys),
        Linear("o_proj", queries, hidden),
        Linear("gate_proj", hidden, width),
        Linear("up_proj", hidden, width),
        Linear("down_proj", width, hidden),
    )
    post_norms = 2 if kind.startswith("gemma") else 0
    qk_norm = kind in ("qwen3", "gemma3_text")
    biases = queries + 2 * keys if kind == "qwen2" else 0
    embedding = config["vocab_size"] * hidden
    return Shape(
        name=name,
        hidden=hidden,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=width,
        linears=linears,
        small=(2 + post_norms) * hidden + biases + (2 * head_dim if qk_norm else 0),
        outside=embedding + 2 * hidden,  # the last norm and the head
        embedding=embedding,
        post_norms=post_norms,
        qk_norm=qk_norm,
        softcap=kind == "gemma2",
    )


# What a shape given in numbers may say, and what it is called in a config.
_WORDS = {"layers": _NAMES[0], "hidden": _NAMES[1], "heads": _NAMES[2], "kv_heads": _NAMES[3], "intermediate": _NAMES[4],
          "vocab": "vocab_size", "head_dim": "head_dim"}  # fmt: skip
_OPTIONAL = ("kv_heads", "head_dim")


def _from_numbers(text: str) -> dict[str, Any]:
    sizes = parse_numbers("model", text, _WORDS, _OPTIONAL)
    for key, value in sizes.items():
        if not isinstance(value, int):
            raise ValueError(f"model: {key} is {value}, but must be a whole number")
    sizes.setdefault("kv_heads", sizes["heads"])
    if sizes["heads"] % sizes["kv_heads"]:
        raise ValueError(f"model: heads is {sizes['heads']}, which kv_heads {sizes['kv_heads']} does not divide")
    if "head_dim" not in sizes and sizes["hidden"] % sizes["heads"]:
        raise ValueError(
            f"model: hidden is {sizes['hidden']}, which heads {sizes['heads']} does not divide; give head_dim as well"
        )
    return {"model_type": "llama", **{_WORDS[key]: value for key, value in sizes.items()}}


def parse_numbers(what: str, text: str, known: Mapping[str, Any], optional: tuple[str, ...]) -> dict[str, Any]:
    """Return the numbers of a text such as `layers=12,hidden=768`, by name; whole ones as int.

    known: the names there are. optional: those that may be left out. ValueError names what, the part and the cure.
    """
    found: dict[str, Any] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, equals, value = (one.strip() for one in part.partition("="))
        if not equals or name not in known:
            near = did_you_mean(name, known)
            raise ValueError(
                f"{what}: {part!r} is not understood{near}; write name=number, with the names {', '.join(known)}"
            )
        if name in found:
            raise ValueError(f"{what}: {name} is given twice, as {found[name]} and {value}; leave one out")
        try:
            number = float(value.replace("_", ""))
        except ValueError:
            raise ValueError(f"{what}: {name} is {value!r}, but must be a number") from None
        if not 0 < number < 1e15:
            raise ValueError(f"{what}: {name} is {value}, but must be above 0 and below 1e15")
        found[name] = int(number) if number.is_integer() else number
    missing = [name for name in known if name not in found and name not in optional]
    if missing:
        raise ValueError(f"{what}: {text!r} lacks {', '.join(missing)}; give {'it' if len(missing) == 1 else 'them'}")
    return found
