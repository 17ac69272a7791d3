from __future__ import annotations

from typing import Any

from llmopt.deploy.litellm import litellm_config
from tests.unit.deploy.make import deployment

BACKENDS = ("http://engine-1:8000/v1", "http://engine-2:8000/v1")


def config(redis: str | None = None) -> dict[str, Any]:
    return litellm_config(deployment(), backends=BACKENDS, redis=redis)


def test_one_model_name_stands_for_every_replica() -> None:
    models = config()["model_list"]
    assert {m["model_name"] for m in models} == {"tiny"}
    assert [m["litellm_params"]["api_base"] for m in models] == list(BACKENDS)


def test_the_key_comes_from_the_environment() -> None:
    assert config()["general_settings"]["master_key"] == "os.environ/LITELLM_MASTER_KEY"


def test_answers_are_kept_only_where_there_is_a_cache() -> None:
    assert "cache" not in config()["litellm_settings"]
    kept = config("redis:6379")["litellm_settings"]
    assert kept["cache_params"]["host"] == "redis"
    assert kept["cache_params"]["port"] == 6379


def test_a_replica_gets_twice_what_it_was_measured_with_and_no_more() -> None:
    assert {m["litellm_params"]["max_parallel_requests"] for m in config()["model_list"]} == {32}
