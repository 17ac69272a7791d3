"""Who sends what when. A schedule in, ``RequestTrace`` out is the whole contract with the client.

Everything is drawn from a seed before the run: lengths, prompts and arrival times repeat exactly.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from llmopt.bench.dataset import Arrival, draw, load_arrivals, load_prompts
from llmopt.bench.lengths import parse_lengths
from llmopt.bench.pictures import image_part, parse_size
from llmopt.bench.prompts import Prompt, make_prompts, with_salts
from llmopt.core.domain import Workload

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SECOND = 1_000_000_000
BUFFERED_REQUESTS = 4096  # prompts made for a run whose end is not known
FAST_ANSWER_S = 0.01  # for one that ends by time, where no warm-up told how long an answer takes
MOST_PREPARED = 50_000  # after them it begins anew, and the verdict says so


@dataclass(frozen=True, kw_only=True)
class PlannedRequest:
    """One request: the JSON body to post, and what was asked for."""

    index: int
    body: bytes
    output_tokens: int
    prompt_tokens: int | None
    conversation: int | None = None


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """``first`` opens the conversations, in order; ``follower[i]`` is the turn after request i, or -1.

    ``offsets_ns`` are of ``first`` and relative to the start; ``None`` is a closed loop of ``users``.  In an open loop
    ``users`` is the cap on requests in flight, 0 for none.
    """

    requests: tuple[PlannedRequest, ...]
    first: tuple[int, ...]
    follower: tuple[int, ...] = ()
    offsets_ns: tuple[int, ...] | None = None
    users: int = 0
    think_s: float = 0.0
    duration_s: float | None = None
    request_timeout_s: float = 120.0
    stall_timeout_s: float = 60.0
    retries: int = 0
    again: bool = False
    exact_prompts: bool = True


def make_schedule(
    workload: Workload, model: str, *, salt: str, source: str, tokenizer: Tokenizer | None, usage_per_chunk: bool,
    pool: int | None = None, adapter_form: str = "{adapter}",
) -> Schedule:  # fmt: skip
    """The schedule of one run: ``workload.seed`` decides everything but the salts, which ``salt`` makes anew each run.

    ``pool`` is how many requests to prepare where a duration, and not a number, ends the run.  ``adapter_form``:
    see ``Target``.  Raises UsageError.
    """
    arrivals = load_arrivals(Path(workload.trace_file)) if workload.load == "trace" else None
    count = len(arrivals) if arrivals is not None else request_count(workload, pool)
    conversations = -(-count // workload.turns)
    prompts = prompts_of(workload, conversations * workload.turns, arrivals, salt, source, tokenizer)
    requests = tuple(bodies(workload, model, prompts, usage_per_chunk, salt, adapter_form))[:count]
    first = tuple(range(0, count, workload.turns))
    offsets = None
    if arrivals is not None:
        offsets = tuple(round(a.offset_s * SECOND) for a in arrivals)
    elif workload.open_loop:
        offsets = arrival_offsets(workload, len(first))
    return Schedule(
        requests=requests,
        first=first,
        follower=followers(count, workload.turns) if workload.turns > 1 else (),
        offsets_ns=offsets,
        users=(workload.max_concurrency or 0) if workload.open_loop else workload.concurrency,
        think_s=workload.think_s,
        duration_s=workload.duration_s,
        request_timeout_s=workload.request_timeout_s,
        stall_timeout_s=workload.stall_timeout_s,
        retries=workload.retries,
        again=not workload.open_loop and workload.requests is None,
        exact_prompts=tokenizer is not None,
    )


def request_count(workload: Workload, pool: int | None) -> int:
    """How many requests to prepare."""
    if workload.requests is not None:
        return workload.requests
    if workload.open_loop and workload.duration_s is not None:
        mean = workload.rate or 0.0
        if workload.load == "ramp":
            mean = (mean + (workload.rate_to or 0.0)) / 2
        return max(1, round(mean * workload.duration_s)) * workload.turns
    if pool is None and workload.duration_s is not None:
        pool = min(MOST_PREPARED, round(workload.concurrency * workload.duration_s / FAST_ANSWER_S))
    return max(workload.concurrency, pool or BUFFERED_REQUESTS) * workload.turns


def followers(count: int, turns: int) -> tuple[int, ...]:
    return tuple(i + 1 if (i + 1) % turns and i + 1 < count else -1 for i in range(count))


def prompts_of(
    workload: Workload,
    count: int,
    arrivals: Sequence[Arrival] | None,
    salt: str,
    source: str,
    tokenizer: Tokenizer | None,
) -> list[Prompt]:
    """A prompt and the length of its answer for every request."""
    seed, lengths = str(workload.seed), random.Random(f"lengths-{workload.seed}")
    inputs = parse_lengths(workload.input_lengths or str(workload.input_tokens), "--input-tokens")
    outputs = parse_lengths(workload.output_lengths or str(workload.output_tokens), "--output-tokens")
    answers = [outputs.draw(lengths) for _ in range(count)]
    if workload.dataset:
        made = with_salts(draw(load_prompts(workload.dataset, tokenizer), count, seed), salt, tokenizer)
        if not workload.output_lengths:
            answers = [p.answer_tokens or n for p, n in zip(made, answers, strict=True)]
    elif arrivals is not None:
        answers = [a.output_tokens or n for a, n in zip(arrivals, answers, strict=True)]
        made = make_prompts(source, [a.input_tokens or 1 for a in arrivals], seed, salt, tokenizer)
        told = [a.prompt for a in arrivals]
        counts = tokenizer.encode_batch([t or "" for t in told]) if tokenizer is not None else [None] * count
        made = [
            p if text is None else Prompt(text=text, tokens=None if ids is None else len(ids.ids))
            for p, text, ids in zip(made, told, counts, strict=True)
        ]
    else:
        drawn = [inputs.draw(lengths) for _ in range(count)]
        made = own_prompts(workload, drawn, seed, salt, source, tokenizer)
    return [Prompt(text=p.text, tokens=p.tokens, answer_tokens=n) for p, n in zip(made, answers, strict=True)]


def own_prompts(
    workload: Workload, lengths: Sequence[int], seed: str, salt: str, source: str, tokenizer: Tokenizer | None
) -> list[Prompt]:
    """Cut from ``source``; the shared beginning opens a conversation, and what is said later in it is shorter by that."""
    turns, shared = workload.turns, workload.prefix_tokens
    if turns == 1 or not shared:
        return make_prompts(source, lengths, seed, salt, tokenizer, shared)
    openings = iter(make_prompts(source, lengths[::turns], seed, salt, tokenizer, shared))
    rest = [length - shared for index, length in enumerate(lengths) if index % turns]
    later = iter(make_prompts(source, rest, f"{seed}-later", f"{salt}-later", tokenizer))
    return [next(later if index % turns else openings) for index in range(len(lengths))]


def bodies(
    workload: Workload,
    model: str,
    prompts: Sequence[Prompt],
    usage_per_chunk: bool,
    salt: str,
    adapter_form: str = "{adapter}",
) -> list[PlannedRequest]:
    """Greedy decoding to a fixed length, so that every engine does the same work.

    A later turn repeats what was said before it; the answers in it are text of ours, of the asked length, so that every
    engine is asked the same thing.  Pictures come before the text of their request.
    """
    requests: list[PlannedRequest] = []
    usage = {"include_usage": True} | ({"continuous_usage_stats": True} if usage_per_chunk else {})
    encoder = msgspec.json.Encoder()
    said: list[dict[str, Any]] = []
    pictures, size = random.Random(f"pictures-{salt}"), parse_size(workload.image_size)
    # One for a whole conversation: its next turn finds its own KV cache.
    adapters = [adapter_form.format(model=model, adapter=name) for name in workload.adapters]
    for index, prompt in enumerate(prompts):
        turn = index % workload.turns
        if turn == 0:
            said = []
        seen = [image_part(*size, pictures) for _ in range(workload.images)]
        content = [*seen, {"type": "text", "text": prompt.text}] if seen else prompt.text
        said.append({"role": "user", "content": content})
        tokens = prompt.answer_tokens or workload.output_tokens
        if workload.endpoint == "chat":
            asked: dict[str, Any] = {"messages": said}
        else:
            asked = {"prompt": "\n".join(m["content"] for m in said)}
        body = {
            "model": adapters[index // workload.turns % len(adapters)] if adapters else model,
            **asked,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": usage,
        }
        requests.append(
            PlannedRequest(
                index=index,
                body=encoder.encode(body),
                output_tokens=tokens,
                prompt_tokens=prompt.tokens if turn == 0 and not seen else None,
                conversation=index // workload.turns if workload.turns > 1 else None,
            )
        )
        if workload.turns > 1:
            words = prompt.text.split(" ")
            said.append(
                {"role": "assistant", "content": " ".join((words * (1 + tokens // max(1, len(words))))[:tokens])}
            )
    return requests


def arrival_offsets(workload: Workload, count: int) -> tuple[int, ...]:
    """When each conversation begins, in nanoseconds after the start.

    The last of n intervals ends at n / rate exactly, whatever was drawn: gaps are of the wanted shape, scaled to the
    wanted rate.  ``gamma`` has a coefficient of variation of 1 / √burstiness (1 is Poisson, less is burstier).  A ramp
    maps the same arrivals through the inverse of its cumulated rate.
    """
    rate = workload.rate or 1.0
    gaps = [1.0] * count
    if workload.arrival != "constant":
        generator = random.Random(f"arrivals-{workload.seed}")
        shape = 1.0 if workload.arrival == "poisson" else workload.burstiness
        gaps = [generator.gammavariate(shape, 1.0) for _ in range(count)]
    scale = count / sum(gaps)
    at, clock = [], 0.0
    for gap in gaps:
        at.append(clock)
        clock += gap * scale
    if workload.load == "ramp" and workload.rate_to is not None:
        seconds = 2 * count / (rate + workload.rate_to)
        return tuple(round(SECOND * ramp_time(k, rate, workload.rate_to, seconds)) for k in at)
    return tuple(round(SECOND * k / rate) for k in at)


def ramp_time(arrived: float, start: float, end: float, seconds: float) -> float:
    """When a rate that goes evenly from ``start`` to ``end`` has brought so many: start·t + (end − start)·t²/2T = arrived."""
    slope = (end - start) / seconds
    if abs(slope) < 1e-12:
        return arrived / start
    return float((max(0.0, start * start + 2 * slope * arrived) ** 0.5 - start) / slope)
