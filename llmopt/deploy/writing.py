"""A deployment's folder: written aside, checked there, then put in place file by file; the former one stays in ``previous/``.

``deployment.json`` is written last and names every file with its sha256, so that a file which somebody edited is seen and never
overwritten.  A folder that holds something else is refused, and so is a link in it that leads elsewhere.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmopt.core.errors import LlmoptError, UsageError
from llmopt.core.files import disk_errors, locked, partial_folder, partial_folders, remove_if_left, write_atomic
from llmopt.deploy import TARGETS
from llmopt.deploy.documents import json_text
from llmopt.deploy.plan import File
from llmopt.deploy.templates import render

DOCUMENT = "deployment.json"
PREVIOUS = "previous"
ASIDE = ".mine"  # what somebody moves a file of ours aside as, which they edited: a rollback brings it back
ROLLBACK = "rollback.sh"
SCHEMA = 1
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")  # a deployment's name
# Of files that targets write: what a shell, a URL and a file system take as it is.
PATH = re.compile(r"[A-Za-z0-9_@.][A-Za-z0-9._@-]*(?:/[A-Za-z0-9_@.][A-Za-z0-9._@-]*)*")


class EditedFiles(LlmoptError):
    """Files were changed by hand since they were written. ``diff``: unified, from what is there to what would be written."""

    def __init__(self, message: str, *, hint: str, diff: str) -> None:
        super().__init__(message, hint=hint)
        self.diff = diff


@dataclass(frozen=True, kw_only=True)
class Former:
    """What lies in the folder now: its ``document``, and the sha256 that each of its files was written with."""

    document: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, str]:
        return dict(self.document.get("files") or {})

    @property
    def name(self) -> str | None:
        """That of its containers, units and namespace."""
        name = self.document.get("name")
        return name if isinstance(name, str) and LABEL.fullmatch(name) else None

    @property
    def target(self) -> str | None:
        targets = self.document.get("targets")
        found = targets[0] if isinstance(targets, list) and targets else None
        return found if isinstance(found, str) and found in TARGETS else None


def former_of(folder: Path) -> Former | None:
    """The deployment that lies there; ``None`` where nothing does. Raises UsageError for a folder that holds something else."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file", hint="name a folder: -o DIR")
    file = folder / DOCUMENT
    if not file.exists():
        if any(folder.iterdir()):
            raise UsageError(
                f"{folder} holds something else than a deployment of llmopt", hint="name another folder: -o DIR"
            )
        return None
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA or not all(
            may_be_written(p) and isinstance(s, str) for p, s in document["files"].items()
        ):
            raise ValueError(f"it is of schema {document['schema']!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{file} is no whole document of a deployment: {error}", hint="restore it, or name another folder: -o DIR"
        ) from None
    return Former(document=document)


def is_unchanged(folder: Path, former: Former | None, files: Mapping[str, File]) -> bool:
    """Whether exactly these files lie there, as they were written."""
    if former is None or set(former.files) != set(files):
        return False
    return all(
        on_disk(folder, path) == file.text.encode() and runs(folder / path) == file.executable
        for path, file in files.items()
    )


def require_unedited(folder: Path, former: Former | None, files: Mapping[str, File]) -> None:
    """Raise EditedFiles for what would overwrite somebody's work: files changed since they were written, or never ours."""
    written = former.files if former else {}
    edited = []
    for path in sorted({*files, *written}):
        require_inside(folder, path)
        there = on_disk(folder, path)
        ours = (
            there is None
            or written.get(path) == digest(there)
            or (path in files and there == files[path].text.encode())
        )
        if not ours:
            edited.append(path)
    if not edited:
        return
    diff = "".join(difference(folder, path, files.get(path)) for path in edited)
    moves = " && ".join(shlex.join(["mv", str(folder / path), f"{folder / path}{ASIDE}"]) for path in edited)
    raise EditedFiles(
        f"{folder}: {', '.join(edited)} {'was' if len(edited) == 1 else 'were'} changed by hand, and nothing was overwritten",
        hint=f"move it aside, where a rollback finds it: {moves}; or write to another folder: -o DIR",
        diff=diff,
    )


def difference(folder: Path, path: str, file: File | None) -> str:
    """As ``diff -u`` prints it: what is there, and what would be."""
    there = (on_disk(folder, path) or b"").decode(errors="replace")
    wanted = "" if file is None else file.text
    lines = difflib.unified_diff(
        there.splitlines(keepends=True),
        wanted.splitlines(keepends=True),
        f"{path} (on disk)",
        f"{path} (would be written)",
    )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def write(
    folder: Path,
    files: Mapping[str, File],
    complete: Callable[[Path], tuple[Mapping[str, File], Mapping[str, Any]]],
) -> dict[str, Any]:
    """Write the files and ``deployment.json``; what lay there before goes to ``previous/``. The document as it was written.

    ``complete`` sees the files where they were written aside, and gives those that tell of them and the document; where it
    raises nothing is changed.  Raises EditedFiles, UsageError, StoreError.
    """
    folder = folder.resolve()
    with locked(folder.with_name(f".{folder.name}.lock"), wait=lambda: busy(folder)):
        former = former_of(folder)
        for left in partial_folders(folder):
            remove_if_left(left)
        staged = partial_folder(folder)
        try:
            fill(staged, files)
            more, document = complete(staged)
            fill(staged, more)
            every = {**files, **more}
            require_unedited(folder, former, every)
            whole = {**document, "files": {path: digest(every[path].text.encode()) for path in sorted(every)}}
            put(staged, DOCUMENT, File(text=json_text(whole)))
            with disk_errors(folder):
                swap(staged, folder, former, every, tells=frozenset(more))
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return whole


def busy(folder: Path) -> None:
    raise UsageError(f"another llmopt deploy writes to {folder}", hint="wait for it, or name another folder: -o DIR")


def fill(staged: Path, files: Mapping[str, File]) -> None:
    for path, file in files.items():
        if not may_be_written(path):
            raise AssertionError(f"{path!r} is no path that a target may write")
        put(staged, path, file)


def may_be_written(path: str) -> bool:
    """Below the folder, and none of the places that belong to this module."""
    parts = path.split("/")
    return bool(PATH.fullmatch(path)) and ".." not in parts and parts[0] not in (DOCUMENT, PREVIOUS)


def put(staged: Path, path: str, file: File) -> None:
    write_atomic(staged / path, file.text.encode())
    (staged / path).chmod(0o755 if file.executable else 0o644)


def swap(
    staged: Path, folder: Path, former: Former | None, files: Mapping[str, File], *, tells: frozenset[str]
) -> None:
    """First what was there is kept, then every file takes its place, the document last: whatever cuts this short, all of it is there,
    and what is written again after that keeps it.

    ``tells``: files that only tell of the others; where nothing but they change, ``previous/`` stays what it was.
    """
    staged.chmod(0o755)
    if not folder.exists():
        staged.rename(folder)
        return
    if former is not None and not alike(former, files, tells) and not was_cut_short(folder, former):
        require_previous_unedited(folder)
        keep_previous(staged, folder, former)
    for path in sorted(files):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (staged / path).replace(folder / path)
    (staged / DOCUMENT).replace(folder / DOCUMENT)
    for path in former.files if former else ():
        if path not in files:
            (folder / path).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty: something of somebody else's lies beside it
                (folder / path).parent.rmdir()


def alike(former: Former, files: Mapping[str, File], tells: frozenset[str]) -> bool:
    core = {path: file for path, file in files.items() if path not in tells}
    return set(former.files) - tells == set(core) and all(
        former.files[path] == digest(file.text.encode()) for path, file in core.items()
    )


def was_cut_short(folder: Path, former: Former) -> bool:
    """Whether files of a next configuration lie there already and ``previous/`` holds all of this one."""
    kept = {path: on_disk(folder / PREVIOUS, path) for path in former.files}
    whole = all(there is not None and is_kept(folder, path, there, former.files) for path, there in kept.items())
    return whole and any(on_disk(folder, path) != kept[path] for path in kept)


def require_previous_unedited(folder: Path) -> None:
    """Raise EditedFiles where ``previous/``, which is about to be replaced, holds work that lies nowhere else.

    A file that was edited goes there with a rollback.
    """
    place = folder / PREVIOUS
    if place.is_symlink() or not place.is_dir():
        return
    try:
        written = json.loads((place / DOCUMENT).read_text(encoding="utf-8"))["files"]
        known = {str(path): str(sha) for path, sha in written.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        known = {}
    there = {p.relative_to(place).as_posix(): p for p in sorted(place.rglob("*")) if p.is_file() or p.is_symlink()}
    edited = [
        path
        for path, file in there.items()
        if path != DOCUMENT and (file.is_symlink() or not is_kept(folder, path, file.read_bytes(), known))
    ]
    if not edited:
        return
    diff = ""
    for path in edited:
        next_one = (on_disk(folder, path) or b"").decode(errors="replace") if not (folder / path).is_dir() else ""
        diff += difference(folder, f"{PREVIOUS}/{path}", File(text=next_one))
    names = ", ".join(f"{PREVIOUS}/{path}" for path in edited)
    raise EditedFiles(
        f"{folder}: {names} {'was' if len(edited) == 1 else 'were'} changed by hand and would be lost, and nothing was changed",
        hint=f"keep the changes elsewhere and remove {PREVIOUS}/, or write to another folder: -o DIR",
        diff=diff,
    )


def keep_previous(staged: Path, folder: Path, former: Former) -> None:
    kept = staged / PREVIOUS
    for path in (*former.files, DOCUMENT):
        # What ran was the one that was edited since then, and moved aside now: a rollback brings it back.
        mine = aside(folder, path)
        edited = mine is not None and mine.stat().st_mtime_ns >= (folder / DOCUMENT).stat().st_mtime_ns
        there = folder / path if (folder / path).is_file() else mine if edited else None
        if there is not None:
            (kept / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(there, kept / path)
    place = folder / PREVIOUS
    if place.is_symlink():
        raise UsageError(
            f"{place} is a link", hint="remove it: the former configuration is kept in a folder of its own"
        )
    if place.exists():
        place.rename(staged / "before-previous")
    kept.rename(place)


def is_kept(folder: Path, path: str, data: bytes, written: Mapping[str, str]) -> bool:
    """Whether a file of ``previous/`` is as llmopt wrote it, or as it was moved aside: nobody's work is in it alone."""
    place = aside(folder, path)
    return written.get(path) == digest(data) or (place is not None and place.read_bytes() == data)


def aside(folder: Path, path: str) -> Path | None:
    """Where an edited file was moved to, as the hint of ``require_unedited`` says."""
    place = folder / f"{path}{ASIDE}"
    return place if place.is_file() and not place.is_symlink() else None


def require_inside(folder: Path, path: str) -> None:
    """Raise UsageError where a link would lead a file elsewhere."""
    place = folder / path
    for part in (place, *place.parents):
        if part == folder:
            return
        if part.is_symlink():
            raise UsageError(
                f"{part} is a link, and links are not followed", hint="remove it, or name another folder: -o DIR"
            )


def on_disk(folder: Path, path: str) -> bytes | None:
    place = folder / path
    if place.is_dir():
        raise UsageError(
            f"{place} is a folder where a file is to be written", hint="remove it, or name another folder: -o DIR"
        )
    return place.read_bytes() if place.is_file() else None


def runs(place: Path) -> bool:
    return bool(place.stat().st_mode & 0o100)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def rollback_script(paths: Iterable[str], *, stop: str) -> File:
    """``rollback.sh`` of a deployment with these files. ``stop``: the command that stops all of it, in its folder."""
    ours = sorted({*paths, ROLLBACK, DOCUMENT})
    return File(text=render("rollback.sh", paths=ours, stop=stop), executable=True)
