"""What Prometheus can be asked about one deployment: only of metrics that its engine exports, under the engine's own names.

Rules and dashboard both ask through here, so that neither can name a metric that is not there.  A method gives ``None``
where the engine lacks it.  Keys are those of ``serve.Backend.metrics``; of one whose name ends in ``_total`` there is a sum
and no histogram (llama.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmopt.deploy.plan import Deployment, Engine, Slo

JOBS = {"engine": "engine", "canary": "canary", "gpu": "gpu"}
# Our metric of an SLO → the key of the histogram that holds the same: per request, and not per token or chunk.
OF_SLO = {"ttft": "time_to_first_token", "tpot": "time_per_output_token", "e2e": "e2e_time"}
# How far the nearest bound of a bucket may be from the SLO's own: a quarter, as far apart as bounds usually are.
NEAR = 0.25
PROBE_TIMES = ("ttft", "tpot", "e2e")  # that the canary keeps histograms of
MIB = 1024**2


@dataclass(frozen=True, kw_only=True)
class Missed:
    """How often an SLO is missed: ``ratio`` gives the expression over a window; ``source`` names who counts, in words."""

    total: str
    bad: str
    source: str

    def ratio(self, window: str) -> str:
        return f"{self.bad.replace('[]', f'[{window}]')} / {self.total.replace('[]', f'[{window}]')}"


@dataclass(frozen=True, kw_only=True)
class Queries:
    """``jobs``: the value of the label ``job`` that each of our jobs has in this Prometheus."""

    engine: Engine
    jobs: Mapping[str, str] = field(default_factory=lambda: JOBS)

    def series(self, name: str, job: str = "engine", **labels: str) -> str:
        """A selector; a label whose name ends in ``_re`` is matched by a regular expression."""
        matchers = [f'job="{quoted(self.jobs[job])}"']
        for key, value in labels.items():
            matchers.append(f'{key.removesuffix("_re")}{"=~" if key.endswith("_re") else "="}"{quoted(value)}"')
        return f"{name}{{{','.join(matchers)}}}"

    def name(self, key: str) -> str | None:
        return self.engine.metrics.get(key) if self.engine.metrics_path else None

    def histogram(self, key: str) -> str | None:
        found = self.name(key)
        return None if found is None or found.endswith("_total") else found

    def up(self) -> str | None:
        return self.series("up") if self.engine.metrics_path else None

    def quantile(self, key: str, share: float, window: str = "5m") -> str | None:
        found = self.histogram(key)
        if found is None:
            return None
        return f"histogram_quantile({share:g}, sum by (le) (rate({self.series(f'{found}_bucket')}[{window}])))"

    def rate(self, key: str, window: str = "5m") -> str | None:
        """Of a counter, over all replicas, a second."""
        found = self.name(key)
        return None if found is None else f"sum(rate({self.series(found)}[{window}]))"

    def gauge(self, key: str) -> str | None:
        """As it is, a series for each replica (and for each engine that a replica consists of)."""
        found = self.name(key)
        return None if found is None else self.series(found)

    def requests(self, window: str = "5m") -> str | None:
        """Answered requests a second: by a counter of them, else by how many times were kept."""
        if self.name("requests"):
            return self.rate("requests", window)
        for key in ("e2e_time", "time_to_first_token", "queue_time"):
            if found := self.histogram(key):
                return f"sum(rate({self.series(f'{found}_count')}[{window}]))"
        return None

    def errors(self, window: str = "5m") -> str | None:
        """The share of HTTP answers that were errors of the server; a series of them begins with the first one."""
        found = self.name("http_requests")
        if found is None:
            return None
        bad = f"sum(rate({self.series(found, status_re='5..')}[{window}]))"
        return f"({bad} or vector(0)) / sum(rate({self.series(found)}[{window}]))"

    def prefix_hits(self, window: str = "5m") -> str | None:
        """The share of prompt tokens that came from the prefix cache; llama.cpp counts hits and misses."""
        hits, all_, misses = (self.rate(f"prefix_cache_{what}", window) for what in ("hits", "queries", "misses"))
        if hits is None or (all_ is None and misses is None):
            return None
        return f"{hits} / {all_}" if all_ else f"{hits} / ({hits} + {misses})"

    def decode_speed(self, window: str = "5m") -> str | None:
        """Tokens a second while decoding, of an engine that keeps sums alone."""
        tokens, seconds = self.rate("generation_tokens", window), self.name("decode_time")
        if tokens is None or seconds is None or not seconds.endswith("_total"):
            return None
        return f"{tokens} / sum(rate({self.series(seconds)}[{window}]))"

    def probe_quantile(self, metric: str, share: float, window: str = "5m") -> str:
        bucket = self.series(f"llmopt_probe_{metric}_seconds_bucket", "canary")
        return f"histogram_quantile({share:g}, sum by (le) (rate({bucket}[{window}])))"

    def probe_failures(self, window: str = "5m") -> str:
        name = "llmopt_probe_requests_total"
        failed = f"sum(rate({self.series(name, 'canary', outcome='failed')}[{window}]))"
        return f"({failed} or vector(0)) / sum(rate({self.series(name, 'canary')}[{window}]))"

    def missed(self, slo: Slo) -> Missed:
        """Who counts the misses of an SLO: the engine, where a bucket's bound is near enough, else the canary's probes."""
        bound = self.nearest_bound(slo)
        if bound is None:
            label = slo_label(slo)
            return Missed(
                bad=f"sum(rate({self.series('llmopt_probe_slo_missed_total', 'canary', slo=label)}[]))",
                total=f"sum(rate({self.series('llmopt_probe_slo_requests_total', 'canary', slo=label)}[]))",
                source="the canary's probes",
            )
        found = self.histogram(OF_SLO[slo.metric])
        count = f"sum(rate({self.series(f'{found}_count')}[]))"
        within = f"sum(rate({self.series(f'{found}_bucket', le_re=le(bound))}[]))"
        exact = "" if math.isclose(bound, slo.bound) else f", the nearest bound to {slo.bound:g} s"
        return Missed(bad=f"({count} - {within})", total=count, source=f"requests above {bound:g} s in {found}{exact}")

    def nearest_bound(self, slo: Slo) -> float | None:
        """The bound of a bucket of the engine that is at most a quarter away from the SLO's."""
        found = self.histogram(OF_SLO.get(slo.metric, ""))
        bounds = [b for b in self.engine.histogram_bounds.get(found or "", ()) if math.isfinite(b) and b > 0]
        if not bounds or slo.bound <= 0:
            return None
        closest = min(bounds, key=lambda bound: abs(math.log(bound / slo.bound)))
        return closest if abs(closest / slo.bound - 1) <= NEAR else None


def queries(deployment: Deployment, jobs: Mapping[str, str] | None = None) -> Queries:
    return Queries(engine=deployment.engine, jobs={**JOBS, **(jobs or {})})


def slo_label(slo: Slo) -> str:
    """As the canary labels it: ``ttft_p95``."""
    return f"{slo.metric}_p{slo.share * 100:g}"


def le(bound: float) -> str:
    """Matches the label of a bound however it is written: Prometheus 3 makes ``1`` to ``1.0``, 2 keeps what it was told."""
    text = repr(float(bound))
    plain = text.removesuffix(".0")
    forms = dict.fromkeys([text, plain, f"{bound:g}"] if float(f"{bound:g}") == bound else [text, plain])
    return "|".join(form.replace(".", r"\.").replace("+", r"\+") for form in forms)


def quoted(text: str) -> str:
    """Inside double quotes of PromQL."""
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
