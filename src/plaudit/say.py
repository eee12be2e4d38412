"""One line to the user: what was decided or dropped on their behalf, from the first process only."""

import logging
import os

logger = logging.getLogger("plaudit")
_said: set[str] = set()


def say(line: str, once: bool | str = False) -> None:
    """Log one line at warning level, which Python shows without any set-up.

    once: a line with the same text is not repeated in this process; given as a text, no other line said under it is.
    """
    key = once if isinstance(once, str) else line
    # The launchers set RANK before Python starts, so this needs neither torch nor an accelerator.
    if os.environ.get("RANK", "0") != "0" or (once and key in _said):
        return
    _said.add(key)
    logger.warning(line)
