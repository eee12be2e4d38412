"""This machine as a training meets it: its rates measured, and the share of them that a few of the model's layers reach.

A slice is the model with few of its layers and random weights, run on batches as training lays them out. Its layers cost
what the whole model's cost, so that two slices tell what one layer takes and what a micro-batch takes besides.
"""

import contextlib
import copy
import ctypes
import gc
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from plaudit import audit, losses
from plaudit import model as models
from plaudit.attention import enable
from plaudit.collate import Padded, TreeRow
from plaudit.duration import OPTIMIZER_BYTES, operations
from plaudit.footprint import Setting
from plaudit.machines import HERE, Machine
from plaudit.rewards import classifier_of, rewards
from plaudit.shapes import Shape
from plaudit.workload import load

# Layers of the two slices, how often each is timed, and a slice's vocabulary: a look-up costs as much in a large one.
SLICES, REPEATS, VOCABULARY = (1, 3), 5, 512
# A slice's batch holds about as many tokens at most, so that measuring takes seconds also where a step takes minutes.
MOST_TOKENS = 8192
_SIDE = {"cpu": 1536, "cuda": 8192}


def measure_machine(precision: str) -> Machine:
    """Return this machine, its accelerator if it has one, with its rates measured in that precision."""
    device = _device()
    rates = dict.fromkeys(("bfloat16", "float32"), 0.0)
    rates[precision] = _matrix_rate(device, getattr(torch, precision))
    if device.type == "cuda":
        memory, libraries = float(torch.cuda.get_device_properties(device).total_memory), 1e9
    else:
        memory, libraries = _host_memory(), float(_resident())
    return Machine(
        HERE, rates["bfloat16"], rates["float32"], memory, _bandwidth(device), kind=device.type, libraries=libraries
    )


def measure_slices(
    machine: Machine, config: Any, shape: Shape, setting: Setting, batches: dict[str, Sequence[Sequence[tuple]]]
) -> Machine:
    """Return the machine with the shares of its peak, and the seconds besides, that slices of a model reach by layout; on a
    CPU also with what a process holds that has trained, its weights apart.

    config: the model's, of transformers. setting: how a step is run; its layout and engine do not matter. batches: by
    layout, micro-batches of pairs as token ids; of each the middle one is run.
    """
    shares, seconds = dict(machine.shares), dict(machine.seconds)
    peak = machine.peak(setting.method.computed_in)
    for layout, given in batches.items():
        chosen = replace(setting, layout=layout, engine="single", gpus=1)
        batch = _middle(given, layout)
        few, more = (_slice_seconds(config, number, chosen, batch) for number in SLICES)
        of_layer = max(more - few, 0.05 * more) / (SLICES[1] - SLICES[0])
        shares[layout] = operations(replace(shape, layers=1), chosen, load(batch, layout)) / of_layer / peak
        seconds[layout] = max(0.0, few - SLICES[0] * of_layer)
    libraries = _libraries() if machine.kind == "cpu" else machine.libraries
    return replace(machine, shares=shares, seconds=seconds, is_measured=True, libraries=libraries)


def _middle(batches: Sequence[Sequence[tuple]], layout: str) -> Sequence[tuple]:
    """Return the batch of the middle size, or as many of its pairs as MOST_TOKENS hold."""
    batch = sorted(batches, key=lambda one: load(one, layout).tokens)[len(batches) // 2]
    while len(batch) > 1 and load(batch, layout).tokens > MOST_TOKENS:
        batch = batch[: len(batch) // 2]
    return batch


def _slice_seconds(config: Any, layers: int, setting: Setting, batch: Sequence[tuple]) -> float:
    """Return the seconds of a forward and backward pass of a slice."""
    device = _device()
    model = _slice(config, layers, setting).to(device).train()
    inputs = _inputs(batch, setting, device)
    autocasts = setting.method.precision == "bfloat16" and setting.method.dtype == "float32"

    def step() -> None:
        context = torch.autocast(device.type, torch.bfloat16) if autocasts else contextlib.nullcontext()
        with context:
            chosen, rejected = rewards(model, inputs).chunk(2)
        losses.bradley_terry(chosen, rejected).mean().backward()
        model.zero_grad(set_to_none=True)

    return _seconds(step, device)


def _slice(config: Any, layers: int, setting: Setting) -> nn.Module:
    """Return the model with so many layers, ready for training as the setting says."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = layers, VOCABULARY, 0
    for name in ("bos_token_id", "eos_token_id"):
        setattr(text, name, None)
    if getattr(text, "layer_types", None):
        # A slice may have more layers than a small model.
        text.layer_types = (list(text.layer_types) * layers)[:layers]
    config.num_labels = 1
    method, adapter = setting.method, None
    if method.rank is not None:
        targets: Any = "all-linear" if method.targets == ("all-linear",) else list(method.targets)
        adapter = LoraConfig(r=method.rank, lora_dropout=0.05 if method.dropout else 0.0, target_modules=targets)
    dtype = getattr(torch, method.dtype)
    with _quiet():
        model = AutoModelForSequenceClassification.from_config(config).to(dtype)
        adapted = models.adapt(model, None, peft_config=adapter, checkpointing=setting.checkpointing)
    inner: Any = classifier_of(adapted)
    if setting.checkpointing:
        name = "activation" if hasattr(inner, "activation_checkpointing_enable") else "gradient"
        getattr(inner, f"{name}_checkpointing_enable")()
    if setting.layout == "tree":
        enable(inner)
    return adapted


def _inputs(batch: Sequence[tuple], setting: Setting, device: torch.device) -> dict[str, Any]:
    sequences = [ids for side in zip(*batch, strict=True) for ids in side]
    use_varlen = device.type == "cuda" and setting.computed_bytes == 2
    inputs = (TreeRow(None, use_varlen=use_varlen) if setting.layout == "tree" else Padded(0))(sequences)  # type: ignore[arg-type]
    ids = inputs["input_ids"]
    # Laid out by the real ids, which a slice's small vocabulary does not have.
    inputs["input_ids"] = (ids % (VOCABULARY - 1) + 1) * inputs.get("attention_mask", torch.ones_like(ids))
    return {name: value.to(device) for name, value in inputs.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what is said of an adapter's head to oneself: the slice's is no one's."""
    log = logging.getLogger("plaudit")
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = False


def _device() -> torch.device:
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if kind is None or kind.type == "mps" else kind


def _seconds(step: Callable[[], Any], device: torch.device, repeats: int = REPEATS) -> float:
    """Return the median time of a step that has been done before."""
    times = []
    for number in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        step()
        _wait(device)
        if number:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of a large matrix product."""
    side = _SIDE.get(device.type, _SIDE["cpu"])
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: left @ right, device)


def _bandwidth(device: torch.device) -> float:
    """Return the bytes a second that clipping and a step of AdamW move, which are limited by nothing else."""
    weights = [torch.zeros(2048, 2048, device=device, requires_grad=True) for _ in range(4)]
    optimizer = torch.optim.AdamW(weights, fused=True)

    def step() -> Tensor:
        norm = nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        return norm

    for weight in weights:
        weight.grad = torch.full_like(weight, 1e-3)
    return OPTIMIZER_BYTES * sum(weight.numel() for weight in weights) / _seconds(step, device)


def _host_memory() -> float:
    """Return the bytes of memory that this process may use: the machine's, or its group's limit."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    for file in map(Path, limits):
        with contextlib.suppress(OSError, ValueError):
            whole = min(whole, int(file.read_text()))
    return float(whole)


def _libraries() -> float:
    """Return the bytes that this process holds with all that a training loads besides its model, once the slices are gone."""
    from plaudit import trainer  # noqa: F401

    # Before it trains, a training looks its data through.
    audit.summarise_dataset(Dataset.from_list([{"chosen": "yes", "rejected": "no"}]))
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        # glibc keeps what was freed otherwise.
        ctypes.CDLL(None).malloc_trim(0)
    return float(_resident())


def _resident() -> int:
    """Return the bytes that this process has in memory, its libraries above all."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    return 700_000_000
