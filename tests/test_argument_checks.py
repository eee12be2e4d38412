"""What the checks of options hold to; tests/test_config.py has the values that they refuse."""

import dataclasses

import pytest
from transformers import TrainingArguments

from plaudit import argument_checks
from plaudit.config import RewardConfig, from_training_arguments


def test_a_checked_number_exists_and_its_default_passes():
    fields = {each.name for each in dataclasses.fields(RewardConfig)}
    assert set(argument_checks._INHERITED_NUMBERS) <= fields
    switches = set(argument_checks._bool_options(RewardConfig))
    assert {"bf16", "do_train", "disable_dropout", "activation_offloading"} <= switches <= fields
    argument_checks.check_values(RewardConfig(), RewardConfig)


def test_every_default_is_of_its_fields_type():
    for made in (RewardConfig(), from_training_arguments(RewardConfig(output_dir="x"))):
        argument_checks.check_types(made, RewardConfig)


def test_a_derived_configs_own_options_are_left_to_it():
    made = dataclasses.make_dataclass("Own", [("own", int, "no number")], bases=(RewardConfig,))()
    assert made.own == "no number"


def test_processes_that_are_not_told_where_the_first_is_are_not_told_that_their_options_are_wrong(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)

    def missing(self):
        raise ValueError(
            "Error initializing torch.distributed using env:// rendezvous: environment variable MASTER_ADDR expected, but not set"
        )

    monkeypatch.setattr(TrainingArguments, "__post_init__", missing)
    with pytest.raises(
        ValueError,
        match=r"the processes of the run cannot find each other \(.*MASTER_ADDR.*\); start them with torchrun",
    ):
        RewardConfig(use_cpu=True)


class Unshowable:
    def __repr__(self):
        raise RuntimeError("no repr")


OWN_WORDS = (
    "packing train_sampling_strategy label_names label_smoothing_factor lr_scheduler_kwargs model_init_kwargs".split()
)


@pytest.mark.parametrize("name", OWN_WORDS)
def test_a_value_that_cannot_be_shown_is_refused_in_our_words(name):
    with pytest.raises(ValueError, match=rf"{name}.*a Unshowable that cannot be shown"):
        RewardConfig(**{name: Unshowable()})
    with pytest.raises(ValueError, match="num_labels=a Unshowable that cannot be shown"):
        RewardConfig(model_init_kwargs={"num_labels": Unshowable()})
