"""The command line: one function per command that parses, calls and prints. Bodies import what they need."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmopt.core.errors import LlmoptError, UsageError

if TYPE_CHECKING:
    from llmopt.report.progress import Reporter

INTERRUPTED = 130
DEBUG_VARIABLE = "LLMOPT_DEBUG"

app = typer.Typer(
    name="llmopt",
    help="Which quantization, engine and settings should I run for this model on this hardware, and how sure are we?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
env_app = typer.Typer(no_args_is_help=True, help="The Python environments in which engines and quantizers live.")
app.add_typer(env_app, name="env")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
ResultsOption = Annotated[Path, typer.Option("--results", help="Folder of run records.")]
PythonOption = Annotated[
    str | None, typer.Option("--env", help="Interpreter or virtual environment to run the engine in.")
]
TextOption = Annotated[Path | None, typer.Option("--text", help="Held-out text for quality; default: the bundled one.")]
TokensOption = Annotated[int, typer.Option("--tokens", min=1536, help="Tokens of the text to compare on.")]


def for_people(command: Callable[..., None]) -> Callable[..., None]:
    """Every error is one line with a hint and its exit status; a traceback only with ``--debug``."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        if sys.stdout is None or sys.stderr is None:
            raise SystemExit(1)
        try:
            command(*arguments, **options)
            sys.stdout.flush()
        except LlmoptError as error:
            fail(error.message, error.hint, error.exit_status)
        except KeyboardInterrupt:
            fail("interrupted; everything finished is kept", "run the same command again to go on", INTERRUPTED)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except OSError as error:
            fail(
                f"{error.strerror or error}: {error.filename or 'standard output'}",
                "check that it can be written to",
                1,
            )
        except Exception as error:
            fail(f"{type(error).__name__}: {error}", "this is a defect of llmopt: llmopt --debug … shows where", 1)

    return run


def fail(message: str, hint: str | None, status: int) -> None:
    if os.environ.get(DEBUG_VARIABLE):
        import traceback

        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    raise SystemExit(status)


def reporter(*, quiet: bool = False) -> Reporter:
    from llmopt.report.progress import Reporter

    return Reporter(quiet=quiet)


def print_json(value: Any) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=1).decode() + "\n")


def show_version(asked: bool) -> None:
    if asked:
        import llmopt

        print(f"llmopt {llmopt.__version__}")
        raise typer.Exit


@app.callback()
def top(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


@app.command("quantize")
@for_people
def quantize_command(
    model: Annotated[
        str, typer.Argument(help="Model folder (config.json, *.safetensors), or 'demo' for the bundled one.")
    ],
    quant: Annotated[str, typer.Option("--quant", "-q", help="Name of the quantization; see docs/quantizations.md.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make; must not hold anything else.")],
    calibration: Annotated[
        Path | None, typer.Option("--calibration", help="Text to calibrate on; default: the bundled one.")
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", help="Calibration samples.")] = None,
    text: TextOption = None,
    tokens: TokensOption = 4096,
    proof: Annotated[
        bool, typer.Option(help="Reload the result and compare it with its base before calling it done.")
    ] = True,
    python: PythonOption = None,
    json: Json = False,
) -> None:
    """Quantize a model, prove the result against its base, and write a manifest beside the weights."""
    from llmopt import demo
    from llmopt.core.artifacts import open_model, read_manifest
    from llmopt.pipeline import making
    from llmopt.report.terminal import print_artifact

    quantization_checked(quant)
    request = making.quantize_request(
        open_model(demo.MODEL if model == "demo" else Path(model)),
        quant,
        calibration=calibration or demo.CALIBRATION_TEXT,
        samples=samples,
        python=python,
    )
    compare = making.QualityText(path=text or demo.HELD_OUT_TEXT, tokens=tokens) if proof else None
    artifact, there = making.quantize(request, out, reporter(quiet=json), proof=compare)
    document = {
        "already_there": there,
        **(read_manifest(out) or {}),
        "quality": making.read_quality(making.quality_file(artifact)),
    }
    print_json(document) if json else print_artifact(document)


def quantization_checked(name: str) -> None:
    """A wrong name fails before anything else is looked at."""
    from llmopt.quantize import method

    method(name)


@app.command("bench")
@for_people
def bench_command(
    artifact: Annotated[
        Path | None, typer.Argument(help="Artifact or model folder to serve; 'demo' for the bundled model.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", "-b", help="Engine: hf or llamacpp; default: the first that loads it.")
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Measure a running server instead, e.g. http://127.0.0.1:8000/v1")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Model name to ask a --url server for.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Users of the closed loop.")] = 4,
    requests: Annotated[int, typer.Option("--requests", help="Requests in all; p95 needs 59.")] = 64,
    input_tokens: Annotated[int, typer.Option("--input-tokens", help="Prompt length in tokens.")] = 64,
    output_tokens: Annotated[int, typer.Option("--output-tokens", help="Output length in tokens.")] = 32,
    warmup_requests: Annotated[int, typer.Option("--warmup-requests", help="Untimed requests before the run.")] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the prompts.")] = 0,
    endpoint: Annotated[str, typer.Option("--endpoint", help="completions or chat.")] = "completions",
    request_timeout: Annotated[
        float, typer.Option("--request-timeout", help="Seconds until a request counts as failed.")
    ] = 120.0,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="tokenizer.json or its folder, for a --url server.")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", min=1, help="Context length per sequence.")
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option("--max-num-seqs", min=1, help="Sequences at once; default: the concurrency.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of the engine.")] = None,
    extra_arg: Annotated[
        list[str] | None, typer.Option("--extra-arg", help="Passed to the engine as it is; may be repeated.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=1, max=65535, help="Port of the server that is started; default: a free one."),
    ] = None,
    ready_timeout: Annotated[
        float | None, typer.Option("--ready-timeout", min=1, help="Seconds until a server must answer.")
    ] = None,
    python: PythonOption = None,
    results: ResultsOption = Path("results"),
    json: Json = False,
) -> None:
    """Serve an artifact (or take a running server) and measure one run; the record goes into the results folder."""
    from llmopt import demo, pipeline
    from llmopt.bench.runner import check_workload
    from llmopt.core.domain import ServeOptions, Workload
    from llmopt.pipeline import making, measuring
    from llmopt.report.terminal import print_run

    if (artifact is None) == (url is None):
        raise UsageError(
            "name either an artifact or a running server",
            hint="llmopt bench DIR, or llmopt bench --url URL --model NAME",
        )
    if endpoint not in ("completions", "chat"):
        raise UsageError(f"unknown endpoint {endpoint!r}", hint="--endpoint completions, or --endpoint chat")
    workload = Workload(
        input_tokens=input_tokens, output_tokens=output_tokens, concurrency=concurrency, requests=requests,
        warmup_requests=warmup_requests, seed=seed, endpoint=endpoint, request_timeout_s=request_timeout,  # type: ignore[arg-type]
    )  # fmt: skip
    check_workload(workload)
    report = reporter(quiet=json)
    if url is not None:
        if model is None:
            raise UsageError(
                "--url needs the name of the model", hint="--model NAME, as the server's /v1/models lists it"
            )
        run = measuring.bench_url(url, model, workload, report, results=results, tokenizer=tokenizer)
    else:
        assert artifact is not None
        options = ServeOptions(
            backend=backend or "", max_model_len=max_model_len, max_num_seqs=max_num_seqs or concurrency, threads=threads,
            extra_args=tuple(extra_arg or ()),
        )  # fmt: skip
        case = pipeline.open_case(demo.MODEL if str(artifact) == "demo" else artifact, options, workload)
        known = making.read_quality(making.quality_file(case.artifact))
        run = measuring.bench_artifact(
            case,
            report,
            results=results,
            python=python,
            port=port,
            ready_timeout_s=ready_timeout,
            quality_of_case=known,
        )[0]
    import msgspec

    print_json(run) if json else print_run(msgspec.to_builtins(run))


@app.command("quality")
@for_people
def quality_command(
    artifact: Annotated[
        Path, typer.Argument(help="Artifact that llmopt quantize made; 'demo' for the bundled model itself.")
    ],
    text: TextOption = None,
    tokens: TokensOption = 16_384,
    python: PythonOption = None,
    json: Json = False,
) -> None:
    """Perplexity, KL divergence and top-1 agreement of an artifact against its base."""
    from llmopt import demo
    from llmopt.core.artifacts import open_artifact
    from llmopt.core.environments import home
    from llmopt.pipeline import making
    from llmopt.report.terminal import print_quality

    found = making.prove(
        open_artifact(demo.MODEL if str(artifact) == "demo" else artifact),
        making.QualityText(path=text or demo.HELD_OUT_TEXT, tokens=tokens),
        reporter(quiet=json),
        log_folder=home() / "logs",
        python=python,
    )
    print_json(found) if json else print_quality(found)


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
    from llmopt import pipeline
    from llmopt.core.store import load_runs
    from llmopt.pipeline import making
    from llmopt.recommend.constraints import make_goal

    goal = make_goal(slo or [], max_memory=max_memory, max_kl=max_kl, optimize=optimize)
    runs = [making.with_known_quality(run) for run in load_runs(results)]
    show_ranking(pipeline.rank_runs(runs, goal), out, json)


def require_report(file: Path) -> None:
    """Refuse to write a report over a file that is none."""
    from llmopt.report.markdown import HEADING

    if file.exists() and not (file.is_file() and file.read_bytes().startswith(HEADING.encode())):
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

    from llmopt import demo, pipeline, recipe
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
        pipeline.ensure_environment(plan, report)
    document = pipeline.run_plan(plan, out, report)
    show_ranking(document, out / "report.md", json)
    if not json:
        report.say(f"\nreport: {out / 'report.md'}; ask again: llmopt recommend {out / 'results'} --optimize latency")


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


def main() -> None:
    app()


if __name__ == "__main__":
    main()
