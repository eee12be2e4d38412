"""Kinds of accelerators: what their makers say that they compute, hold and move, and the share that training reaches."""

from dataclasses import dataclass, field

from plaudit.options import did_you_mean

# Of the peak, the share that a training reaches where nothing else is known; see docs/planning.md for the sources.
USUAL_SHARE = 0.40
HERE = "here"


@dataclass(frozen=True)
class Machine:
    """One accelerator, or this machine.

    bfloat16, float32: operations a second of dense matrix products, 0 where it has none. memory: bytes. bandwidth: of
    that memory, bytes a second. link: to the others of its machine, bytes a second and direction; network: to other
    machines. shares: by layout, the share of the peak that a training step reaches; assumed, unless `is_measured`.
    seconds: by layout, what a micro-batch takes besides its layers. kind: "cuda" or "cpu". libraries: bytes that a
    process holds without a model.
    """

    name: str
    bfloat16: float
    float32: float
    memory: float
    bandwidth: float
    link: float = 32e9
    network: float = 12.5e9
    shares: dict[str, float] = field(default_factory=lambda: {"padded": USUAL_SHARE, "tree": USUAL_SHARE})
    seconds: dict[str, float] = field(default_factory=dict)
    kind: str = "cuda"
    is_measured: bool = False
    libraries: float = 1e9

    def peak(self, precision: str) -> float:
        """Return the operations a second in a precision. ValueError where the machine has none of it."""
        rate = self.bfloat16 if precision == "bfloat16" else self.float32
        if not rate:
            raise ValueError(
                f"gpu {self.name!r} does not compute in {precision}; give --precision float32 and --dtype float32"
            )
        return rate


def _shared(share: float) -> dict[str, float]:
    return {"padded": share, "tree": share}


_T, _G = 1e12, 1e9
# From the makers' data sheets, dense rates with float32 sums; links are half of the sheets' figures, which count both
# directions. A network of 400 Gb/s a GPU is that of the makers' own reference machines, 100 Gb/s an assumption elsewhere.
KINDS = {
    machine.name: machine
    for machine in (
        Machine("b200", 2250 * _T, 75 * _T, 180 * _G, 8000 * _G, 900 * _G, 50 * _G),
        Machine("h200", 989.4 * _T, 66.9 * _T, 141 * _G, 4800 * _G, 450 * _G, 50 * _G),
        Machine("h100", 989.4 * _T, 66.9 * _T, 80 * _G, 3350 * _G, 450 * _G, 50 * _G),
        Machine("h100-pcie", 756 * _T, 51 * _T, 80 * _G, 2000 * _G, 64 * _G),
        Machine("a100-80gb", 312 * _T, 19.5 * _T, 80 * _G, 2039 * _G, 300 * _G, 25 * _G, _shared(0.5)),
        Machine("a100-40gb", 312 * _T, 19.5 * _T, 40 * _G, 1555 * _G, 300 * _G, 25 * _G, _shared(0.5)),
        Machine("l40s", 362 * _T, 91.6 * _T, 48 * _G, 864 * _G),
        Machine("l4", 121 * _T, 30.3 * _T, 24 * _G, 300 * _G),
        Machine("a10", 125 * _T, 31.2 * _T, 24 * _G, 600 * _G),
        Machine("rtx-a6000", 154.8 * _T, 38.7 * _T, 48 * _G, 768 * _G),
        Machine("rtx4090", 165.2 * _T, 82.6 * _T, 24 * _G, 1008 * _G),
        Machine("rtx3090", 71 * _T, 35.6 * _T, 24 * _G, 936 * _G),
        Machine("mi300x", 1307.4 * _T, 163.4 * _T, 192 * _G, 5300 * _G, 448 * _G, 50 * _G),
        Machine("t4", 0, 8.1 * _T, 16 * _G, 320 * _G, 16 * _G),
    )
}
_ALSO = {"h100-sxm": "h100", "h200-sxm": "h200", "a100": "a100-80gb", "a100-80g": "a100-80gb", "a100-40g": "a100-40gb",
         "4090": "rtx4090", "3090": "rtx3090", "a6000": "rtx-a6000"}  # fmt: skip


def named(kind: str) -> Machine:
    """Return an accelerator by its name. ValueError with the nearest name for an unknown one."""
    key = kind.lower().replace("_", "-").replace(" ", "-").removeprefix("nvidia-").removeprefix("amd-")
    machine = KINDS.get(_ALSO.get(key, key))
    if machine is None:
        known = [*KINDS, HERE]
        raise ValueError(
            f"gpu {kind!r} is not known{did_you_mean(key, [*known, *_ALSO])}; known: {', '.join(known)} (this machine, measured)"
        )
    return machine
