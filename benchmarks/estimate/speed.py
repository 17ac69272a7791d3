"""How far calibrated estimates of ITL and throughput are from configurations of this machine that they were not fitted to.

    python benchmarks/estimate/speed.py --record     (about 16 minutes on two cores that do nothing else: measures, and writes speed.json)
    python benchmarks/estimate/speed.py --write      (fits and predicts, and writes speed.md)

Measured: llama.cpp with the bundled model and two checkpoints of random weights, in three file types, with 1 to 8 users and two
lengths of prompts, each three times.  Half of the configurations, drawn at random, teach; the others are predicted; so 20 times over.
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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llmopt import demo
from llmopt.core.domain import Measurement, ServeOptions, Workload
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
from llmopt.estimate.speed import Question, figures_at
from llmopt.estimate.weights import weights_of

PUBLISHED, MODELS = (Path(__file__).with_name(name) for name in ("speed_known.toml", "known.toml"))
RECORDED, TABLE = Path(__file__).with_name("speed.json"), Path(__file__).with_name("speed.md")
SIZES = {
    "random 31 M": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 9},
    "random 59 M": {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 8, "num_attention_heads": 12},
}
SHAPE = {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 5120,
         "max_position_embeddings": 2048, "tie_word_embeddings": True}  # fmt: skip
QUANTIZATIONS = ("gguf-q8_0", "gguf-q4_k_m", "gguf-f16")
USERS, PROMPTS, ANSWER = (1, 2, 4, 8), (64, 256), 64
STARTED_FOR_S = 3.0
# Of all loads of a server, one after another, so that a bad minute hits one run of many configurations and not all of one.
# Where others use the machine too, the engine's one thread gets a share of a core: times are told as with a core to
# itself, multiplied by the share, as rates are divided by it.
ROUNDS = 3
SPLITS, PUBLISHED_SPLITS = 20, 10
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
        for quantization in QUANTIZATIONS:
            for model, path in models.items():
                request = requesting.quantize_request(open_model(path), quantization)
                artifact = making.quantize(request, folder / f"{path.name}-{quantization}", report)[0]
                loads = [(users, prompt) for prompt in PROMPTS for users in USERS]
                case = case_of(artifact, options, workload(*loads[0]))
                with measuring.serving_case(case, report, results=folder / "results") as subject:
                    order = [load for seed in range(ROUNDS) for load in random.Random(seed).sample(loads, len(loads))]
                    runs = [measured(subject, folder / "results", *load, warm=n > 0) for n, load in enumerate(order)]
                rows += [
                    {"model": model, "quantization": quantization, "users": users, "prompt": prompt} | middle(own)
                    for users, prompt in loads
                    if (own := [r for r, load in zip(runs, order, strict=True) if r and load == (users, prompt)])
                ]
                keep(models, rows)


def measured(subject: Any, results: Path, users: int, prompt: int, *, warm: bool) -> dict[str, float] | None:
    """The figures of one run; ``None`` where it has none."""
    from llmopt.pipeline import measuring
    from llmopt.report.progress import Reporter

    word = f"{subject.label}, {users} users, {prompt} tokens"
    run = measuring.measure_and_save(
        subject, workload(users, prompt), measuring.RunOptions(results=results), Reporter(), warm=warm, word=word
    )
    return figures_of(run) if run.metrics["tpot_s"] and run.metrics["ttft_s"] else None


def middle(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each figure: neighbours on the machine double a step's time for a second now and then."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def keep(models: dict[str, Path], rows: Sequence[dict[str, Any]]) -> None:
    """After every server: what was measured until it is stopped is not lost."""
    peak = peaks.this_peak()
    assert peak is not None, "a GPU that the table of devices lacks"
    document = {
        "machine": dataclasses.asdict(this_machine()), "date": str(datetime.date.today()),
        "peak": dataclasses.asdict(peak),
        "models": {model: json.loads((path / "config.json").read_text()) for model, path in models.items()},
        "runs": rows,
    }  # fmt: skip
    RECORDED.write_text(json.dumps(document, indent=1) + "\n")


def workload(users: int, prompt: int) -> Workload:
    return Workload(
        input_tokens=prompt, output_tokens=ANSWER, concurrency=users, requests=None, duration_s=STARTED_FOR_S,
        warmup_requests=users,
    )  # fmt: skip


def share_of_a_core(run: Measurement) -> float:
    """What the server's processes got of a core, which they always want in a closed loop."""
    return min(1.0, float(run.metrics["cpu_s"] or 0.0) / float(run.client["seconds"]))


def figures_of(run: Measurement) -> dict[str, float]:
    metrics, share = run.metrics, share_of_a_core(run)
    rate = metrics["output_tps_whole"]  # the share is that of the whole run
    return {
        "requests": metrics["requests_ok"], "share_of_a_core": share, "itl_s": metrics["tpot_s"]["mean"] * share,
        "output_tps": rate / share, "ttft_s": metrics["ttft_s"]["mean"] * share,
    }  # fmt: skip


# --- what was recorded, predicted -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One configuration: the question, and what was measured."""

    question: Question
    observation: Observation
    words: tuple[str, str]


def rows_of(recorded: dict[str, Any]) -> list[Row]:
    shapes = {name: shape_of(config, name) for name, config in recorded["models"].items()}
    peak, found = Peak(**recorded["peak"]), []
    for row in recorded["runs"]:
        shape, kind, users = shapes[row["model"]], layout(row["quantization"]), row["users"]
        case = Case(
            shape=shape, layout=kind, weights=weights_of(shape, kind), backend="llamacpp", devices=Devices(kind="cpu"),
            load=Load(sequences=users, prompt=row["prompt"], output=ANSWER),
        )  # fmt: skip
        question = Question(case=case, peak=peak)
        observation = Observation(
            group=question.group, peak=peak, demand=question.demand(users),
            measured={name: row[name] for name in (*METRICS, "ttft_s") if row[name]},
            key=" ".join(str(row[name]) for name in ("model", "quantization", "users", "prompt")),
        )  # fmt: skip
        found.append(Row(question=question, observation=observation, words=(row["model"], row["quantization"])))
    return found


Errors = dict[str, list[tuple[float, bool]]]


def errors(taught: Sequence[Row], asked: Sequence[Row]) -> Errors:
    """Of those that were not taught: the relative error, and whether the interval held what was measured."""
    knowledge = calibrated([row.observation for row in taught])
    found: Errors = {name: [] for name in METRICS}
    for row in asked:
        figures = figures_at(dataclasses.replace(row.question, knowledge=knowledge), row.question.case.load.sequences)
        for name in METRICS:
            figure, real = figures[name], row.observation.measured[name]
            found[name].append((abs(figure["value"] / real - 1), figure["low"] <= real <= figure["high"]))
    return found


def together(parts: Iterable[Errors]) -> Errors:
    every = list(parts)
    return {name: [one for part in every for one in part[name]] for name in METRICS}


def halves(every: Sequence[Row]) -> Iterator[Errors]:
    for seed in range(SPLITS):
        order = random.Random(seed).sample(list(every), len(every))
        yield errors(order[: len(order) // 2], order[len(order) // 2 :])


def by_others(every: Sequence[Row], part: int) -> Iterator[Errors]:
    """Each model (``part`` 0) or file type (1) predicted by the others alone."""
    for word in dict.fromkeys(row.words[part] for row in every):
        yield errors([r for r in every if r.words[part] != word], [r for r in every if r.words[part] == word])


def line(title: str, found: Errors) -> str:
    cells = []
    for name in METRICS:
        own = sorted(error for error, _ in found[name])
        inside = sum(held for _, held in found[name]) / len(own)
        cells += [f"{statistics.median(own):.1%}", f"{own[int(0.9 * (len(own) - 1))]:.1%}", f"{inside:.0%}"]
    return f"| {title} | {' | '.join(cells)} |"


def table(recorded: dict[str, Any]) -> str:
    every = rows_of(recorded)
    ones = [errors([row], [other for other in every if other is not row]) for row in every[:: len(every) // 12]]
    machine, shares = recorded["machine"], [row["share_of_a_core"] for row in recorded["runs"]]
    lines = [
        line(f"half of the configurations, drawn at random, {SPLITS} times", together(halves(every))),
        line("each model by the two others", together(by_others(every, 0))),
        line("each file type by the two others", together(by_others(every, 1))),
        line("all others by one configuration, 12 times", together(ones)),
        line("the table alone (made with these runs), and the processor's peaks", errors([], every)),
    ]
    return "\n".join([
        "# Calibrated estimates against configurations that they were not fitted to", "",
        f"{recorded['date']}, {machine['cpu']}, {machine['logical_cores']} cores; llama.cpp with one thread; {len(every)}"
        f" configurations: {', '.join(recorded['models'])} × {', '.join(QUANTIZATIONS)} × {', '.join(map(str, USERS))} users"
        f" × prompts of {' and '.join(map(str, PROMPTS))} tokens, answers of {ANSWER}. `held`: how many lay in their 90 %"
        f" interval. The machine was used by others too: the engine got {statistics.median(shares):.0%} of a core at the median"
        f" ({min(shares):.0%} to {max(shares):.0%}), and times are told as with a core to itself. Written by `speed.py`.", "",
        "| taught by | ITL, median error | 90 % | held | throughput, median error | 90 % | held |",
        "|---|---|---|---|---|---|---|", *lines, "",
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


def rate_errors(knowledge: Knowledge, asked: Sequence[Observation]) -> list[float]:
    """Of the throughput of one sequence."""
    found = []
    for o in asked:
        at = times(o.demand, o.peak.bandwidth, o.peak.computing(o.group.layout), knowledge.factors(o.group))
        found.append(abs(at.output_tps / o.measured["output_tps"] - 1))
    return found


def published_table() -> str:
    lines = []
    for engine, every in published().items():
        held = []
        for seed in range(PUBLISHED_SPLITS):
            order = random.Random(seed).sample(every, len(every))
            half = len(order) // 2
            held += rate_errors(calibrated(order[:half]), order[half:])
        for word, own in (
            ("half of them, drawn at random", held),
            ("the table alone", rate_errors(Knowledge(), every)),
        ):
            own = sorted(own)
            lines.append(
                f"| {engine} | {len(every)} | {word} | {statistics.median(own):.1%} | {own[int(0.9 * (len(own) - 1))]:.1%} |"
            )
    return "\n".join([
        "# The same model on published speeds of a GPU", "",
        "Qwen's readings of Qwen2.5 (0.5 to 32 B; 16 bits, GPTQ in 8 and 4, AWQ; prompts of 1 to 30,720 tokens, one sequence) on an"
        " A100: `speed_known.toml`. vLLM's factors in the table were taken from these.", "",
        "| engine | readings | taught by | throughput, median error | 90 % |", "|---|---|---|---|---|", *lines, "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--published", action="store_true", help="compare with published speeds of GPUs, and end")
    asked = parser.parse_args()
    if asked.published:
        print(published_table())
        return
    if asked.record:
        record()
    text = table(json.loads(RECORDED.read_text())) + "\n" + published_table()
    print(text)
    if asked.write:
        TABLE.write_text(text)


if __name__ == "__main__":
    main()
