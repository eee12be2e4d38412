"""An adapter's checkpoint to one whole classifier, its rewards compared before and after."""

import dataclasses
import os
from typing import Any, NamedTuple, cast

import numpy as np
from peft import PeftModel

from plaudit import diagnosis
from plaudit.card import CardFacts, model_card
from plaudit.model import TAGS, write_config_values
from plaudit.proof import Contract, Proof, evaluating, lone_rewards, make_proof, weight_fingerprints, write_proof
from plaudit.rewards import attach
from plaudit.scoring import RewardModel


class Merged(NamedTuple):
    """What a merge left. largest_difference, tolerance: of the golden conversations' rewards, in units of the reward."""

    path: str
    num_golden: int
    largest_difference: float
    tolerance: float

    def __str__(self) -> str:
        return (
            f"merged into {self.path}: the rewards of {self.num_golden} golden conversations differ by at most "
            f"{self.largest_difference:.2g} from the adapter's (allowed: {self.tolerance:.2g})"
        )


def merge(path_or_name: str, output_dir: str | os.PathLike, **options: Any) -> Merged:
    """Merge an adapter into its base and save one classifier directory, with tokenizer, card and proof.

    options: of RewardModel.from_pretrained, such as `device`, `dtype` and `strict`. Raises ValueError for a checkpoint that
    is no adapter, an adapter that cannot be merged, a directory that holds something, and rewards that differ by more than
    the tolerance of `plaudit verify`; nothing is saved then.
    """
    folder = os.fspath(output_dir)
    if os.path.exists(folder) and not (os.path.isdir(folder) and not os.listdir(folder)):
        raise ValueError(f"output_dir: '{folder}' is not empty; name a new directory")
    adapter = RewardModel.from_pretrained(path_or_name, **options)
    if not isinstance(adapter.model, PeftModel):
        raise ValueError(f"'{path_or_name}' is a whole model already, not an adapter; there is nothing to merge")
    before = adapter.proof or make_proof(adapter.model, adapter.tokenizer, Contract(_kind(adapter)), [])
    sequences = [one.token_ids for one in before.golden]
    with evaluating(adapter.model):
        wanted = lone_rewards(adapter.model, sequences, adapter.inference.pad_token_id)
    merged = _merged(adapter, path_or_name)
    with evaluating(merged):
        found = lone_rewards(merged, sequences, adapter.inference.pad_token_id)
    difference, allowed = float(np.abs(found - wanted).max()), diagnosis.tolerance(before, before.model["dtype"])
    if not difference <= allowed:
        raise ValueError(
            f"the merged rewards of '{path_or_name}' differ by up to {difference:.3g} from the adapter's, more than "
            f"{allowed:.3g}; merge in a higher precision (dtype float32)"
        )
    _save(merged, adapter, before, str(path_or_name), folder)
    return Merged(folder, len(found), difference, allowed)


def _kind(model: RewardModel) -> str:
    return "conversational" if model.as_turns else "standard"


def _merged(adapter: RewardModel, name: str) -> Any:
    try:
        merged: Any = adapter.model.merge_and_unload(safe_merge=True)
    # PEFT's adapters refuse with errors of several kinds, or have no such method.
    except Exception as error:
        kind = next(iter(cast(Any, adapter.model).peft_config.values())).peft_type
        raise ValueError(
            f"the {getattr(kind, 'value', kind)} adapter '{name}' cannot be merged into its base "
            f"({' '.join(str(error).split())[:200]}); score with the adapter as it is"
        ) from error
    attach(merged)
    return merged


def _save(merged: Any, adapter: RewardModel, before: Proof, name: str, folder: str) -> None:
    recorded = before.rendering
    contract = Contract(recorded["kind"], recorded["template_kwargs"], recorded["max_length"])
    write_config_values(merged, adapter.tokenizer)
    merged.add_model_tags(TAGS)
    # The recorded figures are of training data that are not here; those of the weights are made anew.
    made = make_proof(merged, adapter.tokenizer, contract, [])
    proof = dataclasses.replace(made, reward=before.reward, normalisation=before.normalisation, data=before.data)
    merged.save_pretrained(folder)
    if adapter.tokenizer is not None:
        adapter.tokenizer.save_pretrained(folder)
    write_proof(proof, folder, weight_fingerprints(merged))
    facts = CardFacts(
        path=folder,
        model_name=os.path.basename(os.path.normpath(folder)),
        base_model=before.model.get("base_model"),
        tags=tuple(TAGS),
        kind=recorded["kind"],
        training={"merged from the adapter": name, "max_length": recorded["max_length"]},
        versions=proof.versions,
    )
    with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as file:
        file.write(model_card(facts))
