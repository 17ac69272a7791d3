"""Measure one real matrix on this machine, for search.py: the scripted server at 12 speeds, llama.cpp in 12 settings.

    python benchmarks/search/record.py [--rounds 5] [--requests 64] [--engines scripted,llamacpp]

Every round starts each server anew, in shuffled order, and keeps the throughput of one closed loop of 4.  The bundled model
is quantized to Q8_0 and Q4_K_M in a temporary folder.  Written into recorded.json with machine and date; search.py draws
from a configuration's own runs, and the best is that of the highest median.  About 24 × rounds × 4 s on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from llmopt import demo
from llmopt.core.artifacts import open_model, unquantized
from llmopt.core.domain import Artifact, ServeOptions, Workload
from llmopt.core.machine import this_machine
from llmopt.pipeline import making, requesting
from llmopt.pipeline.measuring import bench_artifact
from llmopt.pipeline.plans import case_of
from llmopt.pipeline.visiting import throughput
from llmopt.report.progress import Reporter

RECORDED = Path(__file__).with_name("recorded.json")
QUANTIZATIONS = ("gguf-q8_0", "gguf-q4_k_m")
WORKLOAD = Workload(input_tokens=16, output_tokens=32, concurrency=4)


def scripted() -> list[tuple[tuple[str, ...], str, ServeOptions]]:
    """Three times per token, two times to the first token, two numbers of slots."""
    found = []
    for tpot in (3.0, 3.3, 4.5):
        for ttft in (5, 20):
            for slots in (4, 2):
                words = ("--prompt-tokens", "16", "--tpot-ms", str(tpot), "--ttft-ms", str(ttft))
                traits = ("scripted", f"tpot {tpot}", f"ttft {ttft}", f"slots {slots}")
                found.append((traits, "bf16", ServeOptions(backend="scripted", max_num_seqs=slots, extra_args=words)))
    return found


def llamacpp() -> list[tuple[tuple[str, ...], str, ServeOptions]]:
    """Two quantizations, two numbers of threads, three numbers of slots."""
    return [
        (("llamacpp", name, f"threads {threads}", f"slots {slots}"), name,
         ServeOptions(backend="llamacpp", max_num_seqs=slots, threads=threads))
        for name in QUANTIZATIONS for threads in (1, 2) for slots in (1, 2, 4)
    ]  # fmt: skip


def artifacts(names: set[str], folder: Path, report: Reporter) -> dict[str, Artifact]:
    model = open_model(demo.MODEL)
    made = {"bf16": unquantized(model)}
    for name in sorted(names - {"bf16"}):
        request = requesting.quantize_request(model, name)
        made[name] = making.quantize(request, folder / name, report)[0]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--engines", default="scripted,llamacpp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RECORDED)
    asked = parser.parse_args()
    of_engine = {"scripted": scripted, "llamacpp": llamacpp}
    arms = [arm for engine in asked.engines.split(",") for arm in of_engine[engine]()]
    rows: list[dict[str, Any]] = [
        {"traits": list(traits), "quantization": name, "values": []} for traits, name, _ in arms
    ]
    report, order = Reporter(), random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="llmopt-search-") as folder:
        made = artifacts({name for _, name, _ in arms}, Path(folder), report)
        for _ in range(asked.rounds):
            for place in order.sample(range(len(arms)), len(arms)):
                _, name, options = arms[place]
                case = case_of(made[name], options, dataclasses.replace(WORKLOAD, requests=asked.requests))
                (run,) = bench_artifact(case, report, results=Path(folder) / "results")
                rows[place]["values"].append(throughput(run))
    head = {"machine": dataclasses.asdict(this_machine()), "date": str(datetime.date.today()), "rounds": asked.rounds}
    asked.out.write_text(json.dumps(head | {"configurations": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
