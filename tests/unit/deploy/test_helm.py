from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given

from llmopt.deploy import helm
from llmopt.deploy.helm import chart, documented, image_values
from llmopt.deploy.plan import Deployment, Launch
from tests.unit.deploy import hostile
from tests.unit.deploy.make import deployment


def values(made: Deployment) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(documented(helm.values(made)))
    return found


def quiet(**engine: Any) -> Deployment:
    """Without monitoring, whose rules are most of the values."""
    return deployment(engine=engine, wishes={"monitoring": False})


@given(hostile.words, hostile.word)
def test_the_values_hold_the_measured_words(argv: list[str], value: str) -> None:
    made = quiet(inside=Launch(argv=tuple(argv), environment={"A": value}, files={"/f": value}))
    engine = values(made)["engine"]
    assert (engine["command"], engine["env"]["A"], engine["files"]) == (argv, value, {"/f": value})


@given(hostile.word)
def test_the_templates_are_the_same_for_everybody(name: str) -> None:
    usual, other = chart(quiet()), chart(quiet(model=name, artifact=f"/{name}"))
    differing = {path for path in usual if usual[path] != other[path]}
    assert differing <= {"values.yaml"}


@pytest.mark.parametrize(
    ("name", "repository", "tag"),
    [
        ("vllm/vllm-openai:v0.32.0", "vllm/vllm-openai", "v0.32.0"),
        ("registry.local:5000/llmopt", "registry.local:5000/llmopt", ""),
        ("registry.local:5000/llmopt:1", "registry.local:5000/llmopt", "1"),
        ("a/b@sha256:00ff", "a/b@sha256:00ff", ""),
        ("bare", "bare", ""),
    ],
)
def test_an_image_is_repository_and_tag(name: str, repository: str, tag: str) -> None:
    got = image_values(name)
    assert (got["repository"], got["tag"]) == (repository, tag)


def test_sizes_are_text_since_helm_reads_numbers_as_floats() -> None:
    made = values(deployment(engine={"artifact_bytes": 15 * 2**30}))
    assert (made["model"]["size"], made["resources"]["limits"]["memory"]) == ("18Gi", "23296Mi")


def test_the_schema_names_every_value() -> None:
    files = chart(deployment())
    assert set(json.loads(files["values.schema.json"].text)["properties"]) == set(values(deployment()))


def test_the_chart_carries_the_version_of_the_engine() -> None:
    about = yaml.safe_load(chart(deployment(engine={"version": "1e3"}))["Chart.yaml"].text)
    assert (about["name"], about["appVersion"]) == ("tiny", "1e3")
