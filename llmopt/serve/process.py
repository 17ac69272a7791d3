"""Start a server, wait until it really answers, and always stop its whole tree."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmopt.core import keeper
from llmopt.core.domain import Artifact, ServeOptions, ServerCommand
from llmopt.core.environments import Environment, home
from llmopt.core.errors import MissingEnvironment, ServerError
from llmopt.core.files import disk_errors
from llmopt.core.hardware import DEVICE_WORDS, devices
from llmopt.core.process import KeptProcess
from llmopt.core.versions import bad_pairs, installed
from llmopt.serve import Backend, LaunchContext, failures
from llmopt.serve.adapters import named_adapters
from llmopt.serve.container import in_container
from llmopt.serve.options import require_known
from llmopt.serve.room import require_room

HOST = "127.0.0.1"
POLL_S = 0.1
MOST_BYTES = 1 << 20
UNEXPLAINED = "its log: "  # how the hint of an error begins whose cause is not known
LOG_LINES = 5000  # a root cause may stand far above the last word of an engine of several processes
# Loopback must not go through a proxy that the environment names.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """A server that has answered; ``load_s`` is from process start to its first answered request."""

    backend: str
    command: ServerCommand
    pid: int
    load_s: float
    process: KeptProcess

    def require_alive(self, backend: Backend, doing: str = "was measured") -> None:
        if not self.process.running:
            raise failure(backend, self.process, f"died while it {doing}")


@contextlib.contextmanager
def serving(
    backend: Backend,
    artifact: Artifact,
    options: ServeOptions,
    environment: Environment | None,
    *,
    log: Path,
    port: int | None = None,
    image: str | None = None,
    ready_timeout_s: float | None = None,
) -> Iterator[RunningServer]:
    """A ready server for the time of the ``with`` block; in the engine's container where ``environment`` is ``None``.

    Raises UsageError for an option that the engine lacks, ServerError with the engine's own reason.
    """
    command = command_of(backend, artifact, options, environment, port, image)
    require_device(backend, in_image=environment is None)
    if environment is None and shutil.which("docker") is None:
        raise MissingEnvironment("docker is not on the PATH", hint="install docker, or leave --container out")
    with disk_errors(log):
        log.unlink(missing_ok=True)
    started = time.monotonic()
    patience_s = command.ready_timeout_s if ready_timeout_s is None else ready_timeout_s
    with (
        prepared(command),
        KeptProcess(
            command.argv, log=log, environment=command.environment,
            own_temporary=True, cleanup=command.cleanup, files=tuple(command.files),
        ) as process,
    ):  # fmt: skip
        try:
            wait_until_ready(backend, command, process, patience_s)
        except ServerError as error:
            raise with_known_pair(error, environment) from None
        load_s = time.monotonic() - started
        yield RunningServer(backend=backend.name, command=command, pid=process.pid, load_s=load_s, process=process)


def with_known_pair(error: ServerError, environment: Environment | None) -> ServerError:
    """The error; where its log does not explain it, behind it versions there that are known not to work together."""
    unexplained = (error.hint or "").startswith(UNEXPLAINED)
    pairs = bad_pairs(installed(environment.site_packages)) if environment and unexplained else []
    for words, pair in pairs:
        return ServerError(error.message, hint=f"{error.hint}; or it is {words} ({pair.problem}): {pair.remedy}")
    return error


def require_device(backend: Backend, *, in_image: bool = False) -> None:
    """Raise ServerError where this machine has nothing that the engine, or its image, runs on."""
    able = backend.container.devices if in_image and backend.container else backend.devices
    if not set(able) & set(devices()):
        wanted = " or ".join(DEVICE_WORDS[device] for device in able)
        native = "leave --container out, or " if in_image and set(backend.devices) & set(devices()) else ""
        raise ServerError(
            f"{backend.name}{' in its image' * in_image} needs {wanted}, and no driver here shows one",
            hint=f"{native}another --backend; --dry-run prints the command for a machine that has one",
        )


@contextlib.contextmanager
def prepared(command: ServerCommand) -> Iterator[None]:
    """The command's own files for the time of the ``with`` block; the keeper removes them too, should we not live to."""
    try:
        for name, text in command.files.items():
            path = Path(name)
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        yield
    finally:
        keeper.clean_up((), command.files)


def command_of(
    backend: Backend,
    artifact: Artifact,
    options: ServeOptions,
    environment: Environment | None,
    port: int | None = None,
    image: str | None = None,
) -> ServerCommand:
    """The engine's own command line on a free port, or on that one. Raises UsageError, ServerError."""
    if environment:
        backend.require_packages(options, environment)
    command = command_anywhere(backend, artifact, options, environment, free_port(port), image)
    require_room(backend, artifact, options)
    return command


def command_anywhere(
    backend: Backend,
    artifact: Artifact,
    options: ServeOptions,
    environment: Environment | None,
    port: int | None = None,
    image: str | None = None,
) -> ServerCommand:
    """The same without a look at the memory, packages and ports of this machine. Raises UsageError."""
    require_known(backend, options)
    named_adapters(options.lora_modules)
    wanted = free_port(None) if port is None else port
    context = LaunchContext(
        artifact=artifact,
        options=options,
        environment=environment,
        host=HOST,
        port=wanted,
        folder=str(home() / keeper.LAUNCH / f"{backend.name}-{wanted}"),
    )
    return backend.command(context) if environment else in_container(backend, context, image)


def free_port(wanted: int | None) -> int:
    """``wanted`` when nobody listens there, or any free port; raises ServerError."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted or 0))
        except (OSError, OverflowError) as error:
            raise ServerError(
                f"port {wanted} is in use or not allowed", hint="leave --port out to take a free one"
            ) from error
        return int(probe.getsockname()[1])


def wait_until_ready(backend: Backend, command: ServerCommand, process: KeptProcess, patience_s: float) -> None:
    """Ready = alive + healthy + one real completion."""
    health = command.base_url.removesuffix("/v1") + command.health_path
    deadline = time.monotonic() + patience_s
    refused = ""
    while time.monotonic() < deadline:
        if not process.running:
            what = "says that it is healthy, and died at its first request" if refused else "died while loading"
            raise failure(backend, process, what)
        if answers(health, min(5.0, deadline - time.monotonic())):
            refused = refusal(command, deadline - time.monotonic())
            if not refused:
                return
        process.wait(POLL_S)
    raise failure(backend, process, f"was not ready after {patience_s:g} s", refused)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer, whatever its status; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def fetch(
    asked: str | urllib.request.Request,
    timeout_s: float,
    opener: urllib.request.OpenerDirector = DIRECT,
    most_bytes: int = MOST_BYTES,
) -> Answer:
    """One answer, its body up to ``most_bytes``, within ``timeout_s`` in all: a socket's own timeout is for each read.

    Raises OSError (TimeoutError) for what does not come or is not HTTP, and ValueError for an address that is none.
    """
    came: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()
    deadline = time.monotonic() + timeout_s

    def read() -> None:
        try:
            came.put(read_answer(opener, asked, deadline, most_bytes))
        except Exception as error:
            came.put(error)

    # A thread that a dripping server holds ends at its next drop, and nobody waits for it.
    threading.Thread(target=read, daemon=True).start()
    try:
        answer = came.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError(f"no whole answer within {timeout_s:g} s") from None
    if isinstance(answer, http.client.HTTPException):
        raise OSError(f"an answer that is not HTTP: {answer!r}")
    if isinstance(answer, Exception):
        raise answer
    return answer


def read_answer(
    opener: urllib.request.OpenerDirector, asked: str | urllib.request.Request, deadline: float, most_bytes: int
) -> Answer:
    try:
        response = opener.open(asked, timeout=max(0.01, deadline - time.monotonic()))
    except urllib.error.HTTPError as error:
        response = error
    with response:
        body = bytearray()
        while len(body) < most_bytes and (piece := response.read1(most_bytes - len(body))):
            body += piece
            if time.monotonic() > deadline:
                raise TimeoutError
        headers = {name.lower(): str(value) for name, value in response.headers.items()}
        return Answer(status=response.status, headers=headers, body=bytes(body))


def answers(url: str, timeout_s: float = 5.0) -> bool:
    try:
        return fetch(url, timeout_s).status == 200
    except (OSError, ValueError):
        return False


def completes(command: ServerCommand, timeout_s: float) -> bool:
    """Whether one real completion comes back whole."""
    return not refusal(command, timeout_s)


def refusal(command: ServerCommand, timeout_s: float) -> str:
    """Why one real completion did not come back whole, in the server's words; empty when it did."""
    body = json.dumps({"model": command.model, "prompt": "Hello", "max_tokens": 2, "temperature": 0}).encode()
    request = urllib.request.Request(f"{command.base_url}/completions", body, {"Content-Type": "application/json"})
    try:
        answer = fetch(request, max(1.0, timeout_s))
        if answer.status != 200:
            return f"HTTP {answer.status}: {answer.body[:500].decode(errors='replace')}"
        return emptiness(json.loads(answer.body))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"


def emptiness(answer: dict[str, Any]) -> str:
    """What a completion lacks; empty when it has a token. Some models end at once: that token has no text."""
    if not answer["choices"]:
        return "an answer without choices"
    tokens = (answer.get("usage") or {}).get("completion_tokens")
    nothing = not answer["choices"][0].get("text") if tokens is None else tokens == 0
    return "an answer without a token" if nothing else ""


def failure(backend: Backend, process: KeptProcess, what: str, refused: str = "") -> ServerError:
    """The engine's root cause out of its log, or what it answered, as one line with its remedy."""
    lines = process.log_tail(LOG_LINES)
    returncode = None if process.running else process.returncode
    found = failures.explain(backend.failures, lines, returncode=returncode)
    if refused and process.running:
        found = failures.explain_text(refused) or found or (f"it answers {refused[:300]}", None)
    cause, remedy = found or (failures.last_words(lines), None)
    hint = f"{remedy}   (log: {process.log})" if remedy else f"{UNEXPLAINED}{process.log}"
    return ServerError(f"{backend.name} {what}: {cause}", hint=hint)
