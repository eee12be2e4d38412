"""How long a training step takes: arithmetic, messages between processes, and the optimizer's traffic, in seconds."""

from plaudit.footprint import Setting, trainable
from plaudit.machines import Machine
from plaudit.shapes import Shape
from plaudit.workload import Load

# Backward over forward: each matrix product has two gradients; the fused attention computes its scores again besides.
OF_MATRICES, OF_ATTENTION = 2.0, 2.5
# AdamW reads the weight, the gradient and two moments and writes three of them; clipping reads the gradient twice and
# writes it once. Of four bytes each.
OPTIMIZER_BYTES = (7 + 3) * 4
# A GPU is handed about as many kernels a layer, forward and backward, each this long after the other at the soonest.
KERNELS, LAUNCH = 120, 5e-6
# Of the messages, what never hides behind arithmetic.
NEVER_HIDDEN = 0.1


def operations(shape: Shape, setting: Setting, load: Load) -> float:
    """Return the operations of one micro-batch, forward and backward, those that checkpointing repeats included.

    Two an element of a matrix and token; four a score and channel of the queries.
    """
    again = 1.0 if setting.checkpointing else 0.0
    rank, is_full = setting.method.rank, setting.method.rank is None
    matrices = 2.0 * shape.matrices * load.tokens
    attention = 4.0 * shape.queries * load.scores
    total = matrices * (1 + again + (OF_MATRICES if is_full else OF_MATRICES / 2))
    if not shape.experts:
        # torch stops once it has again what was kept, which a layer's last product is not.
        total -= again * 2.0 * shape.linears[-1].inputs * shape.linears[-1].outputs * load.tokens
    total += attention * (1 + again + OF_ATTENTION)
    if rank is not None:
        adapters = sum(2.0 * rank * (one.inputs + one.outputs) for one in shape.lora_targets(setting.method.targets))
        total += adapters * load.tokens * (1 + again + OF_MATRICES)
    return shape.layers * total


def message_bytes(shape: Shape, setting: Setting) -> float:
    """Return what one accelerator sends in an optimizer step: gradients, and where they are divided, weights."""
    n, trained = setting.gpus, trainable(shape, setting.method)
    if n == 1:
        return 0.0
    whole = shape.parameters + (trained if setting.method.rank is not None else 0)
    size = 2 if setting.is_narrow else 4
    part = (n - 1) / n
    if setting.engine == "ddp":
        return 2 * part * 4 * trained
    if setting.engine == "zero2":
        # Gradients go to their owners after each micro-batch; the new weights come back.
        return part * size * trained * (setting.accumulation + 1)
    gathers = 2 * setting.accumulation * size * whole
    return part * (gathers + setting.accumulation * size * trained)


def step_seconds(
    shape: Shape, setting: Setting, load: Load, machine: Machine, gpus_per_node: int = 8
) -> dict[str, float]:
    """Return the seconds of an optimizer step, in parts that add up to `total`, and its `operations`.

    load: the mean micro-batch. Messages hide behind the arithmetic, but for a tenth of them.
    """
    arithmetic = operations(shape, setting, load)
    rate = machine.peak(setting.method.computed_in) * machine.shares[setting.layout]
    launched = shape.layers * KERNELS * LAUNCH * (4 / 3 if setting.checkpointing else 1.0)
    micro = max(arithmetic / rate, launched if machine.kind == "cuda" else 0.0) + machine.seconds.get(
        setting.layout, 0.0
    )
    computing = setting.accumulation * micro
    wire = machine.link if setting.gpus <= gpus_per_node else min(machine.link, machine.network)
    messages = message_bytes(shape, setting) / wire
    waiting = max(NEVER_HIDDEN * messages, messages - computing)
    divided = setting.gpus if setting.engine in ("zero2", "zero3", "fsdp2") else 1
    optimizer = OPTIMIZER_BYTES * trainable(shape, setting.method) / divided / machine.bandwidth
    total = computing + waiting + optimizer
    return {
        "computing": computing,
        "waiting": waiting,
        "optimizer": optimizer,
        "total": total,
        "operations": arithmetic * setting.accumulation,
    }
