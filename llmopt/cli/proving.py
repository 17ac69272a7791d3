"""``llmopt quality``: prove an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmopt.cli.shell import Json, PythonOption, TextOption, TokensOption, app, for_people, print_json, reporter


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
    from llmopt.pipeline import proving
    from llmopt.report.terminal import print_quality

    found = proving.prove(
        open_artifact(demo.MODEL if str(artifact) == "demo" else artifact),
        proving.QualityText(path=text or demo.HELD_OUT_TEXT, tokens=tokens),
        reporter(quiet=json),
        log_folder=home() / "logs",
        python=python,
    )
    print_json(found) if json else print_quality(found)
