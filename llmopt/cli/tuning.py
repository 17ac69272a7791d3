"""``llmopt tune``: the whole job from one line, or from a recipe: of cases, or of a space to search."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmopt.cli.deciding import require_report, show_ranking
from llmopt.cli.shell import GroupedCommand, Json, app, for_people, print_json, reporter
from llmopt.core.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from llmopt.pipeline.contestants import Job

HOUR = 3600.0
RECIPES = (".yaml", ".yml")
LOOPS = ("--concurrency", "--rates")
search = functools.partial(typer.Option, rich_help_panel="Search")  # of no use to a recipe of cases


@app.command("tune", cls=GroupedCommand)
@for_people
def tune_command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Model folder, artifact, builtin; or a recipe: recipes/search.yaml, recipes/progressive.yaml."
        ),
    ] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="A recipe, instead of a model.")] = None,
    slo: Annotated[list[str] | None, search("--slo", help="Limit such as 'ttft_p95<500ms'; may be repeated.")] = None,
    max_kl: Annotated[float | None, search("--max-kl", help="Largest mean KL divergence to the base.")] = None,
    max_memory: Annotated[str | None, search("--max-memory", help="Peak memory limit, e.g. 2GiB.")] = None,
    optimize: Annotated[
        str | None, search("--optimize", help="throughput, latency, memory, quality, cost or a metric.")
    ] = None,
    price_per_hour: Annotated[
        float | None, search("--price-per-hour", help="Of the machine: for --optimize cost.")
    ] = None,
    budget: Annotated[str | None, search("--budget", help="Time for everything: 60min, 2h; default 60min.")] = None,
    backends: Annotated[
        str | None, search("--backends", help="Engines, with commas; default: all that are installed.")
    ] = None,
    quants: Annotated[
        str | None, search("--quants", help="Quantizations, with commas; default: the usual ones.")
    ] = None,
    knob: Annotated[
        list[str] | None,
        search(
            "--knob",
            help="Serving option: 'threads=1,2', all combinations, or a range to search, 'threads=1:8'; may be repeated.",
        ),
    ] = None,
    extra_arg: Annotated[
        list[str] | None, search("--extra-arg", help="Passed to every engine as it is; may be repeated.")
    ] = None,
    concurrency: Annotated[
        str | None, search("--concurrency", help="Users of the load curve: 1,2,4,8; default: up to 16, on GPUs 128.")
    ] = None,
    rates: Annotated[
        str | None, search("--rates", help="An open loop instead: requests per second of the curve, 1,2,4.")
    ] = None,
    input_tokens: Annotated[str | None, search("--input-tokens", help="Prompt length; default 64.")] = None,
    output_tokens: Annotated[str | None, search("--output-tokens", help="Answer length; default 32.")] = None,
    prefix_tokens: Annotated[
        int | None, search("--prefix-tokens", help="Tokens that all prompts begin with: prefix caching is tried then.")
    ] = None,
    requests: Annotated[
        int | None,
        search("--requests", help="Requests at each load; default: as many as the limits need, 64 at least."),
    ] = None,
    exhaustive: Annotated[
        bool | None,
        search("--exhaustive/--no-exhaustive", help="Three rounds of everything, for comparison with the race."),
    ] = None,
    seed: Annotated[int | None, search("--seed", help="Seed of orders and prompts.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be made and measured.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for artifacts, results and the report; default: llmopt-tune."),
    ] = None,
    json: Json = False,
) -> None:
    """Find what to deploy: make, prove and measure, in rounds over what may still be the best. Goes on where it stopped."""
    if (model is None) == (recipe is None):
        raise UsageError("name either a model or a recipe", hint="llmopt tune builtin --budget 10min -o DIR")
    asked = {
        "--slo": slo, "--max-kl": max_kl, "--max-memory": max_memory, "--optimize": optimize, "--budget": budget,
        "--backends": backends, "--quants": quants, "--knob": knob, "--concurrency": concurrency, "--rates": rates,
        "--input-tokens": input_tokens, "--output-tokens": output_tokens, "--prefix-tokens": prefix_tokens,
        "--requests": requests, "--exhaustive": exhaustive, "--seed": seed, "--price-per-hour": price_per_hour,
        "--extra-arg": extra_arg,
    }  # fmt: skip
    given = {flag: value for flag, value in asked.items() if value is not None}
    if recipe is not None or Path(model or "").suffix in RECIPES:
        file = recipe or Path(model or "")
        if not is_search(file):
            tune_recipe(file, given, out, dry_run=dry_run, json=json)
            return
        model, written = search_of(file)
        given = with_file(written, given)
    tune_model(job_of(model or "", given), out or Path("llmopt-tune"), dry_run=dry_run, json=json)


def is_search(file: Path) -> bool:
    from llmopt import recipe as recipes

    return recipes.is_search(file)


def search_of(file: Path) -> tuple[str, dict[str, Any]]:
    """The model of a recipe, and its search as the options of the command. Raises UsageError."""
    from llmopt import recipe as recipes

    def listed(value: Any) -> str:
        values = value if isinstance(value, list) else [value]
        return ",".join(str(one).lower() if isinstance(one, bool) else str(one) for one in values)

    model, text = recipes.load_search(file)
    flags = {
        "--slo": text.slos, "--max-kl": text.max_kl, "--max-memory": text.max_memory, "--optimize": text.optimize,
        "--budget": text.budget, "--backends": listed(text.backends), "--quants": listed(text.quantizations),
        "--knob": [f"{name}={listed(values)}" for name, values in text.knobs.items()], "--extra-arg": text.extra_args,
        "--concurrency": listed(text.concurrency), "--rates": listed(text.rates),
        "--input-tokens": None if text.input_tokens is None else str(text.input_tokens),
        "--output-tokens": None if text.output_tokens is None else str(text.output_tokens),
        "--prefix-tokens": text.prefix_tokens, "--requests": text.requests, "--exhaustive": text.exhaustive or None,
        "--seed": text.seed, "--price-per-hour": text.price_per_hour,
    }  # fmt: skip
    return str(model), {flag: value for flag, value in flags.items() if value not in (None, "", [])}


def with_file(written: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What is said now goes before what the file says; another kind of loop replaces the file's."""
    if any(flag in given for flag in LOOPS):
        written = {flag: value for flag, value in written.items() if flag not in LOOPS}
    return written | given


def job_of(model: str, given: dict[str, Any]) -> Job:
    """The options as one job. Raises UsageError."""
    from llmopt import demo
    from llmopt.bench.workload import check_workload, make_workload
    from llmopt.core.units import parse_quantity
    from llmopt.pipeline.contestants import Job, usual_levels
    from llmopt.recommend.constraints import make_goal
    from llmopt.recommend.proposals import Range
    from llmopt.recommend.space import parse_knob

    if "--concurrency" in given and "--rates" in given:
        raise UsageError("--concurrency and --rates are different loops", hint="one of them")
    rates = numbers("--rates", given["--rates"]) if "--rates" in given else None
    users = numbers("--concurrency", given["--concurrency"], whole=True) if "--concurrency" in given else usual_levels()
    levels = rates or users
    knobs = dict(pairs := [parse_knob(text) for text in given.get("--knob", [])])
    if len(knobs) < len(pairs):
        raise UsageError("one --knob for each setting", hint="all of its values in one: --knob max_num_seqs=1,2,4")
    workload = make_workload(
        input_tokens=given.get("--input-tokens", "64"), output_tokens=given.get("--output-tokens", "32"),
        prefix_tokens=given.get("--prefix-tokens", 0), requests=given.get("--requests"), seed=given.get("--seed", 0),
        slos=counted(given.get("--slo", [])),
        **({"rate": rates[0]} if rates else {"concurrency": int(users[0])}),
    )  # fmt: skip
    job = Job(
        model=demo.MODEL if model in demo.NAMES else Path(model).expanduser(),
        goal=make_goal(
            given.get("--slo", []), max_memory=given.get("--max-memory"), max_kl=given.get("--max-kl"),
            optimize=given.get("--optimize", "throughput"), price_per_hour=given.get("--price-per-hour"),
        ),
        workload=workload,
        requests=given.get("--requests"),
        levels=levels,
        budget_s=parse_quantity(hours(given.get("--budget", "60min")), "s"),
        quantizations=names(given.get("--quants")),
        backends=names(given.get("--backends")),
        knobs={name: values for name, values in knobs.items() if isinstance(values, tuple)} if knobs else None,
        ranges={name: values for name, values in knobs.items() if isinstance(values, Range)},
        exhaustive=bool(given.get("--exhaustive")),
        seed=given.get("--seed", 0),
        extra_args=tuple(given.get("--extra-arg", ())),
    )  # fmt: skip
    for load in job.loads:
        check_workload(load)
    require_readable(job)
    if job.budget_s <= 0:
        raise UsageError("--budget must be more than 0", hint="--budget 10min")
    return job


def require_readable(job: Job) -> None:
    """Raise UsageError for a goal that no run of this job can tell, and for options that it would not hear."""
    from llmopt.core.metric_table import OF_A_TASK
    from llmopt.pipeline.visiting import samples_of, words_of

    words = words_of(job.goal)
    if len(set(words)) < len(words):
        raise UsageError(f"--optimize {job.goal.optimize} names one thing twice", hint="each once")
    if scores := [word for word in words if word.startswith(OF_A_TASK)]:
        raise UsageError(
            f"tune runs no tasks, and no run of it would tell {scores[0]}",
            hint="--optimize throughput --max-kl 0.05 here; then llmopt quality ARTIFACT --tasks, and llmopt recommend "
            f"--optimize {scores[0]}",
        )
    if "goodput_rps" in words and not job.workload.slos:
        raise UsageError(
            "goodput_rps counts the requests that meet an SLO, and there is none", hint="--slo 'ttft<500ms'"
        )
    if job.requests is not None and job.requests < (needed := samples_of(job.goal)):
        raise UsageError(
            f"the goal's percentiles need {needed} requests of each load, --requests are {job.requests}",
            hint=f"--requests {needed} or more, or leave it out",
        )
    if job.quantizations and job.given:
        raise UsageError(
            f"{job.model} is quantized already: --quants {','.join(job.quantizations)} would make nothing of it",
            hint="name the folder of the unquantized model, or leave --quants out",
        )


def counted(slos: list[str]) -> tuple[str, ...]:
    """Those that each request meets or not: the records count them as goodput."""
    from llmopt.core.limits import parse_limit
    from llmopt.core.metric_table import METRICS

    return tuple(text for text in slos if METRICS[parse_limit(text).metric].of_request is not None)


def names(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in (text or "").split(",") if word.strip()))


def numbers(flag: str, text: str, *, whole: bool = False) -> tuple[float, ...]:
    """Rising and unlike; raises UsageError."""
    try:
        found = sorted({int(word) if whole else float(word) for word in text.split(",")})
    except ValueError:
        raise UsageError(f"{flag} {text!r} is no list of numbers", hint=f"{flag} 1,2,4") from None
    if not all(0 < number < float("inf") for number in found):
        raise UsageError(f"{flag} must be more than 0, got {text}", hint=f"{flag} 1,2,4")
    return tuple(found)


def hours(text: str) -> str:
    """``2h`` in the minutes that quantities know."""
    number = text.strip().removesuffix("h")
    try:
        return f"{float(number) * 60:g}min" if text.strip().endswith("h") else text
    except ValueError:
        return text


def tune_model(job: Job, out: Path, *, dry_run: bool, json: bool) -> None:
    from llmopt.core.files import write_atomic
    from llmopt.pipeline import tuning
    from llmopt.report.markdown import ranking_markdown
    from llmopt.report.racing import RaceReporter, print_race, print_space, race_markdown
    from llmopt.report.terminal import print_ranking

    if dry_run:
        document = tuning.tune_document(job)
        print_json(document) if json else print_space(document)
        return
    require_report(out / "report.md")
    try:
        with RaceReporter(quiet=json) as report:
            document = tuning.tune(job, out, report)
    except (Interrupted, KeyboardInterrupt) as stop:
        said = stop.message if isinstance(stop, Interrupted) else f"interrupted; every finished run is kept in {out}"
        raise Interrupted(said, hint=f"the same command with -o {out} goes on with what is missing") from stop
    write_atomic(out / "report.md", (ranking_markdown(document["ranking"]) + race_markdown(document)).encode())
    if json:
        print_json(document)
    else:
        print_ranking(document["ranking"])
        print_race(document)
    require_ranked(document["ranking"])


def require_ranked(ranking: dict[str, Any]) -> None:
    """Exit status 3 when nothing meets the goal."""
    from llmopt.core.errors import GoalNotMet

    if not ranking["ranked"]:
        raise GoalNotMet(
            "no configuration meets the goal", hint="the reasons are above: relax a limit, or try other --quants"
        )


# --- recipes of cases -------------------------------------------------------------------------------------------------


def tune_recipe(recipe: Path, given: dict[str, Any], out: Path | None, *, dry_run: bool, json: bool) -> None:
    """Make, prove and measure every case of a recipe; rank them, or show what each step gave."""
    from llmopt import recipe as recipes
    from llmopt.pipeline import plans

    if given:
        raise UsageError(
            f"a recipe says itself what is measured: {', '.join(given)} would not be heard",
            hint="leave that out, or name the model instead of the recipe",
        )
    if out is None:
        raise UsageError("a recipe needs a folder for its results", hint=f"llmopt tune {recipe} -o DIR")
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
