"""A document that ``--json`` of another command printed, read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmopt.core.errors import UsageError
from llmopt.report.document import SCHEMA

DRAWN = {"ranking": SCHEMA, "steps": 1}


def saved_document(file: Path) -> dict[str, Any] | None:
    """A ranking, or the steps of a recipe; ``None`` for a folder and for a run. Raises UsageError."""
    import msgspec

    if not file.is_file():
        return None
    try:
        found: Any = msgspec.json.decode(file.read_bytes())
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{file} is no JSON document: {error}", hint="llmopt recommend --json > ranking.json"
        ) from None
    if not isinstance(found, dict) or "run_id" in found:
        return None
    document: dict[str, Any] = found
    if document.get("kind") == "tune" and isinstance(document.get("ranking"), dict):
        document = document["ranking"]
    kind, schema = document.get("kind"), document.get("schema")
    if not isinstance(kind, str) or kind not in DRAWN:
        raise UsageError(
            f"{file} has kind {kind!r}; a report draws a ranking or steps",
            hint="llmopt recommend --json and llmopt tune --json print them",
        )
    if schema != DRAWN[kind]:
        raise UsageError(
            f"{file} is a document of schema {schema!r}, and this llmopt draws {kind} of schema {DRAWN[kind]}",
            hint="print it anew with this version: llmopt recommend --json, or llmopt tune --json",
        )
    return document
