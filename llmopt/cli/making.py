"""``llmopt quantize``: make an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmopt.cli.shell import Json, PythonOption, TextOption, TokensOption, app, for_people, print_json, reporter


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
    from llmopt.pipeline import making, proving
    from llmopt.report.terminal import print_artifact

    quantization_checked(quant)
    request = making.quantize_request(
        open_model(demo.MODEL if model == "demo" else Path(model)),
        quant,
        calibration=calibration or demo.CALIBRATION_TEXT,
        samples=samples,
        python=python,
    )
    compare = proving.QualityText(path=text or demo.HELD_OUT_TEXT, tokens=tokens) if proof else None
    artifact, there = making.quantize(request, out, reporter(quiet=json), proof=compare)
    document = {
        "already_there": there,
        **(read_manifest(out) or {}),
        "quality": proving.read_quality(proving.quality_file(artifact)),
    }
    print_json(document) if json else print_artifact(document)


def quantization_checked(name: str) -> None:
    """A wrong name fails before anything else is looked at."""
    from llmopt.quantize import method

    method(name)
