"""``llmopt recommend``, ``llmopt runs``, ``llmopt tune``, ``llmopt demo``: what was measured, ranked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmopt.cli.shell import Json, app, for_people, print_json, reporter
from llmopt.core.errors import Interrupted, UsageError


@app.command("recommend")
@for_people
def recommend_command(
    results: Annotated[Path, typer.Argument(help="Folder of run records, or one record.")] = Path("results"),
    slo: Annotated[
        list[str] | None,
        typer.Option("--slo", help="Constraint such as 'ttft_p95<500ms' or 'tps_p50>20'; may be repeated."),
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option("--max-memory", help="Peak memory limit, e.g. 2GiB (GPU memory where there is a GPU).")
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option("--max-kl", help="Largest mean KL divergence to the base; default 0.1.")
    ] = None,
    optimize: Annotated[str, typer.Option("--optimize", help="throughput, latency or memory.")] = "throughput",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the report as Markdown.")] = None,
    json: Json = False,
) -> None:
    """Rank measured configurations: constraints first, then the Pareto front, then the objective."""
    from llmopt.core.store import load_runs
    from llmopt.pipeline import plans, proving
    from llmopt.recommend.constraints import make_goal

    goal = make_goal(slo or [], max_memory=max_memory, max_kl=max_kl, optimize=optimize)
    runs = [proving.with_known_quality(run) for run in load_runs(results)]
    show_ranking(plans.rank_runs(runs, goal), out, json)


def require_report(file: Path) -> None:
    """Refuse to write a report over a file that is none."""
    from llmopt.report import markdown, steps

    headings = (markdown.HEADING.encode(), steps.HEADING.encode())
    if file.exists() and not (file.is_file() and file.read_bytes().startswith(headings)):
        raise UsageError(
            f"{file} is no report of llmopt and is not overwritten", hint="name another file: -o report.md"
        )


def show_ranking(document: dict[str, Any], out: Path | None, json: bool) -> None:
    """Print (and write) a ranking; exit status 3 when nothing meets the goal."""
    from llmopt.core.errors import GoalNotMet
    from llmopt.core.files import write_atomic
    from llmopt.report.markdown import ranking_markdown
    from llmopt.report.terminal import print_ranking

    if out is not None:
        require_report(out)
        write_atomic(out, ranking_markdown(document).encode())
    print_json(document) if json else print_ranking(document)
    if not document["ranked"]:
        raise GoalNotMet(
            "no configuration meets the goal", hint="the reasons are above: relax a limit, or measure more cases"
        )


@app.command("runs")
@for_people
def runs_command(
    results: Annotated[Path, typer.Argument(help="Folder of run records, or one record.")] = Path("results"),
    csv: Annotated[Path | None, typer.Option("--csv", help="Also write every field of every run as CSV.")] = None,
    json: Json = False,
) -> None:
    """List the stored runs, oldest first."""
    from llmopt.core.files import write_atomic
    from llmopt.core.store import frame, load_runs
    from llmopt.report.terminal import print_runs

    runs = load_runs(results)
    if csv is not None:
        write_atomic(csv, frame(runs).to_csv(index=False).encode())
    print_json(runs) if json else print_runs(frame(runs))


@app.command("tune")
@for_people
def tune_command(
    recipe: Annotated[Path, typer.Argument(help="A recipe of cases: recipes/progressive.yaml.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for artifacts, results and the report.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be made and measured.")] = False,
    json: Json = False,
) -> None:
    """Make, prove and measure every case of a recipe; rank them, or show what each step gave. Goes on where it stopped."""
    from llmopt import recipe as recipes
    from llmopt.pipeline import plans

    plan = recipes.load(recipe)
    if dry_run:
        document = plans.plan_document(plan)
        print_json(document) if json else print_cases(document)
        return
    require_report(out / "report.md")
    try:
        document = plans.run_plan(plan, out, reporter(quiet=json))
    except Interrupted as stop:
        raise Interrupted(stop.message, hint=f"the same command goes on: llmopt tune {recipe} -o {out}") from stop
    show_plan(document, out / "report.md", json)


def print_cases(document: dict[str, Any]) -> None:
    for case in document["cases"]:
        lacks = f"   ({case['lacks']})" if case["lacks"] else ""
        print(f"{case['name']}: {case['quantization']}, {case['options']}{lacks}")


def show_plan(document: dict[str, Any], out: Path, json: bool) -> None:
    """A ranking, or a waterfall; exit status 3 when nothing meets the goal, 1 when a step failed or is invalid."""
    from llmopt.core.errors import LlmoptError
    from llmopt.core.files import write_atomic
    from llmopt.report.steps import print_steps, steps_markdown

    if document.get("kind") != "steps":
        show_ranking(document, out, json)
        return
    write_atomic(out, steps_markdown(document).encode())
    print_json(document) if json else print_steps(document)
    failed = [row["step"] for row in document["steps"] if row["failure"] or row["verdict"]["status"] == "invalid"]
    if failed:
        raise LlmoptError(
            f"{len(failed)} of {len(document['steps'])} steps could not be measured: {', '.join(failed)}",
            hint="the reasons are above; the same command goes on with what is missing",
        )


@app.command("demo")
@for_people
def demo_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for artifacts, results and the report.")] = Path(
        "llmopt-demo"
    ),
    optimize: Annotated[
        str | None, typer.Option("--optimize", help="throughput, latency or memory; default: the recipe's.")
    ] = None,
    setup: Annotated[
        bool, typer.Option(help="Create the environment for engines and quantizers when it is missing.")
    ] = True,
    json: Json = False,
) -> None:
    """Quantize the bundled model six ways, serve and measure each on two engines, and print the ranking."""
    import dataclasses

    from llmopt import demo, recipe
    from llmopt.pipeline import plans
    from llmopt.recommend.constraints import make_goal

    report = reporter(quiet=json)
    if out.is_dir() and any(out.iterdir()) and not ((out / "artifacts").is_dir() or (out / "results").is_dir()):
        raise UsageError(f"{out} holds something else", hint="name another folder: llmopt demo -o DIR")
    require_report(out / "report.md")
    plan = recipe.load(demo.recipe())
    if optimize is not None:
        objective = make_goal([], optimize=optimize).optimize
        plan = dataclasses.replace(plan, goal=dataclasses.replace(plan.goal, optimize=objective))
    if setup:
        plans.ensure_environment(plan, report)
    document = plans.run_plan(plan, out, report)
    show_ranking(document, out / "report.md", json)
    if not json:
        report.say(f"\nreport: {out / 'report.md'}; ask again: llmopt recommend {out / 'results'} --optimize latency")
