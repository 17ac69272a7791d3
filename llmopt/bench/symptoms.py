"""What is wrong with a server although it answers: told from timelines and samples, since no log says it.

Each function gives one ``Symptom`` or ``None``.  They do not doubt the measurement, as the verdict does: the numbers are
true, and these say why they are bad.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmopt.core.domain import RequestTrace

# A pause of a stream counts from so many times the usual gap on, and only if people can see it.
LONG, SEEN_NS = 4.0, 20_000_000
FEWEST = 5  # pauses that make a pattern
# Of the time in pauses, so much must end as another prompt is done, and so many times more often than gaps do by chance;
# of all streaming time, so much must be lost.  vLLM 0.32 without chunked prefill: 0.78, 17 times, 0.12; with it no pause.
COINCIDE, ABOVE_CHANCE, LOST = 0.6, 2.0, 0.05
# The memory of one running sequence may swing with the phase of its answer; over many answers it does not rise.
SAMPLES, GENERATIONS = 30, 4
GROWTH, SHARE, RANK = 1.5, 0.05, 0.8


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """``code`` names it in a record; ``cause`` and ``remedy`` are one line each."""

    code: str
    cause: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """What of the server can be turned: the ``options`` that its engine has, ``None`` for a server that runs as it runs,

    and those that were ``asked`` for.
    """

    options: Collection[str] | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)

    def can(self, name: str) -> bool:
        """Whether turning it on, or changing its number, would be anything new."""
        return name in (self.options or ()) and self.asked.get(name) is not True


def symptoms(
    traces: Sequence[RequestTrace], series: Mapping[str, Sequence[Any]], knobs: Knobs = Knobs()
) -> list[Symptom]:
    """All that is seen in one run; ``series`` are the samples by column (``t_ns``, ``kv_cache_usage``, ``running``)."""
    return [found for found in (prefill_stalls(traces, knobs), kv_growth(traces, series, knobs)) if found is not None]


def prefill_stalls(traces: Sequence[RequestTrace], knobs: Knobs = Knobs()) -> Symptom | None:
    """Streams that stand still while the prompts of others are worked on in one piece.

    A pause belongs to a prefill when another request's first token comes as it ends: one step of the engine ends both.
    Where first tokens are so frequent that every gap ends with one, nothing can be told, and nothing is said.
    """
    import numpy as np

    good = [t for t in traces if t.ok and len(t.chunks_ns) > 1]
    if not good:
        return None
    ends = np.concatenate([t.chunks_ns[1:] for t in good])
    gaps = ends - np.concatenate([t.chunks_ns[:-1] for t in good])
    own_firsts = np.repeat([t.chunks_ns[0] for t in good], [len(t.chunks_ns) - 1 for t in good])
    usual = float(np.median(gaps))
    by_prefill = another_begins(ends, own_firsts, np.sort([t.chunks_ns[0] for t in good]), int(usual))
    long = gaps > max(LONG * usual, SEEN_NS)
    explained = gaps[long & by_prefill]
    if len(explained) < FEWEST:
        return None
    share = explained.sum() / gaps[long].sum()
    lost = explained.sum() / gaps.sum()
    if share < max(COINCIDE, ABOVE_CHANCE * by_prefill.mean()) or lost < LOST:
        return None
    middle = float(np.median(explained))
    return Symptom(
        code="prefill_stalls",
        cause=f"streams stand still for {middle / 1e6:.0f} ms ({middle / max(usual, 1):.0f} times the usual gap) each time"
        f" another prompt is worked on: {lost:.0%} of all streaming time",
        remedy=shorter_steps(knobs),
    )


def shorter_steps(knobs: Knobs) -> str:
    """How prompts come to be cut between the steps of others."""
    if knobs.options is None:
        return "chunked prefill, or fewer tokens a step, where the server has them: prompts are then cut between the steps of others"
    now = knobs.asked.get("max_num_batched_tokens")
    ways = ["--enable-chunked-prefill"] if knobs.can("enable_chunked_prefill") else []
    if knobs.can("max_num_batched_tokens"):
        ways.append("a smaller --max-num-batched-tokens" + (f" than {now}" if now else ""))
    if not ways:
        return "shorter prompts, or an engine that cuts them between the steps of others: --backend vllm"
    return f"{', or '.join(ways)}: prompts are then cut between the steps of others"


def another_begins(ends: Any, own_firsts: Any, firsts: Any, slack_ns: int) -> Any:
    """For each gap, whether another request's first token comes within ``slack_ns`` of its end; ``firsts`` is sorted."""
    import numpy as np

    near = np.searchsorted(firsts, ends + slack_ns, "right") - np.searchsorted(firsts, ends - slack_ns, "left")
    own = np.abs(ends - own_firsts) <= slack_ns
    return near > own


def kv_growth(
    traces: Sequence[RequestTrace], series: Mapping[str, Sequence[Any]], knobs: Knobs = Knobs()
) -> Symptom | None:
    """The KV cache that one running sequence takes rises over a run in which many came and went.

    Said only where each place was filled several times: the first answers of a run all grow together.
    """
    rows = zip(series.get("t_ns", ()), series.get("kv_cache_usage", ()), series.get("running", ()), strict=False)
    points = [(t, usage / running) for t, usage, running in rows if usage is not None and running]
    finished = sum(t.ok for t in traces)
    most = max((running for running in series.get("running", ()) if running), default=0)
    if len(points) < SAMPLES or finished < GENERATIONS * most:
        return None
    third = len(points) // 3
    first, last = (statistics.median(u for _, u in part) for part in (points[:third], points[-third:]))
    together = rank_correlation([t for t, _ in points], [u for _, u in points])
    if first <= 0 or last < GROWTH * first or (last - first) * most < SHARE or together < RANK:
        return None
    return Symptom(
        code="kv_growth",
        cause=f"the KV cache of a running sequence grew from {first:.1%} to {last:.1%} of it over the run",
        remedy=f"limit answers or conversations ({'--max-model-len, ' if knobs.can('max_model_len') else ''}max_tokens);"
        " if it grows on with short ones, the engine does not give blocks back: another version, and restart it until then",
    )


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: 1 where both rise together; ties by their order, which is enough for a trend."""
    places = [{i: place for place, i in enumerate(sorted(range(len(v)), key=v.__getitem__))} for v in (x, y)]
    n = len(x)
    return 1 - 6 * sum((places[0][i] - places[1][i]) ** 2 for i in range(n)) / (n * (n * n - 1))
