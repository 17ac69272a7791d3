"""``llmopt estimate``: what a model needs before anything is loaded."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llmopt.cli.shell import GroupedCommand, Json, app, for_people, print_json
from llmopt.core.errors import GoalNotMet, UsageError

LOAD, DEVICE = "Load", "Device"


@app.command("estimate", cls=GroupedCommand)
@for_people
def estimate_command(
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
    max_num_seqs: Annotated[int | None, typer.Option(min=1, help="As --batch.", rich_help_panel=LOAD)] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one step (llama.cpp: -ub).", rich_help_panel=LOAD)
    ] = None,
    kv_cache_dtype: Annotated[
        str | None, typer.Option(help="Number type of the KV cache: fp8, q8_0.", rich_help_panel=LOAD)
    ] = None,
    attn_implementation: Annotated[
        str | None, typer.Option(help="hf: sdpa, flash_attention_2 or eager.", rich_help_panel=LOAD)
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="GPU by name; 'list' names all.", rich_help_panel=DEVICE)
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
    parameters: Annotated[
        float | None, typer.Option(help="Size of a model that is not known here, for weights alone: 7e9.")
    ] = None,
    fits: Annotated[bool, typer.Option("--fits", help="List which quantizations and contexts fit.")] = False,
    json: Json = False,
) -> None:
    """Estimate memory from the config or the files' headers alone: no GPU, no weights, under a second."""
    if gpu == "list":
        list_devices(json)
        return
    if parameters is not None:
        estimate_size(model or f"{parameters / 1e9:g} B parameters", parameters, quant, layout, json)
        return
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
        return
    document = estimate_document(source, case)
    print_json(document) if json else print_estimate(document)
    if document["fits"] is False:
        raise GoalNotMet(
            f"{case.layout.name} of {source.name} does not fit {case.devices.name}", hint=ways_out(source, case)
        )


def estimate_size(name: str, parameters: float, quant: str | None, layout: str | None, json: bool) -> None:
    """Of a model that is known by its number of parameters alone."""
    from llmopt.estimate.document import size_document
    from llmopt.estimate.source import by_hand
    from llmopt.report.estimate import print_size

    source = by_hand(name, parameters)
    document = size_document(source, *source.in_layout(quant, layout))
    print_json(document) if json else print_size(document)


def make_case(source: Any, *, load: dict[str, Any], quant: str | None, layout: str | None, **asked: Any) -> Any:
    """The question that the options ask. Raises UsageError for those that contradict each other."""
    from llmopt.estimate.load import make_load
    from llmopt.estimate.memory import Case, positions

    if quant == "fp8" and asked["backend"] == "hf" and source.weights is None and layout is None:
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
    return Case(
        shape=source.shape, layout=wanted, weights=weights, backend=backend, kv_dtype=asked["kv_dtype"],
        load=make_load(**load, longest=positions(source.shape)), utilization=asked["utilization"],
        devices=make_devices(asked["gpu"], asked["vram"], asked["gpus"], asked["tensor_parallel"]),
    )  # fmt: skip


def make_devices(gpu: str | None, vram: str | None, gpus: int | None, tensor_parallel: int | None) -> Any:
    from llmopt.core.units import parse_quantity, show
    from llmopt.estimate.memory import Devices

    count = gpus or tensor_parallel or 1
    if tensor_parallel and count % tensor_parallel:
        raise UsageError(
            f"--tensor-parallel-size {tensor_parallel} does not divide --gpus {count}", hint=f"--gpus {tensor_parallel}"
        )
    found = None
    if gpu:
        from llmopt.estimate.hardware import device

        found = device(gpu)
    memory = int(parse_quantity(vram, "bytes")) if vram else found.memory_bytes if found else None
    if memory is not None and memory <= 0:
        raise UsageError("--vram must be more than 0", hint="--vram 24GiB")
    name = found.name if found else f"a GPU of {show(memory, 'bytes')}" if memory else ""
    return Devices(
        count=count,
        tensor_parallel=tensor_parallel or count,
        memory_bytes=memory,
        name=name,
        kind=found.kind if found else "gpu",
    )


def list_devices(json: bool) -> None:
    from dataclasses import asdict

    from llmopt.estimate.hardware import devices
    from llmopt.report.estimate import print_devices

    rows = [asdict(one) for one in devices().values()]
    print_json(rows) if json else print_devices(rows)
