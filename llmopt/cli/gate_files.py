"""The files of a gate's report: a place for each before anything is measured, its verdict afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmopt.cli.reporting import head, require_apart, require_page
from llmopt.cli.shell import print_json
from llmopt.core.errors import UsageError


def make_room(markdown: Path | None, junit: Path | None, html: Path | None) -> None:
    """Remove what an earlier gate wrote: after an error it would be taken for the verdict of this one.

    A file of somebody else stays until there is a verdict to put in its place; a page takes the place of a page alone.
    Raises UsageError for a place that cannot have the file, StoreError where the earlier one cannot be removed.
    """
    from llmopt.core.files import disk_errors
    from llmopt.report.gate import HEADING, JUNIT_HEAD

    files = {"--markdown": markdown, "--junit": junit, "--html": html}
    require_apart(files)
    for flag, file in files.items():
        if file is not None:
            require_place(flag, file)
    if html is not None:
        require_page(html)
    for file, own in ((markdown, HEADING.encode()), (junit, JUNIT_HEAD.encode()), (html, b"")):
        if file is not None and file.is_file() and head(file).startswith(own):
            with disk_errors(file):
                file.unlink()


def require_place(flag: str, file: Path) -> None:
    if file.is_dir():
        raise UsageError(f"{flag} {file} is a folder", hint="name a file in it")
    if not file.parent.is_dir():
        raise UsageError(f"{flag} {file}: there is no folder {file.parent}", hint=f"mkdir -p {file.parent}")


def show(found: dict[str, Any], markdown: Path | None, junit: Path | None, html: Path | None, json: bool) -> None:
    """Print and write the verdict: no file that cannot be written loses it, and no reader who went away loses a file."""
    from llmopt.report import gate as report

    with contextlib.ExitStack() as afterwards:  # whatever becomes of the others
        for file, make in ((html, page), (junit, report.junit), (markdown, report.markdown)):
            if file is not None:
                afterwards.callback(write, file, make, found)
        print_json(found) if json else report.print_gate(found)


def write(file: Path, make: Callable[[dict[str, Any]], str], found: dict[str, Any]) -> None:
    from llmopt.core.files import write_atomic

    write_atomic(file, make(found).encode())


def page(found: dict[str, Any]) -> str:
    from llmopt.report import page as pages

    return pages.page(found).decode()
