"""The Hub: asked once whether it can be reached, so that a machine without network hears so at once."""

import functools
import os
import threading

from plaudit.say import say

SECONDS = 5.0


def need(name: str) -> None:
    """Ask whether the Hub can be reached where a name is not of this machine; where not, only what is cached is used.

    Without this, its client would try each file six times, for half a minute each. Nothing is asked for a local path, nor
    where HF_HUB_OFFLINE says that the Hub is not to be asked.
    """
    if os.path.exists(os.path.expanduser(name)):
        return
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return
    reason = _why_not()
    if reason is not None:
        _go_offline()
        say(
            f"the Hub ({constants.ENDPOINT}) cannot be reached ({reason}), so that {name!r} is looked for in the cache alone; "
            "set HF_HUB_OFFLINE=1 to go without asking"
        )


@functools.cache
def _why_not() -> str | None:
    """Return why the Hub does not answer within a few seconds, None where it does."""
    answers: list[str | None] = []
    # Looking up a name cannot be given a time limit.
    asking = threading.Thread(target=lambda: answers.append(_ask()), daemon=True)
    asking.start()
    asking.join(SECONDS)
    return answers[0] if answers else f"no answer within {SECONDS:.0f} s"


def _ask() -> str | None:
    from huggingface_hub import constants, get_session

    try:
        # By the Hub's own client, for it knows of proxies and certificates; any answer will do.
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _go_offline() -> None:
    """Have the Hub's client and datasets use what is cached, as HF_HUB_OFFLINE=1 has them, for the rest of the process."""
    import datasets
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = True
