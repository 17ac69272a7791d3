"""What is deployed, as every target gets it: the engine in its own words, the evidence behind it, and what was asked for.

Nothing here knows an engine or a target: the pipeline fills it in, targets render it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmopt.core.domain import Evidence as Origin
from llmopt.core.domain import Status

ENGINE_PORT = 8000  # of an engine in a container; what runs on one machine has ports of its own (local.py)
GATEWAY_PORT = 8080
LITELLM_PORT, REDIS_PORT, PROMETHEUS_PORT, ALERTMANAGER_PORT, GRAFANA_PORT, CANARY_PORT, GPU_EXPORTER_PORT = (
    4000,
    6379,
    9090,
    9093,
    3000,
    9464,
    9400,
)
MODEL_IN_CONTAINER = "/model"
MOST_REPLICAS = 1000


@dataclass(frozen=True, kw_only=True)
class File:
    """``text`` of one file; ``executable`` for what a person starts."""

    text: str
    executable: bool = False


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One start of the engine: its words, what it finds in its environment, and files that it reads (path → text)."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Image:
    """What a container is made of: an image by a tag that stands still, or a Dockerfile (``build``, then ``name`` is its tag).

    ``context``: files beside the Dockerfile (name → text).  ``entrypoint``: ``None`` leaves the image's own, ``""``
    takes it away.  ``gpu``: built for CUDA.  ``probe``: what is in it to ask with, ``python3`` or ``curl``.
    """

    name: str
    build: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)
    entrypoint: str | None = None
    gpu: bool = False
    shared_memory_bytes: int | None = None
    probe: str = "python3"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The measured engine. ``native`` gives its start on this kind of machine by (host, port); ``inside`` that in ``image``.

    ``model`` is the name that requests ask for; ``artifact`` the folder of its weights on the machine that measured,
    mounted at ``/model`` in a container.  ``metrics``: our keys → the engine's own names, as in ``serve.Backend``;
    ``histogram_bounds``: name of a histogram → upper bounds of its buckets, where somebody has seen them.  ``mounts``: what
    ``inside`` reads beside the model, a draft or adapters: (place on the machine that measured, place in the container).
    ``weights``: place of ``artifact`` and of ``mounts`` → what tells the weights that were measured there from any others.
    ``arguments``: the same options as arguments of vLLM's engine, for servers that embed it; ``None`` where it is another
    engine, or some of its words have no such name.
    """

    backend: str
    title: str
    version: str | None
    native: Callable[[str, int], Launch]
    inside: Launch | None
    image: Image | None
    model: str
    artifact: str
    artifact_bytes: int
    health_path: str
    metrics_path: str | None
    metrics: Mapping[str, str]
    histogram_bounds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    gpus: int = 0
    threads: int | None = None
    max_num_seqs: int = 1
    max_model_len: int | None = None
    mounts: tuple[tuple[str, str], ...] = ()
    arguments: Mapping[str, Any] | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    mounts_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Slo:
    """``ttft_p95<500ms``: this share (.95) of requests keeps ``metric`` (ttft, tpot, e2e …) within ``bound`` (its unit, mostly s).

    ``implies``: wider ones on the same percentile, which were asked for too and follow from it.
    """

    text: str
    metric: str
    share: float
    bound: float
    measured: float | None
    chosen_by_us: bool = False  # no SLO was given: twice what was measured
    implies: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number with its interval, and where it is from."""

    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    evidence: Origin = "measured"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of the configuration at the load that it was judged at.

    ``figures``: headline metrics by name (``ttft_p95``, ``tps_p50``, ``output_tps``, ``requests_per_s`` …);
    ``curve``: points {level, load, status, saturated, metrics} of the ranking; ``workload``: as measured, whole.
    ``without_slo``: limits that it was judged by and that are no bound on a percentile of what a request takes.
    ``forced``: why it would have been refused without --force, empty where it would not.  ``peak_memory_bytes`` is main
    memory of one replica's processes, ``peak_vram_bytes`` that of all its GPUs; each at any load that was measured.
    """

    source: str
    label: str
    key: str
    rank: int | None
    verdict: Status
    reasons: tuple[str, ...]
    evidence: Origin
    runs: int
    run_ids: tuple[str, ...]
    machine: Mapping[str, Any]
    workload: Mapping[str, Any]
    load: str
    concurrency: float | None
    figures: Mapping[str, Figure]
    curve: tuple[Mapping[str, Any], ...]
    quality: Mapping[str, Any] | None
    slos: tuple[Slo, ...]
    peak_memory_bytes: int | None
    load_s: float | None
    forced: tuple[str, ...] = ()
    peak_vram_bytes: int | None = None
    without_slo: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What was asked for on the command line. Prices are of an hour of one replica's machine, in any currency."""

    name: str
    target: str
    replicas: int | None = None
    load_rps: float | None = None
    gateway: str = "nginx"  # nginx, or litellm behind it
    cache: str | None = None  # redis
    monitoring: bool = False
    domain: str | None = None
    tls: bool = False
    port: int = GATEWAY_PORT
    rate_limit_rps: float | None = None
    max_body_bytes: int = 16 * 1024**2
    scrape_s: float = 15.0
    price_per_hour: float | None = None
    spot_price_per_hour: float | None = None
    autoscaler: str = "hpa"  # of kubernetes: hpa, keda or none


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """How much the replicas can take, and what they cost; ``words`` say how each figure came about.

    ``per_replica_rps`` is the lower end of what was measured at the load that meets the SLOs; ``after_one_lost_rps`` what
    is left of all of them when one is away.
    """

    replicas: int
    spare: int
    per_replica_rps: float | None
    total_rps: float | None
    after_one_lost_rps: float | None
    load_rps: float | None
    per_month: float | None
    per_month_spot: float | None
    words: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Everything that a target renders. ``doubts``: what may be otherwise than where it was measured, a sentence each."""

    engine: Engine
    evidence: Evidence
    wishes: Wishes
    capacity: Capacity
    llmopt_version: str
    doubts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A DNS label: lower-case letters, digits and ``-``, at most 40 of them."""
        return self.wishes.name

    @property
    def replicas(self) -> int:
        return self.capacity.replicas

    @property
    def memory_limit_bytes(self) -> int | None:
        """A quarter above the measured peak, and 256 MiB: page tables and the libraries of a first request come on top."""
        peak = self.evidence.peak_memory_bytes
        return None if peak is None else int(peak * 1.25) + 256 * 1024**2

    @property
    def ready_timeout_s(self) -> float:
        """Three times what the start took where it was measured, at least two minutes: other disks are slower."""
        return max(120.0, 3 * (self.evidence.load_s or 0.0))
