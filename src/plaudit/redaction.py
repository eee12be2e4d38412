"""Texts and settings without the passwords and access tokens that may stand in them."""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
# The names under which settings hold a secret, and the variables in which the tools beneath us look for one.
SECRET_KEYS = re.compile(r"(^|_)(token|password|secret|api_key|credentials?)$", re.I)
VARIABLES = """
HF_TOKEN HUGGING_FACE_HUB_TOKEN HUGGINGFACE_HUB_TOKEN WANDB_API_KEY COMET_API_KEY MLFLOW_TRACKING_TOKEN
MLFLOW_TRACKING_PASSWORD NEPTUNE_API_TOKEN AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN
""".split()
# Ours end in _token and are words of a vocabulary.
NOT_SECRET = ("eos_token", "pad_token", "bos_token", "unk_token", "sep_token", "cls_token", "mask_token")
# A shorter one would be found in ordinary words.
SHORTEST = 6
_HUB_TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{12,}|api_org_[A-Za-z0-9]{12,})")
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@'\"<>]+@")
_SETTING = re.compile(r"""(token|password|secret|api_key)(["']?\s*[:=]\s*["']?)[^\s"',}]+""", re.I)
_known: set[str] = set()


def remember(secret: Any) -> None:
    """Have `redact` hide a token that an option has brought, wherever it stands."""
    if isinstance(secret, str) and len(secret) >= SHORTEST:
        _known.add(secret)


def remember_in(values: Mapping[str, Any] | None) -> None:
    """Have `redact` hide the tokens among settings, such as keyword arguments of `from_pretrained`."""
    for name, value in (values or {}).items():
        if is_secret(name):
            remember(value)


def is_secret(name: Any) -> bool:
    """Tell whether a setting of this name holds a password or a token."""
    return isinstance(name, str) and name not in NOT_SECRET and SECRET_KEYS.search(name) is not None


def redact(text: str) -> str:
    """Return a text without the tokens in it: of the Hub by their look, in addresses by their place, others as remembered."""
    secrets = _known | {os.environ.get(name, "") for name in VARIABLES}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST:
            text = text.replace(secret, HIDDEN)
    return _HUB_TOKEN.sub(HIDDEN, _IN_ADDRESS.sub(f"{HIDDEN}@", text))


def redact_settings(text: str) -> str:
    """Return settings that could not be read, such as broken JSON, without what stands after a token's or password's name."""
    return redact(_SETTING.sub(rf"\1\2{HIDDEN}", text))


def without_secrets(value: Any) -> Any:
    """Return settings with `***` for each password and token, in whatever depth; what was given stays as it is."""
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if is_secret(name) and isinstance(one, str) else without_secrets(one)
            for name, one in value.items()
        }
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(without_secrets(one) for one in value)
    return value


def require_no_secret(what: str, name: str) -> None:
    """Raise ValueError for a name with a password or a token in it: names are written into logs, cards and results."""
    if _IN_ADDRESS.search(name):
        raise ValueError(
            f"{what} {redact(name)!r} has a password or a token in it, and names are written into logs, cards and results; "
            "leave it out, and log in with `hf auth login` or set HF_TOKEN"
        )
