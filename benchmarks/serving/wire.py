"""When the first token came over the wire, beside when the client says so and what the server says: with and without real-time priority.

    python benchmarks/serving/wire.py [--engine vllm] [--users 1,4] [--runs 3] [--requests 64] [--write]

Needs root, for it listens to the loopback device.  A packet is stamped by the kernel as it passes, whoever reads it later; what
the client has beyond that is its own doing.  Clients of either priority take turns; those of the normal one are started
without the right to ask for another.  ``--write`` puts the table into wire.md.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import statistics
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agreement import EAGER, cell, ms, run_once

from llmopt import demo
from llmopt.core.domain import RequestTrace, ServeOptions, Workload
from llmopt.pipeline.measuring import serving_case
from llmopt.pipeline.plans import open_case
from llmopt.report.progress import Reporter

HERE = Path(__file__).parent
ETH_P_ALL, SO_TIMESTAMPNS, PACKET_OUTGOING, TCP = 0x0003, 35, 4, 6
PR_CAPBSET_DROP, CAP_SYS_NICE = 24, 23
LATE_MS = 1.0  # read so long after it came
COLUMNS = (
    ("users", "users"), ("priority", "priority"), ("requests", "requests"), ("TTFT client ms", "client_ms"),
    ("wire ms", "wire_ms"), ("server ms", "server_ms"), ("apart ms", "apart_ms"), ("allowed ms", "allowed_ms"),
    ("read late", "late"), ("latest ms", "latest_ms"), ("reads of 32 tokens", "reads"),
)  # fmt: skip


@dataclass
class Wire:
    """The packets of one port: (monotonic nanoseconds, client's port, whether to the server, payload)."""

    port: int
    packets: list[tuple[int, int, bool, bytes]] = field(default_factory=list)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self.listen, args=(over,))
        thread.start()
        try:
            yield
        finally:
            time.sleep(0.3)  # for what is on its way
            over.set()
            thread.join()

    def listen(self, over: threading.Event) -> None:
        to_monotonic = time.time_ns() - time.monotonic_ns()
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)) as ear:
            ear.bind(("lo", 0))
            ear.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            ear.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 26)
            ear.settimeout(0.1)
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    data, ancillary, _, address = ear.recvmsg(65_600, 256)
                    if address[2] == PACKET_OUTGOING or data[9] != TCP:  # each packet of this device is seen twice
                        continue
                    self.note(data, ancillary[0][2], to_monotonic)

    def note(self, data: bytes, stamp: bytes, to_monotonic: int) -> None:
        start = (data[0] & 15) * 4
        source, goal = struct.unpack("!HH", data[start : start + 4])
        payload = data[start + (data[start + 12] >> 4) * 4 : struct.unpack("!H", data[2:4])[0]]
        if payload and self.port in (source, goal):
            seconds, nanoseconds = struct.unpack("qq", stamp[:16])
            came = seconds * 10**9 + nanoseconds - to_monotonic
            self.packets.append((came, source if goal == self.port else goal, goal == self.port, payload))

    def first_tokens(self) -> list[tuple[int, int]]:
        """(sent, first token) of each request, in order."""
        open_: dict[int, int] = {}
        found = []
        for came, client, asks, payload in self.packets:
            if asks and payload.startswith(b"POST"):
                open_[client] = came
            elif client in open_ and b'"text":"' in payload:
                found.append((open_.pop(client), came))
        return sorted(found)


@contextlib.contextmanager
def priority(name: str) -> Iterator[None]:
    """Clients that are started meanwhile may ask for real-time priority, or not."""
    real = subprocess.Popen
    if name == "normal":
        prctl = ctypes.CDLL(None).prctl

        class Without(real):  # type: ignore[type-arg, valid-type, misc]
            def __init__(self, argv: Any, **options: Any) -> None:
                own = (
                    {"preexec_fn": lambda: prctl(PR_CAPBSET_DROP, CAP_SYS_NICE)} if "llmopt.bench.shard" in argv else {}
                )
                super().__init__(argv, **options, **own)

        subprocess.Popen = Without  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess.Popen = real  # type: ignore[misc]


def matched(traces: tuple[RequestTrace, ...], wire: list[tuple[int, int]]) -> list[tuple[RequestTrace, int, int]]:
    """Each trace with the request on the wire that was sent when it was."""
    pairs = []
    for trace in traces:
        assert trace.sent_ns is not None
        at = trace.sent_ns
        sent, first = min(wire, key=lambda one: abs(one[0] - at))
        pairs.append((trace, sent, first))
    assert len({sent for _, sent, _ in pairs}) == len(traces), "requests on the wire that cannot be told apart"
    return pairs


def measured(engine: str, users: int, runs: int, requests: int) -> list[dict[str, Any]]:
    workload = Workload(input_tokens=64, output_tokens=32, concurrency=users, requests=requests)
    options = ServeOptions(backend=engine, max_num_seqs=max(4, users), **EAGER.get(engine, {}))
    rows: dict[str, list[dict[str, Any]]] = {"normal": [], "realtime": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        serving_case(open_case(demo.MODEL, options, workload), Reporter(quiet=True), results=Path(folder)) as subject,
    ):
        port = urlsplit(subject.target.base_url).port
        assert port is not None
        for number in range(runs):
            for name in list(rows)[:: 1 if number % 2 else -1]:
                wire = Wire(port)
                with wire.listening(), priority(name):
                    result = run_once(subject, workload, number, ask=True)
                assert result.client["priority"] == name, "run it as root"
                rows[name].append(row(result.traces, wire.first_tokens(), result.server["agreement"]["ttft"]))
    return [
        {"users": users, "priority": name, "requests": requests}
        | {key: statistics.median(one[key] for one in found) for key in found[0]}
        for name, found in rows.items()
    ]


def row(traces: tuple[RequestTrace, ...], wire: list[tuple[int, int]], told: dict[str, float]) -> dict[str, Any]:
    pairs = [(t, sent, first) for t, sent, first in matched(traces, wire) if t.first_token_ns is not None]
    late = [(t.first_token_ns - first) / 1e6 for t, _, first in pairs if t.first_token_ns is not None]
    return {
        "client_ms": ms(told["client_s"]),
        "wire_ms": statistics.mean((first - sent) / 1e6 for _, sent, first in pairs),
        "server_ms": ms(told["server_s"]),
        "apart_ms": abs(told["client_s"] - told["server_s"]) * 1e3,
        "allowed_ms": 2 + 0.02 * told["server_s"] * 1e3,
        "late": sum(one > LATE_MS for one in late),
        "latest_ms": max(late),
        "reads": statistics.mean(len(t.chunks_ns) for t, _, _ in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--users", default="1,4")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    load = os.getloadavg()[0]
    rows = [
        row
        for users in map(int, asked.users.split(","))
        for row in measured(asked.engine, users, asked.runs, asked.requests)
    ]
    lines = ["| " + " | ".join(title for title, _ in COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell(one[key]) for _, key in COLUMNS) + " |" for one in rows]
    print("\n".join(lines))
    if asked.write:
        (HERE / "wire.md").write_text(
            f"# The first token on the wire\n\n{(__doc__ or '').splitlines()[0]}\n\n{asked.engine} with the bundled model, {os.cpu_count()}"
            f" cores, load average before {load:.1f}; medians of {asked.runs} runs. *read late*: requests whose first token was read more than"
            f" {LATE_MS:g} ms after it had come.\nWritten by `wire.py --write`; what it says is in [README.md](README.md).\n\n"
            + "\n".join(lines)
            + "\n"
        )


if __name__ == "__main__":
    main()
