"""llmopt's quantizations beside the bare libraries': wall time, peak memory, distance from the base, in one session.

python benchmarks/quantize/compare.py [--cases gptq-int4-g128,nf4] [--rounds 3] [--samples 64] [--model DIR] [--out DIR] [--add]

Runs every case alternately, the bare library (bare.py) and ``llmopt quantize … --no-proof``, each in processes of its own
and on the same token ids; writes results.json and table.md.  Run it with the interpreter that has llmopt and the libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bare import CASES, Case
from table import table

HERE = Path(__file__).resolve().parent
SAMPLE_TOKENS, SEED, QUALITY_TOKENS = 256, 0, 8192
PACKAGES = ("torch", "transformers", "llmcompressor", "compressed-tensors", "gptqmodel", "auto-round", "bitsandbytes")
TIMEOUT_S = 1800
Row = dict[str, Any]


def environment() -> dict[str, str]:
    """What llmopt sets for its workers, so that both sides compute with the same threads."""
    from llmopt.core.worker import QUIET_ENGINES, threads_environment

    return os.environ | QUIET_ENGINES | threads_environment()


def run(argv: Sequence[str], log: Path) -> Row:
    """Run to its end; ``wall_s``, ``peak_bytes`` (the largest process of the tree) and its last line of JSON."""
    started = time.monotonic()
    with log.open("wb") as err, tempfile.TemporaryFile() as out:
        child = subprocess.Popen(argv, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=environment())
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.monotonic() - started
        out.seek(0)
        text = out.read().decode(errors="replace")
    row: Row = {"wall_s": wall_s, "peak_bytes": usage.ru_maxrss * 1024}
    if child.returncode:
        tail = [*text.splitlines(), *log.read_text(errors="replace").splitlines()]
        return row | {"problem": next((line for line in reversed(tail) if line.strip()), "no output")[:300]}
    documents = [line for line in text.splitlines() if line.startswith("{")]
    return row | {"said": json.loads(documents[-1]) if documents else {}}


def bare(case: str, model: Path, out: Path, samples: Path) -> Row:
    row = run([sys.executable, str(HERE / "bare.py"), case, str(model), str(out), str(samples)], log_of(out))
    return row | {"startup_s": row.get("said", {}).get("startup_s")}


def ours(case: Case, model: Path, out: Path, samples: int) -> Row:
    argv = [sys.executable, "-m", "llmopt", "quantize", str(model), "--quant", case.quant, "-o", str(out), "--no-proof"]
    argv += ["--samples", str(samples), "--sample-tokens", str(SAMPLE_TOKENS), "--seed", str(SEED)]
    row = run([*argv, *(["--format", case.layout] if case.layout else [])], log_of(out))
    if "problem" not in row:
        manifest = json.loads((out / "llmopt.json").read_text())
        row |= {"worker_s": manifest["seconds"], "worker_peak_bytes": manifest["peak_memory_bytes"]}
    return row


def log_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.log")


def command_startup_s(case: Case, model: Path, log: Path, rounds: int = 3) -> float:
    """What the command does before a library starts (checks, calibration, forecast): the median of ``--dry-run``."""
    argv = [sys.executable, "-m", "llmopt", "quantize", str(model), "--quant", case.quant, "-o", str(log) + ".none"]
    argv += ["--no-proof", "--dry-run", *(["--format", case.layout] if case.layout else [])]
    return statistics.median(run(argv, log)["wall_s"] for _ in range(rounds))


def distance(model: Path, text: Path, folder: Path) -> Row:
    """Empty for what is quantized in memory alone."""
    if not weight_bytes(folder):
        return {}
    argv = [str(HERE / "distance.py"), str(model), str(text), str(QUALITY_TOKENS), str(weights_in(folder))]
    return run([sys.executable, *argv], log_of(folder)).get("said", {})


def weights_in(folder: Path) -> Path:
    """The folder that holds the weights: auto-round makes one of its own naming inside."""
    return next((config.parent for config in sorted(folder.rglob("config.json"))), folder)


def weight_bytes(folder: Path) -> int:
    files = (file for suffix in ("safetensors", "gguf") for file in weights_in(folder).glob(f"*.{suffix}"))
    return sum(file.stat().st_size for file in files)


def write_samples(model: Path, count: int, file: Path) -> int:
    """The very ids that llmopt will give its adapters; returns how many samples there are."""
    from llmopt.quantize.calibration import BUILTIN, prepare

    made = prepare(BUILTIN, model, count=count, length=SAMPLE_TOKENS, seed=SEED)
    file.write_text(json.dumps({"input_ids": made.input_ids}))
    return len(made.input_ids)


def compare(case: str, settings: argparse.Namespace, work: Path, text: Path) -> Row:
    """All rounds of one case, each result with its distance: some libraries do not give the same twice."""
    rounds: list[Row] = []
    folders = {"bare": work / "bare", "llmopt": work / "llmopt"}
    for number in range(settings.rounds):
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
        pair = {
            "bare": lambda: bare(case, settings.model, folders["bare"], work / "samples.json"),
            "llmopt": lambda: ours(CASES[case], settings.model, folders["llmopt"], settings.samples),
        }
        # Which side comes first alternates: the second finds the files of the model and the library in memory.
        order = list(pair) if number % 2 == 0 else list(pair)[::-1]
        rounds.append({side: pair[side]() for side in order})
        for side, folder in folders.items():
            rounds[-1][side]["quality"] = distance(settings.model, text, folder)
        print(
            f"({number + 1}/{settings.rounds}): {case} " + ", ".join(said(s, rounds[-1][s]) for s in pair), flush=True
        )
    start = command_startup_s(CASES[case], settings.model, work / "dry.log")
    about = {"startup_s": start, "group": CASES[case].group, "library": CASES[case].library, "rounds": rounds}
    return about | {"weight_bytes": {side: weight_bytes(f) for side, f in folders.items()}}


def said(side: str, row: Row) -> str:
    return f"{side} {row['problem']}" if "problem" in row else f"{side} {row['wall_s']:.1f} s"


def main() -> None:
    from llmopt import demo

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--model", type=Path, default=demo.MODEL)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--add", action="store_true", help="keep the other cases of an earlier results.json")
    settings = parser.parse_args()
    document: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))},
        "versions": {name: version(name) for name in PACKAGES},
        "model": settings.model.name, "samples": settings.samples, "sample_tokens": SAMPLE_TOKENS, "cases": {},
    }  # fmt: skip
    if settings.add and (settings.out / "results.json").exists():
        document["cases"] = json.loads((settings.out / "results.json").read_text())["cases"]
    with tempfile.TemporaryDirectory(prefix="quantize-") as name:
        work = Path(name)
        settings.samples = document["samples"] = write_samples(settings.model, settings.samples, work / "samples.json")
        for case in settings.cases.split(","):
            document["cases"][case] = compare(case, settings, work, demo.HELD_OUT_TEXT)
            document["cases"][case] |= {"load_average": os.getloadavg()[0], "date": document["date"][:10]}
            settings.out.mkdir(parents=True, exist_ok=True)
            (settings.out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
            (settings.out / "table.md").write_text(table(document))


if __name__ == "__main__":
    main()
