"""``llmopt watch``: one request after another to a deployed endpoint, and what a user would have seen of each, for Prometheus.

A canary: it asks what the recommendation was measured with, through everything that stands before the engine, with the
same client and the same definitions as ``llmopt bench``.  It sends little, so its percentiles are those of a quiet user;
what all users see stands in the engine's own histograms.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import llmopt
from llmopt import demo
from llmopt.bench.endpoint import Endpoint
from llmopt.bench.load import clients, play
from llmopt.bench.prompts import load_tokenizer
from llmopt.bench.schedule import make_schedule
from llmopt.core.domain import RequestTrace, Workload
from llmopt.core.errors import ServerError, UsageError
from llmopt.core.files import read_text
from llmopt.core.metric_table import METRICS
from llmopt.deploy.plan import Slo
from llmopt.deploy.queries import slo_label
from llmopt.pipeline.measured_row import workload_of
from llmopt.pipeline.measuring import check_url, new_run_id, without_secrets
from llmopt.pipeline.verifying import Promise, require_workload

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

LATENCIES = ("ttft", "tpot", "e2e")
# Upper bounds of buckets, s: a millisecond to two minutes, each a quarter above the last; those of SLOs come in between.
BOUNDS = tuple(0.001 * 1.25**n for n in range(53))


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Where the metrics are shown, and how often is asked; ``probes``: so many and no more, ``None`` until somebody stops it."""

    host: str
    port: int
    every_s: float
    probes: int | None = None


class Canary:
    """The metrics of the probes. Names are those that ``llmopt deploy --monitoring`` asks for."""

    def __init__(self, slos: Sequence[Slo], model: str) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

        self.slos = slos
        self.registry: CollectorRegistry = CollectorRegistry()
        Info("llmopt_probe", "Who asks, and for what.", registry=self.registry).info(
            {"version": llmopt.__version__, "model": model}
        )
        self.requests = Counter("llmopt_probe_requests", "Probes that ended.", ["outcome"], registry=self.registry)
        self.asked = Counter(
            "llmopt_probe_slo_requests", "Probes that an SLO was asked of.", ["slo"], registry=self.registry
        )
        self.missed = Counter(
            "llmopt_probe_slo_missed", "Probes that missed it, failures among them.", ["slo"], registry=self.registry
        )
        self.up = Gauge("llmopt_probe_up", "Whether the last probe was answered.", registry=self.registry)
        self.last = Gauge(
            "llmopt_probe_last_success_timestamp_seconds", "When one was answered last.", registry=self.registry
        )
        self.times = {
            name: Histogram(
                f"llmopt_probe_{name}_seconds", METRICS[name].formula, buckets=bounds(name, slos), registry=self.registry
            )
            for name in LATENCIES
        }  # fmt: skip
        for outcome in ("ok", "failed"):
            self.requests.labels(outcome=outcome)  # a counter that is not there yet has no rate
        for slo in slos:
            self.asked.labels(slo=slo_label(slo))
            self.missed.labels(slo=slo_label(slo))

    def take(self, trace: RequestTrace | None) -> None:
        """One probe; ``None`` where no connection was had."""
        good = trace is not None and trace.ok
        self.requests.labels(outcome="ok" if good else "failed").inc()
        self.up.set(good)
        if good:
            self.last.set_to_current_time()
        for name, histogram in self.times.items():
            if good and (seconds := value(trace, name)) is not None:
                histogram.observe(seconds)
        for slo in self.slos:
            found = value(trace, slo.metric) if good else None
            if good and found is None:
                continue  # a TPOT of one token: nothing was asked of it
            self.asked.labels(slo=slo_label(slo)).inc()
            if found is None or not kept(slo, found):
                self.missed.labels(slo=slo_label(slo)).inc()


def kept(slo: Slo, found: float) -> bool:
    return found <= slo.bound if METRICS[slo.metric].better == "lower" else found >= slo.bound


def value(trace: RequestTrace | None, metric: str) -> float | None:
    of_request = METRICS[metric].of_request
    return of_request(trace) if trace is not None and of_request is not None else None


def bounds(metric: str, slos: Sequence[Slo]) -> list[float]:
    """With one exactly at each SLO, so that those who kept it can be counted."""
    return sorted({*BOUNDS, *(slo.bound for slo in slos if slo.metric == metric)})


def watch(promise: Promise, settings: Watch, say: Callable[[str], None]) -> None:
    """Until it is stopped. Raises UsageError for a port that is taken."""
    check_url(promise.url)
    require_workload(single(workload_of(promise.evidence.workload)))
    canary = Canary(promise.evidence.slos, promise.model)
    with shown(canary, settings):
        say(
            f"asking {without_secrets(promise.url)} every {settings.every_s:g} s; "
            f"metrics: http://{settings.host}:{settings.port}/metrics"
        )
        for slo in promise.evidence.slos:
            if slo.implies:
                say(f"{' and '.join(slo.implies)}: counted with {slo.text}, which is tighter")
        for trace in probes(promise, settings, say):
            canary.take(trace)


@contextlib.contextmanager
def shown(canary: Canary, settings: Watch) -> Iterator[None]:
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(settings.port, addr=settings.host, registry=canary.registry)
    except OSError as error:
        raise UsageError(
            f"{settings.host}:{settings.port} cannot be listened on: {error.strerror}", hint="another --port"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def probes(promise: Promise, settings: Watch, say: Callable[[str], None]) -> Iterator[RequestTrace | None]:
    """A trace each, at absolute times; one that takes longer than the time between them puts off the next."""
    endpoint = Endpoint.of(promise.url, workload_of(promise.evidence.workload).endpoint, promise.headers)
    tokenizer = load_tokenizer(promise.tokenizer) if promise.tokenizer else None
    source = read_text(demo.CALIBRATION_TEXT)
    workload = single(workload_of(promise.evidence.workload))
    due, done, problem = time.monotonic(), 0, ""
    while settings.probes is None or done < settings.probes:
        schedule = make_schedule(
            replace(workload, seed=workload.seed + done), promise.model, salt=new_run_id(), source=source,
            tokenizer=tokenizer, usage_per_chunk=False,
        )  # fmt: skip
        trace, word = None, ""
        with clients(1) as crew:  # a client plays once; it has imported what it needs before the probe is due
            time.sleep(max(0.0, due - time.monotonic()))
            due = max(due + settings.every_s, time.monotonic())
            try:
                [trace] = play(crew, schedule, endpoint).traces
                word = "" if trace.ok else str(trace.error)
            except ServerError as error:
                word = error.message
        if word != problem:  # once when it begins and once when it is over, not with every probe
            say(f"probe {done + 1}: {word}" if word else f"probe {done + 1}: answered again")
        problem, done = word, done + 1
        yield trace


def single(workload: Workload) -> Workload:
    """One request of it, with the lengths that the promise was measured with. Raises UsageError for a conversation."""
    return replace(
        workload, load="closed", concurrency=1, requests=1, rate=None, rate_to=None, max_concurrency=None, duration_s=None,
        until="", turns=1, retries=0, trace_file="", slos=(),
    )  # fmt: skip
