"""Runs in a peer's own interpreter: one JSON question a line on stdin, one JSON answer a line on stdout.

``inference-doctor``: ``load_and_compare_directories`` with the thresholds of the question, on two folders of files; its
``compare-runs`` does nothing else before it prints and exits.  ``llmtest-perf``: ``Comparator.compare`` on two
``TestResults`` that its own ``add_request_result`` filled; its ``compare`` does that with what it has measured.  No line
of what a peer decides by is ours.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any


def inference_doctor(question: dict[str, Any]) -> dict[str, Any]:
    quality = importlib.import_module("inference_doctor.quality")
    try:
        report = quality.load_and_compare_directories(
            Path(question["base"]),
            Path(question["candidate"]),
            metric=question["metrics"],
            thresholds=quality.QualityThresholds(**question["thresholds"]),
        )
    except ValueError as error:  # what its command line prints as an error, exit status 3
        return {"status": "ERROR", "words": str(error)}
    return {"status": report["result"], "words": report["explanation"]}


def llmtest_perf(question: dict[str, Any]) -> dict[str, Any]:
    models = importlib.import_module("llmtest_perf.config.models")
    comparator = importlib.import_module("llmtest_perf.compare.comparator")
    config = models.PerfTestConfig(
        targets={side: {"base_url": "http://127.0.0.1/v1", "model": "any"} for side in ("baseline", "candidate")},
        workload={"duration_seconds": 1, "max_concurrency": 1, "prompt_sets": [{"name": "a", "weight": 1, "prompts": ["a"]}]},
        comparison=question["thresholds"],
    )  # fmt: skip
    sides = [results_of(name, question[key]) for name, key in (("baseline", "base"), ("candidate", "candidate"))]
    verdict = comparator.Comparator(config).compare(*sides)
    return {"status": verdict.status.value, "words": verdict.summary}


def results_of(name: str, side: dict[str, Any]) -> Any:
    """``requests``: latency and TTFT in ms, tokens, whether it was answered, and how many such; ``seconds``: of the whole."""
    engine = importlib.import_module("llmtest_perf.engine.results")
    metrics = importlib.import_module("llmtest_perf.providers.base").RequestMetrics
    results = engine.TestResults(target_name=name)
    for latency_ms, ttft_ms, tokens, ok, count in side["requests"]:
        kind = None if ok else "http_500"
        one = metrics(success=ok, latency_ms=latency_ms, ttft_ms=ttft_ms, output_tokens=tokens, error_type=kind)
        for _ in range(count):
            results.add_request_result(one)
    results.duration_seconds = side["seconds"]
    return results


def main() -> None:
    answer = {"inference-doctor": inference_doctor, "llmtest-perf": llmtest_perf}[sys.argv[1]]
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            found = answer(json.loads(line))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
