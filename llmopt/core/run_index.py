"""A results folder as a table, and the file beside the records that makes the next reading fast.

Records are the truth.  The index, ``RESULTS/.runs.index``, holds their rows with the size and the two times that each file
had when it was read: a record that differs in any of these is read anew, one that is gone is forgotten, and an index that
is damaged, or of another llmopt, is made anew.  It is written aside and renamed, so two processes may do so at once: the
last one wins, and both were right.  Small folders have none.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from llmopt.core.domain import Measurement, stable_hash
from llmopt.core.errors import StoreError
from llmopt.core.files import PARTIAL
from llmopt.core.possible import impossible
from llmopt.core.run_record import SCHEMA
from llmopt.core.run_row import NUMBERS, WORDS, Row, another_schema, read_row
from llmopt.core.run_table import RunTable, assemble, joined
from llmopt.core.store import read_run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INDEX = ".runs.index"
MAGIC = b"llmopt runs\n"
LAYOUT = stable_hash([2, NUMBERS, WORDS])  # of the columns: an index of others is none of ours
WORTH_WRITING = 1_000, 0.02  # files that an index lacks, and their share, before it is written
AT_ONCE = 2_000  # files that a process reads before it hands over
READ_AT_ONCE = 1 << 18
NO_RUN = -1


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that was meant as a run and is none that can be used."""

    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The runs of a folder, oldest first; the files that were skipped; how many were copies of another."""

    table: RunTable
    skipped: tuple[Skipped, ...] = ()
    copies: int = 0


@dataclass(kw_only=True)
class Files:
    """Names below a folder, ``stamps`` (size, mtime, ctime), and of each which row it is, ``NO_RUN`` for none."""

    names: list[str]
    stamps: NDArray[np.int64]
    rows: NDArray[np.int64]


@dataclass(kw_only=True)
class Part:
    """What one process has read."""

    table: RunTable
    rows: list[int]
    skipped: list[Skipped] = field(default_factory=list)


def read_store(results: Path) -> Stored:
    """All runs of a folder, or the one of a file. Raises StoreError where there is neither."""
    import numpy as np

    if not results.exists():
        raise StoreError(f"no results at {results}", hint="measure something first: llmopt bench, or llmopt demo")
    one = results.is_file()
    folder = results.parent if one else results
    files = stamped([(results.name, results.stat())] if one else record_files(folder))
    old = None if one else read_index(folder / INDEX)
    known = old[1] if old is not None else None
    fresh = match(files, old[0] if old is not None else None)
    parts = read_files(folder, [files.names[place] for place in fresh])
    tables = [part.table for part in parts] if known is None else [known, *(part.table for part in parts)]
    table = tables[0] if len(tables) == 1 else joined(tables)
    offset, rows = (0 if known is None else len(known)), list[int]()
    for part in parts:
        rows += [row if row == NO_RUN else row + offset for row in part.rows]
        offset += len(part.table)
    files.rows[fresh] = rows
    skipped = tuple(s for part in parts for s in part.skipped)
    if not one and len(fresh) >= max(WORTH_WRITING[0], WORTH_WRITING[1] * len(files.names)):
        without = {s.file for s in skipped}  # what cannot be used is named every time, so it is read every time
        write_index(folder / INDEX, files, table, without)
    place_of_row = np.full(len(table), -1)
    runs = np.flatnonzero(files.rows != NO_RUN)
    place_of_row[files.rows[runs]] = runs
    order = files.rows[runs]
    order = order[np.lexsort((table.run_ids[order], table.started_at[order]))]
    order, copies = without_copies(table, order)
    names = [files.names[place_of_row[row]] for row in order]
    return Stored(table=table.taken(order, lambda i: whole(folder / names[i])), skipped=skipped, copies=copies)


def whole(file: Path) -> Measurement:
    run = read_run(file)
    if run is None:
        raise StoreError(f"{file} is no run any more", hint="ask again")
    return run


def without_copies(table: RunTable, order: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """One record in two places is one run; the same name over other figures is another run."""
    import numpy as np

    ids = table.run_ids[order]
    again = np.flatnonzero(ids[1:] == ids[:-1]) + 1
    drop = [n for n in again if table.same(int(order[n]), int(order[n - 1]))]
    return np.delete(order, drop), len(drop)


# --- the files --------------------------------------------------------------------------------------------------


def record_files(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Names relative to the folder, in any order; hidden ones and machines' pages are none."""
    found: list[tuple[str, os.stat_result]] = []
    below = [""]
    while below:
        inside = below.pop()
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == ".":
                    continue
                if name[-5:] == ".json":
                    try:
                        found.append((inside + name, entry.stat()))
                    except FileNotFoundError:  # taken away since the folder was listed
                        continue
                elif entry.is_dir(follow_symlinks=False):
                    below.append(f"{inside}{name}/")
    return [pair for pair in found if not pair[0].endswith("machine.json")]


def stamped(found: Sequence[tuple[str, os.stat_result]]) -> Files:
    import numpy as np

    stamps = np.array([(s.st_size, s.st_mtime_ns, s.st_ctime_ns) for _, s in found], np.int64).reshape(-1, 3)
    return Files(names=[name for name, _ in found], stamps=stamps, rows=np.full(len(found), NO_RUN, np.int64))


def match(files: Files, old: Files | None) -> NDArray[np.int64]:
    """Give the files that are as they were their rows; the places of all others."""
    import numpy as np

    if old is None:
        return np.arange(len(files.names))
    places: NDArray[np.int64]
    if files.names == old.names:
        places = np.arange(len(files.names))
    else:
        index = {name: place for place, name in enumerate(old.names)}
        places = np.array([index.get(name, -1) for name in files.names], np.int64)
    same = places >= 0
    same[same] = (files.stamps[same] == old.stamps[places[same]]).all(axis=1)
    files.rows[same] = old.rows[places[same]]
    return np.flatnonzero(~same)


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
    read = [read_file(os.path.join(folder, name)) for name in names]  # noqa: PTH118 - a tenth of the time of a Path
    table = assemble([row for row in read if isinstance(row, Row)])
    wrong, row = impossible(table), 0
    part = Part(table=table, rows=[])
    for name, found in zip(names, read, strict=True):
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


def read_file(file: str) -> Row | str | None:
    """The row of a run, what is wrong with one, or nothing for JSON that is none."""
    try:
        data = content(file)
    except OSError as error:
        return error.strerror or str(error)
    try:
        return read_row(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        return reason_of(data, error)


def reason_of(data: bytes, error: Exception) -> str | None:
    """Why a file is no run that can be used; nothing for JSON that was not meant as one."""
    reason = f"not a whole run record: {error}"
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return reason
    if not isinstance(document, dict) or "run_id" not in document:
        return None
    schema = document.get("schema", SCHEMA)
    return reason if schema == SCHEMA else another_schema(schema)


def content(file: str) -> bytes:
    """By the bare calls of the system: an open file object takes as long again as reading a small file."""
    handle = os.open(file, os.O_RDONLY)
    try:
        data = os.read(handle, READ_AT_ONCE)
        while len(data) >= READ_AT_ONCE and (more := os.read(handle, READ_AT_ONCE)):
            data += more
        return data
    finally:
        os.close(handle)


# --- the index --------------------------------------------------------------------------------------------------


class Header(msgspec.Struct):
    """Of an index file; the arrays behind it follow each other in the order of the fields."""

    layout: str
    files: list[str]
    runs: int
    run_id_width: int
    started_at_width: int
    numbers: list[str]
    vocabulary: dict[str, list[str]]


def read_index(file: Path) -> tuple[Files, RunTable] | None:
    """The files as they were, and their rows; ``None`` for no index, one that is damaged, or one of another llmopt."""
    import numpy as np

    try:
        with file.open("rb") as stream:
            data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        start = len(MAGIC) + 8
        size = int.from_bytes(data[len(MAGIC) : start], "little")
        if data[: len(MAGIC)] != MAGIC or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
            return None
        header = msgspec.msgpack.decode(data[start : start + size], type=Header)
    except (OSError, ValueError, msgspec.DecodeError):
        return None
    if header.layout != LAYOUT:
        return None
    at = start + size

    def array(kind: str, count: int) -> Any:
        nonlocal at
        found = np.frombuffer(data, kind, count, at)
        at += found.nbytes
        return found

    n = len(header.files)
    files = Files(names=header.files, stamps=array("<i8", 3 * n).reshape(n, 3), rows=array("<i8", n))
    table = RunTable(
        run_ids=array(f"S{header.run_id_width}", header.runs),
        started_at=array(f"S{header.started_at_width}", header.runs),
        numbers={name: array("<f8", header.runs) for name in header.numbers},
        codes={name: array("<i4", header.runs) for name in WORDS},
        vocabulary=header.vocabulary,
    )
    return files, table


def write_index(file: Path, files: Files, table: RunTable, without: set[str]) -> None:
    """Leave out the files ``without``. A folder that cannot be written to has no index."""
    import numpy as np

    kept = np.array([name not in without for name in files.names], bool)
    header = Header(
        layout=LAYOUT,
        files=[name for name, keep in zip(files.names, kept, strict=True) if keep],
        runs=len(table),
        run_id_width=table.run_ids.dtype.itemsize,
        started_at_width=table.started_at.dtype.itemsize,
        numbers=list(table.numbers),
        vocabulary=table.vocabulary,
    )
    words = msgspec.msgpack.encode(header)
    arrays = [files.stamps[kept], files.rows[kept], table.run_ids, table.started_at]
    arrays += [*table.numbers.values(), *(table.codes[name] for name in WORDS)]
    parts: list[Any] = [MAGIC, len(words).to_bytes(8, "little"), words, *arrays]
    # Not flushed to the disk: after a power cut the sum is wrong, and the index made anew.
    aside = file.with_name(f"{file.name}{PARTIAL}{os.getpid()}")
    total = 0
    with contextlib.suppress(OSError):
        try:
            with aside.open("wb") as stream:
                for part in parts:
                    data = part if isinstance(part, bytes) else part.tobytes()
                    total = zlib.crc32(data, total)
                    stream.write(data)
                stream.write(total.to_bytes(4, "little"))
            aside.replace(file)
        finally:
            aside.unlink(missing_ok=True)
