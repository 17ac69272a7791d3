"""inference-doctor and llmtest-perf beside us: the same runs, handed over in what they read, judged by their own code.

Each lives in an environment of its own (``--peers DIR``: its ``bin/python``; made where it is missing) and answers from one
process for all gates, ``peer_worker.py``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenarios import OUTPUT_TOKENS

from llmopt.gate.blocks import Reading

WORKER = Path(__file__).with_name("peer_worker.py")
VERSIONS = {"inference-doctor": "0.4.1", "llmtest-perf": "0.1.1"}
# Their names for what a scenario simulates.
DOCTOR_METRICS = {
    "output_tps": "output_token_throughput",
    "tpot_p50": "tpot_median_ms",
    "ttft_p50": "ttft_median_ms",
    "e2e_p50": "e2el_median_ms",
}
FILES = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())


@dataclass(frozen=True)
class Setting:
    """One peer with one set of thresholds; ``words`` are for the table's head."""

    tool: str
    words: str
    thresholds: dict[str, float]


def percent(loss: float) -> dict[str, float]:
    names = ("p95_latency_regression", "ttft_regression", "output_tokens_per_sec_drop")
    return {f"max_{name}_percent": loss for name in names}


PERCENT_10, PERCENT_3 = (percent(loss) | {"max_error_rate_increase_percent": 1.0} for loss in (10, 3))
# llmtest-perf gates nothing without a comparison section; 10 % is that of the file which its ``init`` writes.
SETTINGS = (
    Setting("inference-doctor", "inference-doctor, default (10 %, 90 %)", {}),
    Setting("inference-doctor", "inference-doctor, 2 %, 98 %", {"regression_percent": 2.0, "confidence": 0.98}),
    Setting("llmtest-perf", "llmtest-perf, its template (10 %)", PERCENT_10),
    Setting("llmtest-perf", "llmtest-perf, 3 %", PERCENT_3),
)


def install(folder: Path) -> Path:
    """The interpreter of the peers' environment, made where it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", *(f"{name}=={v}" for name, v in VERSIONS.items())], check=True
        )
    return python


class Peers:
    """Both tools, each in one process that lives for a ``with`` block. ``gates``: how many of a row they judge."""

    def __init__(self, python: Path, gates: int) -> None:
        self.python, self.gates = python, gates
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="llmopt-peers-", dir=FILES))

    def __enter__(self) -> Peers:
        for tool in VERSIONS:
            argv = [str(self.python), str(WORKER), tool]
            self.processes[tool] = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=30)
        shutil.rmtree(self.folder)

    def ask(self, tool: str, question: dict[str, Any]) -> dict[str, str]:
        process = self.processes[tool]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        answer: dict[str, str] = json.loads(process.stdout.readline())
        return answer

    def all(self, base: Sequence[Reading], candidate: Sequence[Reading], metrics: Sequence[str]) -> tuple[str, ...]:
        """The status that each setting gives."""
        return tuple(self.judge(setting, base, candidate, metrics)["status"] for setting in SETTINGS)

    def judge(
        self, setting: Setting, base: Sequence[Reading], candidate: Sequence[Reading], metrics: Sequence[str]
    ) -> dict[str, str]:
        """What the peer says of two sides."""
        if setting.tool == "llmtest-perf":
            sides = {"base": pooled(base), "candidate": pooled(candidate)}
            return self.ask(setting.tool, sides | {"thresholds": setting.thresholds})
        question: dict[str, Any] = {"thresholds": setting.thresholds, "metrics": [DOCTOR_METRICS[m] for m in metrics]}
        for name, side in (("base", base), ("candidate", candidate)):
            question[name] = str(self.write(name, [vllm_record(r) for r in side]))
        return self.ask(setting.tool, question)

    def write(self, name: str, records: Sequence[dict[str, Any]]) -> Path:
        """A folder with one file as ``vllm bench serve --append-result`` leaves it: a line for each run."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return folder


def vllm_record(reading: Reading) -> dict[str, Any]:
    """One run as ``vllm bench serve --save-result`` writes it, with what was simulated of it."""
    counts = reading.counts
    record: dict[str, Any] = {
        "backend": "vllm", "endpoint_type": "openai", "model_id": "simulated", "tokenizer_id": "simulated",
        "num_prompts": counts.planned, "request_rate": "inf", "burstiness": 1.0, "max_concurrency": 8, "gpu": "simulated",
        "completed": counts.ok - reading.metrics.get("unanswered", 0), "failed": counts.failed,
        "date": reading.started_at or "20261122-000000",
        "total_input_tokens": counts.prompt_tokens, "total_output_tokens": counts.output_tokens,
    }  # fmt: skip
    if not counts.ok:
        return record | {"request_throughput": 0.0, "output_throughput": 0.0}
    names = {"tpot_s": "median_tpot_ms", "ttft_s": "median_ttft_ms", "e2e_s": "median_e2el_ms"}
    latencies = {
        theirs: reading.metrics[ours]["p50"] * 1000 for ours, theirs in names.items() if ours in reading.metrics
    }
    tps = reading.metrics.get("output_tps_whole") or reading.metrics["output_tps"]  # vLLM's is over the whole run
    return record | latencies | {"output_throughput": tps, "request_throughput": tps / OUTPUT_TOKENS}


def pooled(side: Sequence[Reading]) -> dict[str, Any]:
    """All requests of all runs in one heap, as llmtest-perf has them: it knows no runs.

    Each request has its run's own figures, without noise of its own: that favours the peer, whose p95 has none to bear.
    """
    requests: list[tuple[float, float | None, int, bool, int]] = []
    seconds = 0.0
    for reading in side:
        counts, metrics = reading.counts, reading.metrics
        if counts.ok:
            ttft = metrics["ttft_s"]["p50"]
            e2e = (
                metrics["e2e_s"]["p50"] if "e2e_s" in metrics else ttft + (OUTPUT_TOKENS - 1) * metrics["tpot_s"]["p50"]
            )
            requests.append((e2e * 1000, ttft * 1000, OUTPUT_TOKENS, True, counts.ok))
            seconds += counts.ok * OUTPUT_TOKENS / metrics["output_tps"]
        if counts.failed:
            requests.append((0.0, None, 0, False, counts.failed))
    return {"requests": requests, "seconds": seconds or 1.0}
