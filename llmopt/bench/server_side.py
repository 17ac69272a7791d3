"""What a server says of itself: histograms, counters and gauges, read before, while and after a load.

Engines publish them in the text format of Prometheus.  A page is read by name: the caller says which of our keys
(``time_to_first_token``, ``prefix_cache_hits``) the engine has under which name, and nothing else on the page is looked at.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from llmopt.bench.endpoint import Endpoint, proxy_for
from llmopt.core.statistics import MIN_SAMPLES

# Our keys → the names of metrics.  Times are histograms in seconds; an engine that only keeps a sum has a counter there.
TIMES = {
    "time_to_first_token": "server_ttft",
    "inter_token_latency": "server_itl",
    "queue_time": "server_queue",
    "prefill_time": "server_prefill",
    "decode_time": "server_decode",
    "e2e_time": "server_e2e",
}
PER_REQUEST = tuple(key for key in TIMES if key != "inter_token_latency")
# Prompt tokens that were looked up in the prefix cache, found there, or (of an engine that counts those) not found.
COUNTERS = ("prefix_cache_queries", "prefix_cache_hits", "prefix_cache_misses", "preemptions")
GAUGES = ("kv_cache_usage", "running", "waiting")
SUFFIXES = ("", "_total", "_sum", "_count", "_bucket")

SAMPLE = re.compile(r'([^\s{]+)(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?\s+(\S+)')
BOUND = re.compile(r'(?:^|,)\s*le="([^"]*)"')
TIMEOUT_S = 2.0
PAGE_BYTES = 1 << 23
SETTLE_S, SETTLE_STEP_S = 1.0, 0.05


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """``buckets``: upper bound → observations at or below it, ascending."""

    total: float
    count: float
    buckets: Mapping[float, float]

    def since(self, before: Histogram | None) -> Histogram:
        if before is None:
            return self
        old = before.buckets
        return Histogram(
            total=self.total - before.total,
            count=self.count - before.count,
            buckets={bound: n - old.get(bound, 0.0) for bound, n in self.buckets.items()},
        )

    def quantile(self, share: float) -> float | None:
        """Straight between the bounds of the bucket that holds it.

        ``None`` in the first bucket and in the last: of those only one bound is known.
        """
        wanted, low, below = share * self.count, None, 0.0
        for bound, cumulative in self.buckets.items():
            if cumulative >= wanted and cumulative > below:
                if low is None or math.isinf(bound):
                    return None
                return low + (bound - low) * (wanted - below) / (cumulative - below)
            low, below = bound, cumulative
        return None

    def distribution(self) -> dict[str, Any] | None:
        """In the shape of all others; the mean is exact, percentiles are interpolated and say so."""
        count = round(self.count)
        if count <= 0:
            return None
        percents = {
            f"p{p}": self.quantile(p / 100) if count >= MIN_SAMPLES.get(p, 1) else None for p in (50, 90, 95, 99)
        }
        unknown = {"min": None, "max": None, "n": count, "missing": 0}
        return {"mean": self.total / self.count} | percents | unknown | {"interpolated": True}


@dataclass(frozen=True, kw_only=True)
class Page:
    """One reading; ``samples`` are (``le`` or "", value) of every label set, by name."""

    samples: Mapping[str, Sequence[tuple[str, float]]]

    def values(self, name: str) -> list[float]:
        """Of a counter or gauge, whether or not its name was given with ``_total``."""
        found = self.samples.get(name) or self.samples.get(f"{name}_total") or ()
        return [value for _, value in found if math.isfinite(value)]

    def histogram(self, name: str) -> Histogram | None:
        """Added up over all label sets: engines of one server, models, workers."""
        total, count = self.samples.get(f"{name}_sum"), self.samples.get(f"{name}_count")
        if not total or not count:
            return None
        buckets: dict[float, float] = defaultdict(float)
        for bound, value in self.samples.get(f"{name}_bucket", ()):
            buckets[float(bound)] += value
        return Histogram(
            total=sum(v for _, v in total), count=sum(v for _, v in count), buckets=dict(sorted(buckets.items()))
        )


def parse_page(text: str, names: Sequence[str]) -> Page:
    """Those samples of a page in the text format of Prometheus whose name is one of ``names``, plain or with a suffix."""
    wanted = {name + suffix for name in names for suffix in SUFFIXES}
    start = tuple(names)
    samples: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for line in text.splitlines():
        if line.startswith(start) and (match := SAMPLE.match(line)) and match[1] in wanted:
            bound = BOUND.search(match[2] or "")
            with contextlib.suppress(ValueError):
                value = float(match[3])
                samples[match[1]].append((bound[1] if bound else "", value))
    return Page(samples=dict(samples))


@dataclass(kw_only=True)
class ServerMetrics:
    """The metrics page of one server; ``names``: our keys → the engine's. Every reading may be ``None``."""

    url: str
    names: Mapping[str, str]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    chosen: bool = False  # whether the server sends only what is asked for
    cost_s: float = 0.0
    size: int = 0  # of the last page
    _connection: http.client.HTTPConnection | None = None

    def read(self, keys: Sequence[str] | None = None) -> Page | None:
        """One page with these keys, or with all that the engine has; ``None`` when none came."""
        names = [self.names[key] for key in (self.names if keys is None else keys) if key in self.names]
        return self._page(names, chosen=self.chosen) if names else None

    def first(self) -> Page | None:
        """The reading before a load; finds out whether the server can send less than everything.

        Those that use prometheus_client as it is take ``?name[]=…`` and render only that; vLLM 0.32 sends all its 600
        lines, in 5 ms.
        """
        whole = self._page(list(self.names.values()), chosen=False)
        if whole is not None and whole.samples:
            size, (one, *_) = self.size, whole.samples
            part = self._page([one], chosen=True)
            self.chosen = part is not None and one in part.samples and self.size < size
        return whole

    def last(self, before: Page | None, requests: int) -> Page | None:
        """The reading after a load: a server may count its last answers a moment after it sent them."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            page = self.read()
            if before is None or page is None or requests_between(self.names, before, page) is None:
                return page
            if (requests_between(self.names, before, page) or 0) >= requests or time.monotonic() > deadline:
                return page
            time.sleep(SETTLE_STEP_S)

    def gauges(self) -> dict[str, float]:
        """Now: the fullest KV cache of the engines behind the server, and requests that run and wait in all of them."""
        page = self.read(GAUGES)
        found = {key: page.values(self.names[key]) for key in GAUGES if key in self.names} if page else {}
        return {key: max(v) if key == "kv_cache_usage" else sum(v) for key, v in found.items() if v}

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _page(self, names: Sequence[str], *, chosen: bool) -> Page | None:
        query = "&".join(f"name[]={quote(n + s, safe=':')}" for n in names for s in SUFFIXES) if chosen else ""
        started = time.monotonic()
        text = self._get(query)
        self.cost_s = time.monotonic() - started
        self.size = len(text or "")
        return None if text is None else parse_page(text, names)

    def _get(self, query: str) -> str | None:
        """The page as text, on a connection that is kept; one that the server closed while it stood idle is made anew."""
        parts = urlsplit(self.url)
        if proxy_for(parts.scheme, parts.hostname or "") is not None:
            return None  # a page of many readings is no business of a proxy
        target = (parts.path or "/") + (f"?{query}" if query else "")
        kept = self._connection is not None
        text = self._ask(target)
        return self._ask(target) if text is None and kept else text

    def _ask(self, target: str) -> str | None:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        try:
            if self._connection is None:
                self._connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
            self._connection.request("GET", target, headers={"Accept": "text/plain", **self.headers})
            response = self._connection.getresponse()
            data = response.read(PAGE_BYTES)
            if response.status == 200 and len(data) < PAGE_BYTES and not response.length:  # what is still to come
                return data.decode("utf-8", "replace")
        except (OSError, http.client.HTTPException, ValueError):
            pass
        self.close()
        return None


def requests_between(names: Mapping[str, str], before: Page, after: Page) -> int | None:
    """How many requests the server counted, by the histogram that fills last; ``None`` where none counts them."""
    for key in ("e2e_time", "decode_time", "time_to_first_token"):
        if key in names and (histogram := after.histogram(names[key])) is not None:
            return round(histogram.since(before.histogram(names[key])).count)
    return None


def window(names: Mapping[str, str], before: Page | None, after: Page | None, requests: int) -> dict[str, Any]:
    """What a server counted between two readings, by metric name; ``requests`` of ours got a token in that time.

    Empty without both readings; where a counter ran backwards it only says ``restarted``.
    """
    if before is None or after is None:
        return {}
    if ran_backwards(names, before, after):
        return {"restarted": True}
    found: dict[str, Any] = {"requests": requests_between(names, before, after)}
    for key, metric in TIMES.items():
        if key in names:
            found[f"{metric}_s"] = time_between(key, names[key], before, after, requests)
    for key in COUNTERS:
        if key in names:
            found[key] = difference(names[key], before, after)
    queries, hits, misses = (found.get(f"prefix_cache_{what}") for what in ("queries", "hits", "misses"))
    if queries is None and hits is not None and misses is not None:
        queries = hits + misses
    found["cache_hit_rate"] = hits / queries if queries and hits is not None else None
    return found


def time_between(key: str, name: str, before: Page, after: Page, requests: int) -> dict[str, Any] | None:
    """A time's distribution; of an engine that only adds up seconds, the mean over our own requests."""
    if (histogram := after.histogram(name)) is not None:
        return histogram.since(before.histogram(name)).distribution()
    seconds = difference(name, before, after)
    if seconds is None or key not in PER_REQUEST or not requests:
        return None
    unknown = dict.fromkeys(("p50", "p90", "p95", "p99", "min", "max"))
    return {"mean": seconds / requests, **unknown, "n": requests, "missing": 0, "interpolated": False}


def difference(name: str, before: Page, after: Page) -> float | None:
    """Of a counter; one that appears only with its first event began at zero."""
    now = after.values(name)
    return sum(now) - sum(before.values(name)) if now else None


def ran_backwards(names: Mapping[str, str], before: Page, after: Page) -> bool:
    """Whether anything that only grows is less than it was, or gone: this is another process than before."""
    growing = [name for key, name in names.items() if key in TIMES or key in COUNTERS]
    return any(counted(name, after) < counted(name, before) for name in growing)


def counted(name: str, page: Page) -> float:
    histogram = page.histogram(name)
    return histogram.count if histogram is not None else sum(page.values(name))


def server_of(
    url: str | None, names: Mapping[str, str], base_url: str, headers: Mapping[str, str]
) -> ServerMetrics | None:
    """Whom to ask, ``None`` where nothing can be asked; the key and our headers go to the measured server alone."""
    if not url or not names:
        return None
    measured, asked = (Endpoint.of(place, "completions", headers) for place in (base_url, url))
    same = (asked.tls, asked.host, asked.port) == (measured.tls, measured.host, measured.port)
    return ServerMetrics(url=url, names=names, headers=measured.identified() if same else {})
