"""What every canary (``llmopt watch``) is made of, in whichever container: its image, and what it reads."""

from __future__ import annotations

from dataclasses import asdict

from llmopt.deploy import Step
from llmopt.deploy.documents import json_text
from llmopt.deploy.plan import Deployment, File
from llmopt.deploy.templates import render
from llmopt.deploy.writing import DOCUMENT

EVERY_S = 30
__all__ = ["DOCUMENT", "EVERY_S", "dockerfile", "told", "wheel"]


def dockerfile(deployment: Deployment) -> File:
    return File(text=render("canary.Dockerfile", version=deployment.llmopt_version))


def wheel(deployment: Deployment) -> Step:
    """What comes before its image is built: the image installs llmopt itself."""
    why = f"for the image of the canary, until a package index has llmopt {deployment.llmopt_version}; CHECKOUT is one of llmopt"
    return ("pip", "wheel", "--no-deps", "--wheel-dir", "canary", "CHECKOUT"), why


def told(deployment: Deployment) -> str:
    """What it reads in ``deployment.json``, which is written last: another text wants a canary that is started anew."""
    return json_text({"model": deployment.engine.model, **asdict(deployment.evidence)})
