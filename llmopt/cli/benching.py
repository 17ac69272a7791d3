"""``llmopt bench``, ``llmopt calibrate``, ``llmopt conformance``: measure, and know how well one measures."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmopt.cli.serving import Backend, Port, ReadyTimeout, open_case, takes_serve_options
from llmopt.cli.shell import (
    GroupedCommand,
    Json,
    PythonOption,
    ResultsOption,
    app,
    for_people,
    print_json,
    reporter,
)
from llmopt.core.errors import GoalNotMet, UsageError

if TYPE_CHECKING:
    from llmopt.core.domain import Measurement

# Options under the heading of what they are about.
load = functools.partial(typer.Option, rich_help_panel="Load")
shape = functools.partial(typer.Option, rich_help_panel="Requests")
limit = functools.partial(typer.Option, rich_help_panel="Limits")
server = functools.partial(typer.Option, rich_help_panel="Server")
client = functools.partial(typer.Option, rich_help_panel="Client and record")


@app.command("bench", cls=GroupedCommand)
@for_people
@takes_serve_options
def bench_command(
    artifact: Annotated[
        Path | None, typer.Argument(help="Artifact or model folder to serve; 'demo' for the bundled model.")
    ] = None,
    url: Annotated[
        str | None,
        server("--url", help="Measure a running server instead, e.g. http://127.0.0.1:8000/v1"),
    ] = None,
    model: Annotated[str | None, server("--model", help="Model name to ask a --url server for.")] = None,
    tokenizer: Annotated[
        str | None,
        server("--tokenizer", help="tokenizer.json or its folder, for a --url server."),
    ] = None,
    header: Annotated[
        list[str] | None,
        server("--header", help="'Name: value' sent with every request; may be repeated."),
    ] = None,
    backend: Backend = None,
    port: Port = None,
    ready_timeout: ReadyTimeout = None,
    python: PythonOption = None,
    concurrency: Annotated[
        int | None,
        load("--concurrency", help="Closed loop: so many users, each asking anew when answered; default 4."),
    ] = None,
    rate: Annotated[
        float | None,
        load("--rate", help="Open loop: so many requests per second, whatever the server does."),
    ] = None,
    arrival: Annotated[str, load("--arrival", help="Gaps of an open loop: constant, poisson or gamma.")] = "constant",
    burstiness: Annotated[
        float,
        load("--burstiness", help="Shape of gamma arrivals: 1 is poisson, less comes in bursts."),
    ] = 1.0,
    max_concurrency: Annotated[
        int | None,
        load("--max-concurrency", help="Cap of an open loop; waiting for it counts as latency."),
    ] = None,
    ramp: Annotated[str | None, load("--ramp", help="Open loop whose rate goes from A to B: 1:20.")] = None,
    trace: Annotated[
        Path | None,
        load("--trace", help="Replay a JSONL of arrival_s, prompt or input_tokens, output_tokens."),
    ] = None,
    sweep: Annotated[
        bool,
        load("--sweep", help="Open loops at rising rates until the server falls behind; from --rate on."),
    ] = False,
    search: Annotated[
        bool,
        load("--search", help="The highest rate that meets every --slo, by bisection."),
    ] = False,
    requests: Annotated[
        int | None,
        shape("--requests", help="Requests in all (p95 needs 59, p99 299); default 64."),
    ] = None,
    duration: Annotated[float | None, shape("--duration", help="Seconds in which requests are started.")] = None,
    until: Annotated[
        str | None,
        shape("--until", help="Until an interval is so narrow: 'ttft_p99±5%'."),
    ] = None,
    warmup: Annotated[
        str,
        shape("--warmup", "--warmup-requests", help="Untimed requests before, or auto: until they take the same time."),
    ] = "auto",
    input_tokens: Annotated[
        str,
        shape("--input-tokens", help="Prompt length: 64, uniform:A:B, lognormal:MEAN:DEVIATION[:MAX]."),
    ] = "64",
    output_tokens: Annotated[str, shape("--output-tokens", help="Answer length, in the same ways.")] = "32",
    prefix_tokens: Annotated[
        int,
        shape(
            "--prefix-tokens",
            help="So many tokens at the beginning of every prompt (of every conversation) are the same: a system prompt.",
        ),
    ] = 0,
    images: Annotated[
        int, shape("--images", help="Pictures with each request, made by llmopt; with --endpoint chat.")
    ] = 0,
    image_size: Annotated[str, shape("--image-size", help="Width and height of a picture in pixels.")] = "256x256",
    adapter: Annotated[
        list[str] | None,
        shape("--adapter", help="LoRA adapter to ask for, by its name in --lora-modules; several are asked in turn."),
    ] = None,
    dataset: Annotated[
        str,
        shape("--dataset", help="Prompts from a JSONL, a ShareGPT file, or a 'datasets' name."),
    ] = "",
    turns: Annotated[
        int,
        shape("--turns", help="Requests per conversation; each repeats what was said before."),
    ] = 1,
    think: Annotated[float, shape("--think", help="Seconds between an answer and the next turn.")] = 0.0,
    endpoint: Annotated[str, shape("--endpoint", help="completions or chat.")] = "completions",
    seed: Annotated[int, shape("--seed", help="Seed of lengths, prompts and arrivals.")] = 0,
    salt: Annotated[
        str | None,
        shape(
            "--salt",
            help="Repeat the prompts to the byte; default: a salt of its own for each run, so that no prefix cache hits.",
        ),
    ] = None,
    slo: Annotated[
        list[str] | None,
        limit("--slo", help="Counts goodput: 'ttft_p99<500ms', 'tpot<50ms'; may be repeated."),
    ] = None,
    request_timeout: Annotated[
        float,
        limit("--request-timeout", help="Seconds until a request counts as failed."),
    ] = 120.0,
    stall_timeout: Annotated[
        float,
        limit("--stall-timeout", help="Seconds without a byte in the middle of an answer."),
    ] = 60.0,
    retries: Annotated[
        int,
        limit("--retries", help="Tries after a refused, reset or 429/5xx request; all are logged."),
    ] = 0,
    workers: Annotated[
        int,
        client("--workers", help="Client processes; one takes about 50,000 chunks per second."),
    ] = 1,
    definitions: Annotated[
        list[str] | None,
        client("--definitions", help="Also by the formulas of vllm, guidellm or aiperf; may be repeated."),
    ] = None,
    results: ResultsOption = Path("results"),
    json: Json = False,
    *,
    given: dict[str, Any],
) -> None:
    """Serve an artifact (or take a running server) and measure it; every run's record goes into the results folder."""
    from llmopt.bench.endpoint import parse_headers
    from llmopt.bench.workload import make_workload
    from llmopt.pipeline import loads, measuring

    if (artifact is None) == (url is None):
        raise UsageError(
            "name either an artifact or a running server",
            hint="llmopt bench DIR, or llmopt bench --url URL --model NAME",
        )
    own_server = {"--backend": backend, "--port": port, "--ready-timeout": ready_timeout, "--env": python}
    require_of_one_kind(
        given, own_server, {"--model": model, "--tokenizer": tokenizer, "--header": header}, running=url is not None
    )
    if sweep or search:
        loads.check_rates(
            sweep=sweep, search=search, slos=slo or [], turns=turns, others=(concurrency, ramp, trace, until)
        )
    workload = make_workload(
        input_tokens=input_tokens, output_tokens=output_tokens, concurrency=concurrency, rate=rate, ramp=ramp, trace=trace,
        requests=requests, duration=duration, until=until, warmup=warmup, workers=workers, arrival=arrival,
        burstiness=burstiness, max_concurrency=max_concurrency, dataset=dataset, turns=turns, think_s=think,
        endpoint=endpoint, seed=seed, slos=tuple(slo or ()), request_timeout_s=request_timeout,
        stall_timeout_s=stall_timeout, retries=retries, prefix_tokens=prefix_tokens, images=images,
        image_size=image_size, adapters=tuple(adapter or ()), open_ended=sweep or search,
    )  # fmt: skip
    options = measuring.RunOptions(
        results=results, workers=workers, salt=salt, definitions=measuring.check_definitions(definitions or ())
    )
    report = reporter(quiet=json)
    if url is not None:
        if model is None:
            raise UsageError(
                "--url needs the name of the model", hint="--model NAME, as the server's /v1/models lists it"
            )
        subject = measuring.url_subject(
            url, model, results=results, tokenizer=tokenizer, headers=parse_headers(header or [])
        )
        runs, found = loads.run(
            subject, workload, options, report, sweep=sweep, search=search, requests=requests, rate=rate
        )
    else:
        assert artifact is not None
        case = open_case(artifact, backend, {"max_num_seqs": workload.most_at_once} | given, workload)
        with measuring.serving_case(
            case, report, results=results, python=python, port=port, ready_timeout_s=ready_timeout
        ) as subject:
            runs, found = loads.run(
                subject, workload, options, report, sweep=sweep, search=search, requests=requests, rate=rate
            )
    show_runs(runs, found, json)


def require_of_one_kind(
    given: dict[str, Any], own_server: dict[str, Any], running_server: dict[str, Any], *, running: bool
) -> None:
    """Raise UsageError for options of a server that llmopt starts beside ``--url``, and the other way round."""
    from llmopt.serve.options import BY_NAME

    idle = running_server
    if running:
        flags = (BY_NAME[n].flag.replace("--", "--no-" if v is False else "--", 1) for n, v in given.items())
        idle = own_server | dict.fromkeys(flags, True)
    named = [flag for flag, value in idle.items() if value not in (None, [])]
    if named and running:
        raise UsageError(
            f"--url takes a server as it runs: {' and '.join(named)} would change nothing",
            hint="leave that out, or name the artifact instead of --url, and llmopt starts the server so",
        )
    if named:
        raise UsageError(
            f"{' and '.join(named)} {'is' if len(named) == 1 else 'are'} for a server that runs already",
            hint="leave that out: the artifact brings its own; or --url URL instead of the artifact",
        )


def show_runs(runs: list[Measurement], found: dict[str, object] | None, json: bool) -> None:
    """One run as it is; a sweep or a search as its table. Status 3 when a search found no rate."""
    import msgspec

    from llmopt.report.terminal import print_points, print_run

    if found is None:
        print_json(runs[0]) if json else print_run(msgspec.to_builtins(runs[0]))
        return
    print_json(found | {"runs": runs}) if json else print_points(found, [msgspec.to_builtins(run) for run in runs])
    if found["kind"] == "search" and found["best"] is None:
        raise GoalNotMet(
            "no rate meets the SLOs", hint="the reasons are above: relax an SLO, or start at a lower --rate"
        )


@app.command("calibrate")
@for_people
def calibrate_command(
    seconds: Annotated[float, typer.Option("--seconds", min=2, max=120, help="How long to measure.")] = 8.0,
    json: Json = False,
) -> None:
    """Measure what the load client can take on this machine, for every verdict, and its processor's peaks, for estimates."""
    from dataclasses import asdict

    from llmopt.bench.calibrate import calibrate
    from llmopt.estimate.peak import measure
    from llmopt.report.terminal import print_ceiling
    from llmopt.serve.scripted import running

    report = reporter(quiet=json)
    with report.task("measuring the client"), running() as base_url:
        ceiling = calibrate(base_url, seconds, report.say)
    with report.task("measuring the processor"):
        peak = measure()
    document = asdict(ceiling) | {"reads_per_s": ceiling.reads_per_s, "requests_per_s": ceiling.requests_per_s}
    document["processor"] = asdict(peak)
    print_json(document) if json else print_ceiling(document)


@app.command("conformance", cls=GroupedCommand)
@for_people
def conformance_command(
    result: Annotated[
        str | None, typer.Option("--result", help="Judge another tool: file or URL of what it reported, by trap.")
    ] = None,
    cases: Annotated[
        bool,
        typer.Option("--cases", help="Keep the scripted server up for another tool and print its cases; Ctrl-C ends."),
    ] = False,
    json: Json = False,
) -> None:
    """Run the load client through every trap a streaming server can set, judged by the server's own log."""
    from llmopt.bench import conformance
    from llmopt.report.terminal import conformance_document, print_conformance
    from llmopt.serve.scripted import running

    if cases:
        with running() as base_url:
            print_json(conformance.cases(base_url))
            sys.stdout.flush()
            wait_for_interrupt()
        return
    if result is not None:
        rows = conformance.grade(conformance.read_result(result))
    else:
        report = reporter(quiet=json)
        with report.task(f"{len(conformance.TRAPS)} traps"), running() as base_url:
            rows = conformance.run_suite(base_url)
        with report.task("a queue"), running(slots=conformance.QUEUE_SLOTS) as base_url:
            rows.append(conformance.run_queue(base_url))
    print_json(conformance_document(rows)) if json else print_conformance(rows)
    wrong = [row for row in rows if row.problems]
    if wrong:
        raise GoalNotMet(
            f"{len(wrong)} of {len(rows)} traps were not handled truthfully", hint="the last column says what was wrong"
        )


def wait_for_interrupt() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
