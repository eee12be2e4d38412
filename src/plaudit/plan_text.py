"""A plan as text: what to run first, then what it costs in either layout, the other engines, and what all of it rests on."""

from collections.abc import Callable, Mapping
from typing import Any

NAMES = {
    "single": "one process",
    "ddp": "DDP",
    "zero2": "DeepSpeed ZeRO-2",
    "zero3": "DeepSpeed ZeRO-3",
    "fsdp2": "FSDP2",
}
_MEMORY = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "engine": "engine's buffers",
    "libraries": "libraries",
    "total": "together",
}
_SECONDS = {"computing": "arithmetic", "waiting": "waiting for others", "optimizer": "optimizer", "total": "together"}
_WIDTH = 26


def describe(found: Mapping[str, Any]) -> str:
    """Return what `plaudit plan` prints of what plaudit.plan.plan returns."""
    parts = [_first_sentence(found), _table(found), _engines(found), _basis(found)]
    if found["command"] is not None:
        parts.insert(1, f"  {found['command']}")
    return "\n\n".join(filter(None, parts))


def _first_sentence(found: Mapping[str, Any]) -> str:
    machine, best, model = found["machine"], found["advised"], found["model"]
    adapter = f", {_count(model['trained'])} trained" if model["trained"] != model["parameters"] else ""
    what = f"{model['name']} ({_count(model['parameters'])} parameters{adapter}), {found['data']['pairs']:,} pairs"
    where = f"{machine['gpus']} x {machine['name']}"
    if best is None:
        cures = " or ".join(found["cures"]) or "fewer tokens a pair (--max_length), or a smaller model"
        return f"{what}: no engine fits on {where} of {_gigabytes(machine['memory'])} GB; what would: {cures}."
    how = "activations computed again" if best["gradient_checkpointing"] else "activations kept"
    times = f", {best['accumulation']} times a step" if best["accumulation"] > 1 else ""
    return (
        f"{what}: train with {NAMES[best['engine']]} on {where}, {_pairs(best)} at a time on each{times}, "
        f"{how}: {_gigabytes(best['memory']['total'])} of {_gigabytes(machine['memory'])} GB, "
        f"{_seconds(best['step_seconds']['total'])} a step, {_hours(best['hours'])} in all."
    )


def _table(found: Mapping[str, Any]) -> str:
    """Return the layouts beside each other."""
    layouts = found["layouts"]
    lines = [_row("", list(layouts))]

    def add(title: str, value: Callable[[Mapping[str, Any]], str]) -> None:
        lines.append(_row(title, [value(one) for one in layouts.values()]))

    add("tokens a step", lambda one: f"{one['tokens_a_step']:,.0f}")
    add("tokens, largest micro-batch", lambda one: f"{one['largest_micro_batch_tokens']:,.0f}")
    lines.append("memory on each, GB")
    for key, title in _MEMORY.items():
        # One process has no engine, and nothing to wait for.
        if key != "engine" or any(one["memory"]["engine"] for one in layouts.values()):
            lines.append(_row(f"  {title}", [_gigabytes(one["memory"][key]) for one in layouts.values()]))
    lines.append("a step, seconds")
    for key, title in _SECONDS.items():
        lines.append(_row(f"  {title}", [_figures(one["step_seconds"][key]) for one in layouts.values()]))
    add("pairs a second", lambda one: _figures(one["pairs_a_second"]))
    add("tokens a second", lambda one: f"{one['tokens_a_second']:,.0f}")
    add(
        f"{found['method']['epochs']:g} epoch{'s' * (found['method']['epochs'] != 1)}", lambda one: _hours(one["hours"])
    )
    add("GPU hours", lambda one: _figures(one["gpu_hours"]))
    add("fits", lambda one: "yes" if one["fits"] else "no")
    return "\n".join(lines)


def _engines(found: Mapping[str, Any]) -> str:
    """Return each engine's best setting in a line, and why it does not fit where it does not."""
    best, limit, lines = found["advised"], found["machine"]["memory"], []
    for engine, one in found["engines"].items():
        memory = one["memory"]
        at = f"{_pairs(one)} at a time, {_gigabytes(memory['total'])} GB"
        if one["fits"]:
            here = "  <- advised" if best is not None and engine == best["engine"] else ""
            line = f"fits: {at}, {_seconds(one['step_seconds']['total'])} a step, {_hours(one['hours'])}{here}"
        else:
            most = sorted((key for key in _MEMORY if key != "total"), key=lambda key: -memory.get(key, 0))[:2]
            reason = ", ".join(f"{_MEMORY[key]} {_gigabytes(memory[key])}" for key in most)
            line = f"does not fit in {_gigabytes(limit)} GB: {at} ({reason})"
        lines.append(f"  {NAMES[engine]:<18}{line}")
    return "\n".join(["engines", *lines]) if len(lines) > 1 or best is None else ""


def _basis(found: Mapping[str, Any]) -> str:
    """Return what the figures rest on."""
    machine, data, lengths = found["machine"], found["data"], found["data"]["lengths"]
    over = f"; {data['over_max_length']:.1%} of the pairs are over max_length {data['max_length']} and left out" if data[
        "over_max_length"] else ""  # fmt: skip
    precision = found["method"]["computed_in"]
    shares = ", ".join(f"{layout} {machine['shares'][layout]:.0%}" for layout in found["layouts"])
    how = "measured here on slices of the model" if machine["is_measured"] else "assumed, not measured"
    lines = [
        f"pairs: {data['source']}{over}; on average {lengths['chosen']:,.0f} and {lengths['rejected']:,.0f} tokens, of "
        f"which {lengths['shared']:,.0f} shared.",
        f"speed: {machine[precision] / 1e12:,.4g} Tflop/s in {precision}, of which a step reaches {shares} ({how}); "
        f"{machine['bandwidth'] / 1e9:,.4g} GB/s of memory.",
    ]
    if machine["gpus"] > 1:
        several = (
            f", {machine['network'] / 1e9:,.4g} between machines" if machine["gpus"] > machine["gpus_per_node"] else ""
        )
        lines.append(
            f"messages: {machine['link'] / 1e9:,.4g} GB/s each way between the gpus of a machine{several}, of which a tenth "
            "never hides behind arithmetic."
        )
    if machine["kind"] == "cpu":
        lines.append(
            "memory: what torch allocates; glibc keeps much of what is freed, so that a CPU process may hold up to twice as "
            "much, unless it is started with MALLOC_MMAP_THRESHOLD_=262144, which takes time."
        )
    if found["padded_because"] is not None:
        lines.append(f"layout: padded only, because {found['padded_because']}.")
    return "\n".join(lines)


def _row(title: str, values: list[str]) -> str:
    return f"{title:<{_WIDTH + 2}}" + "".join(f"{value:>16}" for value in values)


def _pairs(one: Mapping[str, Any]) -> str:
    return f"{one['micro_batch']} pair{'s' * (one['micro_batch'] > 1)}"


def _count(number: float) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return f"{number:,.0f}"


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.1f}" if number >= 1e9 else f"{number / 1e9:.3f}"


def _figures(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def _seconds(number: float) -> str:
    return f"{_figures(number)} s"


def _hours(number: float) -> str:
    if number >= 48:
        return f"{_figures(number / 24)} days"
    return f"{_figures(number)} hours" if number >= 1 else f"{_figures(number * 60)} minutes"
