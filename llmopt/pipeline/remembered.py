"""What ``llmopt tune`` remembers between its starts beside the runs: what crashed, and which settings were proposed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from llmopt.core.files import write_atomic
from llmopt.recommend.proposals import Proposal

STATE = "tune.json"
SET_ASIDE = ".unreadable"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """``key``: of the case, with the version of its engine."""

    reason: str
    round: int = 1
    key: str = ""


@dataclass(kw_only=True)
class State:
    """Failures by the label of their configuration."""

    failures: dict[str, Failure] = field(default_factory=dict)
    proposed: list[Proposal] = field(default_factory=list)


def read_state(file: Path, say: Callable[[str], None]) -> State:
    """Of earlier starts; empty where there is no file.  One that is damaged is set aside, and that is said."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=State)
    except FileNotFoundError:
        return State()
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        aside = file.with_name(file.name + SET_ASIDE)
        try:
            file.replace(aside)
        except OSError:
            say(f"{file} cannot be read, what it remembers is left out: {error}")
        else:
            say(f"{file} cannot be read, set aside as {aside.name}: {error}")
        return State()


def write_state(file: Path, state: State) -> None:
    document: dict[str, Any] = asdict(state)
    write_atomic(file, json.dumps(document, indent=1).encode())
