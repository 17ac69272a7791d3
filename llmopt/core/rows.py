"""Rows of text that people bring: JSONL, a JSON array, a data set of the ``datasets`` library."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llmopt.core.errors import UsageError

ROWS_HINT = "one JSON object a line with 'prompt', 'messages' or ShareGPT's 'conversations'"


def rows(name: str) -> Iterable[Any]:
    """Of a file, or of a data set that the ``datasets`` library finds under that name. Raises UsageError."""
    path = Path(name).expanduser()
    if path.is_file():
        return json_rows(path)
    if not path.is_dir() and (path.suffix in (".json", ".jsonl") or path.is_absolute()):  # no hub is asked for a file
        raise UsageError(f"no file {name}", hint=ROWS_HINT)
    stay_offline_without_a_hub()
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            f"no file {name}, and the 'datasets' library is not installed here",
            hint=f"{ROWS_HINT}; or pip install datasets",
        ) from error
    try:
        loaded = datasets.load_from_disk(name) if path.is_dir() else datasets.load_dataset(name)
        return next(iter(loaded.values())) if isinstance(loaded, dict) else loaded
    except Exception as error:  # the library raises of every kind
        words = " ".join(str(error).split())[:160]
        raise UsageError(f"no data set {name!r}: {words}", hint=ROWS_HINT) from error


def stay_offline_without_a_hub() -> None:
    """Where the hub's name is not known, its client would ask again for half a minute: a wrong name fails at once."""
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"


def json_rows(path: Path) -> Iterator[Any]:
    """A JSON array, or one JSON value a line. Raises UsageError that names the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}", hint=ROWS_HINT
        ) from error
    if text.lstrip()[:1] == "[":
        try:
            yield from json.loads(text)
        except ValueError as error:
            raise UsageError(f"{path} is no JSON: {error}", hint=ROWS_HINT) from error
        return
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() also cuts at U+2028, which JSON allows
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: no JSON: {error}", hint=ROWS_HINT) from error
