"""One measured engine in each replica of Ray Serve, as a child process in the words that it was measured with.

Requests are passed on as they are, and answers chunk by chunk.  Everything that belongs to this engine comes from
``serve_config.yaml``; ``keeper.py`` beside this file stands between: it ends the engine with all of its processes when the
replica ends in any way, a SIGKILL included.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

KEEPER = Path(__file__).with_name("keeper.py")
# Of one connection, and not of the message: each side has its own (RFC 9110, section 7.6.1).
OF_THE_CONNECTION = {
    "connection", "content-length", "host", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
    "transfer-encoding", "upgrade",
}  # fmt: skip
LINES_TOLD = 20  # of the engine's log, when it does not start


def application(settings: dict[str, Any]) -> serve.Application:
    return Engine.bind(settings)


@serve.deployment
class Engine:
    """``settings``: the engine's words, its files and how long it may take, as in ``serve_config.yaml``.

    A word is text, or a pair of texts with the replica's port between them.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.port = free_port()
        self.log = Path(tempfile.mkdtemp(prefix="llmopt-engine-")) / "engine.log"
        self.files = [self.word(path) for path, _ in settings["files"]]
        for path, (_, text) in zip(self.files, settings["files"], strict=True):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(self.word(text), encoding="utf-8")
        self.keeper = self.start()
        self.serving = False
        threading.Thread(target=self.hear, daemon=True).start()
        self.session: aiohttp.ClientSession | None = None
        self.wait_until_it_answers()
        self.serving = True

    def word(self, pieces: str | list[str]) -> str:
        return pieces if isinstance(pieces, str) else str(self.port).join(pieces)

    def start(self) -> subprocess.Popen[bytes]:
        grace = {
            "grace_s": self.settings["grace_s"],
            "own_temporary": True,
            "cleanup": [],
            "files": self.files,
            "folders": [str(self.log.parent)],
        }
        argv = [self.word(pieces) for pieces in self.settings["command"]]
        own = {name: self.word(pieces) for name, pieces in self.settings["environment"].items()}
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(KEEPER), str(self.log), json.dumps(grace), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | own,
            start_new_session=True,
        )

    def hear(self) -> None:
        """End with the engine: a replica without one would answer errors faster than any other answers, and draw all requests.

        Ray Serve asks for health every few seconds, three times; that a replica is gone it sees at once.
        """
        assert self.keeper.stdout is not None
        for _ in self.keeper.stdout:
            pass
        if self.serving:
            print(f"the engine ended; the end of its log:\n{self.last_lines()}", file=sys.stderr, flush=True)
            os._exit(1)

    def wait_until_it_answers(self) -> None:
        """A real completion: a server may say that it is well long before it can do anything. Raises RuntimeError."""
        body = {"model": self.settings["model"], "prompt": "Hello", "max_tokens": 1, "temperature": 0}
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        end = time.monotonic() + self.settings["ready_timeout_s"]
        while self.keeper.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError, KeyError):
                if json.load(direct.open(asked, timeout=self.settings["ready_timeout_s"]))["choices"]:
                    return
            time.sleep(0.2)
        what = "did not answer in time" if self.keeper.poll() is None else "ended"
        self.stop()
        raise RuntimeError(f"the engine {what}; the end of its log:\n{self.last_lines()}")

    def last_lines(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-LINES_TOLD:])
        return ""

    def stop(self) -> None:
        self.serving = False
        if self.keeper.stdin is not None:
            with contextlib.suppress(OSError):
                self.keeper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.keeper.wait(self.settings["grace_s"] + 5)

    def __del__(self) -> None:  # Ray Serve calls it when a replica is shut down
        if hasattr(self, "keeper"):
            self.stop()

    def client(self) -> aiohttp.ClientSession:
        """Made in the loop that uses it; no limit of its own, bytes as they come, no proxy of the environment.

        A connection for each request: one that is kept may be closed by the engine in the moment in which it is used again.
        """
        if self.session is None:
            self.session = aiohttp.ClientSession(
                f"http://127.0.0.1:{self.port}",
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_read=self.settings["silence_s"]),
                auto_decompress=False,
            )
        return self.session

    async def check_health(self) -> None:
        """Raises what it finds, of an engine that hangs; Ray Serve then puts another replica in the place of this one."""
        async with self.client().get(self.settings["health_path"]) as answer:
            answer.raise_for_status()

    async def __call__(self, request: Request) -> Response:
        path = request.url.path
        if not path.startswith("/v1/"):
            return JSONResponse({"error": {"message": f"there is nothing at {path}"}}, status_code=404)
        target = f"{path}?{request.url.query}" if request.url.query else path
        try:
            answer = await self.client().request(
                request.method, target, data=await request.body(), headers=passed_on(request.headers.items())
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            return JSONResponse({"error": {"message": f"the engine did not answer: {error}"}}, status_code=502)
        return StreamingResponse(
            chunks(answer), status_code=answer.status, headers=dict(passed_on(answer.headers.items()))
        )


async def chunks(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """As they were read. A client that went away ends this, which closes the engine's side, and the engine stops."""
    try:
        async for chunk in answer.content.iter_any():
            yield chunk
    finally:
        answer.close()


def passed_on(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers if name.lower() not in OF_THE_CONNECTION}


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])
