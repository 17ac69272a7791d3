"""``llmopt doctor``, ``llmopt env``: what is here, and how to get the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmopt.cli.shell import Json, app, env_app, for_people, print_json, reporter

NameArgument = Annotated[str, typer.Argument(help="The environment's name: local, vllm, llamacpp, eval.")]


@app.command("doctor")
@for_people
def doctor_command(json: Json = False) -> None:
    """What is here, what is missing, and how to get it."""
    from llmopt import doctor
    from llmopt.report.doctor import print_doctor

    rows = doctor.examine()
    print_json(rows) if json else print_doctor(rows)


@env_app.command("list")
@for_people
def env_list_command(json: Json = False) -> None:
    """The environments that can be made, and those that are here."""
    from llmopt.core import provision
    from llmopt.core.blueprints import GB

    rows = provision.overview()
    if json:
        print_json(rows)
        return
    print(f"{'name':<10} {'state':<10} {'python':<8} {'size':>8}  what it is for")
    for row in rows:
        here = row["size_bytes"] is not None
        size = row["size_bytes"] if here else row["cost_bytes"]
        shown = f"{'' if here else '~'}{size / GB:.1f} GB"
        print(f"{row['name']:<10} {row['state']:<10} {row['python_version'] or '–':<8} {shown:>8}  {row['purpose']}")
        for reason in row["left_out"].values():
            print(f"{'':<40}in part: {reason}")


@env_app.command("create")
@for_people
def env_create_command(
    name: NameArgument = "local",
    here: Annotated[bool, typer.Option("--here", help="Install into the environment that llmopt runs in.")] = False,
    build: Annotated[
        bool, typer.Option("--build", help="llamacpp: compile its official tools for this machine, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would do and cost, and stop.")] = False,
    json: Json = False,
) -> None:
    """Make an environment with pinned engines and quantizers, go on with it, or bring it up to date."""
    from llmopt.core import environments, provision

    draft = provision.plan(name, here=here, build=build)
    provision.require_possible(draft)
    if dry_run:
        if json:
            print_json(provision.describe(draft))
            return
        print(draft.cost if draft.todo else f"environment {name}: ready in {draft.environment.prefix}")
        for step in draft.todo:
            print(f"  {step.title}")
        return
    report = reporter(quiet=json)
    with report.task(f"environment {name}"):
        made = environments.create(name, here=here, build=build, report=report.say)
    print_json({"name": name, "python": str(made.python)}) if json else print(made.python)


@env_app.command("remove")
@for_people
def env_remove_command(name: NameArgument, json: Json = False) -> None:
    """Remove an environment that llmopt made, finished or not."""
    from llmopt.core import provision
    from llmopt.core.blueprints import GB

    size = provision.remove(name)
    print_json({"name": name, "removed_bytes": size}) if json else print(f"removed {name}: {size / GB:.1f} GB")


@env_app.command("freeze")
@for_people
def env_freeze_command(
    name: Annotated[str, typer.Argument(help="An environment's name, `here`, or a path to one.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file.")] = None,
    json: Json = False,
) -> None:
    """Print the versions in an environment, as a requirements file."""
    from llmopt.core import environments
    from llmopt.core.files import write_atomic

    lines = environments.requirement_lines(environments.named(name))
    if output is not None:
        write_atomic(output, ("\n".join(lines) + "\n").encode())
    if json:
        print_json({"name": name, "requirements": lines, "file": str(output) if output else None})
    elif output is not None:
        print(output)
    else:
        print("\n".join(lines))
