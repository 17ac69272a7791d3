"""``--lora-modules``: LoRA adapters by name, of a server that is started here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llmopt.core.errors import UsageError


def named_adapters(modules: Iterable[str]) -> list[tuple[str, Path]]:
    """(name, place) of each ``NAME=PATH``. Raises UsageError for a word that is none, and for a place where nothing lies."""
    found = []
    for module in modules:
        name, _, place = module.partition("=")
        if not name or not place:
            raise UsageError(
                f"--lora-modules {module}: a name and a place are wanted",
                hint="NAME=FOLDER, or NAME=FILE.gguf for llamacpp",
            )
        if not Path(place).exists():
            raise UsageError(
                f"--lora-modules {module}: no adapter in {place}", hint="NAME=FOLDER of an adapter that is there"
            )
        found.append((name, Path(place)))
    return found
