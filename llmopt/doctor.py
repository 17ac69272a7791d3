"""What is here, what is missing, and how to get it."""

from __future__ import annotations

import sys
from typing import Any

from llmopt import serve
from llmopt.core import environments
from llmopt.core.environments import Needs
from llmopt.core.errors import MissingEnvironment
from llmopt.core.machine import this_machine
from llmopt.core.units import show
from llmopt.quantize import METHODS


def examine() -> dict[str, Any]:
    """The machine, and for each engine and quantization the environment that has it or what is missing."""
    from dataclasses import asdict

    engines = {name: serve.backend(name) for name in serve.BACKENDS if name != "scripted"}
    return {
        "machine": asdict(this_machine()),
        "python": sys.executable,
        "engines": [{"name": name, "title": b.title, **availability(b.needs)} for name, b in engines.items()],
        "quantizations": [{"name": name, **availability(m.needs)} for name, m in METHODS.items()],
    }


def availability(needs: Needs) -> dict[str, Any]:
    try:
        return {"available": True, "environment": str(environments.find(needs).prefix), "hint": None}
    except MissingEnvironment as error:
        return {"available": False, "environment": None, "hint": f"{error.message}; {error.hint}"}


def print_rows(rows: dict[str, Any]) -> None:
    machine = rows["machine"]
    gpus = ", ".join(machine["gpus"]) or "no NVIDIA GPU"
    print(
        f"machine   {machine['cpu']}, {machine['logical_cores']} cores, {show(machine['memory_bytes'], 'bytes')}, {gpus}"
    )
    print(f"python    {rows['python']}")
    for kind in ("engines", "quantizations"):
        for row in rows[kind]:
            mark, word = ("✓", row["environment"]) if row["available"] else ("✗", row["hint"])
            print(f"{mark} {kind[:-1]:<13} {row['name']:<15} {word}")
