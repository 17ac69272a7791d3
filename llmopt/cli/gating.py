"""``llmopt gate``, its ``plan`` and ``calibrate``; ``llmopt baseline``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from llmopt.cli.gate_files import make_room, show
from llmopt.cli.serving import Backend, takes_serve_options
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
from llmopt.core.errors import UsageError

if TYPE_CHECKING:
    from llmopt.pipeline.gate_question import Question
    from llmopt.pipeline.sides import Ways

COMPARE = "compare"  # what ``llmopt gate BASE CANDIDATE`` is without a word for it

judged = functools.partial(typer.Option, rich_help_panel="What is gated")
effort = functools.partial(typer.Option, rich_help_panel="How long, how sure")
load = functools.partial(typer.Option, rich_help_panel="Load of URLs and artifacts (a recipe has its own)")
output = functools.partial(typer.Option, rich_help_panel="Output")


class GateGroup(TyperGroup):
    """Two sides are named without a word before them; ``plan`` and ``calibrate`` are words."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = [COMPARE, *(args or ["--help"])]
        return super().parse_args(ctx, args)


gate_app = typer.Typer(
    cls=GateGroup, help="Has a candidate become worse than a base? Exit 0 pass, 3 regression, 4 inconclusive."
)
baseline_app = typer.Typer(no_args_is_help=True, help="Accepted runs, kept under a name in the results folder.")
app.add_typer(gate_app, name="gate")
app.add_typer(baseline_app, name="baseline")

Metric = Annotated[
    list[str] | None,
    judged(
        "--metric",
        help="Blocks from a loss on, half of which is tolerated: 'ttft_p95:5%'; both: 'ttft_p95:2%:5%'; the first is primary.",
    ),
]
Quality = Annotated[
    list[str] | None,
    judged(
        "--quality", help="Difference to the base that blocks: 'kl:0.01', 'top1:0.02'; default kl:0.01 where proven."
    ),
]
Allow = Annotated[
    list[str] | None,
    judged(
        "--allow", help="A difference between the sides that is meant: version, options, artifact, workload, machine …"
    ),
]
Rounds = Annotated[int | None, effort("--rounds", help="Blocks of four runs, ABBA; default at most 20.")]
Budget = Annotated[str | None, effort("--budget", help="Instead of --rounds: as many blocks as fit, 10min.")]
Confidence = Annotated[float, effort("--confidence", help="1 − the probability of a false alarm, and of a false pass.")]
Seed = Annotated[int | None, effort("--seed", help="Of the order of the blocks; default: drawn, and told.")]
LOAD: dict[str, tuple[Any, Any]] = {
    "model": (Annotated[str | None, load("--model", help="Name to ask a URL for.")], None),
    "tokenizer": (Annotated[str | None, load("--tokenizer", help="tokenizer.json or its folder, for a URL.")], None),
    "header": (Annotated[list[str] | None, load("--header", help="'Name: value' with every request to a URL.")], None),
    "concurrency": (Annotated[int | None, load("--concurrency", help="Closed loop: so many users; default 4.")], None),
    "rate": (Annotated[float | None, load("--rate", help="Open loop: so many requests per second.")], None),
    "requests": (Annotated[int | None, load("--requests", help="Requests of a run; default 64.")], None),
    "input_tokens": (Annotated[str, load("--input-tokens", help="Prompt length.")], "64"),
    "output_tokens": (Annotated[str, load("--output-tokens", help="Answer length.")], "32"),
    "endpoint": (Annotated[str, load("--endpoint", help="completions or chat.")], "completions"),
    "backend": (Backend, None),
    "python": (PythonOption, None),
}


def takes_load(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option of ``LOAD``; it gets them as ``ways``, by name."""
    own = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in LOAD.items()
    ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        ways = {name: values.pop(name) for name in LOAD}
        command(**values, ways=ways)

    kept = [p for name, p in own.parameters.items() if name != "ways"]
    given = [p for p in kept if p.name == "given"]
    kept = [p for p in kept if p.name != "given"]
    run.__signature__ = own.replace(parameters=[*kept, *added, *given])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [*kept, *added, *given]}
    return run


@gate_app.command(COMPARE, cls=GroupedCommand, hidden=True)
@for_people
@takes_serve_options
@takes_load
def gate_command(
    base: Annotated[str, typer.Argument(help="URL, recipe, artifact, run, folder of runs, or name of a baseline.")],
    candidate: Annotated[str, typer.Argument(help="The same, for what may have become worse.")],
    metric: Metric = None,
    quality: Quality = None,
    allow: Allow = None,
    rounds: Rounds = None,
    budget: Budget = None,
    confidence: Confidence = 0.99,
    seed: Seed = None,
    on_inconclusive: Annotated[
        str, output("--on-inconclusive", help="Exit status where it cannot be told: fail (4) or pass (0).")
    ] = "fail",
    markdown: Annotated[Path | None, output("--markdown", help="Also write the verdict as Markdown.")] = None,
    junit: Annotated[Path | None, output("--junit", help="Also write the verdict as JUnit XML.")] = None,
    html: Annotated[
        Path | None, output("--html", help="Also draw the verdict: one page that asks nothing of anybody.")
    ] = None,
    results: ResultsOption = Path("results"),
    json: Json = False,
    *,
    ways: dict[str, Any],
    given: dict[str, Any],
) -> None:
    """Measure base and candidate in turn and say whether the candidate became worse, and how sure that is.

    Exit status: 0 pass, 3 regression, 4 inconclusive, 1 error, 2 usage. `llmopt gate plan` says how long a threshold
    takes on this machine, `llmopt gate calibrate` measures its noise.
    """
    from llmopt.pipeline.gate_document import document
    from llmopt.pipeline.gating import gate

    make_room(markdown, junit, html)  # before an hour is spent
    if on_inconclusive not in ("pass", "fail"):
        raise UsageError(f"--on-inconclusive {on_inconclusive!r} is neither pass nor fail", hint="pass or fail")
    measured = ways_of(results, json, given=given, **ways)
    question = question_of(metric, quality, allow, rounds, budget, confidence, seed)
    found = document(gate(base, candidate, measured, question), question, inconclusive_passes=on_inconclusive == "pass")
    show(found, markdown, junit, html, json)
    if found["exit_status"]:
        raise SystemExit(found["exit_status"])


def question_of(
    metric: list[str] | None,
    quality: list[str] | None,
    allow: list[str] | None,
    rounds: int | None,
    budget: str | None,
    confidence: float,
    seed: int | None,
) -> Question:
    """Raises UsageError."""
    from llmopt.core.units import parse_quantity
    from llmopt.gate.design import make_design
    from llmopt.gate.thresholds import parse_quality, parse_thresholds
    from llmopt.pipeline.gate_question import Question

    if rounds is not None and budget is not None:
        raise UsageError("--rounds and --budget both say how long", hint="one of them")
    budget_s = None if budget is None else parse_quantity(budget, "s")
    if budget_s is not None and budget_s <= 0:
        raise UsageError("--budget must be more than 0", hint="--budget 10min")
    make_design(rounds if rounds is not None else 2, confidence, 0)  # what is wrong with either is said at once
    return Question(
        thresholds=parse_thresholds(metric or []),
        quality=parse_quality(quality or []),
        rounds=rounds,
        budget_s=budget_s,
        confidence=confidence,
        allow=tuple(allow or ()),
        seed=seed,
    )


def ways_of(results: Path, quiet: bool, *, given: dict[str, Any], **options: Any) -> Ways:
    """Raises UsageError."""
    from llmopt.bench.endpoint import parse_headers
    from llmopt.bench.workload import make_workload
    from llmopt.core.domain import ServeOptions
    from llmopt.pipeline.sides import Ways

    workload = make_workload(
        input_tokens=options["input_tokens"], output_tokens=options["output_tokens"], requests=options["requests"],
        concurrency=options["concurrency"], rate=options["rate"], endpoint=options["endpoint"],
    )  # fmt: skip
    serve = ServeOptions(backend=options["backend"] or "", **({"max_num_seqs": workload.most_at_once} | given))
    return Ways(
        results=results,
        work=Path("llmopt-gate"),
        workload=workload,
        report=reporter(quiet=quiet),
        model=options["model"],
        tokenizer=options["tokenizer"],
        headers=parse_headers(options["header"] or []),
        options=serve,
        python=options["python"],
    )


@gate_app.command("calibrate", cls=GroupedCommand)
@for_people
@takes_serve_options
@takes_load
def calibrate_command(
    subject: Annotated[str, typer.Argument(help="URL, recipe or artifact to measure against itself.")],
    rounds: Annotated[int, effort("--rounds", min=2, help="Blocks of four runs.")] = 8,
    seed: Seed = None,
    results: ResultsOption = Path("results"),
    json: Json = False,
    *,
    ways: dict[str, Any],
    given: dict[str, Any],
) -> None:
    """Measure one thing against itself: the noise of this machine, kept for `gate plan` and for stored comparisons."""
    from llmopt.pipeline.calibrating import calibrate
    from llmopt.report.gate import print_noise

    measured = ways_of(results, json, given=given, **ways)
    found = calibrate(subject, measured, rounds, seed)
    print_json(found) if json else print_noise(found)


@gate_app.command("plan", cls=GroupedCommand)
@for_people
def plan_command(
    metric: Metric = None,
    loss: Annotated[
        str, effort("--loss", help="The true loss that is to be found; default: five thirds of what blocks.")
    ] = "",
    confidence: Confidence = 0.99,
    results: ResultsOption = Path("results"),
    json: Json = False,
) -> None:
    """How many blocks and minutes a threshold needs on this machine, by the noise that `gate calibrate` found."""
    from llmopt.gate.thresholds import parse_thresholds
    from llmopt.pipeline.calibrating import plan
    from llmopt.report.gate import print_plan

    found = plan(results, parse_thresholds(metric or []), loss, confidence)
    print_json(found) if json else print_plan(found)


@baseline_app.command("set")
@for_people
def baseline_set_command(
    name: Annotated[str, typer.Argument(help="Name of the baseline: main, v1.2.")],
    runs: Annotated[list[str], typer.Argument(help="Records, folders of records, or run ids.")],
    results: ResultsOption = Path("results"),
    json: Json = False,
) -> None:
    """Accept runs under a name: one small file a case, for git."""
    from llmopt.pipeline.baselines import accept

    found = accept(name, runs, results)
    print_json(found) if json else print("\n".join(found["files"]))


@baseline_app.command("list")
@for_people
def baseline_list_command(results: ResultsOption = Path("results"), json: Json = False) -> None:
    """The baselines that there are, with their age and machine."""
    from llmopt.pipeline.baselines import overview
    from llmopt.report.gate import print_baselines

    found = overview(results)
    print_json(found) if json else print_baselines(found)


@baseline_app.command("show")
@for_people
def baseline_show_command(
    name: Annotated[str, typer.Argument(help="Name of a baseline.")],
    results: ResultsOption = Path("results"),
    json: Json = False,
) -> None:
    """The cases of a baseline with their figures."""
    from llmopt.pipeline.baselines import details
    from llmopt.report.gate import print_baseline

    found = details(results, name)
    print_json(found) if json else print_baseline(found)
