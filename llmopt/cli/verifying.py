"""``llmopt verify`` and ``llmopt watch``: does what was deployed do what it was chosen for?"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmopt.cli.shell import GroupedCommand, Json, ResultsOption, app, for_people, print_json, reporter

if TYPE_CHECKING:
    from llmopt.pipeline.verifying import Promise

endpoint = functools.partial(typer.Option, rich_help_panel="Endpoint")
effort = functools.partial(typer.Option, rich_help_panel="How long, how sure")

Where = Annotated[str, typer.Argument(help="Folder that `llmopt deploy` wrote, or the URL of an endpoint.")]
Url = Annotated[str | None, endpoint("--url", help="Where the folder's deployment answers, if not where it says.")]
Against = Annotated[
    str | None, endpoint("--against", help="For a URL: what it is held to, as `llmopt deploy` takes it, or its folder.")
]
Model = Annotated[str | None, endpoint("--model", help="Name to ask for, if not the one that was deployed.")]
Tokenizer = Annotated[
    str | None, endpoint("--tokenizer", help="tokenizer.json or its folder, for exact prompt lengths.")
]
Header = Annotated[list[str] | None, endpoint("--header", help="'Name: value' with every request; may be repeated.")]
Replicas = Annotated[
    int | None, endpoint("--replicas", min=1, help="How many replicas stand behind it; default: as deployed, or 1.")
]
Slos = Annotated[
    list[str] | None,
    endpoint("--slo", help="Instead of those of the recommendation: 'ttft_p95<500ms'; may be repeated."),
]
# Beside the deployment: among other runs they would be the newest, and that is what decides what recommend compares.
Results = Annotated[
    Path | None, typer.Option("--results", help="Folder of run records; default: results in the deployment's folder.")
]


@app.command("verify", cls=GroupedCommand)
@for_people
def verify_command(
    where: Where,
    against: Against = None,
    url: Url = None,
    model: Model = None,
    tokenizer: Tokenizer = None,
    header: Header = None,
    replicas: Replicas = None,
    slo: Slos = None,
    metric: Annotated[
        list[str] | None,
        effort(
            "--metric",
            help="Blocks from a loss on: 'ttft_p50:30%'; default 30 % of requests_per_s, ttft_p50, tpot_p50.",
        ),
    ] = None,
    rounds: Annotated[int, effort("--rounds", min=2, help="Runs of each load.")] = 5,
    confidence: Annotated[
        float, effort("--confidence", min=0.5, max=0.9999, help="That one end of an interval holds.")
    ] = 0.95,
    capacity: Annotated[
        bool, effort("--capacity/--no-capacity", help="Where SLOs are missed, look for the load that still keeps them.")
    ] = True,
    results: Results = None,
    json: Json = False,
) -> None:
    """Measure a deployed endpoint with the workload it was chosen by, and hold it to its SLOs and figures.

    Exit status: 0 it does, 3 it does not, 4 cannot be told, 1 error, 2 usage.
    """
    from llmopt.gate.promise import default_thresholds
    from llmopt.gate.thresholds import parse_thresholds
    from llmopt.pipeline.verify_document import document
    from llmopt.pipeline.verifying import Effort, verify
    from llmopt.report.verify import print_verify

    promise = promise_of(where, against, url, model, tokenizer, header, replicas, slo, results or Path("results"))
    kept_in = results or (Path(where) / "results" if Path(where).is_dir() else Path("results"))
    wanted = Effort(
        rounds=rounds, confidence=confidence, capacity=capacity, results=kept_in,
        thresholds=parse_thresholds(metric) if metric else default_thresholds(),
    )  # fmt: skip
    found = document(promise, wanted, verify(promise, wanted, reporter(quiet=json)))
    print_json(found) if json else print_verify(found)
    if found["exit_status"]:
        raise SystemExit(found["exit_status"])


@app.command("watch", cls=GroupedCommand)
@for_people
def watch_command(
    where: Where,
    against: Against = None,
    url: Url = None,
    model: Model = None,
    tokenizer: Tokenizer = None,
    header: Header = None,
    slo: Slos = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Where Prometheus reads the metrics.")] = 9464,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 in a container.")] = "127.0.0.1",
    every: Annotated[float, effort("--every", min=0.1, help="Seconds from one probe to the next.")] = 30.0,
    probes: Annotated[int | None, effort("--probes", min=1, help="Stop after so many; default: with Ctrl-C.")] = None,
    results: ResultsOption = Path("results"),
) -> None:
    """Ask a deployed endpoint again and again, and show Prometheus what a user would have seen."""
    from llmopt.pipeline.watching import Watch, watch

    promise = promise_of(where, against, url, model, tokenizer, header, None, slo, results)
    settings = Watch(host=host, port=port, every_s=every, probes=probes)
    watch(promise, settings, reporter().say)


def promise_of(
    where: str, against: str | None, url: str | None, model: str | None, tokenizer: str | None, header: list[str] | None,
    replicas: int | None, slo: list[str] | None, results: Path,
) -> Promise:  # fmt: skip
    """Raises UsageError."""
    from llmopt.bench.endpoint import parse_headers
    from llmopt.pipeline.promises import Wanted, read_promise

    wanted = Wanted(
        against=against, url=url, model=model, tokenizer=tokenizer, headers=parse_headers(header or []),
        replicas=replicas, slos=tuple(slo or ()), results=results,
    )  # fmt: skip
    return read_promise(where, wanted)
