"""The files of a results folder: which are records, and their rows; what is none that can be used is named with its reason."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from llmopt.core.possible import forget_strange_intervals, impossible
from llmopt.core.run_record import SCHEMA
from llmopt.core.run_row import Row, another_schema, read_row
from llmopt.core.run_table import RunTable, assemble

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Stamps = tuple[int, int, int]
AT_ONCE = 2_000  # files that a process reads before it hands over
READ_AT_ONCE = 1 << 16  # most records are smaller; a large buffer costs more than a second call
NO_RUN = -1
NO_STAMPS = -1, -1, -1
OF_A_RUN = {"metrics", "workload", "verdict"}  # what has these was one, whatever was taken out of it


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that was meant as a run and is none that can be used."""

    file: str
    reason: str


@dataclass(kw_only=True)
class Part:
    """What one process has read: of each file its row, ``NO_RUN`` for none, and its stamps."""

    table: RunTable
    rows: list[int]
    stamps: NDArray[np.int64]
    skipped: list[Skipped] = field(default_factory=list)


def record_files(folder: Path) -> list[str]:
    """Names relative to the folder, in order: runs of one machine are then in that of their start; hidden ones and machines'
    pages are none.
    """
    found: list[str] = []
    below = [""]
    while below:
        inside = below.pop()
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == ".":
                    continue
                if name[-5:] == ".json":
                    found.append(inside + name)
                elif entry.is_dir(follow_symlinks=False):
                    below.append(f"{inside}{name}/")
    return sorted(name for name in found if not name.endswith("machine.json"))


def stamps_of(folder: Path, names: Sequence[str]) -> NDArray[np.int64]:
    """Size and the two times of the file behind each name, ``NO_STAMPS`` where that cannot be told: reading it says why."""
    import numpy as np

    found = array("q")
    for name in names:
        try:
            found.extend(stamps(os.stat(f"{folder}/{name}")))  # noqa: PTH116 - half of the time of a Path
        except OSError:
            found.extend(NO_STAMPS)
    return np.array(found, np.int64).reshape(-1, 3)


def stamps(file: os.stat_result) -> tuple[int, int, int]:
    return file.st_size, file.st_mtime_ns, file.st_ctime_ns


def read_files(folder: Path, names: Sequence[str]) -> list[Part]:
    """In this process; many files in one for each core."""
    chunks = [list(names[at : at + AT_ONCE]) for at in range(0, len(names), AT_ONCE)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(chunks) < 2 or cores < 2 or threading.active_count() > 1:
        return [read_chunk(folder, chunk) for chunk in chunks]
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(min(cores, len(chunks)), mp_context=get_context("fork")) as pool:
        return list(pool.map(read_chunk, [folder] * len(chunks), chunks))


def read_chunk(folder: Path, names: Sequence[str]) -> Part:
    import numpy as np

    with without_collection():
        read = [read_file(f"{folder}/{name}") for name in names]
    table = assemble([row for row, _ in read if isinstance(row, Row)])
    wrong, row = impossible(table), 0
    forget_strange_intervals(table)
    part = Part(table=table, rows=[], stamps=np.array([known for _, known in read], np.int64).reshape(-1, 3))
    for name, (found, _) in zip(names, read, strict=True):
        reason = found if isinstance(found, str) else None
        if isinstance(found, Row):
            reason = wrong.get(row)
            part.rows.append(row if reason is None else NO_RUN)
            row += 1
        else:
            part.rows.append(NO_RUN)
        if reason is not None:
            part.skipped.append(Skipped(file=name, reason=reason))
    return part


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Rows are kept and have no cycles: looking for garbage among them takes half as long again as reading them."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def read_file(file: str) -> tuple[Row | str | None, Stamps]:
    """The row of a run, what is wrong with one, or nothing for JSON that is none; and the stamps that it had before."""
    try:
        data, known = content(file)
    except FileNotFoundError:  # taken away since the folder was listed, or a link to nothing
        return None, NO_STAMPS
    except OSError as error:
        return error.strerror or str(error), NO_STAMPS
    try:
        return read_row(data), known
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        return reason_of(data, error), known


def reason_of(data: bytes, error: Exception) -> str | None:
    """Why a file is no run that can be used; nothing for JSON that was not meant as one."""
    reason = f"not a whole run record: {error}"
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return reason
    if not isinstance(document, dict) or not ("run_id" in document or document.keys() >= OF_A_RUN):
        return None
    schema = document.get("schema", SCHEMA)
    return reason if schema == SCHEMA else another_schema(schema)


def content(file: str) -> tuple[bytes, Stamps]:
    """By the bare calls of the system: an open file object takes as long again as reading a small file."""
    handle = os.open(file, os.O_RDONLY)
    try:
        known = stamps(os.fstat(handle))
        data = os.read(handle, READ_AT_ONCE)
        while len(data) >= READ_AT_ONCE and (more := os.read(handle, READ_AT_ONCE)):
            data += more
        return data, known
    finally:
        os.close(handle)
