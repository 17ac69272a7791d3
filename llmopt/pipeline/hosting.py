"""Serve an artifact in the foreground: the command that is measured elsewhere, for people to use."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from llmopt import serve
from llmopt.core import environments
from llmopt.core.domain import Case, ServerCommand
from llmopt.core.environments import Environment
from llmopt.core.errors import LlmoptError, MissingEnvironment, ServerError, UsageError
from llmopt.pipeline.measuring import options_document, version_of, without_secret_arguments
from llmopt.pipeline.reporter import Reporter
from llmopt.serve.logs import log_stem, own_log
from llmopt.serve.process import RunningServer, command_anywhere, free_port, serving
from llmopt.serve.room import require_positions, require_room

FOLLOW_S = 0.2
# An engine's environment on another machine, where its programs are on the PATH.
ELSEWHERE = Environment(python=Path("python3"), prefix=Path("elsewhere"), origin="user")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a server goes: an interpreter's environment, or the engine's container; and its port, ``None``: a free one."""

    python: str | None = None
    port: int | None = None
    container: bool = False
    image: str | None = None

    def environment(self, backend: serve.Backend) -> Environment | None:
        """``None`` for a container. Raises MissingEnvironment."""
        return None if self.container else environments.find(backend.needs, self.python)


@contextlib.contextmanager
def hosted(
    case: Case, place: Place, report: Reporter, *, ready_timeout_s: float | None = None
) -> Iterator[RunningServer]:
    """A ready server; its log stays in llmopt's own folder, among the last few of the same case: errors name it."""
    backend = serve.backend(case.serve.backend)
    environment = place.environment(backend)
    if environment and (doubt := backend.doubt(version_of(backend, environment))):
        report.say(doubt)
    log = own_log(environments.home() / "logs" / f"serve-{log_stem(case.artifact, case.serve)}")
    with contextlib.ExitStack() as stack:
        with report.task(f"starting {backend.name} with {case.artifact.label}"):
            server = stack.enter_context(
                serving(
                    backend, case.artifact, case.serve, environment, log=log,
                    port=place.port, image=place.image, ready_timeout_s=ready_timeout_s,
                )
            )  # fmt: skip
        yield server


def follow(server: RunningServer) -> None:
    """The server's log on standard error until Ctrl-C; raises KeyboardInterrupt, or ServerError when it dies."""
    backend = serve.backend(server.backend)
    with server.process.log.open(errors="replace") as log:
        while server.process.running:
            show(log)
            time.sleep(FOLLOW_S)
        show(log)
        server.require_alive(backend, "served")


def show(log: TextIO) -> None:
    sys.stderr.write(log.read())
    sys.stderr.flush()


def command_document(case: Case, place: Place, warn: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """What would be started, here or elsewhere, without starting it; ``warn`` is told what this machine lacks for it."""
    backend = serve.backend(case.serve.backend)
    try:
        environment = place.environment(backend)
    except MissingEnvironment as error:
        if place.python is not None:
            raise
        environment = ELSEWHERE
        warn(f"{error.message}: programs go by their bare names")
    require_positions(backend, case.artifact, case.serve)
    for reason in lacking_here(backend, case, place, environment):
        warn(f"{reason.message}; {reason.hint}")
    command = command_anywhere(backend, case.artifact, case.serve, environment, place.port, place.image)
    return document_of(case, command)


def lacking_here(
    backend: serve.Backend, case: Case, place: Place, environment: Environment | None
) -> Iterator[LlmoptError]:
    """What keeps a command from being started on this machine, and not on another."""
    with_packages = environment if environment is not ELSEWHERE else None
    for check in (
        lambda: require_room(backend, case.artifact, case.serve),
        lambda: backend.require_packages(case.serve, with_packages) if with_packages else None,
        lambda: free_port(place.port),
    ):
        try:
            check()
        except (UsageError, ServerError) as error:
            yield error


def serving_document(case: Case, server: RunningServer) -> dict[str, Any]:
    return document_of(case, server.command) | {"pid": server.pid, "load_s": round(server.load_s, 2)}


def document_of(case: Case, command: ServerCommand) -> dict[str, Any]:
    backend = serve.backend(case.serve.backend)
    return {
        "backend": backend.name,
        "artifact": case.artifact.path,
        "quantization": case.artifact.quantization.name,
        "options": options_document(case.serve),
        "url": command.base_url,
        "model": command.model,
        "argv": without_secret_arguments(command.argv),
        "environment": command.environment,
        "files": command.files,
        "shell": shell_line(command),
    }


def shell_line(command: ServerCommand) -> str:
    """The command as one line for a shell, with the environment that it is given; its files on lines before it."""
    files = [
        f"mkdir -p {shlex.quote(str(Path(path).parent))} && printf %s {shlex.quote(text)} > {shlex.quote(path)}\n"
        for path, text in command.files.items()
    ]
    words = [f"{name}={shlex.quote(value)}" for name, value in command.environment.items()]
    return "".join(files) + " ".join([*words, shlex.join(without_secret_arguments(command.argv))])
