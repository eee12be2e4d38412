"""The examination of a run from names: the options of a training in, what is wrong with it out, nothing trained."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from plaudit import checks, doctor, run, setup, watch
from plaudit.checks import Finding
from plaudit.config import RewardConfig
from plaudit.doctor import Diagnosis


def check_up(given: Mapping[str, Any]) -> Diagnosis:
    """Return what is wrong with the run that the options of `plaudit train` describe, and with one that has left its log.

    given: as for `run.train`. Rows and options that no training would take are findings too. The log of the output
    directory, or of its last checkpoint, is judged where there is one; nothing is written.
    """
    folder = Path(given.get("output_dir") or setup.default_output_dir(given["model_name_or_path"]))
    was_there = folder.exists()
    try:
        # The examination is no run of the loggers.
        trainer = run.build({**given, "report_to": "none"})
    except (ValueError, FloatingPointError) as error:
        return Diagnosis((_refused(error, given, folder),), ())
    finally:
        if not was_there:
            # A trainer makes its directory at once.
            with contextlib.suppress(OSError):
                folder.rmdir()
    history = read_history(folder)
    case = dataclasses.replace(watch.case_of(trainer), log_history=history, is_trained=False)
    return doctor.diagnose(case)


def _refused(error: Exception, given: Mapping[str, Any], folder: Path) -> Finding:
    """Return the finding for data or options that are refused before anything is trained."""
    text = " ".join(str(error).split())
    # A template that leaves the answers out makes every pair's sides the same.
    for finding in _template(given, folder) if "sides are identical" in text else ():
        return dataclasses.replace(finding, evidence=f"{finding.evidence}; so {text.partition('; ')[0]}")
    evidence, _, cure = text.rpartition("; ")
    cause = "a margin is not a finite number" if "'margin'" in text else "the data or the options are refused"
    return Finding(cause, evidence or text, cure if evidence else "change what the message names")


def _template(given: Mapping[str, Any], folder: Path) -> list[Finding]:
    """Return what is wrong with the chat template that the options name, as far as that can be told without the data."""
    names = ("chat_template_path", "trust_remote_code", "eos_token", "pad_token", "use_cpu")
    config = RewardConfig(
        output_dir=str(folder), report_to="none", **{name: given[name] for name in names if name in given}
    )
    tokenizer, _ = setup.processing_class_of(None, given["model_name_or_path"], None, config)
    return checks.check_template(tokenizer)


def read_history(folder: str | Path) -> list[dict[str, Any]]:
    """Return the log that a run left in its directory, or else in its last checkpoint; an empty list where there is none.

    Raises ValueError naming the file for one that holds no log.
    """
    places = [str(folder), get_last_checkpoint(str(folder)) if os.path.isdir(folder) else None]
    for place in filter(None, places):
        file = Path(place) / TRAINER_STATE_NAME
        if file.is_file():
            try:
                history = json.loads(file.read_text(encoding="utf-8"))["log_history"]
                if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
                    raise ValueError("'log_history' is no list of objects")
                return history
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(f"'{file}' holds no log of a training ({error}); remove or restore it") from None
    return []
