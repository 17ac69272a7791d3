"""Every query of the dashboard and of the rules has an answer, on metrics that Prometheus scraped from the real engine.

Real engines, the real canary beside them, a real Prometheus that scrapes both every second, and a little load.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from llmopt import demo, serve
from llmopt.core.process import KeptProcess
from llmopt.deploy.grafana import expressions
from llmopt.deploy.plan import Deployment, Slo
from llmopt.deploy.rules import rules
from llmopt.serve.process import HOST, RunningServer, free_port
from tests.contract.conftest import STARTED
from tests.programs import Prometheus, answers, prometheus, require, until
from tests.unit.deploy.make import deployment

pytestmark = pytest.mark.engine
SLOS = (
    Slo(text="ttft_p95<1s", metric="ttft", share=0.95, bound=1.0, measured=None),
    Slo(text="tpot_p95<100ms", metric="tpot", share=0.95, bound=0.1, measured=None),
    Slo(text="e2e_p95<10s", metric="e2e", share=0.95, bound=10.0, measured=None),
)
SETTLE_S = 12.0  # scrapes of the canary and rounds of the rules, a second apart, after the load
# What an alert compares with: the question itself is before it.
COMPARED = re.compile(r" (?:>|==) [\d.e+-]+")


@dataclass(frozen=True)
class Watched:
    made: Deployment
    prometheus: Prometheus


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "started" in metafunc.fixturenames:
        metafunc.parametrize(
            "started", [name for name in STARTED if name != "scripted"], indirect=True, scope="package"
        )


@pytest.fixture(scope="module")
def watched(started: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    require("prometheus")
    backend = serve.backend(started.backend)
    folder = tmp_path_factory.mktemp("watched")
    base, model = started.command.base_url, started.command.model
    made = deployment(
        engine={"backend": backend.name, "metrics": backend.metrics, "metrics_path": backend.metrics_path,
                "histogram_bounds": backend.bounds, "gpus": 0, "model": model},
        evidence={"slos": SLOS},
        wishes={"scrape_s": 1.0},
    )  # fmt: skip
    port = free_port(None)
    targets = {"engine": [base.removeprefix("http://").removesuffix("/v1")], "canary": [f"{HOST}:{port}"]}
    with prometheus(folder, made, targets) as watching:
        load(base, model, folder)
        with canary(base, model, folder, port):
            time.sleep(SETTLE_S)
            yield Watched(made, watching)


def llmopt(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "llmopt", *words)


def load(base: str, model: str, folder: Path) -> None:
    """A run of ours, which is the little load, and what the canary asks again."""
    size = ("--concurrency", "2", "--requests", "24", "--input-tokens", "48", "--output-tokens", "16")
    words = llmopt("bench", "--url", base, "--model", model, *size, "--tokenizer", str(demo.MODEL), "--results", "runs")
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def canary(base: str, model: str, folder: Path, port: int) -> Iterator[None]:
    slos = [word for slo in SLOS for word in ("--slo", slo.text)]
    about = ("--against", str(folder / "runs"), "--model", model, "--tokenizer", str(demo.MODEL), *slos)
    words = llmopt("watch", base, *about, "--port", str(port), "--every", "1")
    with KeptProcess(words, log=folder / "canary.log") as process:
        until(lambda: answers(f"http://{HOST}:{port}/metrics"), process=process)
        yield


def test_every_query_of_the_dashboard_returns_data(watched: Watched) -> None:
    asked = expressions(watched.made)
    assert [e for e in asked if not watched.prometheus.query(e)] == []


def test_a_query_for_another_engine_would_return_none(watched: Watched) -> None:
    """So that the test above can fail."""
    other = replace(watched.made.engine, metrics={"running": "of_nobody:running"})
    assert "of_nobody:running" in str(expressions(replace(watched.made, engine=other)))
    assert watched.prometheus.query('of_nobody:running{job="engine"}') == []


def test_every_rule_is_evaluated_and_every_record_is_there(watched: Watched) -> None:
    found = [rule for group in watched.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in found} == {"ok"}
    records = {rule["name"] for rule in found if rule["type"] == "recording"}
    assert {name for name in records if not watched.prometheus.query(name)} == set()


def test_what_every_alert_looks_at_is_there(watched: Watched) -> None:
    made = [rule["expr"] for group in rules(watched.made)["groups"] for rule in group["rules"] if "alert" in rule]
    looked = [COMPARED.sub("", expression) for expression in made if not expression.startswith("absent(")]
    assert [e for e in looked if not watched.prometheus.query(e)] == []


def test_nothing_fires_while_all_is_well(watched: Watched) -> None:
    assert watched.prometheus.firing() == set()
