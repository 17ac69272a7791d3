"""``llmopt quantize``: make one artifact, or all of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmopt.cli.shell import (
    Json,
    PythonOption,
    TextOption,
    TokensOption,
    app,
    for_people,
    nobody_gave,
    print_json,
    reporter,
)
from llmopt.core.errors import UsageError

if TYPE_CHECKING:
    from llmopt.pipeline.requesting import Options

CALIBRATION, LARGE, PROOF = "Calibration", "Large models", "Proof"
WITH_A_RECIPE = ("recipe", "out", "dry_run", "force", "max_kl", "min_top1", "json")


@app.command("quantize")
@for_people
def quantize_command(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="Model folder (config.json, *.safetensors), or 'demo' for the bundled one.")
    ] = None,
    quant: Annotated[
        str | None, typer.Option("--quant", "-q", help="Name of the quantization; see docs/quantizations.md.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to make; must not hold anything else.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option("--format", help="Layout, where a method has several: compressed-tensors, gptq, awq, auto-round."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option("--for", help="Engine that will serve it: chooses the layout, and the proof runs in it."),
    ] = None,
    imatrix: Annotated[
        str | None,
        typer.Option(
            "--imatrix", help="Importance matrix of a GGUF: auto (kept only if it measures better), none, or a file."
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="Make every quantization of a recipe, each in a folder below --out.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say whether it will work, how large it will be and what it will take.")
    ] = False,
    calibration: Annotated[
        str, typer.Option("--calibration", help="Text, JSONL, data set, or builtin.", rich_help_panel=CALIBRATION)
    ] = "builtin",
    samples: Annotated[
        int | None, typer.Option("--samples", help="Samples; default 64.", rich_help_panel=CALIBRATION)
    ] = None,
    sample_tokens: Annotated[
        int | None,
        typer.Option("--sample-tokens", help="Tokens of a sample; default 256.", rich_help_panel=CALIBRATION),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Which samples; default 0.", rich_help_panel=CALIBRATION)
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option("--max-memory", help="Memory that the quantizer may take, like 16GiB.", rich_help_panel=LARGE),
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option("--shard-size", help="Largest file of the result, like 5GB.", rich_help_panel=LARGE)
    ] = None,
    device_map: Annotated[
        str | None,
        typer.Option("--device-map", help="Passed to the library: auto spreads over GPUs.", rich_help_panel=LARGE),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Start although the forecast says that it will not fit.", rich_help_panel=LARGE),
    ] = False,
    proof: Annotated[
        bool,
        typer.Option(
            help="Reload the result and compare it with its base before calling it done.", rich_help_panel=PROOF
        ),
    ] = True,
    text: TextOption = None,
    tokens: TokensOption = 4096,
    kv_cache_dtype: Annotated[
        str,
        typer.Option(
            "--kv-cache-dtype",
            help="Type of the KV cache during the proof, as it will be served.",
            rich_help_panel=PROOF,
        ),
    ] = "auto",
    max_kl: Annotated[
        float | None,
        typer.Option(
            "--max-kl",
            help="Refuse a result farther from its base, nats; default 0.5, below 4 bits 2.",
            min=0,
            rich_help_panel=PROOF,
        ),
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(
            "--min-top1",
            help="Refuse one that keeps fewer top tokens, 0 to 1; default 0.5, below 4 bits 0.2.",
            min=0,
            max=1,
            rich_help_panel=PROOF,
        ),
    ] = None,
    python: PythonOption = None,
    json: Json = False,
) -> None:
    """Quantize a model, prove the result against its base, and write a manifest and a card beside the weights."""
    from llmopt import demo
    from llmopt.core.units import parse_quantity
    from llmopt.pipeline import making, proving, recipes, requesting
    from llmopt.report.artifacts import print_artifact, print_forecast

    if out is None:
        raise UsageError("no folder to make", hint="-o DIR")
    bounds = {"max_kl": max_kl, "min_top1": min_top1}
    limits = proving.ProofLimits(**{name: value for name, value in bounds.items() if value is not None})
    if recipe is not None:
        require_no_other_word(context)
        documents = recipes.quantize_all(recipe, out, reporter(quiet=json), limits=limits, dry_run=dry_run, force=force)
        if json:
            print_json(documents)
            return
        for document in documents:
            print_forecast(document) if dry_run else print_artifact(document)
        return
    if model is None or quant is None:
        raise UsageError(
            "no model" if model is None else "no quantization",
            hint="llmopt quantize MODEL --quant NAME -o DIR; names: docs/quantizations.md",
        )
    options = requesting.Options(
        layout=layout, engine=engine, imatrix=imatrix, calibration=calibration, samples=samples,
        sample_tokens=sample_tokens, seed=seed, device_map=device_map, python=python,
        max_memory_bytes=round(parse_quantity(max_memory, "bytes")) if max_memory else None,
        shard_bytes=round(parse_quantity(shard_size, "bytes")) if shard_size else None,
    )  # fmt: skip
    request = asked(demo.model_at(model), quant, options)
    compare = proving.QualityText(path=text or demo.HELD_OUT_TEXT, tokens=tokens) if proof else None
    if dry_run:
        preparation = requesting.prepared(request, out.resolve(), compare, kv_cache_dtype=kv_cache_dtype, force=force)
        document = preparation.document(out)
        print_json(document) if json else print_forecast(document)
        return
    artifact, there = making.quantize(
        request, out, reporter(quiet=json), proof=compare, limits=limits, kv_cache_dtype=kv_cache_dtype, force=force
    )
    document = making.made_document(artifact, there, kv_cache_dtype)
    print_json(document) if json else print_artifact(document)


def require_no_other_word(context: typer.Context) -> None:
    """A recipe says what is made and how: an option that it would not hear of is refused. Raises UsageError."""
    given = [p for p in context.command.params if p.name and not nobody_gave(context, p.name)]
    if others := [p.opts[0] for p in given if p.name not in WITH_A_RECIPE]:
        raise UsageError(
            f"a recipe names its model, its quantizations and how to make them: {', '.join(others)} would not be heard",
            hint="write it into the recipe; --recipe FILE -o DIR alone",
        )


def asked(model: Path, quant: str, options: Options) -> Any:
    """The checked request; a wrong name fails before the model is looked at."""
    from llmopt.core.artifacts import open_model
    from llmopt.pipeline import requesting
    from llmopt.quantize import method

    method(quant)
    return requesting.quantize_request(open_model(model), quant, options)


@app.command("synth")
@for_people
def synth_command(
    config: Annotated[str, typer.Argument(help="config.json, model folder, or a shape: qwen2.5-7b, llama-3.1-8b, …")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")],
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="Only so many layers of it.")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="bfloat16, float16 or float32.")] = "bfloat16",
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="Folder of another tokenizer; default: the config's, or the bundled."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the weights.")] = 0,
    shard_size: Annotated[str, typer.Option("--shard-size", help="Largest file.")] = "5GB",
    json: Json = False,
) -> None:
    """Make a checkpoint of any architecture with random weights: true for speed and memory, empty for quality."""
    from llmopt.core.units import parse_quantity
    from llmopt.pipeline.synthesis import synthesize

    made = synthesize(
        config, out, reporter(quiet=json), layers=layers, dtype=dtype, tokenizer=tokenizer, seed=seed,
        shard_bytes=round(parse_quantity(shard_size, "bytes")),
    )  # fmt: skip
    if json:
        print_json(made)
    else:
        print(f"{made['path']}: {made['parameters'] / 1e6:,.0f} M parameters, {made['size']}, random weights")
