"""The page of a deployment: words that are true of every target."""

from __future__ import annotations

from llmopt.deploy import TARGETS
from llmopt.report.deployment import HERE, files


def test_every_target_says_what_the_measured_command_has_otherwise_there():
    assert set(HERE) == set(TARGETS)


def test_files_of_one_name_are_told_by_what_they_are_for():
    lines = list(files(["Dockerfile", "litellm/Dockerfile", "grafana/llmopt.json"]))
    assert len({line.partition(": ")[2] for line in lines[2:5]}) == 3
    assert "LiteLLM" in lines[3]
    assert "data source" not in lines[4]
