"""Start a command that can never be orphaned, watch it, and stop its whole tree."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from llmopt.core import keeper, segments
from llmopt.core.errors import LlmoptError
from llmopt.core.files import disk_errors
from llmopt.core.interrupts import Interrupts

KEEPER = Path(keeper.__file__)


class KeptProcess:
    """A command under the keeper (see ``keeper.py``); its output goes to ``log``.

    Use as a context manager: leaving it stops the whole tree.  When this process dies
    in any way, the keeper notices the closed pipe and does the same.  Segments of shared memory that the tree leaves are
    removed; with ``own_temporary`` its temporary folder too.  At the end the keeper runs ``cleanup`` and removes
    ``files``, and ``folders`` where the command was not done; what a keeper that was killed could not do is done by ``stop``.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        grace_s: float = 5.0,
        own_temporary: bool = False,
        cleanup: Sequence[str] = (),
        files: Sequence[str] = (),
        folders: Sequence[str] = (),
    ) -> None:
        with disk_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            log.touch()
        self.log, self.argv, self.grace_s = log, tuple(argv), grace_s
        self.cleanup, self.files = tuple(cleanup), tuple(files)
        self.returncode: int | None = None
        settings = {"grace_s": grace_s, "own_temporary": own_temporary, "cleanup": self.cleanup, "files": self.files}
        settings["folders"] = tuple(folders)
        self._before = set(segments.segments())
        self._keeper = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                str(KEEPER),
                str(log),
                json.dumps(settings),
                *argv,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | dict(environment or {}),
            start_new_session=True,
        )
        word, _, value = self._line().partition(" ")
        if word != "pid":
            self._keeper.wait()
            self._close_pipes()
            raise LlmoptError(
                f"cannot start {argv[0]}: {value or 'the process that watches over it died'}",
                hint="is that interpreter there, and is there memory left?",
            )
        pid, _, self._temporary = value.partition(" ")
        self.pid = int(pid)
        self._segments = dict[str, int]()  # of shared memory: name → inode
        self._ended, self._ended_at = threading.Event(), math.inf
        threading.Thread(target=self._watch, daemon=True).start()

    def _line(self) -> str:
        assert self._keeper.stdout is not None
        return self._keeper.stdout.readline().decode().strip()

    def _watch(self) -> None:
        word, _, value = self._line().partition(" ")
        while word == "segment":
            inode, _, name = value.partition(" ")
            self._segments[name] = int(inode)
            word, _, value = self._line().partition(" ")
        self.returncode = int(value) if word == "exit" and value not in ("", "None") else -9
        self._ended_at = time.time()
        self._ended.set()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The exit status (negative: the signal that ended it), or ``None`` when it still runs after ``timeout_s``."""
        return self.returncode if self._ended.wait(timeout_s) else None

    @property
    def running(self) -> bool:
        return not self._ended.is_set()

    def stop(self) -> None:
        """End the tree: SIGTERM, ``grace_s`` seconds, SIGKILL. Safe to call twice.

        Ctrl-C waits for it, and raises KeyboardInterrupt when nothing is left: else llmopt would end before its engine.
        """
        if self._stopped_through_interrupts():
            raise KeyboardInterrupt

    def _stopped_through_interrupts(self) -> bool:
        """Whether there were any."""
        with Interrupts(f"still stopping, pid {self.pid}") as interrupts:
            interrupts.hold()
            self._stop()
        return interrupts.came

    def _stop(self) -> None:
        if self._keeper.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._keeper.stdin.close()
        if not self._ended.wait(self.grace_s + 5 + (keeper.CLEANUP_S if self.cleanup else 0)):
            self._keeper.kill()
        killed = self._keeper.wait() != 0
        self._ended.wait(1)  # until its last words are read: they may be of segments
        if killed and self._keeper.stdout is not None and not self._keeper.stdout.closed:
            self._end_in_its_place()
        self._close_pipes()

    def _end_in_its_place(self) -> None:
        """What a keeper that was killed left behind."""
        users = keeper.left_behind(self.pid, self._temporary)
        self._segments |= segments.new_segments(self._before | self._segments.keys(), users)
        keeper.end_left_behind(self.pid, self._temporary)
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)
        # The command was killed with it, and with what it had made in the time of one look.
        known = self._before | self._segments.keys()
        self._segments |= segments.late_segments(known, self._ended_at - segments.LOOK_S)
        segments.remove_segments(self._segments)
        keeper.clean_up(self.cleanup, self.files)

    def _close_pipes(self) -> None:
        for pipe in (self._keeper.stdin, self._keeper.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def log_tail(self, lines: int = 40) -> list[str]:
        """The last lines of its output."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace").splitlines()[-lines:]
        return []

    def __enter__(self) -> KeptProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stopped_through_interrupts() and kind is None:
            raise KeyboardInterrupt
