"""What a training step holds in an accelerator's memory, part by part, under each engine.

Sums over what autograd keeps of a decoder layer in transformers; tests/test_footprint.py holds them against what torch
allocates. Bytes throughout. The sources of each part: docs/planning.md.
"""

from dataclasses import dataclass

from plaudit.machines import Machine
from plaudit.shapes import Shape
from plaudit.workload import Load

# The simplest first; DeepSpeed is a package more.
ENGINES = ("single", "ddp", "fsdp2", "zero2", "zero3")
# torch's allocator on a GPU cannot use every gap.
GAPS = 0.05
# NCCL's buffers for the processes' messages.
OF_NCCL = 0.5e9
# DeepSpeed's own defaults, in elements: reduce_bucket_size, twice because it overlaps, and stage3_max_live_parameters.
BUCKET, LIVE = 2 * 500_000_000, 1_000_000_000
# Token ids, positions, weights and bounds of a batch, and the sines and cosines of its positions.
OF_A_TOKEN = 48


@dataclass(frozen=True)
class Method:
    """How the weights are trained: autocast's precision, the weights' type, the adapter's rank (None: all weights are
    trained) and the matrices that it is put on, and whether the adapter's input has dropout."""

    precision: str = "bfloat16"
    dtype: str = "float32"
    rank: int | None = None
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    dropout: bool = True

    @property
    def computed_in(self) -> str:
        """The precision of the matrix products: without autocast, they take the weights as they are."""
        return "float32" if self.precision == self.dtype == "float32" else "bfloat16"


@dataclass(frozen=True)
class Setting:
    """One way to run a step: the engine, on how many accelerators, with how many pairs at a time on each, how many times
    before a step of the optimizer, in which layout, and whether activations are computed again."""

    engine: str
    gpus: int
    pairs: int
    accumulation: int
    layout: str
    checkpointing: bool
    method: Method

    @property
    def is_narrow(self) -> bool:
        """Whether the weights that compute are in half precision, rather than cast by autocast as they are used."""
        by_engine = self.engine in ("zero2", "zero3", "fsdp2") and self.method.precision == "bfloat16"
        return self.method.dtype != "float32" or by_engine

    @property
    def computed_bytes(self) -> int:
        """The size of an element that matrix products take."""
        return 2 if self.method.computed_in == "bfloat16" else 4

    @property
    def stream_bytes(self) -> int:
        """The size of an element of what layers hand on to each other."""
        return 2 if self.is_narrow else 4


def trainable(shape: Shape, method: Method) -> int:
    """Return how many parameters are trained."""
    return shape.parameters if method.rank is None else shape.lora_parameters(method.rank, method.targets)


def footprint(shape: Shape, setting: Setting, load: Load, machine: Machine) -> dict[str, float]:
    """Return the most that a step holds on one accelerator, in parts that add up to `total`.

    load: the largest micro-batch. The parts are those of the moment at which they are most together.
    """
    parts = _states(shape, setting)
    busy = _largest_moment(shape, setting, load, machine)
    gaps = GAPS * sum(busy.values()) if machine.kind == "cuda" else 0.0
    libraries = machine.libraries + (OF_NCCL if setting.gpus > 1 and machine.kind == "cuda" else 0.0)
    parts = {**parts, **busy, "libraries": libraries + gaps}
    return {**parts, "total": sum(parts.values())}


def _states(shape: Shape, setting: Setting) -> dict[str, float]:
    """Return what stays from step to step, and what the engine keeps beside it."""
    method, n, trained = setting.method, setting.gpus, trainable(shape, setting.method)
    frozen = 0 if method.rank is None else shape.parameters
    size = 4 if method.dtype == "float32" else 2
    narrow = 2 if setting.is_narrow else 4
    if setting.engine in ("single", "ddp"):
        # An adapter's own weights are float32 whatever its base's type.
        own = size if method.rank is None else 4
        buckets = own * trained if setting.engine == "ddp" else 0
        return {"weights": frozen * size + trained * own, "optimizer": 2 * own * trained, "engine": buckets}
    if setting.engine == "fsdp2":
        # accelerate keeps the shards in float32, and gathers a layer's weights, and the next one's, to compute with.
        root = narrow * shape.outside * (2 if method.rank is None else 1)
        gathered = 2 * narrow * shape.layer_parameters + (narrow * shape.layer_parameters if method.rank is None else 0)
        return {"weights": 4 * (frozen + trained) / n, "optimizer": 8 * trained / n, "engine": root + gathered}
    weights = narrow * (frozen + trained)
    # A float32 copy of what is trained, and AdamW's two moments.
    optimizer = 12 * trained / n
    bucket = narrow * min(trained, BUCKET)
    if setting.engine == "zero2":
        return {"weights": weights, "optimizer": optimizer, "engine": bucket}
    live = narrow * min(frozen + trained, LIVE)
    return {"weights": weights / n, "optimizer": optimizer, "engine": live + bucket}


def _gradient_bytes(shape: Shape, setting: Setting) -> float:
    """Return the size of one parameter's gradient on one accelerator, once it is there."""
    if setting.engine == "fsdp2":
        return 4 / setting.gpus
    if setting.engine in ("zero2", "zero3"):
        return (2 if setting.is_narrow else 4) / setting.gpus
    return 4 if setting.method.rank is not None or setting.method.dtype == "float32" else 2


def _largest_moment(shape: Shape, setting: Setting, load: Load, machine: Machine) -> dict[str, float]:
    """Return gradients and activations at the moment of the backward pass at which they are most together.

    It begins with every layer's activations and, in a first micro-batch, without gradients; it ends with all gradients.
    With checkpointing, a layer's activations are there while it is computed again.
    """
    kept = layer_bytes(shape, setting, load, machine)
    working = working_bytes(shape, setting, load)
    handed_on = load.tokens * shape.hidden * setting.stream_bytes
    last_norm = load.tokens * shape.hidden * (6 if setting.is_narrow else 8)
    of_layer = handed_on if setting.checkpointing else kept
    again = kept if setting.checkpointing else 0.0
    casts = _cast_bytes(shape, setting)
    size, trained = _gradient_bytes(shape, setting), trainable(shape, setting.method)
    adds_up = setting.accumulation > 1
    inside = trained - (shape.outside if setting.method.rank is None else shape.hidden)
    fixed = OF_A_TOKEN * load.tokens + last_norm
    moments = [{
        "gradients": size * trained if adds_up else 0.0,
        "activations": fixed + shape.layers * of_layer + again + working + shape.layers * casts * (not setting.checkpointing)
        + (casts if setting.checkpointing else 0.0),
    }, {
        # At the first layer, all others' gradients are there.
        "gradients": size * (trained if adds_up else inside * (shape.layers - 1) / shape.layers),
        "activations": fixed - last_norm + of_layer + again + working + casts,
    }, {
        # All that autocast has cast is kept until the forward pass is over.
        "gradients": size * trained if adds_up else 0.0,
        "activations": fixed + shape.layers * (of_layer + casts * (setting.method.rank is None or not setting.checkpointing)),
    }, {
        # At the optimizer's step.
        "gradients": size * trained + _widened_bytes(setting, trained),
        "activations": OF_A_TOKEN * load.tokens,
    }]  # fmt: skip
    return max(moments, key=lambda moment: moment["gradients"] + moment["activations"])


def _widened_bytes(setting: Setting, trained: int) -> float:
    """Return the size of the gradients that DeepSpeed widens for its optimizer, ZeRO-3 a group of weights at a time."""
    if not setting.is_narrow or setting.engine not in ("zero2", "zero3"):
        return 0.0
    part = trained / setting.gpus
    return 4 * (min(part, LIVE) if setting.engine == "zero3" else part)


def _cast_bytes(shape: Shape, setting: Setting) -> float:
    """Return the size of one layer's matrices as autocast casts them."""
    if setting.is_narrow or setting.computed_bytes == 4:
        return 0.0
    return 2.0 * (sum(one.inputs * one.outputs for one in shape.linears) + shape.experts)


def layer_bytes(shape: Shape, setting: Setting, load: Load, machine: Machine) -> float:
    """Return what autograd keeps of one layer's forward pass of a micro-batch."""
    size = setting.computed_bytes
    is_full = setting.method.rank is None
    adapted = [] if is_full else shape.lora_targets(setting.method.targets)
    token = _norm_bytes(shape, setting, bool(adapted)) + _attention_bytes(shape, setting, load)
    # Of the MLP: the activation's input and output, the other branch, and their product, which only its own weights need.
    widths = (3 if shape.gated else 1) + (1 if is_full else 0)
    token += size * shape.intermediate * widths
    for one in adapted:
        # The adapter's input, with dropout's mask where it has one, and what lies between its two matrices.
        # Its own weights are float32, and only autocast narrows what they take.
        of_input = 4 if size == 4 or setting.is_narrow else 2
        token += of_input * (one.inputs + (setting.method.rank or 0))
        mask = 1 if machine.kind == "cuda" else 4
        token += one.inputs * mask if setting.method.dropout else 0
    total = token * load.tokens
    if setting.layout == "tree" and machine.kind == "cuda" and size == 2:
        # The kernel's keys and values are gathered, each sequence's whole path.
        total += 2 * size * shape.keys * load.paths - 2 * size * shape.keys * load.tokens
    if shape.softcap:
        # The scores after the limit's tanh, their softmax in float32, and that in the values' type.
        return total + load.mask * shape.heads * (8 if size == 4 else 2 + 4 + 2)
    # A fused kernel takes a padded batch's mask, once for all heads, in the scores' type.
    return total + (load.mask * size if setting.layout == "padded" else 0.0)


def _norm_bytes(shape: Shape, setting: Setting, has_adapter: bool) -> float:
    """Return what is kept of one layer's norms of a token: their input, what they make of it, and what matrices take."""
    h, size, is_full = shape.hidden, setting.computed_bytes, setting.method.rank is None
    autocasts = size == 2 and not setting.is_narrow
    names = [one.name for one in shape.linears]
    readers = [max(1, sum(names.count(name) for name in ("q_proj", "k_proj", "v_proj"))), 1 + ("gate_proj" in names)]
    # Autocast casts for each matrix that reads.
    outputs = sum((readers if autocasts else [1, 1])[: shape.pre_norms]) * size * h if is_full else 0
    if shape.norm == "layer":
        inputs = (4 if size == 4 or autocasts else 2) * h
        return shape.pre_norms * inputs + outputs + shape.post_norms * inputs
    widened = 4 * h
    scaled = (size if setting.is_narrow else 4) * h if is_full else 0
    of_heads = (4 + (size if is_full else 0)) * (shape.queries + shape.keys) if shape.qk_norm else 0
    behind = (widened + (4 * h if is_full else 0)) * shape.post_norms
    return shape.pre_norms * (widened + scaled) + outputs + of_heads + behind


def _attention_bytes(shape: Shape, setting: Setting, load: Load) -> float:
    """Return what is kept of one layer's attention of a token: queries, keys, values, result and the scores' sums."""
    size = setting.computed_bytes
    # A padded batch's mask makes torch repeat keys and values for each head that shares them.
    keys = shape.queries if setting.layout == "padded" or shape.softcap else shape.keys
    return size * (2 * shape.queries + 2 * keys) + 4 * shape.heads


def working_bytes(shape: Shape, setting: Setting, load: Load) -> float:
    """Return what the backward pass of one layer needs besides what is kept: the gradients of its widest part."""
    # What the last matrix reads is let go first, but a frozen one has kept nothing.
    of_mlp = (2 if setting.method.rank is None else 3) * shape.intermediate * setting.computed_bytes
    of_attention = 4 * (shape.queries + 2 * shape.keys)
    return load.tokens * max(of_mlp, of_attention)
