"""Saves: what is left when one fails at its last rename, and whether machines share a disk; see also test_resumable.py."""

import os
import shutil

import pytest
from conftest import text_pairs
from datasets import Dataset
from processes import config
from test_preemption import several

from plaudit import RewardTrainer, checkpoints
from plaudit.preemption import Agreement
from plaudit.saving import has_own_disk


def test_a_checkpoint_that_was_about_to_be_replaced_is_put_back_when_the_save_fails(model_path, tmp_path, monkeypatch):
    def make():
        data = Dataset.from_list(text_pairs(8))
        values = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4}
        return RewardTrainer(model_path, config(tmp_path, **values), train_dataset=data)

    make().train()
    written = (tmp_path / "checkpoint-2" / checkpoints.MANIFEST).read_text()
    rename, renamed = os.rename, []

    def failing(source, target):
        renamed.append(os.path.basename(os.path.dirname(target)))
        if os.fspath(source).endswith(os.path.join(checkpoints.UNFINISHED, "checkpoint-2")):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="checkpoint-2 was not written to .*: Input/output error"):
        make().train()
    assert checkpoints.REPLACED in renamed, "the old one had been moved away"
    assert (tmp_path / "checkpoint-2" / checkpoints.MANIFEST).read_text() == written
    assert checkpoints.faults_of(str(tmp_path / "checkpoint-2")) is None
    assert checkpoints.UNFINISHED not in os.listdir(tmp_path)


@pytest.mark.parametrize("is_shared", [True, False])
def test_processes_know_whether_they_share_the_first_ones_disk(tmp_path, is_shared):
    def look(rank):
        folder = tmp_path / ("one" if is_shared else str(rank))
        folder.mkdir(exist_ok=True)
        found = has_own_disk(Agreement.of(60), str(folder))
        if not rank:
            # As a save does, once all have looked.
            shutil.rmtree(folder)
        return found

    assert several(look) == [False, not is_shared]
