"""Run a function in another environment: JSON in and out through files, one clear error when it dies."""

from __future__ import annotations

import json
import re
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmopt.core import errors
from llmopt.core.environments import Environment
from llmopt.core.errors import LlmoptError, WorkerError
from llmopt.core.files import disk_errors, write_atomic
from llmopt.core.machine import available_cores
from llmopt.core.process import KeptProcess

RUNNER = Path(__file__).with_name("runner.py")
POLL_S = 0.1
JOB_TIMEOUT_S = 6 * 3600.0
TRACEBACK = "Traceback (most recent call last):"
CAUSE = re.compile(r"\b(error|failed|assert\w*|abort\w*|exception|terminate|out of memory|cannot|requires)\b", re.I)
FROM_OUTSIDE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STEP = re.compile(rb"\((\d+)/(\d+)\):([^\r\n]*)")
# Spinning OpenMP threads of two processes on shared cores cost a factor of ten; nothing here may reach a hub.
QUIET_ENGINES = {
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What a job returned, and what it took."""

    value: Any
    seconds: float
    peak_memory_bytes: int


def threads_environment(threads: int | None = None) -> dict[str, str]:
    """Thread counts of the numeric libraries, set and so recorded; default: all cores this process may use."""
    count = str(threads or available_cores())
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)


def run_job(
    environment: Environment,
    function: str,
    arguments: dict[str, Any],
    *,
    log: Path,
    timeout_s: float = JOB_TIMEOUT_S,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> JobResult:
    """Call ``function`` ("module:name" inside llmopt) in ``environment``.

    ``progress`` gets (done, total, what) while it runs, out of the ``(3/9): what`` that the job, or its library, prints.

    Raises the error that the function raised where it is one of ours, else WorkerError.
    """
    with Worker(environment, log=log) as worker:
        return worker.run(function, arguments, timeout_s=timeout_s, progress=progress)


class Worker:
    """A process of an environment that does one job; started early, it does ``first`` while the job is not known yet.

    ``first`` is (function, arguments): imports that take seconds.  What it raises the job will meet and tell of.
    """

    def __init__(self, environment: Environment, *, log: Path, first: tuple[str, dict[str, Any]] | None = None) -> None:
        self.log = log
        self._folder = tempfile.TemporaryDirectory(prefix="llmopt-job-")
        argv = [str(environment.python), str(RUNNER), self._folder.name]
        try:
            if first is not None:
                self._write("first.json", *first)
            with disk_errors(log):
                log.unlink(missing_ok=True)
            self._process = KeptProcess(
                argv, log=log, environment=QUIET_ENGINES | threads_environment(), folders=(self._folder.name,)
            )
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.stop()
        self._folder.cleanup()

    @property
    def waiting(self) -> bool:
        """Whether it can still take its job."""
        return self._process.running

    def run(
        self,
        function: str,
        arguments: dict[str, Any],
        *,
        timeout_s: float = JOB_TIMEOUT_S,
        progress: Callable[[int, int, str], None] = lambda done, total, what: None,
    ) -> JobResult:
        """The one job; see ``run_job``."""
        self._write("input.json", function, arguments)
        waited = 0.0
        while self._process.wait(POLL_S) is None:
            waited += POLL_S
            if (step := last_step(self.log)) is not None:
                progress(*step)
            if waited > timeout_s:
                raise WorkerError(f"{function} did not end within {timeout_s:.0f} s", hint=f"its output: {self.log}")
        output = Path(self._folder.name, "output.json")
        if not output.exists():
            raise WorkerError(death(self._process, function), hint=f"its output: {self.log}")
        answer = json.loads(output.read_text())
        if "error" in answer:
            cause = root_cause(self._process.log_tail(200)) if answer.get("cause_in_log") else None
            kind = getattr(errors, answer["kind"], WorkerError)
            kind = kind if issubclass(kind, LlmoptError) else WorkerError
            raise kind(
                answer["error"] + (f": {cause}" if cause else ""), hint=answer["hint"] or f"its output: {self.log}"
            )
        return JobResult(
            value=answer["result"], seconds=answer["seconds"], peak_memory_bytes=answer["peak_memory_bytes"]
        )

    def _write(self, name: str, function: str, arguments: dict[str, Any]) -> None:
        """Whole or not at all: the process is waiting for it."""
        write_atomic(Path(self._folder.name, name), json.dumps({"function": function, "arguments": arguments}).encode())


def last_step(log: Path) -> tuple[int, int, str] | None:
    """The last ``(done/total): what`` in a job's output."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            found = STEP.findall(file.read())
    except OSError:
        return None
    if not found:
        return None
    done, total, what = found[-1]
    return int(done), int(total), what.decode(errors="replace").strip()[:80]


def death(process: KeptProcess, function: str) -> str:
    """One line for a worker that left no answer: what ended it, and the library's own last words about it."""
    status = process.returncode or 0
    if status == -signal.SIGKILL:
        return f"{function} was killed (SIGKILL), most likely because memory ran out"
    if -status in FROM_OUTSIDE:  # what stands in its log before is not why
        return f"{function} was ended from outside ({signal.Signals(-status).name})"
    cause = root_cause(process.log_tail(200))
    if status < 0:
        return f"{function} crashed ({signal.Signals(-status).name})" + (f": {cause}" if cause else "")
    last = next((line for line in reversed(process.log_tail()) if line.strip()), "no output")
    return f"{function} ended with status {status}: {cause or last.strip()}"


def root_cause(lines: Sequence[str]) -> str | None:
    """The last line of an output that speaks of an error, shortened; ``None`` when none does.

    Our own traceback, which ends the output of a job that raised, says nothing new.
    """
    if TRACEBACK in lines:
        lines = lines[: lines.index(TRACEBACK)]
    found = (line.strip() for line in reversed(lines) if CAUSE.search(line) and not STEP.search(line.encode()))
    return next((line[:200] for line in found), None)
