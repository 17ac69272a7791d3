"""Two real engines behind real nginx under load, a real Prometheus that watches, and one of them is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmopt import demo, serve
from llmopt.bench.prompts import load_tokenizer
from llmopt.bench.runner import RunResult, Target, Traffic, measure
from llmopt.core.domain import RequestTrace, ServeOptions, Workload
from llmopt.core.files import read_text
from llmopt.serve.process import RunningServer, serving
from tests.contract.conftest import Workshop, environment_of
from tests.programs import Prometheus, gateway, prometheus, require, until
from tests.unit.deploy.make import deployment

pytestmark = pytest.mark.engine
RATE, SECONDS, KILLED_AFTER_S, TOKENS = 20.0, 12.0, 4.0, 48
HANGS_S = 0.3
RECOVERY_S = 5.0
SCRAPE_S = 1.0
NS = 1e-9


@dataclass(frozen=True)
class Killed:
    """What happened when one of two replicas was killed under load; times since then are seconds."""

    result: RunResult
    killed_ns: int
    in_flight: int
    failed: list[RequestTrace]
    alert_s: float
    log: list[dict[str, Any]]

    @property
    def recovery_s(self) -> float:
        """From the kill to the end of the last request that failed."""
        return max((((t.closed_ns or 0) - self.killed_ns) * NS for t in self.failed), default=0.0)


@contextlib.contextmanager
def replicas(folder: Path) -> Iterator[list[RunningServer]]:
    """Two servers of llama.cpp with the bundled model, a slot each, as two machines would run them."""
    workshop, backend = Workshop(folder), serve.backend("llamacpp")
    environment = environment_of(backend)
    artifact = workshop.artifact("gguf-q4_k_m")
    options = ServeOptions(backend="llamacpp", max_num_seqs=4, max_model_len=512, threads=1)
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(serving(backend, artifact, options, environment, log=folder / f"engine-{n}.log"))
            for n in (1, 2)
        ]


def kill_one_under_load(folder: Path, look: Callable[[Prometheus], None] = lambda _: None) -> Killed:
    """20 requests a second through nginx; after four seconds one replica hangs, and is killed. ``look``: called at the end."""
    llamacpp = serve.backend("llamacpp")
    with replicas(folder) as (first, second):
        addresses = [s.command.base_url.removeprefix("http://").removesuffix("/v1") for s in (first, second)]
        made = deployment(
            engine={"backend": "llamacpp", "metrics": llamacpp.metrics, "gpus": 0, "model": first.command.model},
            wishes={"scrape_s": SCRAPE_S, "rate_limit_rps": 1000.0},
            capacity={"replicas": 2},
        )
        with gateway(folder, made, addresses) as front, prometheus(folder, made, {"engine": addresses}) as watching:
            until(lambda: len(list(watching.query('up{job="engine"} == 1'))) == 2)
            outcome: list[RunResult] = []
            load = threading.Thread(target=lambda: outcome.append(run(f"{front}/v1", first.command.model)))
            load.start()
            # The warm-up goes first: the clock starts with the load itself.
            until(lambda: lines(folder / "access.log"))
            time.sleep(KILLED_AFTER_S)
            # A kill between two requests would show nothing: it hangs before it dies, and requests are in flight for sure.
            os.kill(first.pid, signal.SIGSTOP)
            time.sleep(HANGS_S)
            killed_ns, killed_at = time.monotonic_ns(), time.time()
            os.kill(first.pid, signal.SIGKILL)
            until(lambda: "InstanceDown" in watching.firing())
            alert_s = (time.monotonic_ns() - killed_ns) * NS
            load.join()
            look(watching)
    log = lines(folder / "access.log")
    return Killed(
        result=outcome[0],
        killed_ns=killed_ns,
        in_flight=sum(asked_first(one) == addresses[0] and spans(one, killed_at) for one in log),
        failed=[t for t in outcome[0].traces if not t.ok],
        alert_s=alert_s,
        log=log,
    )


def run(base_url: str, model: str) -> RunResult:
    workload = Workload(
        input_tokens=32, output_tokens=TOKENS, load="open", rate=RATE, arrival="constant", requests=int(RATE * SECONDS),
        warmup_requests=4,
    )  # fmt: skip
    traffic = Traffic(salt="kill", source=read_text(demo.CALIBRATION_TEXT), tokenizer=load_tokenizer(demo.MODEL))
    return measure(Target(base_url=base_url, model=model), workload, traffic)


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")] if log.exists() else []


def asked_first(line: dict[str, Any]) -> str:
    return str(line["upstream"]).partition(",")[0]


def spans(line: dict[str, Any], at_s: float) -> bool:
    """Whether the request was under way at that wall time."""
    ended = float(line["ended_s"])
    return ended - float(line["seconds"]) <= at_s <= ended


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    for program in ("nginx", "prometheus"):
        require(program)
    return kill_one_under_load(tmp_path_factory.mktemp("killed"))


def test_no_more_is_lost_than_was_in_flight_on_the_killed_replica(killed: Killed) -> None:
    assert killed.in_flight
    assert len(killed.failed) <= killed.in_flight


def test_only_answers_that_had_begun_are_lost(killed: Killed) -> None:
    """Those of which no byte had come are asked again on the other replica."""
    assert all(t.sent_ns is not None and t.sent_ns < killed.killed_ns for t in killed.failed)


def test_it_recovers_within_seconds(killed: Killed) -> None:
    assert killed.recovery_s <= RECOVERY_S


def test_the_other_replica_takes_the_load(killed: Killed) -> None:
    later = [t for t in killed.result.traces if (t.planned_ns - killed.killed_ns) * NS > RECOVERY_S]
    assert later
    assert all(t.ok for t in later)


def test_the_alert_fires_after_two_scrapes_and_the_time_to_notice(killed: Killed) -> None:
    # Of its own two seconds, a scrape, a round of the rules, and a machine that others use too.
    assert killed.alert_s <= 8 * SCRAPE_S
