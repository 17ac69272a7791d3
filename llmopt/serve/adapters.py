"""``--lora-modules``: LoRA adapters by name, of a server that is started here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from llmopt.core.domain import ServeOptions
from llmopt.core.errors import UsageError
from llmopt.serve import Backend


def named_adapters(modules: Iterable[str]) -> list[tuple[str, Path]]:
    """(name, place) of each ``NAME=PATH``.

    Raises UsageError for a word that is none, for a place where nothing lies, and for two of one name.
    """
    found: list[tuple[str, Path]] = []
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
        if name in dict(found):
            raise UsageError(f"--lora-modules {module}: two adapters of the name {name}", hint="a name for each")
        found.append((name, Path(place)))
    return found


def joined(words: Iterable[str]) -> str:
    """What goes into one word with commas between. Raises UsageError for what has a comma in it."""
    words = list(words)
    if torn := next((word for word in words if "," in word), None):
        raise UsageError(
            f"--lora-modules: a comma in {torn}, where this engine parts its adapters", hint="a link without commas"
        )
    return ",".join(words)


def require_adapters(backend: Backend, options: ServeOptions, asked: Sequence[str]) -> None:
    """Raise UsageError where requests would name a LoRA adapter that this server will not know."""
    if not asked:
        return
    if "lora_modules" not in backend.options or backend.adapter_form is None:
        every = "applies its adapters to every request" if "lora_modules" in backend.options else "has no adapters"
        raise UsageError(
            f"{backend.name} {every}: --adapter {asked[0]} cannot be asked for by name",
            hint="leave --adapter out, or --backend vllm",
        )
    names = [module.partition("=")[0] for module in options.lora_modules]
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise UsageError(
            f"--adapter {', '.join(unknown)}: --lora-modules loads {', '.join(names) or 'none'}",
            hint=f"--lora-modules {unknown[0]}=FOLDER",
        )
