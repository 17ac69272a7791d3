"""What every object of a cluster has: its name, its labels, and words that Kubernetes would otherwise expand.

``llmopt/client-of: NAME`` is the label of pods that may ask the engine (the NetworkPolicy admits no others but the
gateway and the monitoring).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from llmopt.core.escaping import one_line
from llmopt.deploy.plan import Deployment

GIB = 1024**3
MIB = 1024**2
USER_ID = 1000  # of the processes; the volumes' group is the same
CLIENT_LABEL = "llmopt/client-of"
# What kubectl (kustomize 5.5) and Helm (4) lose or break off at when they read their own YAML back.
LOST = re.compile("[\x7f-\x9f\u2028\u2029\ufffe\uffff]")
NO_LABEL = re.compile(r"[^A-Za-z0-9._-]+")


def labels(deployment: Deployment, component: str = "engine") -> dict[str, str]:
    found = {**selector(deployment, component), "app.kubernetes.io/part-of": deployment.name}
    version = label_value(deployment.engine.version or "")
    return found | ({"app.kubernetes.io/version": version} if version and component == "engine" else {})


def selector(deployment: Deployment, component: str = "engine") -> dict[str, str]:
    """What a Deployment can never change again: no version, nothing measured."""
    return {"app.kubernetes.io/name": deployment.name, "app.kubernetes.io/component": component}


def label_value(text: str) -> str:
    """As much of it as a label may hold: 63 letters, digits and ``-_.``, with a letter or digit at both ends."""
    return NO_LABEL.sub("-", text)[:63].strip("-_.")


def metadata(deployment: Deployment, suffix: str = "", *, component: str = "engine", **more: Any) -> dict[str, Any]:
    return {
        "name": f"{deployment.name}{suffix}",
        "namespace": deployment.name,
        "labels": labels(deployment, component),
        **more,
    }


def evidence(deployment: Deployment) -> dict[str, str]:
    """What is known of the configuration, where ``kubectl describe`` shows it: each a line."""
    known = deployment.evidence
    figures = {name: figure.value for name, figure in known.figures.items() if figure.value is not None}
    told = {
        "llmopt/label": known.label,
        "llmopt/key": known.key,
        "llmopt/source": known.source,
        "llmopt/evidence": known.evidence,
        "llmopt/verdict": known.verdict,
        "llmopt/load": known.load,
        "llmopt/slos": ", ".join(slo.text for slo in known.slos),
        "llmopt/figures": json.dumps(figures, sort_keys=True),
        "llmopt/version": deployment.llmopt_version,
    }
    forced = {"llmopt/forced": "; ".join(known.forced)} if known.forced else {}
    return {name: one_line(text) for name, text in (told | forced).items() if text}


def literal(word: str) -> str:
    """A word of ``command``, ``args``, ``env`` or a probe as the program gets it.

    ``$(NAME)`` is expanded in all of them and ``$$`` stands for one ``$``.  Every ``$`` is doubled, not those before a
    bracket alone: after a single one Kubernetes takes the next byte for a character and breaks what is not ASCII.
    """
    return word.replace("$", "$$")


def literals(words: Iterable[str]) -> list[str]:
    return [literal(word) for word in words]


def variables(environment: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": literal(value)} for name, value in sorted(environment.items())]


def lost(deployment: Deployment) -> str | None:
    """The first word of the engine's that would not reach it as it is."""
    inside = deployment.engine.inside
    if inside is None:
        return None
    named = (*inside.environment.items(), *inside.files.items(), *deployment.engine.mounts)
    words = (deployment.engine.model, *inside.argv, *(word for pair in named for word in pair))
    return next((word for word in words if LOST.search(word)), None)


def quantity(size: int, unit: int = MIB) -> str:
    """Bytes in whole MiB or GiB, rounded up: as text, for Helm reads a large number back as ``1.9e+10``."""
    return f"{-(-size // unit)}{'Gi' if unit == GIB else 'Mi'}"
