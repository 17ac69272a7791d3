"""What this client can take on this machine, measured against a null server and kept.

The processor time of the client is a·reads + b·requests.  Two loads with different numbers of reads a request give a and
b; one worker's ceiling is where that time fills a core.  The null server answers at once, so nothing is waited for.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmopt.core.environments import home
from llmopt.core.files import write_atomic
from llmopt.core.machine import this_machine
from llmopt.core.metrics import MEASURING_REVISION

MOST_REQUESTS_PER_S = 8_000  # prompts are prepared for so many


@dataclass(frozen=True, kw_only=True)
class NullLoad:
    """What is asked of the null server: as fast as one client can be expected to go, and no faster than the server can."""

    output_tokens: int
    users: int
    model: str


LONG = NullLoad(output_tokens=256, users=80, model="scripted?ttft_ms=1&tpot_ms=1&prompt_tokens=16")
SHORT = NullLoad(output_tokens=1, users=32, model="scripted?ttft_ms=1&tpot_ms=1&prompt_tokens=16")


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """Processor seconds of one worker for one read and for one request, and what they come to a second on one core."""

    s_per_read: float
    s_per_request: float
    measured_at: str
    machine: str
    revision: int

    @property
    def reads_per_s(self) -> float:
        return 1 / self.s_per_read

    @property
    def requests_per_s(self) -> float:
        """Of requests with a one-read answer."""
        return 1 / (self.s_per_read + self.s_per_request)


def ceiling_file() -> Path:
    return home() / "ceilings.json"


def known_ceiling() -> Ceiling | None:
    """Of this machine, where it was calibrated with this version of the client."""
    try:
        rows = json.loads(ceiling_file().read_text())
        found = Ceiling(**rows[this_machine().fingerprint])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.revision == MEASURING_REVISION else None


def ceiling_of(*, reads: int, requests: int, seconds: float, cpu_s: float, workers: int) -> dict[str, Any]:
    """How much of what the client can do this load was: by the calibration, or by this run's own processor time."""
    known = known_ceiling()
    if known is not None and seconds > 0:
        expected = (reads * known.s_per_read + requests * known.s_per_request) / (seconds * workers)
        share = max(expected, cpu_s / (seconds * workers))  # TLS, or a slower processor than when it was calibrated
        return {
            "reads_per_s": known.reads_per_s * workers,
            "requests_per_s": known.requests_per_s * workers,
            "share": share,
            "source": "calibrated",
        }
    busy = cpu_s / (seconds * workers) if seconds > 0 else None
    return {
        "reads_per_s": reads / cpu_s * workers if cpu_s else None,
        "requests_per_s": None,
        "share": busy,
        "source": "this run",
    }


def calibrate(base_url: str, seconds: float, say: Callable[[str], None]) -> Ceiling:
    """Measure and keep the ceiling of one worker against a null server; takes about ``seconds``. Raises ServerError."""
    long_s, long_reads, long_requests = null_load(base_url, LONG, seconds / 2)
    say(f"long answers: {long_reads:,} reads of {long_requests:,} requests took {long_s:.2f} s of processor time")
    short_s, short_reads, short_requests = null_load(base_url, SHORT, seconds / 2)
    say(f"short answers: {short_reads:,} reads of {short_requests:,} requests took {short_s:.2f} s of processor time")
    # long_s = a·long_reads + b·long_requests, short_s = a·short_reads + b·short_requests
    bottom = long_reads * short_requests - short_reads * long_requests
    per_read = (long_s * short_requests - short_s * long_requests) / bottom
    per_request = max(0.0, (short_s - per_read * short_reads) / short_requests)
    found = Ceiling(
        s_per_read=per_read,
        s_per_request=per_request,
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=this_machine().fingerprint,
        revision=MEASURING_REVISION,
    )
    keep(found)
    return found


def keep(found: Ceiling) -> None:
    try:
        rows = json.loads(ceiling_file().read_text())
    except (OSError, ValueError):
        rows = {}
    write_atomic(ceiling_file(), json.dumps(rows | {found.machine: asdict(found)}, indent=1).encode())


def null_load(base_url: str, shape: NullLoad, seconds: float) -> tuple[float, int, int]:
    """(client's processor seconds, reads, requests) of a closed loop against the null server."""
    from llmopt.bench.endpoint import Endpoint
    from llmopt.bench.load import clients, play
    from llmopt.bench.schedule import make_schedule
    from llmopt.core.domain import Workload

    workload = Workload(
        input_tokens=16, output_tokens=shape.output_tokens, concurrency=shape.users, requests=None, duration_s=seconds
    )
    with clients() as crew:
        schedule = make_schedule(
            workload, shape.model, salt="calibrate", source="null " * 64, tokenizer=None, usage_per_chunk=False,
            pool=int(seconds * MOST_REQUESTS_PER_S),
        )  # fmt: skip
        load = play(crew, schedule, Endpoint.of(base_url, "completions"))
    return load.client_cpu_s, load.reads, sum(t.ok for t in load.traces)
