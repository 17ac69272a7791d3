"""A results folder as a table, and the file beside the records that makes the next reading fast.

Records are the truth.  The index, ``RESULTS/.runs.index``, holds their rows with the size and the two times that each file
had when it was read: a record that differs in any of these is read anew, one that is gone is forgotten, and an index that
is damaged, or of another llmopt, is made anew.  It is written aside and renamed, so two processes may do so at once: the
last one wins, and both were right.  Small folders have none.
"""

from __future__ import annotations

import atexit
import contextlib
import mmap
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from llmopt.core.domain import Machine, Measurement, stable_hash
from llmopt.core.errors import StoreError
from llmopt.core.files import PARTIAL
from llmopt.core.listing import free_cores, record_files
from llmopt.core.run_files import NO_RUN, NO_STAMPS, Skipped, read_files, stamps_of
from llmopt.core.run_row import NUMBERS, WORDS
from llmopt.core.run_table import RunTable, joined
from llmopt.core.store import read_run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INDEX = ".runs.index"
CHANGED_COPY = "it has the run_id of another record, and other figures: a copy that was changed"
MAGIC = b"llmopt runs\n"
LAYOUT = stable_hash([6, NUMBERS, WORDS])  # of the columns, and of what is checked: an index of others is none of ours
# Files in a folder that is worth an index, and how many may be read anew each time before it is written again: that takes as
# long as reading some hundreds, once, and every later call is without it.
WORTH_WRITING = 1_000, 20


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


def read_store(results: Path, *, aside: bool = False, listed: Callable[[], list[str]] | None = None) -> Stored:
    """All runs of a folder, or the one of a file. Raises StoreError where there is neither.

    ``aside``: the index may be written while the caller goes on, and is there when this process ends at the latest.
    ``listed`` gives the names of the folder's files, where somebody began to list them before (``listing.py``).
    """
    import numpy as np

    if not results.exists():
        raise StoreError(f"no results at {results}", hint="measure something first: llmopt bench, or llmopt demo")
    one = results.is_file()
    folder = results.parent if one else results
    files = unread([results.name] if one else listed() if listed else record_files(folder))
    old = None if one else read_index(folder / INDEX)
    known = old[1] if old is not None else None
    fresh: NDArray[np.int64] = np.arange(len(files.names))
    if old is not None:
        files.stamps = stamps_of(folder, files.names)
        fresh = match(files, old[0])
    part = read_files(folder, [files.names[place] for place in fresh])
    table, offset = (part.table, 0) if known is None else (joined([known, part.table]), len(known))
    files.stamps[fresh] = part.stamps
    files.rows[fresh] = np.where(part.rows == NO_RUN, NO_RUN, part.rows + offset)
    skipped = tuple(part.skipped)
    if not one and len(files.names) >= WORTH_WRITING[0] and len(fresh) - len(skipped) >= WORTH_WRITING[1]:
        without = {s.file for s in skipped}  # what cannot be used is named every time, so it is read every time
        write = write_aside if aside else write_index
        write(folder / INDEX, files, table, without)
    place_of_row = np.full(len(table), -1)
    runs = np.flatnonzero(files.rows != NO_RUN)
    place_of_row[files.rows[runs]] = runs
    order = files.rows[runs]
    order = order[np.lexsort((table.run_ids[order], table.started_at[order]))]
    order, copies, strange = without_copies(
        table, order, [files.names[place] for place in place_of_row[order].tolist()]
    )
    names = [files.names[place] for place in place_of_row[order].tolist()]
    skipped += tuple(Skipped(file=name, reason=CHANGED_COPY) for name in strange)
    skipped = tuple(Skipped(file=told(s.file), reason=s.reason) for s in skipped)
    return Stored(table=table.taken(order, lambda i: whole(folder / names[i])), skipped=skipped, copies=copies)


def load_runs(
    results: Path, *, machine: Machine | None = None, say: Callable[[str], None] | None = None
) -> list[Measurement]:
    """All runs under a results folder, oldest first; of one machine where given. Raises StoreError.

    Files that are no run that can be used are skipped; ``say`` is told which.
    """
    stored = read_store(results)
    if say is not None and stored.skipped:
        say(skipped_words(stored.skipped))
    table = stored.table
    wanted = [n for n in range(len(table)) if machine is None or table.word("machine", n) == machine.fingerprint]
    return [table.record(n) for n in wanted]


def skipped_words(skipped: Sequence[Skipped]) -> str:
    """How many, and the first of them with their reasons; all on one line."""
    count = f"{len(skipped)} file{'s' if len(skipped) > 1 else ''} skipped"
    return f"{count}: {'; '.join(f'{s.file}: {s.reason}' for s in skipped[:3])}"


def whole(file: Path) -> Measurement:
    run = read_run(file)
    if run is None:
        raise StoreError(f"{file} is no run any more", hint="ask again")
    return run


def told(name: str) -> str:
    """As JSON can have it: bytes of a name that are no UTF-8 by their numbers."""
    return name if name.isascii() else os.fsencode(name).decode(errors="backslashreplace")


def without_copies(
    table: RunTable, order: NDArray[np.int64], names: Sequence[str]
) -> tuple[NDArray[np.int64], int, list[str]]:
    """One record in two places is one run. Of one name over other figures none can be trusted but the one in its own file.

    The rows that are left, how many copies went, and the files that tell a run otherwise than another.
    """
    import numpy as np

    by_id = np.argsort(table.run_ids[order], kind="stable")  # a changed copy may tell another date
    ids = table.run_ids[order][by_id]
    edges = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1], True])
    drop, copies, strange = list[int](), 0, list[str]()
    sizes = np.diff(edges)
    for place in np.flatnonzero(sizes > 1):
        first = int(edges[place])
        group = by_id[first : first + int(sizes[place])].tolist()
        if all(table.same(int(order[n]), int(order[group[0]])) for n in group):
            drop += group[1:]
            copies += len(group) - 1
            continue
        own = [n for n in group if Path(names[n]).stem == ids[first].decode()]
        out = [n for n in group if len(own) != 1 or n not in own]
        drop += out
        strange += [names[n] for n in out]
    return np.delete(order, drop), copies, strange


def unread(names: list[str]) -> Files:
    import numpy as np

    count = len(names)
    return Files(names=names, stamps=np.full((count, 3), NO_STAMPS), rows=np.full(count, NO_RUN, np.int64))


def match(files: Files, old: Files) -> NDArray[np.int64]:
    """Give the files that are as they were their rows; the places of all others."""
    import numpy as np

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


def write_aside(file: Path, files: Files, table: RunTable, without: set[str]) -> None:
    """``write_index`` by a process of its own, for which this one waits when it ends.

    100,000 runs take a tenth of a second, for which the caller need not wait. Not by a thread: between any two columns it
    would wait for its turn with the interpreter, and finish no sooner.
    """
    if free_cores() < 2:
        return write_index(file, files, table, without)
    try:
        child = os.fork()
    except OSError:  # no further process is to be had
        return write_index(file, files, table, without)
    if child:
        atexit.register(await_end, child)
        return None
    try:  # an interrupt ends the writing too, which takes away what it began
        write_index(file, files, table, without)
    finally:
        os._exit(0)  # nothing of the caller's is flushed or ended twice


def await_end(child: int) -> None:
    with contextlib.suppress(ChildProcessError):  # where SIGCHLD is ignored nobody is left to be waited for
        os.waitpid(child, 0)


def write_index(file: Path, files: Files, table: RunTable, without: set[str]) -> None:
    """Leave out the files ``without``, and those whose names are no text. A folder that cannot be written to has no index."""
    import numpy as np

    kept = np.array([name not in without and told(name) == name for name in files.names], bool)
    rows, used = files.rows[kept], np.zeros(len(table), bool)
    used[rows[rows != NO_RUN]] = True
    if not used.all():  # rows of records that changed or are gone: the index would grow by all of them each time
        table, rows = table.taken(np.flatnonzero(used), table.read), np.append(np.cumsum(used) - 1, NO_RUN)[rows]
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
    arrays = [files.stamps[kept], rows, table.run_ids, table.started_at]
    arrays += [*map(table.column, table.numbers), *(table.codes[name] for name in WORDS)]
    parts: list[Any] = [MAGIC, len(words).to_bytes(8, "little"), words, *arrays]
    # Not flushed to the disk: after a power cut the sum is wrong, and the index made anew.
    aside = file.with_name(f"{file.name}{PARTIAL}{os.getpid()}")
    total = 0
    with contextlib.suppress(OSError):
        try:
            with aside.open("wb") as stream:
                for part in parts:
                    total = zlib.crc32(part, total)
                    stream.write(part)
                stream.write(total.to_bytes(4, "little"))
            aside.replace(file)
        finally:
            aside.unlink(missing_ok=True)
