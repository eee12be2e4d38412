"""The directory that a run writes to: nothing in it may lead out of it."""

import os
import re

# What a run writes is known by its ending; a link to anything else, such as a folder of data, is the user's own affair.
WRITTEN = re.compile(
    r"\.(json|jsonl|safetensors|bin|pt|pth|md|html|jinja|txt|model)$|^(checkpoint-\d+|runs|additional_chat_templates)$"
)


def require_no_way_out(folder: str | os.PathLike[str]) -> None:
    """Raise ValueError where a file that a run may write is a link that leads out of the directory, such as in a cache.

    The directory may itself be a link: that is where the user wants it.
    """
    if not os.path.isdir(folder):
        return
    place = os.path.realpath(folder)
    with os.scandir(folder) as entries:
        links = sorted(entry.name for entry in entries if entry.is_symlink() and WRITTEN.search(entry.name))
    for name in links:
        target = os.path.realpath(os.path.join(place, name))
        if os.path.commonpath([place, target]) != place:
            raise ValueError(
                f"output_dir: {name!r} in {os.fspath(folder)!r} is a link to {target!r}, so that saving would write there; "
                "remove the link, or name another directory"
            )
