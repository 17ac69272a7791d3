from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmopt.deploy.alertmanager import alertmanager_config
from llmopt.deploy.prometheus import prometheus_config
from tests.unit.deploy.make import deployment


def config(targets: dict[str, Sequence[str]], **changes: Any) -> dict[str, Any]:
    return prometheus_config(deployment(**changes), targets=targets, rules="rules.yml", alertmanager=None)


def test_every_address_is_scraped_at_the_path_of_its_engine() -> None:
    (job,) = config({"engine": ["a:1", "b:1"]}, engine={"metrics_path": "/prometheus/metrics"})["scrape_configs"]
    assert job["metrics_path"] == "/prometheus/metrics"
    assert job["static_configs"] == [{"targets": ["a:1", "b:1"]}]


def test_an_engine_without_metrics_is_not_scraped() -> None:
    jobs = config({"engine": ["a:1"], "canary": ["c:1"]}, engine={"metrics_path": None})["scrape_configs"]
    assert [job["job_name"] for job in jobs] == ["canary"]


def test_a_scrape_never_takes_longer_than_the_pause() -> None:
    made = config({}, wishes={"scrape_s": 0.5})["global"]
    assert (made["scrape_interval"], made["scrape_timeout"]) == ("500ms", "500ms")


def test_the_address_that_alerts_go_to_is_no_part_of_the_document() -> None:
    (receiver,) = alertmanager_config(deployment())["receivers"]
    assert receiver["webhook_configs"][0]["url_file"] == "/run/secrets/alert_webhook_url"
    assert "url" not in receiver["webhook_configs"][0]
