"""The command line: one function per command that parses, calls and prints. Bodies import what they need.

Importing a module of a command registers it.  ``llmopt estimate`` must answer in .3 s, ``llmopt recommend`` in 3 s over
100,000 runs, and their modules are imported alone; for everything else all of them are, in the order of the commands in
``--help``.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

MODULES = (
    "making", "proving", "serving", "benching", "estimating", "deciding", "gating", "history", "importing", "reporting",
    "tuning", "deploying", "verifying", "environments",
)  # fmt: skip
# A command that is asked for first → the modules that it needs.
ALONE = {"estimate": ("estimating",), "recommend": ("deciding",)}


def registered(modules: tuple[str, ...] = MODULES) -> Any:
    """The app with the commands of these modules."""
    for name in modules:
        importlib.import_module(f"llmopt.cli.{name}")
    from llmopt.cli.shell import app

    return app


def __getattr__(name: str) -> Any:
    if name == "app":
        return registered()
    raise AttributeError(name)


def __dir__() -> list[str]:
    return ["app", "main"]  # where typer's own tools look for the app


def main() -> None:
    registered(ALONE.get(sys.argv[1] if len(sys.argv) > 1 else "", MODULES))()


if __name__ == "__main__":
    main()
