"""How long ``llmopt recommend`` takes over very many stored runs.

    python benchmarks/recommend/speed.py [--runs 100000] [--folder DIR] [--repeats 5] [--write]

One real run is measured with the scripted server; the store is made of copies of its record with other names, times,
configurations, loads and figures (3 % noise).  Then the command is timed from outside, as a person would start it: without
an index, with it, and after a hundred new runs.  Two kinds of store: few configurations with many repeats, and one where
every run is a configuration of its own.  Beside it, what pandas takes for the same records.  The figures mean something on
a machine that does nothing else: the load average before is printed beside them.  ``--write`` puts them into speed.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from llmopt.core.machine import this_machine
from llmopt.core.run_index import INDEX
from llmopt.core.store import pretty
from llmopt.serve.scripted import running

HERE = Path(__file__).parent
QUANTIZATIONS = {"bf16": 1.0, "fp8": 1.4, "w8a8-int8": 1.45, "gptq-int4-g128": 1.7, "awq-int4-g128": 1.65, "nf4": 0.8,
                 "w4a16": 1.6, "int8": 0.6, "gguf-q4_k_m": 1.5, "gguf-q8_0": 1.3}  # fmt: skip
ENGINES = {"hf": 1.0, "vllm": 3.0, "llamacpp": 1.2, "sglang": 2.9, "tgi": 2.5}
SEQUENCES, USERS = (4, 8, 16, 32), (1, 2, 4, 8, 16, 32)
NOISE = 0.03
REPEATS = 5  # of each configuration, in the store that has many
PANDAS_RUNS = 5_000
LIMITS = ("--slo", "ttft_p95<500ms", "--slo", "tpot_p50<1s", "--top", "50", "--json")


def measured_record(folder: Path) -> dict[str, Any]:
    """A run of the scripted server, as llmopt bench stores it."""
    with running("--ttft-ms", "20", "--tpot-ms", "2", slots=8) as url:
        command = [
            sys.executable,
            "-m",
            "llmopt",
            "bench",
            "--url",
            url,
            "--model",
            "scripted",
            "--results",
            str(folder),
        ]
        subprocess.run([*command, "--json"], check=True, stdout=subprocess.DEVNULL)
    (file,) = (f for f in folder.rglob("2*.json"))
    record: dict[str, Any] = json.loads(file.read_bytes())
    if record["metrics"]["output_tps"] is None:
        sys.exit("the run had no steady throughput: measure on a machine with less beside it")
    return record


def make_store(folder: Path, record: dict[str, Any], runs: int, *, many: bool) -> None:
    """``many``: only so many runs share an option of the server."""
    rng, text = random.Random(0), json.dumps(record)
    base = json.loads(text)["metrics"]
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    place = folder / "some-machine"
    place.mkdir(parents=True)
    quantizations, engines = list(QUANTIZATIONS), list(ENGINES)
    made = json.loads(text)
    for n in range(runs):
        place_of = n // REPEATS if many else n
        name, engine = quantizations[place_of % 10], engines[place_of // 10 % 5]
        sequences, users = SEQUENCES[place_of // 50 % 4], USERS[place_of // 200 % 6]
        speed = QUANTIZATIONS[name] * ENGINES[engine] * rng.gauss(1, NOISE)
        busy = min(users, sequences)
        made |= {"run_id": f"20260101T000000-{n:08x}", "case_key": f"{n % 1200:016x}"}
        made["started_at"] = (start + datetime.timedelta(seconds=n)).isoformat(timespec="milliseconds")
        made["artifact"] |= {
            "quantization": name,
            "label": name,
            "method": "none" if name == "bf16" else "other",
            "key": name,
        }
        made["serve"] = {"backend": engine, "max_num_seqs": sequences} | ({"block_size": place_of} if many else {})
        made["workload"]["concurrency"] = users
        made["metrics"] |= {
            "output_tps": base["output_tps"] * speed * busy**0.7,
            "requests_per_s": base["requests_per_s"] * speed * busy**0.7,
        }
        for key, grows in (("ttft_s", users / busy), ("tpot_s", busy**0.3), ("e2e_s", users / busy)):
            made["metrics"][key] = {s: v * grows / speed if isinstance(v, float) else v for s, v in base[key].items()}
        (place / f"{made['run_id']}.json").write_bytes(pretty(made))


def timed(folder: Path) -> float:
    started = time.perf_counter()
    command = [sys.executable, "-m", "llmopt", "recommend", str(folder), *LIMITS]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    seconds = time.perf_counter() - started
    assert json.loads(done.stdout)["ranked_in_all"] > 0
    return seconds


def pandas_seconds(folder: Path, runs: int) -> float:
    """For all runs, from so many of them: every record read and flattened to a table."""
    import pandas as pd

    files = sorted(folder.rglob("2*.json"))[:runs]
    started = time.perf_counter()
    pd.json_normalize([json.loads(file.read_bytes()) for file in files])
    return (time.perf_counter() - started) / len(files)


def measure(folder: Path, record: dict[str, Any], runs: int, repeats: int, *, many: bool) -> list[tuple[str, float]]:
    make_store(folder, record, runs, many=many)
    kind = f"{runs // REPEATS:,} configurations" if many else "200 configurations at 6 loads"
    timed(folder)  # the files come into the memory of the system
    (folder / INDEX).unlink()
    rows = [(f"{kind}: no index yet", timed(folder))]
    rows.append((f"{kind}: with its index", statistics.median(timed(folder) for _ in range(repeats))))
    newest = sorted(folder.rglob("2*.json"))[-100:]
    for file in newest:
        fresh = json.loads(file.read_bytes()) | {"run_id": f"{file.stem}-new"}
        file.with_name(f"{file.stem}-new.json").write_bytes(pretty(fresh))
    rows.append((f"{kind}: and 100 new runs", timed(folder)))
    if not many:
        seconds = pandas_seconds(folder, min(runs, PANDAS_RUNS)) * runs
        rows.append((f"pandas: reading the records to a table alone, from {min(runs, PANDAS_RUNS):,} of them", seconds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the stores are made; default: a temporary folder")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    wanted = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="llmopt-speed-", dir=wanted.folder) as scratch:
        record = measured_record(Path(scratch) / "one")
        rows = []
        for many in (False, True):
            rows += measure(Path(scratch) / str(many), record, wanted.runs, wanted.repeats, many=many)
    machine = this_machine()
    lines = [
        "<!-- Written by speed.py --write. -->",
        "",
        f"`llmopt recommend` over {wanted.runs:,} stored runs, {datetime.date.today():%Y-%m-%d}, {machine.cpu},"
        f" {machine.logical_cores} cores, load average before {load:.1f}:",
        "",
        "| store | seconds |",
        "|---|---:|",
        *(f"| {name} | {seconds:.2f} |" for name, seconds in rows),
    ]
    print("\n".join(lines[2:]))
    if wanted.write:
        (HERE / "speed.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
