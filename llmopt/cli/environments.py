"""``llmopt doctor``, ``llmopt env``: what is here, and how to get the rest."""

from __future__ import annotations

from typing import Annotated

import typer

from llmopt.cli.shell import Json, app, env_app, for_people, print_json, reporter


@app.command("doctor")
@for_people
def doctor_command(json: Json = False) -> None:
    """What is here, what is missing, and how to get it."""
    from llmopt import doctor

    rows = doctor.examine()
    print_json(rows) if json else doctor.print_rows(rows)


@env_app.command("create")
@for_people
def env_create_command(
    name: Annotated[
        str, typer.Argument(help="Environment to make: local (transformers, llama.cpp, all quantizers).")
    ] = "local",
    here: Annotated[bool, typer.Option("--here", help="Install into the environment that llmopt runs in.")] = False,
    json: Json = False,
) -> None:
    """Create an environment with pinned engines and quantizers."""
    from llmopt.core import environments

    report = reporter(quiet=json)
    with report.task(f"environment {name}"):
        made = environments.create(name, here=here, report=report.say)
    print_json({"name": name, "python": str(made.python)}) if json else print(made.python)


@env_app.command("list")
@for_people
def env_list_command(json: Json = False) -> None:
    """The environments that llmopt made."""
    from llmopt.core import environments

    found = [{"name": e.prefix.name, "python": str(e.python)} for e in environments.created()]
    if json:
        print_json(found)
        return
    for row in found:
        print(f"{row['name']}\t{row['python']}")
