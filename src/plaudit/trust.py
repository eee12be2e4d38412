"""What of a model is refused before it is read, unless it is asked for: code of its own, and pickled weights."""

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import transformers
from transformers.utils import cached_file

from plaudit.redaction import remember_in
from plaudit.say import say

# What safetensors and pickled weights are called: whole, as the index of parts, and of an adapter.
SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
SAFE_ADAPTER, PICKLED_ADAPTER = "adapter_model.safetensors", "adapter_model.bin"
TOKENIZER = "AutoTokenizer"
# Values of a config that name code to be fetched from the Hub and run, as owner/name.
NAMES_OF_CODE = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
FILES_WITH_CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
ASK_FOR_CODE = (
    "code of a model may do whatever you may (read files and tokens, delete, send); read it first, and only then set "
    "trust_remote_code=True (--trust_remote_code)"
)
ASK_FOR_PICKLES = 'or, to train from them where you trust them, give model_init_kwargs {"use_safetensors": false}, with which no more than tensors is read'


class Refused(ValueError):
    """What a model brings is not run or read because nobody asked for it."""


def cautious(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments of `from_pretrained` with which no code of the model runs and no pickle is read, unless asked.

    use_safetensors=False among them reads pickled weights where there are no others. Raises ValueError where pickles are
    to be read with all that they may run.
    """
    if not kwargs.get("weights_only", True):
        raise ValueError(
            f"model_init_kwargs: weights_only={kwargs['weights_only']!r} would run whatever code pickled weights hold; leave "
            "it out"
        )
    remember_in(kwargs)
    return {
        **kwargs,
        # To transformers, False means that safetensors are not read even where they are; None means either, those first.
        "use_safetensors": None if reads_pickles(kwargs) else True,
        # Where it is left open, transformers asks at the terminal.
        "trust_remote_code": kwargs.get("trust_remote_code") is True,
    }


def reads_pickles(kwargs: Mapping[str, Any]) -> bool:
    """Tell whether arguments of `from_pretrained` ask for pickled weights."""
    return kwargs.get("use_safetensors") is False


def refused_code(name: str, error: BaseException, trusted: bool = False, part: str | None = None) -> Refused | None:
    """Return the error for a model whose own code was not run, None where it could not be loaded for another reason.

    trusted: whether its code may run, so that it is not what is missing. part: what was to be loaded, such as
    "AutoTokenizer"; where that has code of its own, it often cannot be read without, whatever the library then says.
    """
    code = _code_of(name)
    if trusted or not ("trust_remote_code" in str(error) or part in code):
        return None
    found = f" ({', '.join(dict.fromkeys(code.values()))})" if code else ""
    return Refused(f"'{name}' brings Python code of its own{found}, which was not run: {ASK_FOR_CODE}")


def say_unused_tokenizer(name: str) -> None:
    """Say once that a tokenizer was loaded without the code that came with it."""
    code = _code_of(name).get(TOKENIZER)
    if code is not None:
        say(
            f"'{name}' brings code for its tokenizer ({code}), which was not run; its files are read by transformers' own, "
            "which may give other ids (trust_remote_code=True runs it)",
            once=True,
        )


def _code_of(name: str) -> dict[str, str]:
    """Return the classes that a directory's files name as its own code, by the part of a model that they are."""
    found: dict[str, str] = {}
    for file in FILES_WITH_CODE if os.path.isdir(name) else ():
        for key, value in _entries(_read_json(os.path.join(name, file))):
            classes = value.items() if isinstance(value, dict) else [(TOKENIZER, value)]
            for part, each in classes if key == "auto_map" else ():
                named = [one for one in (each if isinstance(each, list) else [each]) if isinstance(one, str)]
                found |= {str(part): named[0][:80]} if named else {}
    return found


def require_no_code_from_hub(name: str, kwargs: Mapping[str, Any], **hub: Any) -> None:
    """Raise Refused where a model's config asks for attention or experts that are code of a third party's on the Hub.

    transformers fetches and runs these whatever trust_remote_code says.
    """
    if kwargs.get("trust_remote_code") or kwargs.get("config") is not None:
        return
    for key, value in _entries(_read_json(_file_in(name, "config.json", kwargs, hub))):
        named = [one for one in (value.values() if isinstance(value, dict) else [value]) if isinstance(one, str)]
        code = [one for one in named if "/" in one] if key in NAMES_OF_CODE else []
        if code and key.removeprefix("_") not in kwargs:
            raise Refused(
                f"config.json of '{name}' asks for {key.removeprefix('_')} {code[0]!r}, which is code from the Hub, and it was "
                f"not run: {ASK_FOR_CODE}; or choose another, such as 'sdpa'"
            )


def require_safetensors(name: str, kwargs: Mapping[str, Any], **hub: Any) -> None:
    """Raise Refused where the weights of a whole model are pickled, or their index leads out of its directory.

    name: a directory or a Hub id. kwargs: what `from_pretrained` is going to be given; pickles may have been asked for.
    """
    if kwargs.get("gguf_file"):
        return
    may_be_pickled = reads_pickles(kwargs)
    config = _read_json(_file_in(name, "config.json", kwargs, hub))
    if not isinstance(config, dict):
        # There is no such model, or a broken one, and transformers says which.
        return
    own = config.get("transformers_weights")
    if isinstance(own, str) and not own.endswith((".safetensors", ".safetensors.index.json")) and not may_be_pickled:
        raise _pickled(name, own)
    if _file_in(name, SAFE, kwargs, hub) is not None:
        return
    index = _file_in(name, SAFE_INDEX, kwargs, hub)
    if index is not None:
        _check_index(name, index, may_be_pickled)
    elif not may_be_pickled:
        there = next((file for file in PICKLED if _is_there(name, file, kwargs, hub)), None)
        if there is not None:
            raise _pickled(name, there)


def require_safe_adapter(name: str, kwargs: Mapping[str, Any], **hub: Any) -> None:
    """Raise Refused where an adapter's weights are pickled, and that was not asked for."""
    if reads_pickles(kwargs) or file_beside(name, SAFE_ADAPTER, **hub) is not None:
        return
    if _is_there(name, PICKLED_ADAPTER, kwargs, hub):
        raise _pickled_adapter(name)


def require_safe_checkpoint(folder: str, kwargs: Mapping[str, Any]) -> None:
    """Raise Refused where a checkpoint to go on from has pickled weights alone, and that was not asked for."""
    names = set(os.listdir(folder)) if os.path.isdir(folder) and not reads_pickles(kwargs) else set()
    for safe, pickled in (((SAFE, SAFE_INDEX), PICKLED), ((SAFE_ADAPTER,), (PICKLED_ADAPTER,))):
        found = sorted(names.intersection(pickled))
        if found and not names.intersection(safe):
            raise _pickled(folder, found[0]) if pickled is PICKLED else _pickled_adapter(folder)


def _check_index(name: str, index: str, may_be_pickled: bool) -> None:
    parts = sorted({str(part) for part in ((_read_json(index) or {}).get("weight_map") or {}).values()})
    for part in parts:
        if os.path.isabs(part) or ".." in re.split(r"[/\\]", part):
            raise Refused(f"'{name}': {SAFE_INDEX} names {part!r}, which is outside the directory; mend the index")
        if not part.endswith(".safetensors") and not may_be_pickled:
            raise _pickled(name, part)


def _pickled(name: str, file: str) -> Refused:
    written = (_read_json(os.path.join(name, "config.json")) if os.path.isdir(name) else None) or {}
    kind = next(iter(written.get("architectures") or []), "")
    kind = kind if isinstance(kind, str) and kind.isidentifier() and hasattr(transformers, kind) else "AutoModel"
    target = name if os.path.isdir(name) else os.path.basename(name)
    code = f"import transformers as t; t.{kind}.from_pretrained({name!r}, use_safetensors=False).save_pretrained({target!r})"
    if target != name:
        code += f"; t.AutoTokenizer.from_pretrained({name!r}).save_pretrained({target!r})"
    return Refused(_refusal(name, file, code))


def _pickled_adapter(name: str) -> Refused:
    source, target = os.path.join(name, PICKLED_ADAPTER), os.path.join(name, SAFE_ADAPTER)
    code = (
        "import torch; from safetensors.torch import save_file; save_file({name: one.clone().contiguous() for name, one in "
        f"torch.load({source!r}, weights_only=True).items()}}, {target!r}, metadata={{'format': 'pt'}})"
    )
    return Refused(_refusal(name, PICKLED_ADAPTER, code))


def _refusal(name: str, file: str, code: str) -> str:
    return (
        f"'{name}' has its weights in {file}, a pickle, which can hold code that runs when it is read, so it was not; convert "
        f"it once to safetensors: python -c {shlex.quote(code)}; {ASK_FOR_PICKLES}"
    )


def file_beside(path: str, name: str, **hub: Any) -> str | None:
    """Return where a file of a directory or a Hub id is on this machine, None where there is none."""
    if os.path.isdir(path):
        file = os.path.join(path, name)
        return file if os.path.isfile(file) else None
    return cached_file(
        path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
        **hub,
    )


def _file_in(name: str, file: str, kwargs: Mapping[str, Any], hub: Mapping[str, Any]) -> str | None:
    """Return where a file of a model is, as `from_pretrained` looks for it: in its subfolder, by its variant."""
    variant = kwargs.get("variant")
    if variant and file.startswith(("model.", "pytorch_model.")):
        stem, _, ending = file.rpartition(".")
        file = f"{stem}.{variant}.{ending}"
    return file_beside(name, os.path.join(kwargs.get("subfolder") or "", file), **hub)


def _is_there(name: str, file: str, kwargs: Mapping[str, Any], hub: Mapping[str, Any]) -> bool:
    """Tell whether a file is there, without fetching it from the Hub."""
    if os.path.isdir(name):
        return _file_in(name, file, kwargs, hub) is not None
    known = {key: value for key, value in hub.items() if key in ("revision", "token", "cache_dir")}
    return transformers.utils.has_file(name, os.path.join(kwargs.get("subfolder") or "", file), **known)


def _read_json(file: str | None) -> Any:
    """Return what a JSON file of a model holds, None where there is none; transformers says what is wrong with a broken one."""
    try:
        with open(file or "", encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError, RecursionError):
        return None


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Give the names and values of nested objects, the outer ones first."""
    if isinstance(value, dict):
        yield from value.items()
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _entries(one)
