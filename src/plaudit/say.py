"""One line to the user: what was decided or dropped on their behalf, from the first process only."""

import logging
import os
import re

from plaudit.redaction import redact

logger = logging.getLogger("plaudit")
_said: set[str] = set()
# Codes that a terminal or a browser would obey, such as those that move the cursor, or reorder what stands after them.
_CODES = re.compile("[\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """Return a text in which control codes are shown as their numbers; tabs and line breaks stay."""
    return _CODES.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def say(line: str, once: bool | str = False) -> None:
    """Log one line at warning level, which Python shows without any set-up, access tokens hidden.

    once: a line with the same text is not repeated in this process; given as a text, no other line said under it is.
    """
    key = once if isinstance(once, str) else line
    # The launchers set RANK before Python starts, so this needs neither torch nor an accelerator.
    if os.environ.get("RANK", "0") != "0" or (once and key in _said):
        return
    _said.add(key)
    logger.warning(visible(redact(line)))
