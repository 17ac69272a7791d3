"""Manifests and chart, by kubectl, Helm, promtool and Kubernetes' own schemas; ``checks.py`` calls it. No cluster is asked."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from llmopt.deploy.canary import DOCUMENT
from llmopt.deploy.checks import CHECK_RULES, Check, Checks, by_program, last, run, skipped

VERSION = "1.34"  # of the schemas; what is written here is older than that, and still there in 1.37
# Of operators, which bring their own schemas into a cluster.
OWN_KINDS = ("PrometheusRule", "ServiceMonitor", "ScaledObject")
Object = dict[str, Any]


def check(folder: Path) -> Checks:
    plain: list[Object] | None = None
    rendered = None
    name = "kubectl kustomize"
    if not shutil.which("kubectl"):
        yield skipped(name, "kubectl is not here")
    else:
        end, told = kustomized(folder)
        yield Check(name=name, status="failed" if end else "passed", why=last(told) if end else "")
        plain = None if end else objects_in(told)
    plain = list(manifests(folder)) if plain is None else plain
    yield from schemas("manifests", plain)
    yield from rules(plain)
    name = "helm template chart"
    try:
        rendered = helm_template(folder, plain)
    except RuntimeError as error:
        yield Check(name=name, status="failed", why=last(str(error)))
    if rendered is not None:
        known = {identity(o): essence(o) for o in plain}
        others = [o for o in rendered if known.get(identity(o)) != essence(o)]
        same = len(rendered) - len(others)
        yield Check(name=name, status="passed", why=f"{same} objects as in the manifests, {len(others)} of its own")
        yield from schemas("what the chart has of its own", others)
    elif not shutil.which("helm") and importlib.util.find_spec("helm_python") is None:
        yield skipped(name, "neither helm nor the package helm-python-sdk is here")


def kustomized(folder: Path) -> tuple[int, str]:
    """Of a copy: ``deployment.json``, which a ConfigMap is made of, is written last, with the end of these very checks in it."""
    with tempfile.TemporaryDirectory(prefix="llmopt-kustomize-") as scratch:
        for part in ("manifests", "components"):
            if (folder / part).is_dir():
                shutil.copytree(folder / part, Path(scratch) / part)
        shutil.copy(folder / "kustomization.yaml", scratch)
        (Path(scratch) / DOCUMENT).write_text("{}", encoding="utf-8")
        return run(["kubectl", "kustomize", "."], folder=scratch)


def manifests(folder: Path) -> Iterator[Object]:
    for path in (*sorted(folder.glob("manifests/*.yaml")), *sorted(folder.glob("components/*/*.yaml"))):
        for found in objects_in(path.read_text(encoding="utf-8")):
            if "kind" in found and found["kind"] not in ("Kustomization", "Component"):
                yield found


# libyaml's where PyYAML has it: read in Python it took .3 s of the two that a deployment may take.
class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Helm and kubectl write YAML 1.2, in which a plain ``=`` is text and no key of YAML 1.1."""


Loader.add_constructor("tag:yaml.org,2002:value", Loader.construct_yaml_str)


def objects_in(text: str) -> list[Object]:
    return [found for found in yaml.load_all(text, Loader=Loader) if found]


def identity(found: Object) -> tuple[str, str]:
    return found["kind"], found["metadata"]["name"]


def essence(found: Object) -> Object:
    """Without what Helm writes otherwise: it puts the namespace in itself, and keeps what took long to fill."""
    about = {name: part for name, part in found["metadata"].items() if name != "namespace"}
    notes = {k: v for k, v in about.pop("annotations", {}).items() if k != "helm.sh/resource-policy"}
    return {**found, "metadata": about | ({"annotations": notes} if notes else {})}


def schemas(what: str, objects: list[Object]) -> Checks:
    """Strictly: a field that Kubernetes does not know is an error, which an API server would pass over in silence."""
    name = f"schemas of Kubernetes {VERSION}: {what}"
    unknown = sorted({o["kind"] for o in objects} & set(OWN_KINDS))
    if unknown:
        yield skipped(f"schemas of operators: {what}", f"Kubernetes has none of {', '.join(unknown)}")
    if importlib.util.find_spec("kubernetes_validate") is None:
        yield skipped(name, "the package kubernetes-validate is not here (pip install kubernetes-validate)")
        return
    import kubernetes_validate

    faults = []
    for found in objects:
        if found["kind"] in OWN_KINDS:
            continue
        try:
            kubernetes_validate.validate(found, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(map(str, error.absolute_path))
            faults.append(f"{found['kind']} {found['metadata']['name']}: {where}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError as error:
            faults.append(error.message)
    yield Check(name=name, status="failed" if faults else "passed", why="; ".join(faults)[:500])


def rules(objects: list[Object]) -> Checks:
    for found in objects:
        if found["kind"] == "PrometheusRule":
            with tempfile.TemporaryDirectory(prefix="llmopt-rules-") as scratch:
                (Path(scratch) / "rules.yml").write_text(json.dumps(found["spec"]), encoding="utf-8")
                yield by_program("promtool check rules PrometheusRule", [*CHECK_RULES, "rules.yml"], folder=scratch)


def helm_template(folder: Path, plain: list[Object]) -> list[Object] | None:
    """What the chart renders; ``None`` where nothing here can. Raises RuntimeError with Helm's words."""
    name = next((o["metadata"]["name"] for o in plain if o["kind"] == "Namespace"), "release")
    if shutil.which("helm"):
        end, told = run(["helm", "template", name, "chart", "--namespace", name], folder=folder)
        if end:
            raise RuntimeError(told)
        texts = [told]
    elif importlib.util.find_spec("helm_python") is not None:
        import helm_python

        try:
            made = helm_python.Chart.load(str(folder / "chart")).render(name=name, namespace=name)
        except helm_python.HelmError as error:
            raise RuntimeError(str(error)) from error
        texts = [text for path, text in made.items() if not path.endswith("NOTES.txt")]
    else:
        return None
    return [found for text in texts for found in objects_in(text)]
