"""Every error that a user may meet, and the exit status that goes with it.

::

    LlmoptError (1)
    ├── UsageError (2)            what was asked makes no sense: a name, a combination, a value
    ├── ModelError                the model or artifact on disk is not one, or not one we take
    ├── MissingEnvironment         no interpreter here has what an adapter needs
    ├── WorkerError               a job in another environment failed or was killed
    ├── ServerError               an engine did not start, died or hung
    │   └── NothingAnswered       a server is there, or is not, and every request failed
    ├── StoreError                a file could not be written or read back
    ├── Interrupted (130)         Ctrl-C, with what was kept
    ├── GoalNotMet (3)            the measurement stands, the goal does not
    └── Inconclusive (4)          not enough evidence for an answer

A message says what failed and where; ``hint`` says what to do next.
"""

from __future__ import annotations


class LlmoptError(Exception):
    """An error with one line for the user and, where there is one, a next step."""

    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(LlmoptError):
    exit_status = 2


class ModelError(LlmoptError):
    pass


class MissingEnvironment(LlmoptError):
    pass


class WorkerError(LlmoptError):
    # The library printed its reason instead of raising it: whoever reads the job's log adds it to the message.
    cause_in_log = False


class ServerError(LlmoptError):
    pass


class NothingAnswered(ServerError):
    """``errors``: how many requests failed in which way, by the client's words (``refused``, ``http``, ``timeout`` …).

    ``begun``: some answer had begun before it broke off.
    """

    def __init__(self, message: str, *, hint: str | None = None, errors: dict[str, int], begun: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.errors = errors
        self.begun = begun


class StoreError(LlmoptError):
    pass


class Interrupted(LlmoptError):
    exit_status = 130


class GoalNotMet(LlmoptError):
    exit_status = 3


class Inconclusive(LlmoptError):
    exit_status = 4


def nearest(name: str, known: list[str], count: int = 3) -> str:
    """A ``hint`` that names the closest known names, or all of them when none is close."""
    import difflib

    close = difflib.get_close_matches(name.lower(), known, n=count, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
