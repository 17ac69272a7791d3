"""The inside of a worker: runs one function of llmopt in another environment's interpreter.

``python runner.py JOB_FOLDER`` reads ``input.json`` (``{"function": "module:name",
"arguments": {…}}``) and writes ``output.json`` (``{"result": …}`` or ``{"error": …}``);
engines may print what they like.  Started before its job is known, it does ``first.json``
of the same form, and waits; ``seconds`` are those of both.  Only llmopt itself is made importable, not what
lies beside it, so that the packages of two environments never mix.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOOK_S = 0.01
PACKAGE = Path(__file__).resolve().parents[1]


def make_llmopt_importable() -> None:
    if "llmopt" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "llmopt", PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no package at {PACKAGE}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["llmopt"] = module
    spec.loader.exec_module(module)


def peak_memory_bytes() -> int:
    """Peak resident set of this process, or of the largest program that it ran (getrusage: KiB on Linux, bytes on macOS)."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak if sys.platform == "darwin" else peak * 1024


def describe(error: Exception) -> dict[str, str | bool | None]:
    """What the parent raises again: our own errors as they are, a full disk and exhausted memory by their own name."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if hasattr(error, "hint"):
        own = {"kind": type(error).__name__, "error": str(error), "hint": error.hint}
        return own | {"cause_in_log": bool(getattr(error, "cause_in_log", False))}
    if any(
        word in text
        for word in ("No space left on device", "os error 28", "File too large", "os error 27", " requested and ")
    ):
        return {
            "kind": "StoreError",
            "error": f"the disk is full: {text}",
            "hint": "free space, or name another folder",
        }
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text:
        return {
            "kind": "WorkerError",
            "error": f"memory ran out: {text}",
            "hint": "close other programs, or use a machine with more",
        }
    return {"kind": type(error).__name__, "error": text, "hint": None}


def call(job: dict[str, Any]) -> object:
    module, _, name = job["function"].partition(":")
    return getattr(importlib.import_module(module), name)(**job["arguments"])


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """For imports: what they make stays, and looking through it for garbage over and over takes a sixth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.collect()  # what the imports did leave: some megabytes
        gc.freeze()
        gc.enable()


def awaited(file: Path) -> dict[str, Any]:
    """Whoever started this process ends it where no job comes."""
    while not file.exists():
        time.sleep(LOOK_S)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    # A script's own folder must not shadow the packages of the environment.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    make_llmopt_importable()
    first_s = 0.0
    if (folder / "first.json").exists():
        started = time.monotonic()
        with contextlib.suppress(Exception), without_collections():  # the job will meet what it raises, and tell
            call(awaited(folder / "first.json"))
        first_s = time.monotonic() - started
    job = awaited(folder / "input.json")
    started = time.monotonic()
    answer: dict[str, Any]
    try:
        result, seconds = call(job), first_s + time.monotonic() - started
        answer = {"result": result, "seconds": seconds, "peak_memory_bytes": peak_memory_bytes()}
    except Exception as error:
        answer = describe(error)
        with contextlib.suppress(OSError):  # the log may lie on the very disk that is full
            traceback.print_exc()
    aside = folder / "output.json.partial"
    aside.write_text(json.dumps(answer))
    aside.rename(folder / "output.json")
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    # Engines leave threads and pools behind whose exit may hang or crash; the answer is on disk.
    os._exit(0)


if __name__ == "__main__":
    main()
