"""``llmopt serve``, and the options of a server for every command that starts one."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from llmopt.cli.shell import (
    INTERRUPTED,
    GroupedCommand,
    Json,
    PythonOption,
    app,
    fail,
    for_people,
    print_json,
    reporter,
)
from llmopt.core.domain import ServeOptions
from llmopt.core.errors import UsageError
from llmopt.serve.options import OPTIONS, Option

if TYPE_CHECKING:
    from llmopt.core.domain import Case, Workload

Backend = Annotated[
    str | None,
    typer.Option("--backend", "-b", help="Engine; default: the first that loads it.", rich_help_panel="Server"),
]
Port = Annotated[
    int | None,
    typer.Option("--port", min=1, max=65535, help="Port; default: a free one.", rich_help_panel="Server"),
]
ReadyTimeout = Annotated[
    float | None,
    typer.Option("--ready-timeout", min=1, help="Seconds until a server must answer.", rich_help_panel="Server"),
]


def takes_serve_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option of the table; it gets those that were given as ``given``, by field of ServeOptions."""
    hints = get_type_hints(ServeOptions)
    own = inspect.signature(command, eval_str=True)
    added = [parameter(option, hints[option.name]) for option in OPTIONS]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        given = {option.name: values.pop(option.name) for option in OPTIONS}
        given = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v not in (None, [])}
        command(**values, given=given)

    kept = [p for name, p in own.parameters.items() if name != "given"]
    run.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [*kept, *added]}
    return run


def parameter(option: Option, hint: Any) -> inspect.Parameter:
    """One option of the table as typer wants it: nothing given is ``None``, whatever the engine's default is."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
    kind: Any = list[str] if option.name in ("lora_modules", "extra_args") else kinds[0]
    if option.choices:
        kind = str
    flag = f"{option.flag}/--no-{option.flag[2:]}" if kind is bool else option.flag
    ranged = kind in (int, float)
    declared = typer.Option(
        flag,
        help=option.help,
        rich_help_panel="Server",
        min=option.minimum if ranged else None,
        max=option.maximum if ranged else None,
    )
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, declared]
    )


def open_case(artifact: Path, backend: str | None, given: dict[str, Any], workload: Workload) -> Case:
    """The case that a command line means; options that the engine lacks are refused."""
    from llmopt import demo
    from llmopt.pipeline import plans

    return plans.open_case(demo.model_at(artifact), ServeOptions(backend=backend or "", **given), workload)


@app.command("serve", cls=GroupedCommand)
@for_people
@takes_serve_options
def serve_command(
    artifact: Annotated[Path, typer.Argument(help="Artifact or model folder; 'demo' for the bundled model.")],
    backend: Backend = None,
    port: Port = None,
    ready_timeout: ReadyTimeout = None,
    python: PythonOption = None,
    container: Annotated[
        bool, typer.Option("--container", help="In the engine's own image, by docker run.", rich_help_panel="Server")
    ] = False,
    image: Annotated[
        str | None, typer.Option("--image", help="Another image than the usual one.", rich_help_panel="Server")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the engine's own command and start nothing.")
    ] = False,
    json: Json = False,
    *,
    given: dict[str, Any],
) -> None:
    """Serve an artifact in the foreground until Ctrl-C, with the very command that `llmopt bench` measures."""
    from llmopt.core.domain import Workload
    from llmopt.pipeline import hosting
    from llmopt.report.terminal import print_command, print_serving

    if image is not None and not container:
        raise UsageError("--image is of --container", hint="--container --image NAME")
    case = open_case(artifact, backend, given, Workload())
    place = hosting.Place(python=python, port=port, container=container, image=image)
    if dry_run:
        document = hosting.command_document(case, place, lambda text: print(f"warning: {text}", file=sys.stderr))
        print_json(document) if json else print_command(document)
        return
    was_ready = False
    try:
        with hosting.hosted(case, place, reporter(quiet=json), ready_timeout_s=ready_timeout) as server:
            was_ready = True
            with contextlib.suppress(KeyboardInterrupt):
                document = hosting.serving_document(case, server)
                print_json(document) if json else print_serving(document)
                sys.stdout.flush()
                hosting.follow(server)
    except KeyboardInterrupt:  # of a server that was ready it is the usual end, however often it comes
        if not was_ready:
            words = "interrupted before the server was ready; it was stopped"
            fail(words, "--dry-run prints its command", INTERRUPTED)
