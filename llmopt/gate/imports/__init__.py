"""Results of other benchmarking tools, read from their files; every tool in one table.

What a tool measured by our definition goes into our metrics, everything else stays as the tool calls it
(``ForeignRun.figures``): no figure gets a name of ours because it is called alike.

How to add one:

1. Write ``llmopt/gate/imports/TOOL.py`` with one ``Reader`` named ``READER``: it tells the tool's documents from others,
   and reads them.
2. Add one line to ``READERS``.
3. Put a real result, a few KB, into ``tests/data/imports``: the tests of the table read every file there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmopt.core.domain import Workload
from llmopt.core.errors import UsageError, nearest

Document = Mapping[str, Any]

# name → module that holds READER.
READERS = {
    "vllm": "llmopt.gate.imports.vllm",
    "guidellm": "llmopt.gate.imports.guidellm",
    "aiperf": "llmopt.gate.imports.aiperf",
    "sglang": "llmopt.gate.imports.sglang",
    "llama-bench": "llmopt.gate.imports.llamabench",
}
OTHER_NAMES = {"genai-perf": "aiperf"}  # one format, kept by the successor


@dataclass(frozen=True, kw_only=True)
class ForeignRun:
    """One run as another tool tells it.

    ``document`` is the part of the file that is this run, and names it.  ``metrics`` are ours, by record key; ``figures``
    the tool's, by its names and in its units; ``unlike`` says which of those have no metric of ours, and why.  Token sums
    are ``None`` where they are not told.  ``machine``: the file's own words about where the server ran, of which there
    are seldom any.  ``options`` are settings beyond the workload that make it another case.
    """

    document: Any
    title: str
    version: str | None
    model: str
    workload: Workload
    metrics: dict[str, Any]
    figures: dict[str, Any]
    unlike: tuple[str, ...]
    ok: int
    failed: int
    errors: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    requested_tokens: int | None = None
    started_at: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    machine: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    artifact: dict[str, Any] = field(default_factory=dict)
    own_process: bool = False  # the tool starts the model anew for each run, so each is a session of its own
    cut_short: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A tool's format. ``command``: how its file is made; ``known``: the versions whose files were read."""

    name: str
    title: str
    command: str
    known: tuple[str, ...]
    recognises: Callable[[Document], bool]
    read: Callable[[Document], Sequence[ForeignRun]]


def reader(name: str) -> Reader:
    """Raises UsageError for a name that is not in the table."""
    known = OTHER_NAMES.get(name, name)
    if known not in READERS:
        raise UsageError(f"no tool {name!r} whose files can be read", hint=nearest(name, [*READERS, *OTHER_NAMES]))
    found: Reader = importlib.import_module(READERS[known]).READER
    return found


def recognise(documents: Sequence[Document]) -> Reader | None:
    """Whose documents these are; ``None`` for nobody's that is known."""
    for name in READERS:
        candidate = reader(name)
        if all(candidate.recognises(document) for document in documents):
            return candidate
    return None
