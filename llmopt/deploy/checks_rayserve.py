"""The application of Ray Serve, by Ray's own schema where Ray is; ``checks.py`` calls it. Ray is not started."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import yaml

from llmopt.deploy.checks import Check, Checks, last, skipped
from llmopt.deploy.rayserve import CONFIG


def check(folder: Path) -> Checks:
    name = f"ray.serve.schema {CONFIG}"
    document = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    if importlib.util.find_spec("ray") is None:
        yield skipped(name, "ray is not here (pip install 'ray[serve]')")
    else:
        from ray.serve.schema import ServeDeploySchema

        try:
            ServeDeploySchema(**document)
            yield Check(name=name, status="passed", why="")
        except ValueError as error:
            yield Check(name=name, status="failed", why=last(str(error)))
    for path in sorted(folder.glob("*.py")):
        try:
            compile(path.read_text(encoding="utf-8"), path.name, "exec")
        except SyntaxError as error:
            yield Check(name=f"python {path.name}", status="failed", why=str(error))
        else:
            yield Check(name=f"python {path.name}", status="passed", why="it compiles")
