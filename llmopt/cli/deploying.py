"""``llmopt deploy``: from a recommendation to a stack that boots, is watched, and can be rolled back."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Annotated

import typer

from llmopt.cli.shell import GroupedCommand, Json, ResultsOption, app, for_people, print_json, reporter
from llmopt.core.errors import UsageError

what = functools.partial(typer.Option, rich_help_panel="What is deployed")
size = functools.partial(typer.Option, rich_help_panel="How much of it, and what it costs")
stack = functools.partial(typer.Option, rich_help_panel="What stands around it")

GATEWAYS, CACHES, AUTOSCALERS = ("nginx", "litellm"), ("redis",), ("hpa", "keda", "none")


@app.command("deploy", cls=GroupedCommand)
@for_people
def deploy_command(
    source: Annotated[
        str,
        typer.Argument(
            help="Ranking (llmopt recommend --json), folder of tune or of results, run record, run id, or case key."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder that is written.")],
    target: Annotated[
        str, typer.Option("--target", help="compose, kubernetes, systemd, shell or rayserve.")
    ] = "compose",
    rank: Annotated[int, what("--rank", min=1, help="Which row of the ranking.")] = 1,
    slo: Annotated[
        list[str] | None,
        what("--slo", help="Instead of the ranking's: 'ttft_p95<500ms'; may be repeated."),
    ] = None,
    artifact: Annotated[
        Path | None, what("--artifact", help="Where the measured weights lie now, if not where they lay.")
    ] = None,
    name: Annotated[
        str,
        what(
            "--name",
            help="Of services and containers; default: that of the deployment in DIR, else from the configuration.",
        ),
    ] = "",
    results: ResultsOption = Path("results"),
    force: Annotated[
        bool, what("--force", help="Against its evidence: invalid, estimated or rejected. The README says so.")
    ] = False,
    replicas: Annotated[
        int | None, size("--replicas", min=1, help="How many; default 2, where the machine's GPUs suffice.")
    ] = None,
    load: Annotated[
        float | None, size("--load", help="Requests per second to be served: as many replicas as it needs, and one.")
    ] = None,
    price_per_hour: Annotated[
        float | None, size("--price-per-hour", help="Of one replica's machine, on demand, in any currency.")
    ] = None,
    spot_price: Annotated[float | None, size("--spot-price", help="Of the same machine on spot, an hour.")] = None,
    gateway: Annotated[str, stack("--gateway", help="nginx, or litellm behind it.")] = "nginx",
    cache: Annotated[
        str | None, stack("--cache", help="redis: answers to equal requests are kept (with --gateway litellm).")
    ] = None,
    monitoring: Annotated[
        bool, stack("--monitoring", help="Prometheus, its alerts, Alertmanager, Grafana and a canary.")
    ] = False,
    domain: Annotated[str | None, stack("--domain", help="Name that the gateway answers to.")] = None,
    tls: Annotated[bool, stack("--tls", help="HTTPS, with a certificate of yours.")] = False,
    port: Annotated[int, stack("--port", min=1, max=65535, help="Of the gateway.")] = 8080,
    rate_limit: Annotated[
        float | None, stack("--rate-limit", help="Requests per second that one client may send.")
    ] = None,
    autoscaler: Annotated[str, stack("--autoscaler", help="Of kubernetes: hpa, keda or none.")] = "hpa",
    boot: Annotated[
        bool, typer.Option("--boot/--no-boot", help="Start the engine here once, if it is here, and stop it.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written; start and write nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Write what runs the very configuration that was measured: engine, gateway, monitoring, checks, the way back."""
    from llmopt.deploy.plan import Wishes
    from llmopt.deploy.writing import EditedFiles
    from llmopt.pipeline import deploying
    from llmopt.pipeline.deploy_source import Asked
    from llmopt.report.deployment import print_deployment

    require_one_of("--gateway", gateway, GATEWAYS)
    require_one_of("--cache", cache, (None, *CACHES))
    require_one_of("--autoscaler", autoscaler, AUTOSCALERS)
    if cache is not None and gateway != "litellm":
        raise UsageError(f"--cache {cache} belongs to the LiteLLM gateway", hint="--gateway litellm --cache redis")
    require_positive(
        {"--load": load, "--price-per-hour": price_per_hour, "--spot-price": spot_price, "--rate-limit": rate_limit}
    )
    request = deploying.Request(
        source=source,
        asked=Asked(rank=rank, slos=tuple(slo or ()), results=results),
        wishes=Wishes(
            name=name, target=target, replicas=replicas, load_rps=load, gateway=gateway, cache=cache, monitoring=monitoring,
            domain=domain, tls=tls, port=port, rate_limit_rps=rate_limit, price_per_hour=price_per_hour,
            spot_price_per_hour=spot_price, autoscaler=autoscaler,
        ),
        out=out,
        artifact=artifact,
        force=force,
        boot=boot,
    )  # fmt: skip
    try:
        document = deploying.dry(request) if dry_run else deploying.deploy(request, reporter(quiet=json))
    except EditedFiles as error:
        print(error.diff, end="", file=sys.stderr)
        raise
    print_json(document) if json else print_deployment(document)


def require_one_of(flag: str, value: str | None, known: tuple[str | None, ...]) -> None:
    if value not in known:
        words = " or ".join(word for word in known if word)
        raise UsageError(f"{flag} is {words}, not {value!r}", hint=f"{flag} {next(word for word in known if word)}")


def require_positive(given: dict[str, float | None]) -> None:
    for flag, value in given.items():
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{flag} must be more than 0, got {value:g}", hint=f"{flag} 2.5")
