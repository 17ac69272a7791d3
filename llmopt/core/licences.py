"""Under which licence a model's weights stand, as far as its own files say: an answer that is missing is no permission."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmopt.core.artifacts import MANIFEST

CARD = "README.md"
FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)
FIELDS = ("license_name", "license")  # a card that says "other" names it beside


def licence_of_artifact(artifact: dict[str, Any]) -> str | None:
    """Of the artifact of a record: what the record says, else the card in its folder, else that of its base. Lower case."""
    return said_licence(artifact) or licence_of(str(artifact.get("path") or ""))


def said_licence(artifact: dict[str, Any]) -> str | None:
    """What the record itself says, in lower case."""
    said = artifact.get("licence") or artifact.get("license")
    return str(said).lower() if said else None


@lru_cache(4096)
def licence_of(path: str) -> str | None:
    """Of a folder on disk; ``None`` where nothing says it."""
    if not path or not (folder := Path(path)).is_dir():
        return None
    if (own := of_card(folder)) is not None:
        return own
    try:
        base = json.loads((folder / MANIFEST).read_text())["artifact"]["base"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return of_card(Path(str(base)))


def of_card(folder: Path) -> str | None:
    """From the front matter of a model card."""
    try:
        matter = FRONT_MATTER.match((folder / CARD).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    found = (
        dict(re.findall(r"^(license(?:_name)?)\s*:\s*['\"]?([^'\"\n#]+)", matter[1], re.MULTILINE)) if matter else {}
    )
    named = [found[name].strip().lower() for name in FIELDS if name in found]
    return next((name for name in named if name and name not in ("other", "unknown")), None)
