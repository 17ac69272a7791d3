from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from llmopt import serve
from llmopt.deploy.grafana import dashboard, expressions, provisioning
from llmopt.deploy.rules import rules
from tests.unit.deploy.make import deployment

DESCRIBED = Path(__file__).parents[2] / "logs" / "described"


def test_an_slo_is_drawn_as_a_line_at_its_bound() -> None:
    (panel,) = [p for p in dashboard(deployment())["panels"] if p["title"] == "SLO ttft_p95<500ms"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"] == 0.5
    assert panel["fieldConfig"]["defaults"]["custom"]["thresholdsStyle"]["mode"] == "dashed"


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = dashboard(deployment())["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    assert len({(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}) == len(panels)


def test_no_panel_asks_for_what_the_engine_does_not_export() -> None:
    asked = expressions(deployment(engine={"metrics": {"waiting": "llamacpp:requests_deferred"}, "gpus": 0}))
    assert not [e for e in asked if "vllm:" in e or "DCGM" in e]
    assert 'llamacpp:requests_deferred{job="engine"}' in asked


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    made = provisioning(deployment(), prometheus_url="http://prometheus:9090")
    source = yaml.safe_load(made["provisioning/datasources/prometheus.yaml"].text)["datasources"][0]
    panels = json.loads(made["dashboards/llmopt.json"].text)["panels"]
    assert source["url"] == "http://prometheus:9090"
    assert {p["datasource"]["uid"] for p in panels} == {source["uid"]}


@pytest.mark.parametrize("page", sorted(DESCRIBED.glob("*.metrics")), ids=lambda page: page.stem)
def test_every_query_asks_for_what_stands_on_the_page_of_the_engine(page: Path) -> None:
    """Of the engines that do not run here, as their sources describe it."""
    backend = serve.backend(page.stem)
    there = {line.partition("{")[0] for line in page.read_text().splitlines() if line[:1] != "#"}
    made = deployment(engine={"metrics": backend.metrics, "histogram_bounds": backend.bounds, "gpus": 0})
    asked = [*expressions(made), *(r["expr"] for g in rules(made)["groups"] for r in g["rules"])]
    names = {name for expression in asked for name in re.findall(r'([\w:]+)\{job="engine"', expression)} - {"up"}
    assert names
    assert names <= there
