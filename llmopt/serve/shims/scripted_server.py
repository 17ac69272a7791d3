"""The fake engine: an OpenAI-compatible server whose speed and faults are scripted; standard library only.

Token n of a request is written at ``start + ttft + n × tpot`` by an absolute clock, where start is when one of
``--max-num-seqs`` slots became free.  What is sent is rendered before (scripted_answer.py) and may be difficult
(scripted_traps.py); one loop sends it when it is due (scripted_loop.py); here are the addresses and the options.

An address may hold its own script, as a model's name may: ``/x/ttft=30,itl=5/v1`` is a server of that speed.

``GET /scripted/log`` returns, per streamed request in order of arrival (``?all=1``: per request), the CLOCK_MONOTONIC
stamps of what was really done: the truth that load clients are measured against.  ``DELETE`` empties it.
``GET /scripted/stats`` says how late the writes of that log were, and what they cost; ``GET /metrics`` what an engine
would say of itself (scripted_metrics.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import ssl
import sys
import time
from collections import Counter
from dataclasses import fields
from typing import TYPE_CHECKING, Any

# Run by its path, this is a script beside its parts; imported, a module of the package.
# isort: off
# fmt: off
if TYPE_CHECKING or __package__:
    from llmopt.serve.shims.scripted_answer import Plan, error, reply, reply_text
    from llmopt.serve.shims.scripted_ask import SCRIPT_PARSERS, Ask, Script, ScriptError, make_ask, split_model, split_path
    from llmopt.serve.shims.scripted_http import Message
    from llmopt.serve.shims.scripted_loop import Loop, Request, be_precise
    from llmopt.serve.shims.scripted_metrics import Metrics
    from llmopt.serve.shims.scripted_traps import TRAPS, plan, script_of
else:
    from scripted_answer import Plan, error, reply, reply_text
    from scripted_ask import SCRIPT_PARSERS, Ask, Script, ScriptError, make_ask, split_model, split_path
    from scripted_http import Message
    from scripted_loop import Loop, Request, be_precise
    from scripted_metrics import Metrics
    from scripted_traps import TRAPS, plan, script_of
# fmt: on
# isort: on

FAULT_TRAPS = {"cut": "cut-clean", "error": "server-error"}
MODELS = {
    "object": "list",
    "data": [{"id": name, "object": "model", "owned_by": "llmopt"} for name in ("scripted", "truth")],
}


class Service:
    """What is answered, and the log of it."""

    def __init__(self, options: argparse.Namespace, settings: dict[str, Any]) -> None:
        self.options, self.settings = options, settings
        self.log: list[Request] = []
        self.metrics = Metrics(kv_capacity_tokens=options.kv_capacity_tokens, late_s=options.metrics_late_ms / 1e3)
        self.asked: Counter[str] = Counter()  # streams by exact model, where a trap holds for the first ones only

    def answer(self, request: Request, message: Message) -> Plan:
        """The plan for any request."""
        path, _, query = message.target.partition("?")
        if path.startswith("/scripted/"):
            return self.plan_about_itself(message.method, path, query)
        if path.endswith("/health"):
            return reply("200 OK", {"status": "ok"})
        if path == "/metrics":
            return reply_text(self.metrics.page(query))
        key = self.options.api_key
        allowed = not key or message.headers.get("authorization") == f"Bearer {key}"
        if path.endswith("/models") and message.method == "GET":
            return reply("200 OK", MODELS) if allowed else reply("401 Unauthorized", error("wrong API key", 401))
        if not path.endswith("/completions") or message.method != "POST":
            return reply("404 Not Found", error(f"no such path: {message.method} {path}", 404))
        self.log.append(request)
        self.metrics.follow(request)
        try:
            body = json.loads(message.body)
            request.model, request.stream = str(body.get("model", "scripted")), bool(body.get("stream"))
            if not allowed:
                return reply("401 Unauthorized", error("wrong API key", 401))
            ask = self.ask(request, body, path=path, close=message.wants_close)
            return plan(ask) if ask else reply("404 Not Found", missing(request.model))
        except (ScriptError, ValueError, TypeError, AttributeError) as problem:
            return reply("400 Bad Request", error(str(problem), 400))

    def plan_about_itself(self, method: str, path: str, query: str) -> Plan:
        if path == "/scripted/stats":
            return reply("200 OK", self.stats())
        if path != "/scripted/log":
            return reply("404 Not Found", error(f"no such path: {path}", 404))
        wanted = [request.truth() for request in self.log if request.stream or "all=1" in query]
        if method == "DELETE" or "clear=1" in query:
            self.log.clear()
        return reply("200 OK", wanted if method != "DELETE" else {"cleared": len(wanted)})

    def stats(self) -> dict[str, Any]:
        """Of the requests in the log; ``write_lag_*`` is from due to written, over the writes that carry tokens."""
        lags = sorted(lag for request in self.log for lag in request.lags_ns())
        at = {"p50": len(lags) // 2, "p99": int(len(lags) * 0.99), "max": len(lags) - 1}
        return {
            "requests": len(self.log),
            "chunks": len(lags),
            "joined_chunks": sum(request.joined for request in self.log),
            "blocked_chunks": sum(request.blocked for request in self.log),
            "cpu_s": time.process_time(),
            **{f"write_lag_{name}_ns": lags[index] if lags else None for name, index in at.items()},
        }

    def ask(self, request: Request, body: dict[str, Any], *, path: str, close: bool) -> Ask | None:
        """What the body of a completion request asks for; None for a model that is not here."""
        name, settings = split_model(request.model)
        if self.options.only_model not in (None, name):
            return None
        script = self.script(request, split_path(path) | settings)
        request.trap = script.trap if request.stream else "none"
        return make_ask(body, script, chat=path.endswith("/chat/completions"), close=close)

    def script(self, request: Request, settings: dict[str, Any]) -> Script:
        """The script of this request: without its trap when that has held ``times`` times for this model."""
        script = script_of(self.settings, settings)
        if request.stream and script.times is not None:
            self.asked[request.model] += 1
            if self.asked[request.model] > script.times:
                return script_of(self.settings, settings | {"trap": "none"})
        return script


def missing(model: str) -> dict[str, Any]:
    return error(f"The model `{model}` does not exist.", "model_not_found")


def listen(options: argparse.Namespace) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.create_server((options.host, options.port), family=family, backlog=4096)
    listener.setblocking(False)
    return listener


def tls_context(options: argparse.Namespace) -> ssl.SSLContext | None:
    if options.tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*options.tls)
    return context


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options of the process, and those settings of the script that were given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int)
    parser.add_argument("--max-num-seqs", type=int, default=64, help="slots; further requests wait in order")
    parser.add_argument("--api-key", help="refuse requests without this Bearer key")
    parser.add_argument("--only-model", help="refuse every other model")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    parser.add_argument("--kv-capacity-tokens", type=int, default=1 << 16, help="that /metrics counts the use of")
    parser.add_argument("--metrics-late-ms", type=float, default=0, help="added to each TTFT that /metrics tells")
    parser.add_argument("--slow-start-s", type=float, default=0, help="listen only after this time")
    parser.add_argument("--fault", choices=["die", "hang", "cut", "error"])
    parser.add_argument("--list-traps", action="store_true", help="print the traps as JSON and leave")
    script = parser.add_argument_group("script, also per request behind the model's name: scripted?ttft_ms=50")
    for one in fields(Script):
        flag, about = "--" + one.name.replace("_", "-"), f"{one.metadata['help']} (default: {one.default})"
        if one.type == "bool":
            script.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=about)
        else:
            script.add_argument(flag, type=SCRIPT_PARSERS[one.name], default=argparse.SUPPRESS, help=about)
    script.add_argument(
        "--no-usage-per-chunk", dest="usage", action="store_const", const="last", default=argparse.SUPPRESS
    )
    options = parser.parse_args(arguments)
    if options.port is None and not options.list_traps:
        parser.error("the following arguments are required: --port")
    settings = {name: value for name, value in vars(options).items() if name in SCRIPT_PARSERS}
    if options.fault in FAULT_TRAPS:
        settings["trap"] = FAULT_TRAPS[options.fault]
    try:
        script_of(settings, {})
    except ScriptError as problem:
        parser.error(str(problem))
    return options, settings


def main() -> None:
    options, settings = parse()
    if options.list_traps:
        print(json.dumps({name: trap.about for name, trap in TRAPS.items()}, indent=1))
        return
    if options.fault == "die":
        sys.exit("scripted death: as asked")
    if options.fault == "hang":
        time.sleep(3600)
    time.sleep(options.slow_start_s)
    service = Service(options, settings)
    loop = Loop(listen(options), service.answer, slots=options.max_num_seqs, tls=tls_context(options))
    be_precise()
    with contextlib.suppress(KeyboardInterrupt):
        loop.run()


if __name__ == "__main__":
    main()
