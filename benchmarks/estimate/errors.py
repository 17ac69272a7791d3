"""How far ``llmopt estimate`` is from what is publicly known: parameters, GGUF file sizes, published readings of memory.

python benchmarks/estimate/errors.py [--all]     (--all: every row, not the summary alone)
"""

from __future__ import annotations

import statistics
import sys
import tomllib
from pathlib import Path
from typing import Any

from llmopt.core.formats import layout
from llmopt.estimate.architectures import shape_of
from llmopt.estimate.load import Load
from llmopt.estimate.memory import Case, Devices, memory_of
from llmopt.estimate.weights import weights_of

KNOWN = Path(__file__).with_name("known.toml")
UNITS = {"GiB": 1 << 30, "MiB": 1 << 20}


def main(everything: bool) -> None:
    known: dict[str, Any] = tomllib.loads(KNOWN.read_text())
    shapes = {name: shape_of(row["config"], name) for name, row in known["models"].items()}
    rows = [(name, shapes[name].parameters, row["parameters"]) for name, row in known["models"].items()]
    summary("parameters", rows, everything)
    rows = []
    for name, sizes in known["files"]["rows"].items():
        for kind, size in sizes.items():
            found = weights_of(shapes[name], layout(f"gguf-{kind}")).file_bytes
            rows.append((f"{name} {kind}", found, size * 1e9))
    summary("GGUF file sizes", rows, everything)
    for title, table in known["readings"].items():
        unit = UNITS[table.get("unit", "GiB")]
        rows = [
            (f"{name} {quant} {prompt} on {gpus}", reading(shapes[name], quant, gpus, prompt, table), size * unit)
            for name, readings in table["rows"].items()
            for quant, gpus, prompt, size in readings
        ]
        summary(f"readings of {title}", rows, everything)


def reading(shape: Any, quant: str, gpus: int, prompt: int, table: dict[str, Any]) -> int:
    wanted = layout(quant)
    case = Case(
        shape=shape, layout=wanted, weights=weights_of(shape, wanted), backend="hf",
        load=Load(prompt=prompt, output=table["output_tokens"]), devices=Devices(count=gpus),
    )  # fmt: skip
    return memory_of(case).total_bytes


def summary(title: str, rows: list[tuple[str, float, float]], everything: bool) -> None:
    errors = sorted(abs(found / known - 1) for _, found, known in rows)
    at90 = errors[min(len(errors) - 1, round(0.9 * (len(errors) - 1)))]
    print(
        f"{title}: {len(rows)} cases, median error {statistics.median(errors):.2%}, 90 % {at90:.2%}, worst {errors[-1]:.2%}"
    )
    for name, found, known in rows:
        if everything or abs(found / known - 1) > 0.02:
            print(f"  {name:<40} {found:>16,.0f} {known:>16,.0f} {found / known - 1:+8.2%}")


if __name__ == "__main__":
    main("--all" in sys.argv)
