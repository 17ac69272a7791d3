"""``llmopt estimate``: what a model needs and gives before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmopt.cli.hardware_options import make_devices, make_draft, make_peak, make_price, require_heard
from llmopt.cli.shell import GroupedCommand, Json, app, for_people, nobody_gave, print_json
from llmopt.core.errors import GoalNotMet, UsageError, nearest

if TYPE_CHECKING:
    from llmopt.estimate.memory import Case
    from llmopt.estimate.source import Source

LOAD, DEVICE, SPEED = "Load", "Device", "Speed and cost"
# All that is heard beside --parameters, and beside --fits.
OF_A_SIZE = ("model", "parameters", "quant", "layout", "json")
OF_WHAT_FITS = (
    "model", "fits", "json", "backend", "input_tokens", "output_tokens", "batch", "context", "max_num_seqs", "layout",
    "max_num_batched_tokens", "kv_cache_dtype", "attn_implementation", "gpu", "vram", "gpus", "tensor_parallel_size",
    "gpu_memory_utilization",
)  # fmt: skip
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")


@app.command("estimate", cls=GroupedCommand)
@for_people
def estimate_command(
    invocation: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="Folder with a config.json, GGUF file, a known shape, or 'builtin'.")
    ] = None,
    quant: Annotated[
        str | None, typer.Option("--quant", "-q", help="Quantization by name; default: as the model is stored.")
    ] = None,
    layout: Annotated[str | None, typer.Option("--format", help="Another layout of it: compressed-tensors.")] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", "-b", help="Engine: hf, vllm, llamacpp, …; default: by the format.")
    ] = None,
    input_tokens: Annotated[
        int | None, typer.Option(min=1, help="Prompt of each sequence.", rich_help_panel=LOAD)
    ] = None,
    output_tokens: Annotated[int | None, typer.Option(min=0, help="Answer of each.", rich_help_panel=LOAD)] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences at once.", rich_help_panel=LOAD)] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of each, prompt and answer.", rich_help_panel=LOAD)
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, help="As --batch, and no more.", rich_help_panel=LOAD)
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one step (llama.cpp: -ub).", rich_help_panel=LOAD)
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Open loop: requests per second.", rich_help_panel=LOAD)] = None,
    kv_cache_dtype: Annotated[
        str | None, typer.Option(help="Number type of the KV cache: fp8, q8_0.", rich_help_panel=LOAD)
    ] = None,
    attn_implementation: Annotated[
        str | None, typer.Option(help="hf: sdpa, flash_attention_2 or eager.", rich_help_panel=LOAD)
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", help="GPU by name; 'list' names all, 'this' is this machine's.", rich_help_panel=DEVICE),
    ] = None,
    vram: Annotated[
        str | None, typer.Option("--vram", help="Memory of one GPU: 24GiB.", rich_help_panel=DEVICE)
    ] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="How many.", rich_help_panel=DEVICE)] = None,
    tensor_parallel_size: Annotated[
        int | None, typer.Option(min=1, help="GPUs that share every layer.", rich_help_panel=DEVICE)
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Share of it that may be taken.", rich_help_panel=DEVICE)
    ] = None,
    bandwidth: Annotated[
        str | None, typer.Option("--bandwidth", help="Of its memory, a second: 1008GB.", rich_help_panel=DEVICE)
    ] = None,
    flops: Annotated[
        float | None, typer.Option("--flops", help="16-bit operations a second, dense: 165e12.", rich_help_panel=DEVICE)
    ] = None,
    num_speculative_tokens: Annotated[
        int | None, typer.Option(min=1, max=64, help="Tokens that a draft proposes each step.", rich_help_panel=SPEED)
    ] = None,
    acceptance_rate: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Chance that such a token is kept; unknown: bounds alone.", rich_help_panel=SPEED
        ),
    ] = None,
    draft_parameters: Annotated[
        float | None,
        typer.Option(min=0, help="Size of the draft model in 16 bits: 0.5e9; none for n-grams.", rich_help_panel=SPEED),
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Of the whole machine, for the cost of a token.", rich_help_panel=SPEED)
    ] = None,
    prices: Annotated[
        Path | None,
        typer.Option("--prices", help="Prices of GPUs, as TOML: [h100] on_demand = 2.5.", rich_help_panel=SPEED),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            "--results",
            help="Folder of run records that correct the figures, may be repeated; default: results and those of demo and tune.",
            rich_help_panel=SPEED,
        ),
    ] = None,
    parameters: Annotated[
        float | None, typer.Option(help="Size of a model that is not known here, for weights alone: 7e9.")
    ] = None,
    fits: Annotated[bool, typer.Option("--fits", help="List which quantizations and contexts fit.")] = False,
    json: Json = False,
) -> None:
    """Estimate memory and speed from the config or the files' headers alone: no GPU, no weights, under a second."""
    if gpu == "list":
        list_devices(json)
        return
    if parameters is not None:
        refuse_all_but(invocation, OF_A_SIZE, "--parameters tells the size of the weights alone")
        estimate_size(model or f"{parameters / 1e9:g} B parameters", parameters, quant, layout, json)
        return
    if layout is not None and quant is None:
        raise UsageError("--format is of a quantization", hint=f"--quant gptq-int4-g128 --format {layout}")
    if attn_implementation is not None and attn_implementation not in ATTENTION:
        raise UsageError(
            f"unknown --attn-implementation {attn_implementation!r}", hint=nearest(attn_implementation, list(ATTENTION))
        )
    if price_per_hour is not None and prices is not None:
        raise beside("--price-per-hour tells the price", "--prices")
    if fits:
        refuse_all_but(invocation, OF_WHAT_FITS, "--fits lists all quantizations, and no speed")
    if model is None:
        raise UsageError("no model named", hint="llmopt estimate DIR --quant gptq-int4-g128 --gpu h100")
    from llmopt.estimate.document import estimate_document, fits_document, ways_out
    from llmopt.estimate.source import open_source
    from llmopt.report.estimate import print_estimate, print_fits

    source = open_source(model)
    case = make_case(
        source, quant=quant, layout=layout, backend=backend, gpu=gpu, vram=vram, gpus=gpus, kv_dtype=kv_cache_dtype,
        tensor_parallel=tensor_parallel_size, utilization=gpu_memory_utilization,
        load={
            "input_tokens": input_tokens, "output_tokens": output_tokens, "batch": batch, "context": context,
            "max_num_seqs": max_num_seqs, "step_tokens": max_num_batched_tokens, "attention": attn_implementation,
        },
    )  # fmt: skip
    if fits:
        if case.devices.memory_bytes is None:
            raise UsageError("--fits needs a GPU", hint="--gpu h100, or --vram 24GiB; --gpu list names them")
        document = fits_document(source, case)
        print_json(document) if json else print_fits(document)
        if not any(row["fits"] for row in document["rows"]):
            raise GoalNotMet(
                f"nothing of {source.name} fits {case.devices.name}", hint="more GPUs (--gpus 2), or a larger one"
            )
        return
    document = estimate_document(source, case)
    document["speed"] = speed_of(
        case, document["fits"],
        device={"gpu": gpu, "vram": vram, "bandwidth": bandwidth, "flops": flops}, results=results, rate=rate,
        draft={"tokens": num_speculative_tokens, "acceptance": acceptance_rate, "parameters": draft_parameters},
        price={"price_per_hour": price_per_hour, "prices": prices},
    )  # fmt: skip
    print_json(document) if json else print_estimate(document)
    if document["fits"] is False:
        raise GoalNotMet(
            f"{case.layout.name} of {source.name} does not fit {case.devices.name}", hint=ways_out(source, case)
        )


def refuse_all_but(context: typer.Context, heard: tuple[str, ...], why: str) -> None:
    """Raises UsageError for the first option that was given and is none of these."""
    for option in context.command.params:
        if option.name and option.name not in heard and not nobody_gave(context, option.name):
            raise beside(why, option.opts[0])


def beside(why: str, option: str) -> UsageError:
    return UsageError(f"{why}: {option} says nothing beside it", hint=f"leave {option} out")


def estimate_size(name: str, parameters: float, quant: str | None, layout: str | None, json: bool) -> None:
    """Of a model that is known by its number of parameters alone."""
    from llmopt.estimate.document import size_document
    from llmopt.estimate.source import by_hand
    from llmopt.report.estimate import print_size

    source = by_hand(name, parameters)
    document = size_document(source, *source.in_layout(quant, layout))
    print_json(document) if json else print_size(document)


def make_case(source: Source, *, load: dict[str, Any], quant: str | None, layout: str | None, **asked: Any) -> Case:
    """The question that the options ask. Raises UsageError for those that contradict each other."""
    from llmopt.core.kv_cache import positions
    from llmopt.estimate.load import make_load
    from llmopt.estimate.memory import Case

    if quant == "fp8" and asked["backend"] == "hf" and source.stored.name != "fp8" and layout is None:
        quant = "fp8-block"  # transformers' own FP8, which it keeps in 8 bits
    wanted, weights = source.in_layout(quant, layout)
    backend = asked["backend"] or ("llamacpp" if wanted.format == "gguf" else "hf")
    if (wanted.format == "gguf") != (backend == "llamacpp"):
        raise UsageError(
            f"{backend} does not load {wanted.name}"
            if wanted.format == "gguf"
            else f"llamacpp loads GGUF alone, not {wanted.name}",
            hint="--backend llamacpp" if wanted.format == "gguf" else "--quant gguf-q4_k_m, or another --backend",
        )
    require_heard(
        backend, attention=load["attention"], step_tokens=load["step_tokens"], utilization=asked["utilization"]
    )
    return Case(
        shape=source.shape, layout=wanted, weights=weights, backend=backend, kv_dtype=asked["kv_dtype"],
        load=make_load(**load, longest=positions(source.shape.config)), utilization=asked["utilization"],
        devices=make_devices(asked["gpu"], asked["vram"], asked["gpus"], asked["tensor_parallel"]),
    )  # fmt: skip


def speed_of(
    case: Case, fits: bool | None, *, device: dict[str, Any], results: list[Path] | None, rate: float | None,
    draft: dict[str, Any], price: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The part of the document that is about speed. Raises UsageError for options that say nothing together."""
    from llmopt.estimate.knowledge import knowledge_of
    from llmopt.estimate.memory import memory_of
    from llmopt.estimate.speed import question, speed_document

    if rate is not None and (not 0 < rate < float("inf") or not case.load.output):
        raise UsageError(
            "--rate needs requests per second, and the length of an answer",
            hint="--rate 2 --input-tokens 512 --output-tokens 128",
        )
    peak, drafted, paid = make_peak(**device), make_draft(**draft), make_price(**price)
    if peak is None:
        alone = "of the device its memory alone is known"
        return {
            "unknown_because": alone if device["vram"] else "this machine's GPU is not in the table of devices",
            "hint": "--bandwidth 1008GB --flops 165e12",
        }
    return speed_document(
        question(
            case, peak, memory_of(case), knowledge=knowledge_of(results, peak), rate=rate, draft=drafted,
            price=paid(peak),
        )
    )  # fmt: skip


def list_devices(json: bool) -> None:
    from dataclasses import asdict

    from llmopt.estimate.hardware import devices
    from llmopt.report.estimate import print_devices

    rows = [asdict(one) for one in devices().values()]
    print_json(rows) if json else print_devices(rows)
