"""What is here, what is missing, and how to get it."""

from __future__ import annotations

import sys
from typing import Any

from llmopt import serve
from llmopt.core import environments, provision
from llmopt.core.environments import Needs
from llmopt.core.errors import MissingEnvironment
from llmopt.core.llamacpp_source import c_compiler
from llmopt.core.machine import this_machine
from llmopt.core.units import show
from llmopt.quantize import METHODS

# The programs of llama.cpp that adapters use where they are found.
TOOLS = ("llama-server", "llama-quantize", "llama-imatrix", "llama-perplexity")


def examine() -> dict[str, Any]:
    """The machine, and for each engine, quantization and tool where it is, or what is missing."""
    from dataclasses import asdict

    engines = {name: serve.backend(name) for name in serve.BACKENDS if name != "scripted"}
    return {
        "machine": asdict(this_machine()),
        "python": sys.executable,
        "engines": [{"name": name, "title": b.title, **availability(b.needs)} for name, b in engines.items()],
        "quantizations": [{"name": name, **availability(m.needs)} for name, m in METHODS.items()],
        "environments": provision.overview(sizes=False),
        "tools": [tool_row(name) for name in TOOLS],
        "c_compiler": c_compiler(),
    }


def availability(needs: Needs) -> dict[str, Any]:
    try:
        return {"available": True, "environment": str(environments.find(needs).prefix), "hint": None}
    except MissingEnvironment as error:
        return {"available": False, "environment": None, "hint": f"{error.message}; {error.hint}"}


def tool_row(name: str) -> dict[str, Any]:
    path = environments.tool(name)
    version = environments.tool_version(path) if path else None
    return {"name": name, "path": str(path) if path else None, "version": version}


def print_rows(rows: dict[str, Any]) -> None:
    machine = rows["machine"]
    gpus = ", ".join(machine["gpus"]) or "no NVIDIA GPU"
    print(
        f"machine   {machine['cpu']}, {machine['logical_cores']} cores, {show(machine['memory_bytes'], 'bytes')}, {gpus}"
    )
    print(f"python    {rows['python']}")
    print(f"compiler  {rows['c_compiler'] or 'none (only gptqmodel and llamacpp --build need one)'}")
    for kind in ("engines", "quantizations"):
        for row in rows[kind]:
            mark, word = ("✓", row["environment"]) if row["available"] else ("✗", row["hint"])
            print(f"{mark} {kind[:-1]:<13} {row['name']:<15} {word}")
    for row in rows["environments"]:
        mark = "✓" if row["state"] == "ready" else "✗"
        way = "" if row["state"] == "ready" else f": llmopt env create {row['name']}   ({row['purpose']})"
        print(f"{mark} {'environment':<13} {row['name']:<15} {row['state']}{way}")
    for row in rows["tools"]:
        if row["path"]:
            print(f"✓ {'tool':<13} {row['name']:<15} {row['path']}, {row['version'] or 'version unknown'}")
        else:
            print(f"✗ {'tool':<13} {row['name']:<15} not on the PATH; llmopt env create llamacpp --build")
