"""Task scores: hand over to lm-eval, which asks a running server; ``evaluate`` runs in a worker that has lm-eval.

A task that compares likelihoods (multiple choice, perplexity) needs a server that gives log-probabilities of a prompt
(``echo`` with ``logprobs``): vLLM does, llama.cpp and transformers' servers do not. Tasks that generate run on any.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmopt.core.environments import Needs
from llmopt.core.errors import ModelError, ServerError, UsageError, nearest

NEEDS = Needs(modules=("lm_eval",), extra="eval")
FUNCTION = "llmopt.quality.tasks:evaluate"
BOOTSTRAPS = 1000
TIMEOUT_S = 60.0
# Loopback must not go through a proxy that the environment names.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def gives_prompt_logprobs(base_url: str, model: str, opener: urllib.request.OpenerDirector = DIRECT) -> bool:
    """Whether the server answers ``echo`` with the log-probabilities of the prompt. Raises ServerError when it does not answer."""
    body = {"model": model, "prompt": "def main", "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    request = urllib.request.Request(
        f"{base_url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"} | authorization()
    )
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            choice = json.load(response)["choices"][0]
    except urllib.error.HTTPError as error:
        if error.code in (400, 422, 501):  # an option that it does not know, said honestly
            return False
        raise ServerError(
            f"{base_url} answers with status {error.code}", hint="--model must name what is served there"
        ) from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ServerError(f"no completion from {base_url}: {error}", hint="is the server running?") from error
    values = (choice.get("logprobs") or {}).get("token_logprobs") or []
    return len(values) > 1 and str(choice.get("text", "")).startswith("def main")


def authorization() -> dict[str, str]:
    """lm-eval reads the same variable."""
    key = os.environ.get("OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def task_names(asked: str) -> tuple[list[str], list[str]]:
    """``NAME,FILE.yaml`` → (names of tasks and files, folders that hold files). Raises UsageError."""
    names, folders = [], []
    for word in filter(None, (part.strip() for part in asked.split(","))):
        path = Path(word).expanduser()
        if path.suffix in (".yaml", ".yml"):
            if not path.is_file():
                raise UsageError(f"no task file at {path}", hint="name a lm-eval task, or its YAML file")
            names.append(named_in(path))
            folders.append(str(path.resolve().parent))
        else:
            names.append(word)
    if not names:
        raise UsageError("no task named", hint="--tasks gsm8k,arc_easy")
    return names, folders


def named_in(file: Path) -> str:
    """The task's name in its own file; lm-eval's tags (``!function``) are passed over."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("task:"):
            return line.partition(":")[2].strip().strip("\"'")
    raise UsageError(f"{file} names no task", hint="it needs a line 'task: NAME'")


def evaluate(
    tasks: list[str],
    folders: list[str],
    base_url: str,
    model: str,
    tokenizer: str | None,
    max_length: int,
    prompt_logprobs: bool,
    offline: bool,
    concurrent: int,
) -> list[dict[str, Any]]:
    """One row per task, metric and filter: ``task metric filter value stderr higher_is_better samples``, from lm-eval's own evaluation."""
    if not offline:  # workers are; data sets of tasks are the one thing that is fetched
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            os.environ.pop(name, None)
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=folders or None)
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        raise UsageError(f"lm-eval knows no task {unknown[0]!r}", hint=nearest(unknown[0], list(manager.all_tasks)))
    try:
        loaded = manager.load(list(tasks))["tasks"]
    except (OSError, ConnectionError, ValueError) as error:
        words = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the data of {', '.join(tasks)} cannot be had: {words}", hint="a FILE.yaml may name a local data set"
        ) from error
    likelihoods = [name for name, task in loaded.items() if task.OUTPUT_TYPE != "generate_until"]
    if likelihoods and not prompt_logprobs:
        raise UsageError(
            f"{likelihoods[0]} compares likelihoods, and {base_url} gives no log-probabilities of a prompt",
            hint="serve it with vLLM (--url), or choose a task that generates",
        )
    options = {
        "base_url": f"{base_url}/completions",
        "model": model,
        "tokenizer": tokenizer,
        # Ids need a tokenizer of ours and a server that takes them; text goes everywhere.
        "tokenizer_backend": "huggingface" if prompt_logprobs else None,
        "tokenized_requests": prompt_logprobs,
        "max_length": max_length,
        "num_concurrent": concurrent,
    }
    found = lm_eval.simple_evaluate(
        "local-completions",
        options,
        tasks=list(tasks),
        task_manager=manager,
        bootstrap_iters=BOOTSTRAPS,
        log_samples=False,
    )
    return rows(found["results"], found.get("n-samples", {}), found.get("higher_is_better", {}))


def rows(
    results: Mapping[str, Mapping[str, Any]],
    samples: Mapping[str, Mapping[str, int]],
    higher_is_better: Mapping[str, Mapping[str, bool | None]],
) -> list[dict[str, Any]]:
    """lm-eval's ``{"task": {"acc,none": 0.5, "acc_stderr,none": 0.1}}`` as rows; a standard error that is none is ``None``.

    ``higher_is_better`` is ``None`` where the task does not say.
    """
    found = []
    for task, figures in results.items():
        for key, value in figures.items():
            metric, _, filter = key.partition(",")
            if not filter or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            stderr = figures.get(f"{metric}_stderr,{filter}")
            found.append(
                {
                    "task": task,
                    "metric": metric,
                    "filter": filter,
                    "value": float(value),
                    "stderr": float(stderr) if isinstance(stderr, (int, float)) else None,
                    "higher_is_better": higher_is_better.get(task, {}).get(metric),
                    "samples": int(samples.get(task, {}).get("effective", figures.get("sample_len", 0))),
                }
            )
    return found
