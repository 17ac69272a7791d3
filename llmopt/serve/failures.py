"""Why a server failed, out of its log, its exit status and the kernel's count: cause and remedy in one line each.

Tried in this order: what is known of the exception at the root of the first traceback, what is known of any other line
that is no warning (and beside an exception no mere news), a kill by the kernel, the root's own words.  What is known stands
in the engine's description and in ``failures.toml``.  An engine of several processes wraps its worker's exception in others
("Engine core initialization failed"): those are never the answer.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from llmopt.serve import Failure

TABLE = Path(__file__).with_name("failures.toml")
SMALLER = "a smaller quantization, a shorter --max-model-len, or fewer --max-num-seqs"


@functools.cache
def common(*, of_the_root: bool = False) -> tuple[Failure, ...]:
    """The rows of ``failures.toml`` that are looked for everywhere, or in the root exception alone."""
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8"))["failure"]
    return tuple(
        Failure(pattern=pattern, cause=row["cause"], remedy=row["remedy"])
        for row in rows
        if row.get("of_the_root", False) == of_the_root
        for pattern in row["patterns"]
    )


# Written around the root by processes that only saw another one end.
WRAPPERS = (
    "Engine core initialization failed", "Worker failed with error", "WorkerProc initialization failed", "EngineDeadError",
    "EngineCore encountered an issue", "Engine process failed", "The actor died", "KeyboardInterrupt", "SystemExit",
    "CancelledError", "cancelled", "Shard 0 failed", "ShardCannotStart",
)  # fmt: skip
PROCESS = re.compile(r"^(?:\x1b\[\d*m)*(?:\([^)]*pid=\d+[^)]*\)\s*(?:\x1b\[\d*m)*\s*)*")
LEVEL = re.compile(r"^(?:ERROR|CRITICAL)\s+[\d-]+ [\d:.,]+ \[[^\]]*\]\s*")
EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)\b(?::|$)")
VALIDATION = re.compile(r"\d+ validation errors? for")  # pydantic names the field and the reason on the lines after
# A line that its program calls a warning; what NCCL calls so is what it fails of.
WARNING = re.compile(r"(?i)\b\w*warning:|^.{0,60}?(?<!NCCL )\bwarn(?:ing)?\b|^.{0,40}(?:\[W\]|\d W )")
# What is merely told: beside an exception that nobody knows, it is not why.
TOLD = re.compile(r"^.{0,60}?\b(?:INFO|DEBUG)\b|^(?:\[?[\d:., -]+\]?\s+)?I[\d ]")
KILLED = (-9, 137)
VMSTAT = Path("/proc/vmstat")


def explain(
    own: Sequence[Failure], lines: Sequence[str], *, returncode: int | None = None
) -> tuple[str, str | None] | None:
    """(cause, remedy) of a server that failed; the remedy is ``None`` where only the root's words are known."""
    words = [plain(line) for line in lines]
    root = root_cause(words)
    known = (*own, *common())
    telling = [w for w in words if not WARNING.search(w) and not (root and TOLD.search(w))]
    if found := matching(known, [root] if root else []) or matching(known, telling):
        return found
    if killed := by_the_kernel(returncode, alone=root is None):
        return killed
    if root is None:
        return None
    return matching(common(of_the_root=True), [root]) or (root, None)


def explain_text(text: str) -> tuple[str, str | None] | None:
    """(cause, remedy) of what a client was told, or of one line."""
    return matching((*common(), *common(of_the_root=True)), [text])


def matching(table: Iterable[Failure], lines: Sequence[str]) -> tuple[str, str] | None:
    for known in table:
        for line in lines:
            if match := re.search(known.pattern, line):
                detail = next((group for group in match.groups() if group), "")
                return (f"{known.cause}: {detail}" if detail else known.cause), known.remedy
    return None


def plain(line: str) -> str:
    """A line without what its process and its logger write before it."""
    return LEVEL.sub("", PROCESS.sub("", line)).rstrip()


def root_cause(lines: Sequence[str]) -> str | None:
    """The first exception that is not written around another one, as one line."""
    for number, line in enumerate(lines):
        if EXCEPTION.match(line) and not any(word in line for word in WRAPPERS):
            if VALIDATION.search(line):
                line = " ".join([line, *(more.strip() for more in lines[number + 1 : number + 3])])
            return line[:300]
    return None


# --- ended by the kernel ---------------------------------------------------------------------------------------------


def oom_kills() -> int | None:
    """How many processes the kernel has killed for lack of memory since it booted (Linux 4.13); ``None`` where unknown."""
    try:
        found = re.search(r"^oom_kill (\d+)$", VMSTAT.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


KILLS_BEFORE = oom_kills()


def by_the_kernel(returncode: int | None, *, alone: bool) -> tuple[str, str] | None:
    """A process that SIGKILL ended without our doing, or that lost a part of itself while the kernel was short of memory.

    The kernel counts for the whole machine: of a process that ended otherwise its count tells only where nothing else
    does (``alone``).
    """
    now = oom_kills()
    short = now is not None and KILLS_BEFORE is not None and now > KILLS_BEFORE
    if short and (returncode in KILLED or (alone and returncode not in (None, 0))):
        return "the kernel ran out of memory and killed it or a part of it", SMALLER
    if returncode in KILLED:
        counted = "" if now is None else ", and the kernel counts no kill for lack of memory"
        return f"SIGKILL ended it: not sent from here{counted}", "was it kill -9, or a limit of the container or job?"
    return None


def last_words(lines: Sequence[str]) -> str:
    """The last line that speaks of an error, or the last one at all."""
    said = list(filter(None, map(str.strip, lines)))
    errors = list(complaints(said))
    return (errors or said or ["it said nothing"])[-1][:300]


def complaints(lines: Iterable[str]) -> Iterator[str]:
    return (line for line in lines if re.search(r"(?i)\berror\b|exception", line))
