"""The command line: one function per command that parses, calls and prints. Bodies import what they need.

The order of the imports is the order of the commands in ``--help``.
"""

from __future__ import annotations

from llmopt.cli.shell import app  # isort: skip
from llmopt.cli import making, proving, serving, benching, estimating, deciding, reporting, tuning, environments  # isort: skip

__all__ = [
    "app",
    "benching",
    "deciding",
    "environments",
    "estimating",
    "main",
    "making",
    "proving",
    "reporting",
    "serving",
    "tuning",
]


def main() -> None:
    app()


if __name__ == "__main__":
    main()
