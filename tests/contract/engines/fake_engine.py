"""What the fakes share: a scripted server with an engine's own paths, headers, model list and metrics.

Each fake parses its arguments by the spellings of the real engine, which refuses others, prints the lines that the real
one prints while it loads (``tests/logs/described``), and then answers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmopt.serve.shims import scripted_server
from llmopt.serve.shims.scripted_answer import Plan, reply
from llmopt.serve.shims.scripted_http import Message
from llmopt.serve.shims.scripted_loop import Loop, Request, be_precise

PARSE_ONLY = "FAKE_ENGINE_PARSES_ONLY"
RECORDED = Path(__file__).parents[2] / "logs" / "described"


@dataclass(frozen=True, kw_only=True)
class Face:
    """How an engine shows itself: GET path → JSON, ``None`` for an empty answer, or the name of a recorded text."""

    name: str
    owned_by: str
    pages: dict[str, Any]
    server: str = "uvicorn"


class FakeEngine(scripted_server.Service):
    def __init__(self, face: Face, model: str, options: argparse.Namespace, settings: dict[str, Any]) -> None:
        super().__init__(options, settings)
        self.face, self.model = face, model

    def answer(self, request: Request, message: Message) -> Plan:
        path = message.target.partition("?")[0]
        if message.method != "GET":
            return super().answer(request, message)
        if path == "/v1/models":
            models = [{"id": self.model, "object": "model", "owned_by": self.face.owned_by}]
            return self.page(json.dumps({"object": "list", "data": models}), "application/json")
        if path not in self.face.pages:
            return self.page('{"detail":"Not Found"}', "application/json", "404 Not Found")
        page = self.face.pages[path]
        if isinstance(page, str):
            return self.page((RECORDED / page).read_text(), "text/plain; version=0.0.4; charset=utf-8")
        return self.page("" if page is None else json.dumps(page), "application/json")

    def page(self, text: str, kind: str, status: str = "200 OK") -> Plan:
        body = text.encode()
        server = f"server: {self.face.server}\r\n" if self.face.server else ""
        head = f"HTTP/1.1 {status}\r\n{server}content-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        return replace(reply(status, {}), data=[head.encode() + body], offsets_ns=[0], tokens=[0])


def run(face: Face, *, host: str, port: int, model: str, slots: int) -> None:
    """Print what the engine prints, then answer until a signal comes; or say that the arguments are good, where asked to."""
    if os.environ.get(PARSE_ONLY):
        print("parsed")
        return
    recorded = RECORDED / f"{face.name}.log"
    print(recorded.read_text() if recorded.exists() else "", end="", flush=True)
    words = ["--host", host, "--port", str(port), "--max-num-seqs", str(slots), "--ttft-ms", "10"]
    options, settings = scripted_server.parse(words)
    service = FakeEngine(face, model, options, settings)
    loop = Loop(scripted_server.listen(options), service.answer, slots=slots)
    be_precise()
    loop.run()


def refuse(message: str, status: int = 1) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)
