"""What a whole checkpoint is: written aside, listed with sizes and hashes, renamed into place, checked before it is used."""

import contextlib
import errno
import json
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit.say import say

# Names every file of a checkpoint, with its bytes and hash; written last, so a checkpoint that has it is complete.
MANIFEST = "checkpoint_files.json"
# Where checkpoints are written. The underscore keeps it out of uploads to the Hub; transformers takes only `checkpoint-N`.
UNFINISHED = "_checkpoint.unfinished"
# In there, a checkpoint that is being replaced by a newer one of the same step, and those that are being deleted.
REPLACED, REMOVED = "replaced", "removed"
# The same for a model that is saved on its own.
UNFINISHED_MODEL = "_model.unfinished"
STATE_FILE = "trainer_state.json"
# The card is prose for people, who may improve on it.
NOT_LISTED = (MANIFEST, "README.md")
CHUNK = 4 << 20
ZIP_START, LEGACY_START = b"PK\x03\x04", b"\x80\x02"


@dataclass(frozen=True)
class Checkpoint:
    """One `checkpoint-N` of a run's directory. serial: counts the saves in this directory; 0 where it is not known."""

    path: str
    step: int
    serial: int

    @property
    def name(self) -> str:
        return os.path.basename(self.path)


def checkpoints_of(run_dir: str) -> list[Checkpoint]:
    """Return a directory's checkpoints, whole or not, in the order in which they were saved.

    The order is the saves', not the steps': a directory may hold checkpoints with higher numbers, of an earlier run. One
    without a serial comes after those that are not younger than it, and among its like by its step.
    """
    if not os.path.isdir(run_dir):
        return []
    found, times = [], {}
    for entry in os.scandir(run_dir):
        number = re.fullmatch(r"checkpoint-(\d+)", entry.name)
        if number and entry.is_dir():
            found.append(Checkpoint(entry.path, int(number[1]), _serial(entry.path)))
            times[entry.path] = _written_at(entry.path)

    def place(checkpoint: Checkpoint) -> tuple[int, bool, int]:
        earlier = [each.serial for each in found if times[each.path] <= times[checkpoint.path]]
        serial = checkpoint.serial or max(earlier, default=0)
        return serial, not checkpoint.serial, checkpoint.step

    return sorted(found, key=place)


def _written_at(folder: str) -> float:
    state = os.path.join(folder, STATE_FILE)
    return os.path.getmtime(state if os.path.exists(state) else folder)


def _serial(folder: str) -> int:
    try:
        serial = _read_json(os.path.join(folder, MANIFEST))["serial"]
    # Whatever is wrong with it is told when the checkpoint is checked.
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return serial if isinstance(serial, int) else 0


def last_whole(run_dir: str, thorough: bool = True) -> tuple[str | None, list[tuple[str, str]]]:
    """Return the path of the newest whole checkpoint, None where there is none, and the names and faults of newer ones.

    thorough: False to look at names and sizes alone.
    """
    broken: list[tuple[str, str]] = []
    for checkpoint in reversed(checkpoints_of(run_dir)):
        fault = faults_of(checkpoint.path, thorough)
        if fault is None:
            return checkpoint.path, broken
        broken.append((checkpoint.name, fault))
    return None, broken


def to_resume(run_dir: str, asked: Any, saves: bool = True) -> str | None:
    """Return the checkpoint to go on from, None for a run from the beginning; what was decided is said.

    asked: True for the newest whole checkpoint of run_dir; a path; None or False for none. saves: whether the run writes
    checkpoints, beside those that are there. Raises ValueError for a path that holds no whole checkpoint.
    """
    if asked is None or asked is False:
        there = checkpoints_of(run_dir)
        if there and saves:
            say(
                f"{run_dir} holds {there[-1].name} of an earlier run; this one starts from the beginning "
                f"(resume_from_checkpoint=True would look for the newest whole checkpoint, from {there[-1].name} down)"
            )
        return None
    if asked is True:
        return _newest(run_dir)
    if not isinstance(asked, (str, os.PathLike)):
        raise TypeError(f"resume_from_checkpoint: expected True, a path or None, got {type(asked).__name__} {asked!r}")
    return _named(os.fspath(asked), run_dir)


def _newest(run_dir: str) -> str | None:
    path, broken = last_whole(run_dir)
    told = "".join(f"{name} is not whole ({fault}); " for name, fault in broken)
    if path is None:
        reason = told or f"there is no checkpoint in {run_dir} yet; "
        say(f"resume_from_checkpoint: {reason}training starts from the beginning")
    elif broken:
        say(f"resume_from_checkpoint: {told}going on from {os.path.basename(path)} instead")
    return path


def _named(path: str, run_dir: str) -> str:
    # A user may have named the directory of a run, which holds its model too, instead of one of its checkpoints.
    inside, _ = last_whole(path)
    fault = faults_of(path)
    if fault is None and inside is None:
        return path
    if inside is not None:
        raise ValueError(
            f"resume_from_checkpoint={path!r} is not a checkpoint but a directory of checkpoints; name {inside!r}"
        )
    beside = os.path.dirname(os.path.abspath(path))
    other = next((found for found, _ in map(last_whole, (beside, run_dir)) if found is not None), None)
    cure = "there is no whole one beside it" if other is None else f"the newest whole one is {other!r}"
    raise ValueError(f"resume_from_checkpoint={path!r} is not a whole checkpoint: {fault}; {cure}")


def faults_of(folder: str, thorough: bool = True) -> str | None:
    """Return what is wrong with a checkpoint, None where it is whole.

    One with a list of its files is compared with that list: names and sizes, then hashes. One without, such as an older
    plaudit's or another trainer's, is looked at file by file. thorough: False to leave out whatever reads whole files.
    """
    if not os.path.isdir(folder):
        return "there is no such directory"
    try:
        if os.path.exists(os.path.join(folder, MANIFEST)):
            return _differs_from_list(folder, thorough)
        return _looks_broken(folder, thorough)
    except OSError as error:
        return f"it cannot be read: {error.strerror or error} ({os.path.basename(error.filename or '')})"


def _differs_from_list(folder: str, thorough: bool) -> str | None:
    try:
        files = {
            str(name): (int(one["bytes"]), str(one["xxh3_128"]))
            for name, one in _read_json(os.path.join(folder, MANIFEST))["files"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    if STATE_FILE not in files:
        return f"{MANIFEST} does not name {STATE_FILE}"
    for name, (size, _) in files.items():
        if os.path.isabs(name) or ".." in Path(name).parts:
            return f"{MANIFEST} names {name!r}, which is outside the checkpoint"
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            return f"{name} is missing"
        if os.path.getsize(path) != size:
            return f"{name} has {os.path.getsize(path):,} of {size:,} bytes"
    if not thorough:
        return None
    hashes = _hashes([os.path.join(folder, name) for name in files])
    for (name, (_, written)), found in zip(files.items(), hashes, strict=True):
        if found != written:
            return (
                f"the bytes of {name} are not those that were written (if you changed it yourself, delete {MANIFEST})"
            )
    return None


def _looks_broken(folder: str, thorough: bool) -> str | None:
    if not os.path.isfile(os.path.join(folder, STATE_FILE)):
        return f"{STATE_FILE} is missing"
    files = sorted(_files(folder))
    if not any(name.endswith((".safetensors", ".bin", ".distcp", "_model_states.pt")) for name in files):
        return "it holds no weights"
    for name in files:
        path = os.path.join(folder, name)
        fault = None
        if name.endswith(".json"):
            fault = _fault_of_json(path)
        elif name.endswith(".safetensors"):
            fault = _fault_of_safetensors(path)
        elif name.endswith((".pt", ".pth", ".bin")):
            fault = _fault_of_torch_file(path, thorough)
        if fault is not None:
            return f"{name} {fault}"
    return None


def _fault_of_json(path: str) -> str | None:
    try:
        content = _read_json(path)
    except ValueError as error:
        return f"is not JSON ({error})"
    if path.endswith(".index.json"):
        shards = content.get("weight_map", {}) if isinstance(content, dict) else {}
        for shard in sorted({str(name) for name in shards.values()}):
            if not os.path.isfile(os.path.join(os.path.dirname(path), shard)):
                return f"names {shard}, which is missing"
    return None


def _fault_of_safetensors(path: str) -> str | None:
    """Compare the length that the header promises with the file's."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            return f"ends in its header, at {size:,} bytes"
        try:
            header = json.loads(file.read(length))
            end = max((one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"), default=0)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return "has a header that cannot be read"
    return None if 8 + length + end == size else f"has {size:,} of {8 + length + end:,} bytes"


def _fault_of_torch_file(path: str, thorough: bool) -> str | None:
    """Check what torch.save writes: a zip archive, whose every entry has a checksum."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start.startswith(LEGACY_START):
        return None  # torch before 1.6, which left nothing to check by
    if start != ZIP_START:
        return f"is not a file that torch saved ({os.path.getsize(path):,} bytes)"
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip() if thorough else None
    # A damaged archive may ask for a place before the file, for a password, or for a compression that there is not.
    except (zipfile.BadZipFile, zlib.error, struct.error, ValueError, RuntimeError, EOFError, OSError) as error:
        return f"is cut off or damaged, at {os.path.getsize(path):,} bytes ({error})"
    return None if bad is None else f"is damaged, in {bad}"


def _read_json(path: str) -> Any:
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except RecursionError:
            raise ValueError("it has too many levels") from None


def _files(folder: str) -> Iterator[str]:
    """Yield the names of all files below a folder, with slashes."""
    for place, _, names in os.walk(folder):
        for name in names:
            yield Path(os.path.relpath(os.path.join(place, name), folder)).as_posix()


def size_of(folder: str) -> int:
    """Return the bytes of all files below a folder."""
    return sum(os.path.getsize(os.path.join(folder, name)) for name in _files(folder))


def _hashes(paths: list[str], sync: bool = False) -> list[str]:
    """Return each file's hash, several files at a time; reading and hashing both let other threads run.

    sync: first have the file's bytes reach the disk.
    """
    if not paths:
        return []
    with ThreadPoolExecutor(min(8, len(paths))) as pool:
        return list(pool.map(lambda path: _hash(path, sync), paths))


def _hash(path: str, sync: bool) -> str:
    import xxhash

    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(CHUNK))
    with open(path, "rb", buffering=0) as file:
        if sync:
            os.fsync(file.fileno())
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _sync_folder(folder: str) -> None:
    """Have a folder's names reach the disk, where its file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def finish(run_dir: str, name: str) -> str:
    """Make what was written aside the checkpoint `name` of the run's directory, all at once; return its path.

    Every file reaches the disk and the list of them is written before the one rename that makes it a checkpoint.
    """
    aside, target = os.path.join(run_dir, UNFINISHED, name), os.path.join(run_dir, name)
    names = sorted(set(_files(aside)) - set(NOT_LISTED))
    paths = [os.path.join(aside, each) for each in names]
    hashes = _hashes(paths, sync=True)
    files = {
        each: {"bytes": os.path.getsize(path), "xxh3_128": found}
        for each, path, found in zip(names, paths, hashes, strict=True)
    }
    serial = 1 + max((each.serial for each in checkpoints_of(run_dir)), default=0)
    with open(os.path.join(aside, MANIFEST), "w", encoding="utf-8") as file:
        json.dump({"format": 1, "serial": serial, "files": files}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    for place, _, _ in os.walk(aside):
        _sync_folder(place)
    if os.path.isdir(target):
        # A directory cannot be renamed onto a full one; `tidy` puts the old one back should the run end in between.
        _move_away(run_dir, target, REPLACED)
    os.rename(aside, target)
    _sync_folder(run_dir)
    shutil.rmtree(os.path.join(run_dir, UNFINISHED), ignore_errors=True)
    return target


def _move_away(run_dir: str, path: str, place: str) -> str:
    aside = os.path.join(run_dir, UNFINISHED, place)
    os.makedirs(aside, exist_ok=True)
    moved = os.path.join(aside, os.path.basename(path))
    shutil.rmtree(moved, ignore_errors=True)
    os.rename(path, moved)
    return moved


def tidy(run_dir: str) -> None:
    """Remove what a save that was cut short has left, and put a checkpoint back that it was about to replace."""
    aside = os.path.join(run_dir, UNFINISHED)
    replaced = os.path.join(aside, REPLACED)
    if os.path.isdir(replaced):
        for name in os.listdir(replaced):
            if not os.path.exists(os.path.join(run_dir, name)):
                os.rename(os.path.join(replaced, name), os.path.join(run_dir, name))
    shutil.rmtree(aside, ignore_errors=True)


def rotate(run_dir: str, limit: int | None, kept: Collection[str]) -> None:
    """Delete the oldest checkpoints beyond `limit`, broken ones first; None or 0 deletes none.

    kept: names that are never deleted: the checkpoint that was just written, which is whole, and the best.
    """
    found = checkpoints_of(run_dir)
    kept = {each.name for each in found} & set(kept)
    if not limit or limit < 0:
        return
    surplus = len(found) - max(limit, len(kept))
    if surplus <= 0:
        return
    # Broken ones sort before whole ones, each group with the oldest first.
    for checkpoint in sorted(found, key=lambda each: faults_of(each.path, thorough=False) is None):
        if surplus > 0 and checkpoint.name not in kept:
            _remove(run_dir, checkpoint)
            surplus -= 1


def _remove(run_dir: str, checkpoint: Checkpoint) -> None:
    try:
        # Moved first, so that a run that ends here leaves no half of a checkpoint.
        shutil.rmtree(_move_away(run_dir, checkpoint.path, REMOVED), ignore_errors=True)
        shutil.rmtree(os.path.join(run_dir, UNFINISHED), ignore_errors=True)
    except FileNotFoundError:
        return  # another process of a shared disk was first
    except OSError as error:
        say(f"save_total_limit: {checkpoint.path} could not be deleted: {error.strerror or error}", once=True)


def move_into(aside: str, folder: str) -> None:
    """Move a saved model's files into their folder, one by one, each replacing the file of its name."""
    names = sorted(_files(aside), key=lambda name: (name.endswith(".json"), name))
    for name in names:
        with open(os.path.join(aside, name), "rb") as file:
            os.fsync(file.fileno())
    for name in names:
        target = os.path.join(folder, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(os.path.join(aside, name), target)
    _drop_weights_of_before(folder, names)
    _sync_folder(folder)
    shutil.rmtree(aside, ignore_errors=True)


def _drop_weights_of_before(folder: str, names: Collection[str]) -> None:
    """Remove an earlier save's weights that are cut into other files, which would be loaded in place of the new ones."""
    weights = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
    if any(weights.fullmatch(name) for name in names):
        for name in set(os.listdir(folder)) - set(names):
            if weights.fullmatch(name):
                os.remove(os.path.join(folder, name))


def require_folder(folder: str) -> None:
    """Raise OSError, with the cure, where a folder neither is there nor can be made."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OSError(
            error.errno, f"output_dir {folder!r} cannot be made ({error.strerror}); name a directory that can"
        ) from error


def require_writable(folder: str) -> None:
    """Raise OSError, with the cure, where nothing can be written to a folder, which is made if it is missing."""
    require_folder(folder)
    probe = os.path.join(folder, f".plaudit-{os.getpid()}")
    try:
        with open(probe, "wb") as file:
            file.write(b"?")
        os.remove(probe)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(probe)
        raise OSError(
            error.errno,
            f"output_dir {folder!r} cannot be written to ({error.strerror}), so what is trained would be lost; name a directory "
            "that can, or set save_strategy='no' to train without checkpoints",
        ) from error


def is_failed_write(error: BaseException) -> bool:
    """Tell whether an error of a save comes from the disk, and not from what was to be saved."""
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
        return True
    # torch's writer knows no OSError; its distributed checkpoints wrap the errors of all processes.
    return any(word in str(error) for word in ("inline_container", "PytorchStreamWriter", "No space left", "Errno 28"))


def not_written(what: str, folder: str, error: BaseException, needed: int) -> OSError:
    """Return the error that says what could not be written, how much room there is, what is left, and the cure.

    needed: bytes of what was to be written, 0 where that is not known.
    """
    reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
    number = getattr(error, "errno", None) or errno.EIO
    with contextlib.suppress(OSError):
        # What was written until now is about to be removed.
        free = shutil.disk_usage(_existing(folder)).free + size_of(os.path.join(folder, UNFINISHED))
        size = f"it takes about {needed:,} bytes, and " if needed else ""
        if free < needed:
            number, reason = errno.ENOSPC, f"the disk is full: {reason}"
        reason += f" ({size}{free:,} are free there)"
    whole, _ = last_whole(folder, thorough=False)
    if whole is None:
        left, cure = "there is no checkpoint before it", "train again"
    else:
        left = f"the last whole checkpoint, {os.path.basename(whole)}, is as it was"
        cure = f"resume_from_checkpoint=True goes on from {os.path.basename(whole)}"
    return OSError(
        number,
        f"{what} was not written to {folder!r}: {reason}; {left}. Free some room (a save needs room for one more checkpoint than "
        f"save_total_limit), or set a lower save_total_limit, save_only_model=True or another output_dir; then {cure}",
    )


def _existing(folder: str) -> str:
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder) or "."
    return folder
