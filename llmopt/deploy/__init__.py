"""Every place that a measured configuration can be deployed to, in one table.

How to add one:

1. Write ``llmopt/deploy/TARGET.py`` with one ``Target`` object named ``TARGET``: which engines it can run, and the files
   that it consists of (``files``: path in the folder → ``File``).  Documents (YAML, JSON) are made of dicts and written
   by a library (``documents.py``); what is no document (nginx.conf, a unit, a script) is a template under
   ``templates/``, rendered by ``templates.py``, which escapes every value for the language that it goes into.
2. Add one line to ``TARGETS``.
3. Run ``make test``: the contract tests render every line of the table, with names that nobody should give, and read
   everything back.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llmopt.core.errors import UsageError, nearest
from llmopt.deploy.plan import Deployment, File

# name → module that holds TARGET; imported only when it is used.
TARGETS = {
    "compose": "llmopt.deploy.compose",
    "kubernetes": "llmopt.deploy.kubernetes",
    "systemd": "llmopt.deploy.systemd",
    "shell": "llmopt.deploy.shell",
    "rayserve": "llmopt.deploy.rayserve",
}
# name → what stops all of a deployment of that name, from the folder that it was written to, whatever lies there by then.
STOPS = {
    "compose": "docker compose --project-name {name} down --remove-orphans",
    "kubernetes": "kubectl --namespace {name} delete deployments,statefulsets --all",
    "systemd": "sudo systemctl disable --now llmopt-{name}.target",
    "shell": 'kill -TERM "$(cat run/supervisor.pid)"',
    "rayserve": "serve shutdown",
}

Step = tuple[tuple[str, ...], str]


@dataclass(frozen=True, kw_only=True)
class Target:
    """``refusal``: why this target cannot run that deployment, ``None`` when it can; ``files``: path → what is written.

    ``start``: the words with which a person starts it, in the folder; ``url``: where it then answers.  ``before`` and
    ``after``: what else it takes until it answers there, each command with what it is for.  ``secrets``: where what is
    secret, or of that place alone, belongs.  ``doubts``: what is otherwise there than was asked for, a sentence each.
    ``limits_memory``: a replica that takes more than ``memory_limit_bytes`` is ended there.
    """

    name: str
    title: str
    refusal: Callable[[Deployment], str | None]
    files: Callable[[Deployment], Mapping[str, File]]
    start: Callable[[Deployment], tuple[str, ...]]
    url: Callable[[Deployment], str]
    before: Callable[[Deployment], tuple[Step, ...]] = lambda deployment: ()
    after: Callable[[Deployment], tuple[Step, ...]] = lambda deployment: ()
    doubts: Callable[[Deployment], tuple[str, ...]] = lambda deployment: ()
    secrets: Callable[[Deployment], str] = lambda deployment: ".env"
    limits_memory: bool = True


def target(name: str) -> Target:
    """By name; raises UsageError with the nearest names."""
    if name not in TARGETS:
        raise UsageError(f"unknown target {name!r}", hint=nearest(name, list(TARGETS)))
    found: Target = importlib.import_module(TARGETS[name]).TARGET
    return found


def stop_command(target: str, name: str) -> str:
    """A line for a shell. ``target`` and ``name`` are of ``TARGETS`` and a DNS label."""
    return STOPS[target].format(name=name)
