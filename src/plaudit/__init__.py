"""plaudit: train, check, score with and evaluate reward models. The public names, loaded on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plaudit import formats
    from plaudit.collate import DataCollatorForPreference, RewardDataCollatorWithPadding
    from plaudit.config import RewardConfig
    from plaudit.evaluation import evaluate
    from plaudit.scoring import RewardModel
    from plaudit.trainer import RewardTrainer

__version__ = "0.1.0"
__all__ = [
    "DataCollatorForPreference",
    "RewardConfig",
    "RewardDataCollatorWithPadding",
    "RewardModel",
    "RewardTrainer",
    "__version__",
    "evaluate",
    "formats",
]

_HOME = {
    "DataCollatorForPreference": "plaudit.collate",
    "RewardConfig": "plaudit.config",
    "RewardDataCollatorWithPadding": "plaudit.collate",
    "RewardModel": "plaudit.scoring",
    "RewardTrainer": "plaudit.trainer",
    "evaluate": "plaudit.evaluation",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for, so that `import plaudit` costs neither torch nor transformers."""
    if name == "formats":
        return importlib.import_module("plaudit.formats")
    if name in _HOME:
        value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
        return value
    raise AttributeError(f"module 'plaudit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
