"""The files of a results folder and their rows; what is none that can be used is named with its reason."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from llmopt.core.listing import free_cores
from llmopt.core.possible import forget_strange_intervals, impossible
from llmopt.core.run_record import SCHEMA
from llmopt.core.run_row import NUMBERS, Row, another_schema, read_row
from llmopt.core.run_table import RunTable, assemble, joined

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Stamps = tuple[int, int, int]
AT_ONCE = 2_000  # files that a process reads before it hands over
READ_AT_ONCE = 1 << 16  # most records are smaller; a large buffer costs more than a second call
WATCHED_S = 1.0
NO_RUN = -1
NO_STAMPS = -1, -1, -1
# In a process that reads for another: the folder, its files, and where their numbers go.
SHARED: list[tuple[Path, Sequence[str], NDArray[np.float64]]] = []
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
    rows: NDArray[np.int64]
    stamps: NDArray[np.int64]
    skipped: list[Skipped]
    told: set[str] = field(default_factory=set)  # the columns that it has in the memory that is shared


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


def read_files(folder: Path, names: Sequence[str]) -> Part:
    """In this process; many files in one for each core."""
    starts = range(0, len(names), AT_ONCE)
    if len(starts) < 2 or (cores := free_cores()) < 2:
        return together([read_chunk(folder, names[at : at + AT_ONCE]) for at in starts])
    from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
    from multiprocessing import active_children, get_context

    import numpy as np

    # A hundred megabytes of numbers: through a pipe, and then into one table, they take a tenth of all the reading.
    memory = mmap.mmap(-1, len(NUMBERS) * len(names) * 8)
    columns = np.frombuffer(memory).reshape(len(NUMBERS), len(names))
    before = set(active_children())
    try:
        with ProcessPoolExecutor(
            min(cores, len(starts)),
            mp_context=get_context("fork"),
            initializer=attend,
            initargs=((folder, names, columns), os.getpid()),
        ) as pool:
            return together(list(pool.map(read_shared, starts)), columns)
    except (
        OSError,
        NotImplementedError,
        BrokenExecutor,
    ):  # no semaphores (/dev/shm), no further process, or one that was killed
        for child in set(active_children()) - before:
            child.kill()  # it waits for work, and this process, at its end, for it
        return together([read_chunk(folder, names[at : at + AT_ONCE]) for at in starts])


def attend(shared: tuple[Path, Sequence[str], NDArray[np.float64]], parent: int) -> None:
    """The first thing in a process that reads for another: it ends when that one is killed, for nobody else would end it."""
    SHARED.append(shared)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCHED_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def read_shared(start: int) -> Part:
    """In a process of its own: the numbers stay in the memory that all share, each in the column of its file or before it."""
    folder, names, columns = SHARED[-1]
    part = read_chunk(folder, names[start : start + AT_ONCE], columns[:, start:])
    part.told, part.table.numbers = set(part.table.numbers), {}
    return part


def together(parts: Sequence[Part], columns: NDArray[np.float64] | None = None) -> Part:
    """One part of several; ``columns`` have the numbers of those that shared them, of each from the place of its first file."""
    import numpy as np

    if len(parts) == 1 and columns is None:
        return parts[0]
    table, rows, used = joined([part.table for part in parts]), [], []
    first = start = 0
    for part in parts:
        rows.append(np.where(part.rows == NO_RUN, NO_RUN, part.rows + first))
        used.append(np.arange(start, start + len(part.table)))
        first, start = first + len(part.table), start + len(part.rows)
    if columns is not None:
        told = set[str]().union(*(part.told for part in parts))
        if first < start:  # not every file is a run
            columns = columns.take(np.concatenate(used), axis=1)  # indexed, no column would lie in one piece
        table.numbers = {name: column for name, column in zip(NUMBERS, columns, strict=True) if name in told}
    return Part(
        table=table,
        rows=np.concatenate([np.zeros(0, np.int64), *rows]),
        stamps=np.concatenate([np.zeros((0, 3), np.int64), *(part.stamps for part in parts)]),
        skipped=[s for part in parts for s in part.skipped],
    )


def read_chunk(folder: Path, names: Sequence[str], into: NDArray[np.float64] | None = None) -> Part:
    import numpy as np

    with without_collection():
        read = [read_file(f"{folder}/{name}") for name in names]
    table = assemble([row for row, _ in read if isinstance(row, Row)], into=into)
    wrong, row = impossible(table), 0
    forget_strange_intervals(table)
    rows, skipped = np.full(len(names), NO_RUN), list[Skipped]()
    for place, (found, _) in enumerate(read):
        reason = found if isinstance(found, str) else None
        if isinstance(found, Row):
            reason = wrong.get(row)
            rows[place] = row if reason is None else NO_RUN
            row += 1
        if reason is not None:
            skipped.append(Skipped(file=names[place], reason=reason))
    stamps = np.array([known for _, known in read], np.int64).reshape(-1, 3)
    return Part(table=table, rows=rows, stamps=stamps, skipped=skipped)


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
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
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
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # a pipe of that name would be waited for without end
    try:
        known = stamps(os.fstat(handle))
        data = os.read(handle, READ_AT_ONCE)
        while len(data) >= READ_AT_ONCE and (more := os.read(handle, READ_AT_ONCE)):
            data += more
        return data, known
    finally:
        os.close(handle)
