"""``llmopt quality --tasks`` for real: lm-eval asks a server that llmopt started, on tasks of our own."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from llmopt import demo
from llmopt.core import environments
from llmopt.core.errors import LlmoptError, MissingEnvironment
from llmopt.pipeline.scoring import score
from llmopt.quality.tasks import NEEDS
from llmopt.report.progress import Reporter
from tests.contract.conftest import Workshop

pytestmark = pytest.mark.engine
QUESTIONS = 24
COMMON = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{context}}}}"
target_delimiter: ""
"""
CLOZE = """output_type: generate_until
doc_to_target: "{{next}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, temperature: 0}
filter_list: [{name: first, filter: [{function: regex, regex_pattern: "^(.)", group_select: 0}, {function: take_first}]}]
metric_list: [{metric: exact_match}]
"""
CHOICE = """output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
"""


def task(folder: Path, name: str, kind: str) -> Path:
    """Which text follows? One true continuation of the held-out Python, three from elsewhere in it."""
    text = demo.HELD_OUT_TEXT.read_text()
    dice = random.Random(0)
    lines = []
    for _ in range(QUESTIONS):
        at = dice.randrange(400, len(text) - 100)
        while text[at].isspace() or text[at - 1].isspace():
            at += 1
        choices = [text[p : p + 12] for p in (at, *(dice.randrange(len(text) - 12) for _ in range(3)))]
        row = {"context": text[at - 400 : at], "next": text[at], "choices": choices, "answer": 0}
        lines.append(json.dumps(row))
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / f"{name}.yaml").write_text(COMMON.format(name=name, data=folder / f"{name}.jsonl") + kind)
    return folder / f"{name}.yaml"


@pytest.fixture(autouse=True)
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    try:
        environments.find(NEEDS)
    except MissingEnvironment as error:
        pytest.skip(f"lm-eval is not here: {error.hint}")


def test_a_task_that_generates_is_scored_on_a_server_of_our_own(workshop: Workshop, tmp_path: Path) -> None:
    file = task(tmp_path, "python_next_letter", CLOZE)
    rows = score(workshop.artifact("gguf-q8_0"), str(file), Reporter(quiet=True), log_folder=tmp_path)
    assert [(row["task"], row["metric"], row["samples"]) for row in rows] == [
        ("python_next_letter", "exact_match", QUESTIONS)
    ]
    assert 0.1 < rows[0]["value"] <= 1
    assert 0 < rows[0]["stderr"] < 0.2


def test_a_task_of_likelihoods_is_refused_where_the_server_gives_none(workshop: Workshop, tmp_path: Path) -> None:
    file = task(tmp_path, "python_next_text", CHOICE)
    with pytest.raises(LlmoptError, match="gives no log-probabilities of a prompt") as caught:
        score(workshop.artifact("gguf-q8_0"), str(file), Reporter(quiet=True), log_folder=tmp_path)
    assert "vLLM" in (caught.value.hint or "")


def test_an_unknown_task_is_named_with_its_neighbours(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(LlmoptError, match="no task 'gsm8kk'") as caught:
        score(workshop.artifact("gguf-q8_0"), "gsm8kk", Reporter(quiet=True), log_folder=tmp_path)
    assert "gsm8k" in (caught.value.hint or "")
