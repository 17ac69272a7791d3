"""How far calibrated estimates of ITL and throughput are from configurations of this machine that they were not fitted to.

    python benchmarks/estimate/speed.py --record     (about 12 minutes on two cores: measures, and writes speed.json)
    python benchmarks/estimate/speed.py --write      (fits and predicts, and writes speed.md)

Measured: llama.cpp with the bundled model and two checkpoints of random weights, in three file types, with 1 to 8 users and two
lengths of prompts.  Half of the configurations, drawn at random, teach; the others are predicted; so 40 times over.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import random
import statistics
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmopt import demo
from llmopt.core.domain import ServeOptions, Workload
from llmopt.core.formats import layout
from llmopt.core.machine import this_machine
from llmopt.estimate import peak as peaks
from llmopt.estimate.architectures import shape_of
from llmopt.estimate.calibration import Observation, calibrated
from llmopt.estimate.efficiency import Knowledge, group_of
from llmopt.estimate.hardware import device
from llmopt.estimate.load import Load
from llmopt.estimate.memory import Case, Devices
from llmopt.estimate.roofline import Peak, demand_of, times, work_of
from llmopt.estimate.weights import weights_of

PUBLISHED, MODELS = (Path(__file__).with_name(name) for name in ("speed_known.toml", "known.toml"))
RECORDED, TABLE = Path(__file__).with_name("speed.json"), Path(__file__).with_name("speed.md")
SIZES = {
    "random 31 M": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 9},
    "random 100 M": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8},
}
SHAPE = {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 5120,
         "max_position_embeddings": 2048, "tie_word_embeddings": True}  # fmt: skip
QUANTIZATIONS = ("gguf-q8_0", "gguf-q4_k_m", "gguf-f16")
USERS, PROMPTS, ANSWER = (1, 2, 4, 8), (64, 256), 64
STARTED_FOR_S = 4.0
SPLITS = 40
METRICS = ("itl_s", "output_tps")


def record() -> None:
    from llmopt.core.artifacts import open_model
    from llmopt.pipeline import making, measuring, requesting
    from llmopt.pipeline.plans import case_of
    from llmopt.pipeline.synthesis import synthesize
    from llmopt.report.progress import Reporter

    report, rows = Reporter(), []
    peaks.measure()
    with tempfile.TemporaryDirectory(prefix="llmopt-speed-") as name:
        folder = Path(name)
        models = {"bundled 9 M": demo.MODEL}
        for size, numbers in SIZES.items():
            config = folder / f"{size.replace(' ', '-')}.json"
            config.write_text(json.dumps(SHAPE | numbers))
            models[size] = folder / config.stem
            synthesize(str(config), models[size], report)
        options = ServeOptions(backend="llamacpp", max_num_seqs=max(USERS))
        for model, path in models.items():
            for quantization in QUANTIZATIONS:
                request = requesting.quantize_request(open_model(path), quantization)
                artifact = making.quantize(request, folder / f"{path.name}-{quantization}", report)[0]
                loads = [(users, prompt) for prompt in PROMPTS for users in USERS]
                case = case_of(artifact, options, workload(*loads[0]))
                with measuring.serving_case(case, report, results=folder / "results") as subject:
                    for number, (users, prompt) in enumerate(random.Random(0).sample(loads, len(loads))):
                        run = measuring.measure_and_save(
                            subject, workload(users, prompt), measuring.RunOptions(results=folder / "results"), report,
                            warm=number > 0, word=f"{model} {quantization}, {users} users, {prompt} tokens",
                        )  # fmt: skip
                        rows.append(row_of(model, quantization, users, prompt, run.metrics))
        configs = {model: json.loads((path / "config.json").read_text()) for model, path in models.items()}
    RECORDED.write_text(
        json.dumps(
            {
                "machine": dataclasses.asdict(this_machine()), "date": str(datetime.date.today()),
                "peak": dataclasses.asdict(peaks.this_peak()), "models": configs, "runs": rows,
            },
            indent=1,
        )
        + "\n"
    )  # fmt: skip


def workload(users: int, prompt: int) -> Workload:
    return Workload(
        input_tokens=prompt, output_tokens=ANSWER, concurrency=users, requests=None, duration_s=STARTED_FOR_S,
        warmup_requests=users,
    )  # fmt: skip


def row_of(model: str, quantization: str, users: int, prompt: int, metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": model, "quantization": quantization, "users": users, "prompt": prompt,
        "itl_s": metrics["tpot_s"]["p50"], "output_tps": metrics["output_tps"] or metrics["output_tps_whole"],
        "ttft_s": metrics["ttft_s"]["p50"], "requests": metrics["requests_ok"],
    }  # fmt: skip


# --- what was recorded, predicted -------------------------------------------------------------------------------------


def observations(recorded: dict[str, Any]) -> list[Observation]:
    shapes = {name: shape_of(config, name) for name, config in recorded["models"].items()}
    peak = Peak(**recorded["peak"])
    found = []
    for row in recorded["runs"]:
        shape, kind = shapes[row["model"]], layout(row["quantization"])
        case = Case(
            shape=shape, layout=kind, weights=weights_of(shape, kind), backend="llamacpp", devices=Devices(kind="cpu"),
            load=Load(sequences=row["users"], prompt=row["prompt"], output=ANSWER),
        )  # fmt: skip
        found.append(
            Observation(
                group=group_of("llamacpp", kind, "cpu"),
                peak=peak,
                demand=demand_of(work_of(case), row["users"]),
                measured={name: row[name] for name in (*METRICS, "ttft_s") if row[name]},
                key=" ".join(str(row[name]) for name in ("model", "quantization", "users", "prompt")),
            )
        )
    return found


def errors(taught: Sequence[Observation], asked: Sequence[Observation]) -> dict[str, list[float]]:
    """Relative, of those that were not taught."""
    knowledge = calibrated(taught) if taught else Knowledge()
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for o in asked:
        at = times(o.demand, o.peak.bandwidth, o.peak.computing(o.group.layout), knowledge.factors(o.group))
        for name in METRICS:
            found[name].append(abs(getattr(at, name) / o.measured[name] - 1))
    return found


def halves(every: Sequence[Observation]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for seed in range(SPLITS):
        order = random.Random(seed).sample(list(every), len(every))
        half = len(order) // 2
        for name, own in errors(order[:half], order[half:]).items():
            found[name] += own
    return found


def held_out(every: Sequence[Observation], part: int) -> dict[str, list[float]]:
    """Each model (``part`` 0) or file type (1) predicted by the others alone."""
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for word in {kind_of(o, part) for o in every}:
        own = errors([o for o in every if kind_of(o, part) != word], [o for o in every if kind_of(o, part) == word])
        for name in METRICS:
            found[name] += own[name]
    return found


def kind_of(o: Observation, part: int) -> str:
    words = o.key.split(" ")
    return " ".join(words[:-3]) if part == 0 else words[-3]


def line(title: str, found: dict[str, list[float]]) -> str:
    cells = []
    for name in METRICS:
        own = sorted(found[name])
        cells += [f"{statistics.median(own):.1%}", f"{own[int(0.9 * (len(own) - 1))]:.1%}"]
    return f"| {title} | {' | '.join(cells)} |"


def table(recorded: dict[str, Any]) -> str:
    every = observations(recorded)
    one = [errors([o], [p for p in every if p is not o]) for o in every[:: len(every) // 12]]
    machine = recorded["machine"]
    rows = [
        line("half of the configurations, drawn at random, 40 times", halves(every)),
        line("each model by the two others", held_out(every, 0)),
        line("each file type by the two others", held_out(every, 1)),
        line("all by one configuration, 12 times", {n: [e for found in one for e in found[n]] for n in METRICS}),
        line("nothing measured but the machine's peaks", errors([], every)),
    ]
    return "\n".join([
        "# Calibrated estimates against configurations that they were not fitted to", "",
        f"{recorded['date']}, {machine['cpu']}, {machine['logical_cores']} cores; llama.cpp with one thread; {len(every)}"
        f" configurations: {', '.join(recorded['models'])} × {', '.join(QUANTIZATIONS)} × {', '.join(map(str, USERS))} users"
        f" × prompts of {' and '.join(map(str, PROMPTS))} tokens, answers of {ANSWER}. Written by `speed.py`.", "",
        "| taught by | ITL, median error | 90 % | throughput, median error | 90 % |", "|---|---|---|---|---|", *rows, "",
    ])  # fmt: skip


# --- published speeds ---------------------------------------------------------------------------------------------------


def published() -> dict[str, list[Observation]]:
    """By engine, of GPUs that nobody has here."""
    shapes = {n: row["config"] for n, row in tomllib.loads(MODELS.read_text())["models"].items()}
    found: dict[str, list[Observation]] = {}
    for title, page in tomllib.loads(PUBLISHED.read_text()).items():
        peak = peaks.peak_of(device(page["gpu"]))
        for engine in ("vllm", "hf"):
            for model, prompts in page[engine].items():
                shape = shape_of(shapes[model], model)
                for prompt, rates in prompts.items():
                    for name, rate in zip(page["quantizations"], rates, strict=True):
                        kind = layout(name)
                        case = Case(
                            shape=shape, layout=kind, weights=weights_of(shape, kind), backend=engine,
                            load=Load(prompt=int(prompt), output=page["output_tokens"]),
                        )  # fmt: skip
                        one = Observation(
                            group=group_of(engine, kind, "gpu"), peak=peak, demand=demand_of(work_of(case), 1),
                            measured={"output_tps": rate}, key=f"{title} {model} {name} {prompt}",
                        )  # fmt: skip
                        found.setdefault(engine, []).extend([one] if rate else [])
    return found


def print_published() -> None:
    """How far off the table alone is, and what it should say for these."""
    for engine, every in published().items():
        for word, knowledge in (("by the table", Knowledge()), ("fitted", calibrated(every))):
            off = [
                times(o.demand, o.peak.bandwidth, o.peak.computing(o.group.layout), knowledge.factors(o.group)).output_tps
                / o.measured["output_tps"] - 1 for o in every
            ]  # fmt: skip
            own = sorted(map(abs, off))
            print(
                f"{engine}, {word}: {len(own)} readings, median error {statistics.median(own):.1%}, 90 % {own[int(0.9 * len(own))]:.1%}"
            )
            for group in dict.fromkeys(o.group for o in every):
                print(f"  {group.layout}: {knowledge.factors(group)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--published", action="store_true", help="compare with published speeds of GPUs, and end")
    asked = parser.parse_args()
    if asked.published:
        print_published()
        return
    if asked.record:
        record()
    text = table(json.loads(RECORDED.read_text()))
    print(text)
    if asked.write:
        TABLE.write_text(text)


if __name__ == "__main__":
    main()
