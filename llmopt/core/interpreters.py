"""An environment is a Python interpreter with packages: where ours live, and how to ask one something."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from llmopt.core.errors import MissingEnvironment, UsageError

# Written last into a finished environment; the other one while it is made or brought up to date.
MARKER = "llmopt-environment.json"
PROGRESS = "llmopt-environment.partial.json"
CONVERTER_FOLDER = "share/llmopt/llama.cpp-0.3.36"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A Python interpreter with packages. ``origin``: user, current or created."""

    python: Path
    prefix: Path
    origin: str

    @property
    def converter(self) -> Path:
        """The folder that holds llama.cpp's official converter, whether or not it is there."""
        return self.prefix / CONVERTER_FOLDER

    @property
    def site_packages(self) -> Path:
        """Where its packages lie, read from the folder alone: a broken interpreter has one too."""
        return next(iter(sorted(self.prefix.glob("lib/python3*/site-packages"))), self.prefix / "lib/site-packages")


def home() -> Path:
    """Where llmopt keeps environments and caches: ``LLMOPT_HOME``, else the user's data folder."""
    if own := os.environ.get("LLMOPT_HOME"):
        return Path(own).expanduser().absolute()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local/share") / "llmopt"


def current() -> Environment:
    return Environment(python=Path(sys.executable), prefix=Path(sys.prefix), origin="current")


def at(folder: Path) -> Environment:
    """The environment that we make, or made, in ``folder``."""
    return Environment(python=folder / "bin/python", prefix=folder, origin="created")


def created() -> list[Environment]:
    """The environments that were finished, by name."""
    return [at(marker.parent) for marker in sorted(home().glob(f"envs/[!.]*/{MARKER}"))]


def named_by_user(python: str) -> Environment:
    """The environment of an interpreter, or of a virtual environment's folder; raises UsageError."""
    path = Path(python).expanduser()
    path = path / "bin/python" if path.is_dir() else path
    if not path.exists():
        raise UsageError(f"no interpreter at {python}", hint="name a virtual environment's folder or its bin/python")
    return Environment(python=path, prefix=path.parent.parent, origin="user")


def ask(environment: Environment, code: str, *arguments: str) -> str:
    """What a line of Python prints in that environment; raises MissingEnvironment when it cannot run."""
    try:
        result = subprocess.run(
            [str(environment.python), "-I", "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingEnvironment(
            f"{environment.python} does not run: {error}", hint="name another interpreter"
        ) from error
    return result.stdout
