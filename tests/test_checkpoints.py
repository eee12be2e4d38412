"""Checkpoints: what is whole, what is not and why, in which order they were saved, and which are deleted."""

import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import TrainerState

from plaudit import checkpoints

WEIGHTS = "model.safetensors"


def write(folder, step, index=False):
    """Write aside what a small checkpoint holds; return its name."""
    place = Path(folder) / checkpoints.UNFINISHED / f"checkpoint-{step}"
    (place / "deep").mkdir(parents=True)
    weights = {"a": torch.arange(100.0) + step, "b": torch.ones(7, dtype=torch.bfloat16)}
    if index:
        for number, (name, value) in enumerate(weights.items(), 1):
            safetensors.torch.save_file({name: value}, place / f"model-0000{number}-of-00002.safetensors")
        shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    else:
        safetensors.torch.save_file(weights, place / WEIGHTS)
    torch.save({"moment": torch.ones(200)}, place / "optimizer.pt")
    torch.save({"last": step}, place / "scheduler.pt")
    torch.save([1, 2], place / "deep" / "rng_state.pth")
    (place / "README.md").write_text("a card")
    TrainerState(global_step=step).save_to_json(str(place / checkpoints.STATE_FILE))
    return place.name


def saved(folder, *steps, **kwargs):
    """Save checkpoints in this order and return the path of the last."""
    return Path([checkpoints.finish(str(folder), write(folder, step, **kwargs)) for step in steps][-1])


def cut(path, size):
    with open(path, "r+b") as file:
        file.truncate(size)


def flip(path, place):
    content = bytearray(Path(path).read_bytes())
    content[place] ^= 1
    Path(path).write_bytes(content)


def test_a_finished_checkpoint_is_whole_and_nothing_is_left_beside_it(tmp_path):
    path = saved(tmp_path, 3)
    assert checkpoints.faults_of(str(path)) is None
    assert os.listdir(tmp_path) == ["checkpoint-3"]
    listed = json.loads((path / checkpoints.MANIFEST).read_text())["files"]
    assert {WEIGHTS, "optimizer.pt", "deep/rng_state.pth", checkpoints.STATE_FILE} <= set(listed)
    assert listed[WEIGHTS]["bytes"] == (path / WEIGHTS).stat().st_size


FILES = (WEIGHTS, "optimizer.pt", "scheduler.pt", "deep/rng_state.pth", checkpoints.STATE_FILE)


@pytest.mark.parametrize("is_listed", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_cut_off_is_recognised_and_named(tmp_path, name, is_listed):
    path = saved(tmp_path, 3)
    if not is_listed:
        (path / checkpoints.MANIFEST).unlink()
        assert checkpoints.faults_of(str(path)) is None
    size = (path / name).stat().st_size
    # The last byte of a JSON file is the end of its line.
    for left in (size - 2, size // 2, 9, 0):
        cut(path / name, left)
        fault = checkpoints.faults_of(str(path))
        assert fault is not None
        assert fault.startswith(name)
        if is_listed:
            assert fault == f"{name} has {left:,} of {size:,} bytes"


@pytest.mark.parametrize("name", FILES)
def test_a_byte_that_changed_is_recognised_and_named(tmp_path, name):
    path = saved(tmp_path, 3)
    flip(path / name, (path / name).stat().st_size // 2)
    fault = checkpoints.faults_of(str(path))
    assert fault == f"the bytes of {name} are not those that were written (if you changed it yourself, delete checkpoint_files.json)"  # fmt: skip
    assert checkpoints.faults_of(str(path), thorough=False) is None


def test_a_changed_byte_in_a_torch_file_is_recognised_without_a_list_too(tmp_path):
    path = saved(tmp_path, 3)
    (path / checkpoints.MANIFEST).unlink()
    content = (path / "optimizer.pt").read_bytes()
    flip(path / "optimizer.pt", content.index(torch.ones(200).numpy().tobytes()) + 100)
    assert checkpoints.faults_of(str(path)).startswith("optimizer.pt is damaged, in ")


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_missing_file_is_recognised_and_named(tmp_path, is_listed):
    path = saved(tmp_path, 3, index=True)
    if not is_listed:
        (path / checkpoints.MANIFEST).unlink()
        assert checkpoints.faults_of(str(path)) is None
    (path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in checkpoints.faults_of(str(path))
    (path / checkpoints.STATE_FILE).unlink()
    assert "is missing" in checkpoints.faults_of(str(path))


def test_a_folder_that_is_no_checkpoint_is_recognised(tmp_path):
    assert checkpoints.faults_of(str(tmp_path / "none")) == "there is no such directory"
    assert checkpoints.faults_of(str(tmp_path)) == "trainer_state.json is missing"
    (tmp_path / checkpoints.STATE_FILE).write_text("{}")
    assert checkpoints.faults_of(str(tmp_path)) == "it holds no weights"
    (tmp_path / "x.bin").write_bytes(b"what is this")
    assert checkpoints.faults_of(str(tmp_path)) == "x.bin is not a file that torch saved (12 bytes)"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"files": {}}', "does not name trainer_state.json"),
        ('{"files": {"a": 1}}', "cannot be read"),
        ('{"files": {"trainer_state.json": {"bytes": 1, "xxh3_128": "x"}, "../x": {"bytes": 1, "xxh3_128": "x"}}}', "outside"),
        ('{"files": {"trainer_state.json": {"bytes": 1, "xxh3_128": "x"}, "/etc/x": {"bytes": 1, "xxh3_128": "x"}}}', "outside"),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_used_is_a_fault(tmp_path, text, fault):
    path = saved(tmp_path, 3)
    if "outside" in fault:
        (path / checkpoints.STATE_FILE).write_text("x")
    (path / checkpoints.MANIFEST).write_text(text)
    assert fault in checkpoints.faults_of(str(path))


def test_a_card_may_be_edited(tmp_path):
    path = saved(tmp_path, 3)
    (path / "README.md").write_text("a better card")
    assert checkpoints.faults_of(str(path)) is None


def test_the_order_is_that_of_the_saves_and_not_of_the_numbers(tmp_path):
    saved(tmp_path, 40, 2, 4)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-9").write_text("a file")
    assert [each.step for each in checkpoints.checkpoints_of(str(tmp_path))] == [40, 2, 4]
    assert checkpoints.checkpoints_of(str(tmp_path / "none")) == []
    # One whose list was deleted comes where its time puts it, whatever its number.
    (tmp_path / "checkpoint-4" / checkpoints.MANIFEST).unlink()
    assert [each.step for each in checkpoints.checkpoints_of(str(tmp_path))] == [40, 2, 4]
    (tmp_path / "checkpoint-40" / checkpoints.MANIFEST).unlink()
    os.utime(tmp_path / "checkpoint-40" / checkpoints.STATE_FILE, (1, 1))
    assert [each.step for each in checkpoints.checkpoints_of(str(tmp_path))] == [40, 2, 4]


def test_checkpoints_of_other_trainers_go_by_their_numbers(tmp_path):
    saved(tmp_path, 10, 9, 100)
    for step in (10, 9, 100):
        (tmp_path / f"checkpoint-{step}" / checkpoints.MANIFEST).unlink()
    assert [each.step for each in checkpoints.checkpoints_of(str(tmp_path))] == [9, 10, 100]


def test_the_newest_whole_one_is_found_and_every_broken_one_named(tmp_path):
    saved(tmp_path, 1, 2, 3, 4)
    cut(tmp_path / "checkpoint-4" / WEIGHTS, 100)
    (tmp_path / "checkpoint-3" / "optimizer.pt").unlink()
    path, broken = checkpoints.last_whole(str(tmp_path))
    assert path == str(tmp_path / "checkpoint-2")
    assert [name for name, _ in broken] == ["checkpoint-4", "checkpoint-3"]
    assert broken[1] == ("checkpoint-3", "optimizer.pt is missing")


@pytest.mark.parametrize(
    ("limit", "left"), [(None, [1, 2, 3, 4]), (0, [1, 2, 3, 4]), (1, [1, 4]), (2, [1, 4]), (3, [1, 3, 4]), (9, [1, 2, 3, 4])]
)  # fmt: skip
def test_what_is_kept_is_never_deleted_and_the_oldest_goes_first(tmp_path, limit, left):
    saved(tmp_path, 1, 2, 3, 4)
    checkpoints.rotate(str(tmp_path), limit, {"checkpoint-4", "checkpoint-1"})
    assert [each.step for each in checkpoints.checkpoints_of(str(tmp_path))] == left
    assert sorted(os.listdir(tmp_path)) == [f"checkpoint-{step}" for step in left]


def test_a_broken_checkpoint_does_not_push_a_good_one_out(tmp_path):
    saved(tmp_path, 1, 2, 3)
    cut(tmp_path / "checkpoint-2" / WEIGHTS, 100)
    checkpoints.rotate(str(tmp_path), 2, {"checkpoint-3"})
    assert [each.step for each in checkpoints.checkpoints_of(str(tmp_path))] == [1, 3]


def test_an_earlier_runs_higher_numbers_go_before_the_one_that_was_just_written(tmp_path):
    saved(tmp_path, 100, 200, 3)
    checkpoints.rotate(str(tmp_path), 1, {"checkpoint-3", ""})
    assert [each.step for each in checkpoints.checkpoints_of(str(tmp_path))] == [3]


def test_a_save_of_the_same_step_replaces_the_one_that_is_there(tmp_path):
    path = saved(tmp_path, 3)
    (path / "of before").write_text("")
    saved(tmp_path, 3)
    assert not (path / "of before").exists()
    assert checkpoints.faults_of(str(path)) is None
    assert os.listdir(tmp_path) == ["checkpoint-3"]


def test_what_a_cut_save_has_left_is_removed_and_what_it_was_replacing_put_back(tmp_path):
    path = saved(tmp_path, 3)
    write(tmp_path, 4)
    aside = tmp_path / checkpoints.UNFINISHED
    shutil.move(path, aside / checkpoints.REPLACED / "checkpoint-3")
    checkpoints.tidy(str(tmp_path))
    assert os.listdir(tmp_path) == ["checkpoint-3"]
    assert checkpoints.faults_of(str(path)) is None
    # A newer one of the same name stays.
    shutil.copytree(path, aside / checkpoints.REPLACED / "checkpoint-3")
    (path / "newer").write_text("")
    checkpoints.tidy(str(tmp_path))
    assert (path / "newer").exists()


def test_moved_files_replace_those_of_their_names_and_no_weights_of_before_stay(tmp_path):
    folder, aside = tmp_path / "model", tmp_path / "model" / checkpoints.UNFINISHED_MODEL
    (aside / "adapter").mkdir(parents=True)
    for name in (WEIGHTS, "notes.txt", "config.json"):
        (folder / name).write_text("old")
    for name in ("model-00001-of-00001.safetensors", "model.safetensors.index.json", "config.json", "adapter/x"):
        (aside / name).write_text("new")
    checkpoints.move_into(str(aside), str(folder))
    left = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    new = dict.fromkeys(
        ["model-00001-of-00001.safetensors", "model.safetensors.index.json", "config.json", "adapter/x"], "new"
    )
    assert left == {**new, "notes.txt": "old"}


def test_which_errors_come_from_the_disk():
    from safetensors import SafetensorError

    for error in (OSError(28, "x"), PermissionError(), SafetensorError("I/O error"), RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 1 vs 2")):  # fmt: skip
        assert checkpoints.is_failed_write(error)
    for error in (ValueError("x"), RuntimeError("CUDA error"), KeyError("x")):
        assert not checkpoints.is_failed_write(error)


def test_an_error_of_the_disk_says_what_is_left_and_how_to_go_on(tmp_path):
    error = checkpoints.not_written("checkpoint-9", str(tmp_path), OSError(28, "No space left on device"), 1 << 60)
    assert error.errno == 28
    for part in ("the disk is full: No space left on device", f"takes about {1 << 60:,} bytes", "there is no checkpoint before it", "then train again"):  # fmt: skip
        assert part in str(error)
    saved(tmp_path, 3)
    error = checkpoints.not_written("checkpoint-9", str(tmp_path), RuntimeError("a\n b"), 10)
    assert "the disk is full" not in str(error)
    assert "a b (it takes about 10 bytes" in str(error)
    assert "resume_from_checkpoint=True goes on from checkpoint-3" in str(error)


def test_a_folder_that_can_be_written_to_is_left_as_it_was(tmp_path):
    checkpoints.require_writable(str(tmp_path / "a" / "b"))
    assert os.listdir(tmp_path / "a" / "b") == []


@pytest.mark.parametrize("name", [checkpoints.STATE_FILE, checkpoints.MANIFEST])
def test_json_of_too_many_levels_is_a_fault_and_no_error(tmp_path, name):
    folder = saved(tmp_path, 3)
    if name == checkpoints.STATE_FILE:
        (folder / checkpoints.MANIFEST).unlink()
    (folder / name).write_text("[" * 100_000)
    fault = checkpoints.faults_of(str(folder))
    assert fault.startswith(name)
    assert "it has too many levels" in fault
    assert checkpoints.last_whole(str(tmp_path)) == (None, [("checkpoint-3", fault)])


def test_an_archive_that_points_before_its_own_beginning_is_damaged(tmp_path):
    folder = saved(tmp_path, 3)
    (folder / checkpoints.MANIFEST).unlink()
    content = (folder / "optimizer.pt").read_bytes()
    found = []
    for start in range(0, len(content), 97):
        (folder / "optimizer.pt").write_bytes(content[:4] + content[start:])
        found.append(checkpoints.faults_of(str(folder)))
    # Python reads an archive from its end, so a part that is missing at its beginning may not matter.
    assert any(found)
    assert all(fault is None or fault.startswith("optimizer.pt is cut off or damaged") for fault in found)


def test_a_list_with_an_endless_size_is_a_fault(tmp_path):
    folder = saved(tmp_path, 3)
    text = (folder / checkpoints.MANIFEST).read_text()
    listed = json.loads(text)
    listed["files"][WEIGHTS]["bytes"] = float("inf")
    (folder / checkpoints.MANIFEST).write_text(json.dumps(listed))
    assert f"{checkpoints.MANIFEST} cannot be read (OverflowError" in checkpoints.faults_of(str(folder))
