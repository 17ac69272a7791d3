"""Documents of other tools for tests: the recordings, and what is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmopt.gate.imports import ForeignRun, recognise
from llmopt.pipeline.importing import documents_in, read_file

RECORDINGS = Path(__file__).parents[2] / "data" / "imports"


def recording(name: str) -> dict[str, Any]:
    return dict(documents_in(RECORDINGS / name)[0])


def read(document: dict[str, Any]) -> ForeignRun:
    found = recognise([document])
    assert found is not None
    (run,) = found.read(document)
    return run


def runs_in(name: str) -> list[ForeignRun]:
    return read_file(RECORDINGS / name, None)[1]


def write(folder: Path, name: str, document: Any) -> Path:
    file = folder / name
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return file
