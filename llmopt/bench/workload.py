"""From words on a command line to a checked ``Workload``; every combination that makes no run is refused here."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmopt.bench import calibrate
from llmopt.bench.lengths import parse_lengths
from llmopt.bench.pictures import parse_size
from llmopt.bench.schedule import FAST_ANSWER_S, MOST_PREPARED
from llmopt.core.domain import Workload
from llmopt.core.errors import UsageError
from llmopt.core.limits import parse_slo, parse_until

ARRIVALS = ("constant", "poisson", "gamma")
UNCALIBRATED_RATE = 5_000.0  # requests a second that one worker is believed to send where nothing was measured
MOST_REQUESTS = 10_000_000
MOST_WORKERS = 64
DEFAULT_REQUESTS = 64
LONGEST_UNTIL_S = 300.0  # where nothing else ends a run that waits for its interval
LONGEST_S = 1e6
MOST_BYTES, HEAD_BYTES, TOKEN_BYTES = 4 << 30, 500, 5
PIXEL_BYTES = 0.05  # of a picture of tiles, compressed and in base64
SALT_TOKENS = 16


def make_workload(
    *,
    input_tokens: str = "64",
    output_tokens: str = "32",
    concurrency: int | None = None,
    rate: float | None = None,
    ramp: str | None = None,
    trace: Path | None = None,
    requests: int | None = None,
    duration: float | None = None,
    until: str | None = None,
    warmup: str = "auto",
    workers: int = 1,
    open_ended: bool = False,
    **rest: Any,
) -> Workload:
    """The workload of these options; ``rest`` are fields of Workload as they are. Raises UsageError.

    ``open_ended`` says that a sweep or a search will set the rate.
    """
    loads = {"--concurrency": concurrency, "--rate": rate, "--ramp": ramp, "--trace": trace}
    given = [flag for flag, value in loads.items() if value is not None]
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(given)} are different loads", hint="one of them; --max-concurrency caps an open loop"
        )
    inputs, outputs = parse_lengths(input_tokens, "--input-tokens"), parse_lengths(output_tokens, "--output-tokens")
    if trace is not None and (requests or duration or until):
        raise UsageError("a replayed trace ends by itself", hint="leave out --requests, --duration and --until")
    if requests is None and duration is None and until is None and trace is None:
        requests = DEFAULT_REQUESTS
    workload = Workload(
        input_tokens=inputs.mean,
        output_tokens=outputs.mean,
        input_lengths="" if inputs.kind == "fixed" else input_tokens,
        output_lengths="" if outputs.kind == "fixed" else output_tokens,
        concurrency=4 if concurrency is None else concurrency,
        requests=requests,
        duration_s=duration,
        until="" if until is None else until,
        warmup_requests=parse_warmup(warmup),
        trace_file="" if trace is None else str(trace),
        load="open" if rate is not None else "trace" if trace is not None else "closed",
        rate=rate,
        **rest,
    )
    if open_ended:  # a sweep or a search sets the rate, from here on or from what it finds
        workload = replace(workload, load="open", rate=rate if rate is not None else 1.0)
    elif until is not None and requests is None and duration is None and rate is None and ramp is None:
        workload = replace(workload, duration_s=LONGEST_UNTIL_S)
    if ramp is not None:
        low, high = parse_ramp(ramp)
        workload = replace(workload, load="ramp", rate=low, rate_to=high)
    check_workload(workload, workers)
    return workload


def parse_warmup(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"--warmup must be a number of requests or 'auto', got {text!r}", hint="--warmup 8")
    return int(text)


def parse_ramp(text: str) -> tuple[float, float]:
    low, colon, high = text.partition(":")
    try:
        return float(low), float(high if colon else "")
    except ValueError:
        raise UsageError(f"--ramp {text!r} is no ramp", hint="--ramp 1:20, in requests per second") from None


def check_workload(workload: Workload, workers: int = 1) -> None:
    """Raise UsageError for numbers that make no run."""
    for name in ("input_tokens", "output_tokens", "concurrency", "requests", "turns", "max_concurrency"):
        value = getattr(workload, name)
        if value is not None and value < 1:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} must be 1 or more, got {value}", hint=f"{flag} 32")
    if (workload.requests or 0) > MOST_REQUESTS:
        raise UsageError(f"--requests must be {MOST_REQUESTS:,} at most", hint="a --duration ends a run by time")
    for name in ("request_timeout_s", "stall_timeout_s", "duration_s", "rate", "rate_to", "burstiness"):
        value = getattr(workload, name)
        if value is not None and value > LONGEST_S and name.endswith("_s"):
            flag = "--" + name.removesuffix("_s").replace("_", "-")
            raise UsageError(f"{flag} must be {LONGEST_S:g} at most, got {value:g}", hint=f"{flag} 600")
        if value is not None and not (value > 0 and math.isfinite(value)):
            ramp = workload.load == "ramp" and name in ("rate", "rate_to")
            flag = "--ramp" if ramp else "--" + name.removesuffix("_s").replace("_", "-")
            raise UsageError(f"{flag} must be more than 0, got {value:g}", hint=f"{flag} {'1:20' if ramp else 60}")
    if not 0 <= workload.think_s <= LONGEST_S or workload.retries < 0:
        raise UsageError("--think and --retries must be 0 or more", hint="--think 0.5 --retries 2")
    if workload.warmup_requests is not None and workload.warmup_requests < 0:
        raise UsageError("--warmup must be 0 or more", hint="--warmup 8")
    if not 1 <= workers <= MOST_WORKERS:
        raise UsageError(f"--workers must be between 1 and {MOST_WORKERS}, got {workers}", hint="--workers 2")
    if workload.arrival not in ARRIVALS:
        raise UsageError(f"unknown arrival {workload.arrival!r}", hint=f"--arrival {', '.join(ARRIVALS)}")
    if workload.endpoint not in ("completions", "chat"):
        raise UsageError(f"unknown endpoint {workload.endpoint!r}", hint="--endpoint completions, or --endpoint chat")
    if workload.load == "trace" and workload.turns > 1:
        raise UsageError("a replayed trace has no --turns", hint="give each turn its own line in the trace")
    check_size(workload)
    check_shared_prefix(workload)
    if workload.images and workload.endpoint != "chat":
        raise UsageError("images go with chat messages", hint="--endpoint chat")
    if not workload.images and parse_size(workload.image_size) != parse_size(Workload().image_size):
        raise UsageError("--image-size without pictures", hint="--images 1 --endpoint chat")
    if not all(name.strip() for name in workload.adapters):
        raise UsageError("an --adapter has no name", hint="--adapter NAME, as --lora-modules NAME=FOLDER names it")
    if workload.max_concurrency is not None and not workload.open_loop:
        raise UsageError("--max-concurrency caps an open loop", hint="with --rate; a closed loop has --concurrency")
    if workload.until and workload.open_loop and workload.requests is None and workload.duration_s is None:
        raise UsageError(
            "--until needs an end for an open loop", hint="add --requests or --duration as the longest it may take"
        )
    for slo in workload.slos:
        parse_slo(slo)
    if workload.until:
        parse_until(workload.until)
    check_rate(workload, workers)


def check_shared_prefix(workload: Workload) -> None:
    if workload.prefix_tokens < 0 or workload.images < 0:
        raise UsageError("--prefix-tokens and --images must be 0 or more", hint="--prefix-tokens 256")
    if workload.prefix_tokens and (workload.dataset or workload.trace_file):
        raise UsageError("--prefix-tokens is of prompts that llmopt makes", hint="leave out --dataset and --trace")
    least = parse_lengths(workload.input_lengths or str(workload.input_tokens), "--input-tokens").least
    if workload.prefix_tokens and workload.prefix_tokens + SALT_TOKENS > least:
        raise UsageError(
            f"prompts of {least} tokens have no room for {workload.prefix_tokens} that are shared and"
            f" {SALT_TOKENS} of their own",
            hint=f"--input-tokens {workload.prefix_tokens + 64}",
        )


def check_size(workload: Workload) -> None:
    """All requests are made before the run: what does not fit into memory is said now."""
    seconds = (workload.duration_s or 0.0) * ((workload.rate or 0.0) + (workload.rate_to or workload.rate or 0.0)) / 2
    by_time = MOST_PREPARED if workload.duration_s and not workload.open_loop else 0
    count = (
        workload.requests or seconds or min(by_time, workload.concurrency * (workload.duration_s or 0) / FAST_ANSWER_S)
    )
    count *= (workload.turns + 1) / 2
    width, height = parse_size(workload.image_size)
    pictures, text = workload.images * PIXEL_BYTES * width * height, TOKEN_BYTES * workload.input_tokens
    size = count * (HEAD_BYTES + text + pictures)
    if size > MOST_BYTES:
        less = "fewer --images or a smaller --image-size" if pictures > text else "shorter --input-tokens"
        raise UsageError(
            f"the requests of this run would take {size / 2**30:.0f} GiB before it begins",
            hint=f"fewer --requests, a shorter --duration, or {less}",
        )


def check_rate(workload: Workload, workers: int) -> None:
    """A rate that no client can send is said at once."""
    fastest = max(workload.rate or 0.0, workload.rate_to or 0.0)
    known = calibrate.known_ceiling() if fastest > UNCALIBRATED_RATE / 10 else None
    most = (known.requests_per_s if known else UNCALIBRATED_RATE) * workers
    if fastest > most:
        how = "was measured to send" if known else "is believed to send (llmopt calibrate measures it)"
        raise UsageError(
            f"{fastest:,.0f} requests/s is more than {workers} client process(es) can send: {most:,.0f}/s {how}",
            hint=f"a rate below {most:,.0f}, or --workers {math.ceil(fastest / most * workers)}",
        )
