"""The fake engine: an OpenAI-compatible server whose speed and faults are scripted; standard library only.

Token n of a request is written at ``start + ttft + n × tpot`` by an absolute clock, where start is when one of
``--max-num-seqs`` slots became free.  What is sent is rendered before (scripted_answer.py) and may be difficult
(scripted_traps.py); here one loop over raw sockets and a heap of due times does nothing but wait, stamp and send.

``GET /scripted/log`` returns, per streamed request in order of arrival (``?all=1``: per request), the CLOCK_MONOTONIC
stamps of what was really done: the truth that load clients are measured against.  ``DELETE`` empties it.
``GET /scripted/stats`` says how late the writes of that log were, and what they cost.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import heapq
import json
import resource
import select
import socket
import ssl
import struct
import sys
import time
from array import array
from collections import Counter, deque
from dataclasses import fields
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from llmopt.serve.shims.scripted_answer import (
        SCRIPT_PARSERS, Plan, Script, ScriptError, error, make_ask, reply, split_model,
    )  # fmt: skip
    from llmopt.serve.shims.scripted_http import Message, MessageError, read_message
    from llmopt.serve.shims.scripted_traps import TRAPS, plan, script_of
else:
    from scripted_answer import SCRIPT_PARSERS, Plan, Script, ScriptError, error, make_ask, reply, split_model
    from scripted_http import Message, MessageError, read_message
    from scripted_traps import TRAPS, plan, script_of

BLOCKED = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
READ_BYTES = 1 << 18
WRITES_PER_LOOK = 16  # then the sockets are looked at, however late the writes are
READS_PER_LOOK = 4  # a request costs 50 µs: no burst of them may hold up the writes
FAULT_TRAPS = {"cut": "cut-clean", "error": "server-error"}
MODELS = {
    "object": "list",
    "data": [{"id": name, "object": "model", "owned_by": "llmopt"} for name in ("scripted", "truth")],
}


class Request:
    """One request and what became of it."""

    __slots__ = (
        "base_ns", "blocked", "connection", "ended", "finished_ns", "joined", "model", "number",
        "plan", "position", "received_ns", "request_id", "send", "stamps_ns", "start_ns", "stream", "trap",
    )  # fmt: skip

    def __init__(self, number: int, connection: Connection, message: Message) -> None:
        self.number, self.connection, self.send = number, connection, connection.socket.send
        self.request_id, self.received_ns = message.headers.get("x-request-id"), message.received_ns
        self.plan: Plan
        self.model, self.stream, self.trap = "", False, "none"
        self.start_ns: int | None = None
        self.finished_ns: int | None = None
        self.ended: str | None = None
        self.base_ns = self.position = self.blocked = self.joined = 0
        self.stamps_ns = array("q")

    def lags_ns(self) -> list[int]:
        start_ns = self.start_ns or 0
        return [at - start_ns - self.plan.token_due_ns(n) for n, at in enumerate(self.stamps_ns)]

    def truth(self) -> dict[str, Any]:
        counts = self.plan.token_counts
        chunk_tokens = [counts[n % len(counts)] for n in range(len(self.stamps_ns))]
        due_ns = self.start_ns + self.plan.token_due_ns(0) if self.start_ns and counts else None
        return {
            "request_id": self.request_id,
            "model": self.model,
            "stream": self.stream,
            "trap": self.trap,
            "connection": self.connection.number,
            "prompt_tokens": self.plan.prompt_tokens,
            "received_ns": self.received_ns,
            "start_ns": self.start_ns,
            "first_token_due_ns": due_ns,
            "token_ns": self.stamps_ns.tolist(),
            "chunk_tokens": chunk_tokens,
            "tokens": sum(chunk_tokens),
            "max_write_lag_ns": max(self.lags_ns(), default=None),
            "joined_chunks": self.joined,  # sent together because they were more than a token late
            "blocked_chunks": self.blocked,  # stamped when they were due, sent when the client had read
            "ended": self.ended,
            "finished_ns": self.finished_ns,
        }


class Connection:
    """One socket with its two buffers, the request that is answered and those behind it."""

    __slots__ = ("answered", "closing", "inbuf", "number", "outbuf", "pending", "socket")

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number, self.socket = number, sock
        self.inbuf, self.outbuf = bytearray(), bytearray()
        self.answered: Request | None = None
        self.pending: deque[Request] = deque()
        self.closing = False


class Server:
    def __init__(self, options: argparse.Namespace, settings: dict[str, Any]) -> None:
        self.options, self.settings = options, settings
        self.free = options.max_num_seqs
        self.heap: list[tuple[int, int, Request]] = []
        self.queue: deque[Request] = deque()
        self.log: list[Request] = []
        self.models: Counter[str] = Counter()
        self.numbers, self.connections_made = count(), count()
        self.connections: dict[int, Connection] = {}
        self.epoll = select.epoll()
        self.listener = listen(options)
        self.tls = tls_context(options)
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)

    # The loop

    def run(self) -> None:
        while True:
            self.write_what_is_due()
            wait_s = (self.heap[0][0] - time.monotonic_ns()) / 1e9 if self.heap else None
            if wait_s is None or wait_s > 0:  # epoll waits whole milliseconds, select on it microseconds
                ready, _, _ = select.select([self.epoll], [], [], wait_s)
                if not ready:
                    continue
            for descriptor, events in self.epoll.poll(0, READS_PER_LOOK):
                self.look(descriptor, events)

    def write_what_is_due(self) -> None:
        """The hot path: at most WRITES_PER_LOOK sends, in the order of their due times."""
        heap, clock = self.heap, time.monotonic_ns
        for _ in range(WRITES_PER_LOOK):
            if not heap:
                return
            due_ns, number, request = heap[0]
            if request.ended is not None:
                heapq.heappop(heap)
                continue
            now_ns = clock()
            if now_ns < due_ns:
                return
            plan, position = request.plan, request.position
            data = plan.data[position]
            if now_ns - due_ns >= plan.late_ns:
                data = self.catch_up(request, now_ns)
                position = request.position
            elif plan.tokens[position]:
                request.stamps_ns.append(now_ns)
            if request.connection.outbuf:
                self.keep(request, data)
            else:
                try:
                    sent = request.send(data)
                except BLOCKED:
                    self.keep(request, data)
                except OSError:
                    self.gone(request.connection)
                    continue
                else:
                    if sent != len(data):
                        self.keep(request, data[sent:])
            request.position = position = position + 1
            if position < len(plan.offsets_ns):
                heapq.heapreplace(heap, (request.base_ns + plan.offsets_ns[position], number, request))
            elif plan.loop_from is not None:
                request.position, request.base_ns = plan.loop_from, request.base_ns + plan.period_ns
                heapq.heapreplace(heap, (request.base_ns + plan.offsets_ns[plan.loop_from], number, request))
            else:
                heapq.heappop(heap)
                self.finish(request)

    def catch_up(self, request: Request, now_ns: int) -> bytes:
        """More than one token late: all that is due by now, in one send."""
        plan, first = request.plan, request.position
        last = first
        while last + 1 < len(plan.data) and request.base_ns + plan.offsets_ns[last + 1] <= now_ns:
            last += 1
        carrying = sum(1 for tokens in plan.tokens[first : last + 1] if tokens)
        request.stamps_ns.extend([now_ns] * carrying)
        request.joined += carrying if carrying > 1 else 0
        request.position = last
        return b"".join(plan.data[first : last + 1])

    def look(self, descriptor: int, events: int) -> None:
        if descriptor == self.listener.fileno():
            self.accept()
        elif connection := self.connections.get(descriptor):
            if events & select.EPOLLOUT:
                self.flush(connection)
            if events & ~select.EPOLLOUT:
                self.read(connection)

    # Sockets

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self.listener.accept()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls:
                sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            self.connections[sock.fileno()] = Connection(next(self.connections_made), sock)
            self.epoll.register(sock.fileno(), select.EPOLLIN)

    def read(self, connection: Connection) -> None:
        """Take what has come, and every request that is now complete."""
        if connection.closing:
            return self.gone(connection)
        try:
            data = connection.socket.recv(READ_BYTES)
            received_ns = time.monotonic_ns()
        except BLOCKED:
            return None
        except OSError:
            data = b""
        if not data:
            return self.gone(connection)
        connection.inbuf += data
        try:
            while message := read_message(connection.inbuf, received_ns):
                if message.wants_continue:
                    connection.socket.send(b"HTTP/1.1 100 Continue\r\n\r\n")
                    break
                connection.pending.append(self.request(connection, message))
        except MessageError as problem:
            connection.pending.append(self.refuse_bytes(connection, received_ns, str(problem)))
        self.answer_next(connection)
        if (
            isinstance(connection.socket, ssl.SSLSocket)
            and connection.socket.fileno() >= 0
            and connection.socket.pending()
        ):
            self.read(connection)
        return None

    def keep(self, request: Request, data: bytes) -> None:
        """The client reads too slowly: the rest goes when its socket can take it."""
        connection = request.connection
        if not connection.outbuf:
            self.epoll.modify(connection.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)
        connection.outbuf += data
        request.blocked += 1

    def flush(self, connection: Connection) -> None:
        try:
            del connection.outbuf[: connection.socket.send(connection.outbuf)]
        except BLOCKED:
            return
        except OSError:
            return self.gone(connection)
        if not connection.outbuf:
            self.epoll.modify(connection.socket.fileno(), select.EPOLLIN)
            if connection.closing:
                self.gone(connection)

    def gone(self, connection: Connection) -> None:
        """The connection is over; whatever it still had to be told was told to nobody."""
        self.connections.pop(connection.socket.fileno(), None)
        connection.socket.close()
        for request in (connection.answered, *connection.pending):
            if request is not None:
                self.end(request, "client_gone")

    # Requests

    def answer_next(self, connection: Connection) -> None:
        if connection.answered is None and connection.pending and not connection.closing:
            request = connection.answered = connection.pending.popleft()
            if not request.plan.needs_slot:
                self.start(request)
            else:
                self.queue.append(request)
                self.fill_slots()

    def fill_slots(self) -> None:
        while self.free and self.queue:
            request = self.queue.popleft()
            if request.ended is None:
                self.free -= 1
                self.start(request)

    def start(self, request: Request) -> None:
        request.start_ns = request.base_ns = time.monotonic_ns()
        heapq.heappush(self.heap, (request.base_ns + request.plan.offsets_ns[0], request.number, request))

    def finish(self, request: Request) -> None:
        """All is written: what happens to the connection is the last part of the script."""
        plan, connection = request.plan, request.connection
        if plan.then == "hang":
            return
        connection.answered = None
        self.end(request, plan.ended)
        if plan.then == "reset":
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.gone(connection)
        elif plan.then == "close":
            connection.closing = True
            if not connection.outbuf:
                self.gone(connection)
        else:
            self.answer_next(connection)

    def end(self, request: Request, how: str) -> None:
        if request.ended is not None:
            return
        request.ended, request.finished_ns = how, time.monotonic_ns()
        if request.start_ns is not None and request.plan.needs_slot:
            self.free += 1
            self.fill_slots()

    # What is answered

    def request(self, connection: Connection, message: Message) -> Request:
        request = Request(next(self.numbers), connection, message)
        request.plan = self.plan(request, message)
        return request

    def refuse_bytes(self, connection: Connection, received_ns: int, words: str) -> Request:
        message = Message(method="", target="", headers={}, body=b"", received_ns=received_ns)
        request = Request(next(self.numbers), connection, message)
        request.plan = reply("400 Bad Request", error(words, 400), close=True)
        return request

    def plan(self, request: Request, message: Message) -> Plan:
        path, _, query = message.target.partition("?")
        if path.startswith("/scripted/"):
            return self.plan_about_itself(message.method, path, query)
        if path.endswith("/health"):
            return reply("200 OK", {"status": "ok"})
        key = self.options.api_key
        allowed = not key or message.headers.get("authorization") == f"Bearer {key}"
        if path.endswith("/models") and message.method == "GET":
            return reply("200 OK", MODELS) if allowed else reply("401 Unauthorized", error("wrong API key", 401))
        if not path.endswith("/completions") or message.method != "POST":
            return reply("404 Not Found", error(f"no such path: {message.method} {path}", 404))
        self.log.append(request)
        if not allowed:
            return reply("401 Unauthorized", error("wrong API key", 401))
        try:
            return self.plan_completion(request, message, chat=path.endswith("/chat/completions"))
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

    def plan_completion(self, request: Request, message: Message, *, chat: bool) -> Plan:
        body = json.loads(message.body)
        request.model, request.stream = str(body.get("model", "scripted")), bool(body.get("stream"))
        name, settings = split_model(request.model)
        if self.options.only_model not in (None, name):
            missing = error(f"The model `{request.model}` does not exist.", "model_not_found")
            return reply("404 Not Found", missing)
        script = self.script(request, settings)
        request.trap = script.trap if request.stream else "none"
        return plan(make_ask(body, script, chat=chat, close=message.wants_close))

    def script(self, request: Request, settings: dict[str, Any]) -> Script:
        """The script of this request: without its trap when that has held ``times`` times for this model."""
        script = script_of(self.settings, settings)
        if request.stream and script.times is not None:
            self.models[request.model] += 1
            if self.models[request.model] > script.times:
                return script_of(self.settings, settings | {"trap": "none"})
        return script


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


def be_precise() -> None:
    """No pause for garbage, timers that wake at once, and a socket for every stream."""
    gc.collect()
    gc.freeze()
    gc.disable()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK, 1 ns: the kernel's own is 50 µs


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options of the process, and those settings of the script that were given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int)
    parser.add_argument("--max-num-seqs", type=int, default=64, help="slots; further requests wait in order")
    parser.add_argument("--api-key", help="refuse requests without this Bearer key")
    parser.add_argument("--only-model", help="refuse every other model")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
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
    server = Server(options, settings)
    be_precise()
    with contextlib.suppress(KeyboardInterrupt):
        server.run()


if __name__ == "__main__":
    main()
