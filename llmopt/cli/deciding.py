"""``llmopt recommend``, ``llmopt runs``, ``llmopt demo``: what was measured, ranked."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmopt.cli.shell import GroupedCommand, Json, app, for_people, print_json, reporter
from llmopt.core.errors import LlmoptError, UsageError

if TYPE_CHECKING:
    from llmopt.core.run_files import Skipped

limit = functools.partial(typer.Option, rich_help_panel="Limits")
wish = functools.partial(typer.Option, rich_help_panel="What is best")
price = functools.partial(typer.Option, rich_help_panel="Cost")


@app.command("recommend", cls=GroupedCommand)
@for_people
def recommend_command(
    results: Annotated[Path, typer.Argument(help="Folder of run records, or one record.")] = Path("results"),
    slo: Annotated[
        list[str] | None,
        limit("--slo", help="Kept at one load: 'ttft_p95<500ms', 'goodput_rps>5', 'error_rate<1%'; may be repeated."),
    ] = None,
    max_memory: Annotated[
        str | None, limit("--max-memory", help="Peak memory limit, e.g. 2GiB (GPU memory where there is a GPU).")
    ] = None,
    max_kl: Annotated[
        float | None, limit("--max-kl", help="Largest mean KL divergence to the base; default 0.1.")
    ] = None,
    min_top1: Annotated[float | None, limit("--min-top1", help="Least share of unchanged top tokens: 0.97.")] = None,
    min_score: Annotated[
        list[str] | None, limit("--min-score", help="Least score in a task: 'mmlu>=0.6'; may be repeated.")
    ] = None,
    max_cost: Annotated[
        float | None, limit("--max-cost", help="Most that 1M output tokens may cost; with --price-per-hour.")
    ] = None,
    backends: Annotated[str, limit("--backends", help="Only these engines: vllm,llamacpp.")] = "",
    quants: Annotated[str, limit("--quants", help="Only these quantizations: bf16,gguf-*.")] = "",
    exclude: Annotated[str, limit("--exclude", help="Engines and quantizations to leave out.")] = "",
    licence: Annotated[
        str, limit("--licence", "--license", help="Only models under these: apache-2.0,mit. Unknown is none of them.")
    ] = "",
    optimize: Annotated[
        str,
        wish(
            "--optimize",
            help="throughput, latency, memory, quality, cost, or any metric; 'cost,quality': where the first ties, the second.",
        ),
    ] = "throughput",
    baseline: Annotated[
        str | None,
        wish("--baseline", help="What to compare with, by label or key; default: the 16-bit base on the same engine."),
    ] = None,
    price_per_hour: Annotated[
        float | None, price("--price-per-hour", help="What this machine costs an hour, in any currency.")
    ] = None,
    api_price_input: Annotated[
        float | None, price("--api-price-input", help="What an API asks for 1M input tokens, in the same currency.")
    ] = None,
    api_price_output: Annotated[float | None, price("--api-price-output", help="And for 1M output tokens.")] = None,
    monthly_tokens: Annotated[
        float | None, price("--monthly-tokens", help="Input and output tokens of a month: 2e9.")
    ] = None,
    utilisation: Annotated[
        float | None,
        price("--utilisation", help="Part of what the machine can do that a month really asks of it; default 0.6."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Rank runs of unlike workloads, loops, models and machines together.")
    ] = False,
    top: Annotated[int, typer.Option("--top", min=0, help="Rows that are shown; 0 for all.")] = 50,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the report as Markdown.")] = None,
    json: Json = False,
) -> None:
    """Rank measured configurations: limits first, all at one load; then the Pareto front, then the objective."""
    from llmopt.core.listing import listing

    listed = listing(results)  # before the imports, so that it is done when they are
    from llmopt.core.run_files import without_collection
    from llmopt.core.run_index import read_store
    from llmopt.pipeline import ranking
    from llmopt.recommend.constraints import make_goal
    from llmopt.recommend.cost import make_api

    api = make_api(api_price_input, api_price_output, monthly_tokens, utilisation, price_per_hour)
    goal = make_goal(
        slo or [], max_memory=max_memory, max_kl=max_kl, min_top1=min_top1, min_scores=min_score or [], max_cost=max_cost,
        optimize=optimize, price_per_hour=price_per_hour, backends=words(backends), quantizations=words(quants),
        exclude=words(exclude), licences=words(licence),
    )  # fmt: skip
    with without_collection():  # of 100,000 runs it costs, with that in the processes that read them, .08 s of 3
        stored = read_store(results, aside=True, listed=listed)
        if not len(stored.table):
            raise no_runs(results, stored.skipped)
        say_skipped(stored.skipped)
        stored.table.fill_quality(ranking.quality_of_record)
        document = ranking.rank_runs(
            stored.table, goal, force=force, top=top or None, baseline=baseline, api=api,
            skipped=stored.skipped, copies=stored.copies,
        )  # fmt: skip
    show_ranking(document, out, json)


def words(text: str) -> list[str]:
    """Of a list with commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def no_runs(results: Path, skipped: Sequence[Skipped]) -> LlmoptError:
    from llmopt.core.errors import Inconclusive, StoreError

    if not skipped:
        return Inconclusive(
            f"there is no run to recommend from in {results}",
            hint="measure something first: llmopt bench, or llmopt demo",
        )
    more = f" (and {len(skipped) - 1} more file(s) like it)" if len(skipped) > 1 else ""
    return StoreError(
        f"no run in {results} can be used: {skipped[0].file}: {skipped[0].reason}{more}",
        hint="restore the files from git, remove them, or measure again with this version: llmopt bench",
    )


def say_skipped(skipped: Sequence[Skipped]) -> None:
    from llmopt.core.escaping import one_line
    from llmopt.core.run_index import skipped_words

    if skipped:
        print(one_line(skipped_words(skipped)), file=sys.stderr)


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

    if out is not None:
        from llmopt.core.files import write_atomic
        from llmopt.report.markdown import ranking_markdown

        require_report(out)
        write_atomic(out, ranking_markdown(document).encode())
    if json:
        print_json(document)
    else:
        from llmopt.report.terminal import print_ranking

        print_ranking(document)
    if not document["ranked"]:
        joint = (document.get("relaxation") or {}).get("joint")
        raise GoalNotMet(
            "no configuration meets the goal",
            hint=f"the least that must give: {joint['words']}"
            if joint
            else "the reasons are above: relax a limit, or measure more cases",
        )


@app.command("runs")
@for_people
def runs_command(
    results: Annotated[Path, typer.Argument(help="Folder of run records, or one record.")] = Path("results"),
    csv: Annotated[Path | None, typer.Option("--csv", help="Also write every field of every run as CSV.")] = None,
    json: Json = False,
) -> None:
    """List the stored runs, oldest first."""
    from llmopt.cli.reporting import head, require_own
    from llmopt.core.files import write_atomic
    from llmopt.core.run_index import read_store
    from llmopt.core.store import frame
    from llmopt.report.csv_table import HEAD_OF_RUNS, OF_RUNS, written
    from llmopt.report.terminal import print_runs

    if csv is not None:
        require_own(csv, head(csv).startswith(HEAD_OF_RUNS), "runs.csv")
    stored = read_store(results)
    say_skipped(stored.skipped)
    runs = [stored.table.record(row) for row in range(len(stored.table))]
    if csv is not None:
        fields = frame(runs).astype(object)
        rows = [dict(row) for _, row in fields.where(fields.notna(), None).iterrows()]
        write_atomic(csv, written(rows, list(fields.columns) or [*OF_RUNS, ""]))
    print_json(runs) if json else print_runs(frame(runs))


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
