"""``llmopt import``: results of other tools become run records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmopt.cli.shell import GroupedCommand, Json, ResultsOption, app, for_people, print_json


@app.command("import", cls=GroupedCommand)
@for_people
def import_command(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Results of another tool: JSON, JSONL or CSV.")
    ],
    tool: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="Whose they are: vllm, guidellm, aiperf, genai-perf, sglang, llama-bench. Default: seen by the file.",
        ),
    ] = None,
    machine_of: Annotated[
        Path | None,
        typer.Option("--machine-of", help="A run record of the machine that they were measured on."),
    ] = None,
    results: ResultsOption = Path("results"),
    json: Json = False,
) -> None:
    """Read results of vllm bench serve, GuideLLM, AIPerf, genai-perf, SGLang or llama-bench into run records.

    Figures that are defined as ours become metrics; the others are kept by the tool's own names. The same file twice is
    one run. Afterwards: llmopt gate, llmopt history, llmopt baseline set.
    """
    from llmopt.pipeline.importing import import_files
    from llmopt.report.imported import print_imported

    document = import_files(files, results, tool=tool, machine_of=machine_of)
    print_json(document) if json else print_imported(document)
