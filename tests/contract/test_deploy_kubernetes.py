"""What kubectl, Helm, promtool and Kubernetes' own schemas say of the manifests and the chart."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given, settings

from llmopt.deploy import checks_kubernetes, kubernetes
from llmopt.deploy.checks import check
from llmopt.deploy.kubernetes_objects import LOST
from llmopt.deploy.kubernetes_scaling import adapter_rules, scaled_object, signal
from llmopt.deploy.plan import Deployment, Launch
from tests.unit.deploy import hostile
from tests.unit.deploy.make import VLLM_METRICS, deployment, engine

KUBERNETES = "1.34"
OWN_KINDS = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}  # of operators: Kubernetes has no schema of them
READABLE = [word for word in hostile.WORDS if not LOST.search(word)]
NASTY = Launch(
    argv=("serve", *READABLE),
    environment={f"V{i}": word for i, word in enumerate(READABLE)},
    files={"/llmopt/a b.json": '{"x": "{{ .Values.image }} $(HOME)"}\n', "/llmopt/b": "\n\n  two\n lines"},
)
DESCRIBED = '{"label": "{{ .Release.Name }} $(HOME)"}\n'
CANARY = {"canary": {"image": f"tiny-canary:{deployment().llmopt_version}", "deployment": DESCRIBED}}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"wishes": {"domain": "llm.example.com", "tls": True, "monitoring": True}},
    "keda": {"wishes": {"autoscaler": "keda", "scrape_s": 0.5, "monitoring": True}},
    "no scaling": {"wishes": {"autoscaler": "none"}},
    "processors": {"engine": {"gpus": 0, "threads": 4, "version": None}, "evidence": {"peak_memory_bytes": None}},
    "own entry point": {"engine": {"image": replace(engine().image, entrypoint=None, probe="curl")}},  # type: ignore[type-var]
    "beside": {"engine": {"mounts": (("/srv/draft", "/llmopt/draft"),), "metrics_path": None}},
    "hostile": {
        "engine": {"inside": NASTY, "model": "a \"b' $(HOME) {{ .Values.image }} \n#"},
        "evidence": {"label": "{{ .Release.Name }}: '\n$(X)", "source": "\x7f\x01\u2028 é"},
    },
}


def asked(case: str) -> Deployment:
    changes = copy.deepcopy(CASES[case])
    changes.setdefault("wishes", {}).setdefault("monitoring", False)
    changes["wishes"]["target"] = "kubernetes"
    return deployment(**changes)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(case: str, tmp_path: Path) -> Path:
    for name, file in kubernetes.files(asked(case)).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text, encoding="utf-8")
    (tmp_path / "deployment.json").write_text(DESCRIBED, encoding="utf-8")
    return tmp_path


def kustomized(folder: Path) -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not here")
    told = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    return checks_kubernetes.objects_in(told.stdout)


def rendered(folder: Path, values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not here")
    made = helm.Chart.load(str(folder / "chart")).render(values, name="release", namespace="tiny")
    texts = [text for path, text in sorted(made.items()) if not path.endswith("NOTES.txt")]
    return [found for text in texts for found in checks_kubernetes.objects_in(text)]


def by_name(objects: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Without what the two differ in by their nature: Helm puts the namespace in itself, keeps what took long to fill, and is
    handed deployment.json.
    """
    found = {}
    for made in copy.deepcopy(objects):
        about = made["metadata"]
        about.pop("namespace", None)
        about.get("annotations", {}).pop("helm.sh/resource-policy", None)
        if about["name"].endswith("-canary") and made["kind"] == "Deployment":
            # Of the text that Helm is given, and of what the canary reads in it.
            assert len(made["spec"]["template"]["metadata"]["annotations"].pop("llmopt/deployment")) == 64
        if not about.get("annotations"):
            about.pop("annotations", None)
        found[made["kind"], about["name"]] = made
    return found


def by_kind(objects: list[dict[str, Any]], name: str, kind: str = "Deployment") -> dict[str, Any]:
    (found,) = (made for made in objects if (made["kind"], made["metadata"]["name"]) == (kind, name))
    return found


def test_the_chart_renders_the_very_manifests(folder: Path) -> None:
    plain, made = by_name(kustomized(folder)), by_name(rendered(folder, CANARY))
    assert plain.pop(("Namespace", "tiny"))
    test = made.pop(("Pod", "tiny-test"))
    assert made == plain
    assert "http://tiny:8000/v1/completions" in test["spec"]["containers"][0]["command"]


@pytest.mark.parametrize("case", ["all"])
def test_an_overlay_beside_the_folder_names_a_registry_and_takes_out_what_a_cluster_lacks(folder: Path) -> None:
    """The one that the documentation shows."""
    page = (Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text()
    (shown,) = (block for block in page.split("```")[1::2] if "\nresources:" in block)
    site = folder.parent / f"{folder.name}-site"
    site.mkdir()
    (site / "kustomization.yaml").write_text(shown.replace("NAME", "tiny").replace("../stack", f"../{folder.name}"))
    made = kustomized(site)
    assert by_kind(made, "tiny-canary")["spec"]["template"]["spec"]["containers"][0]["image"] == (
        "registry.example.com/tiny-canary:0.1.0"
    )
    assert by_kind(made, "tiny")["spec"]["replicas"] == 2
    (claim,) = (one for one in made if one["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["storageClassName"] == "nfs"
    assert {one["kind"] for one in kustomized(folder)} - {one["kind"] for one in made} == {
        "ServiceMonitor", "PrometheusRule", "HorizontalPodAutoscaler",
    }  # fmt: skip


@pytest.mark.parametrize("case", ["plain"])
def test_the_pod_that_fills_the_volume_has_the_image_of_one_s_registry(folder: Path, tmp_path: Path) -> None:
    if (real := shutil.which("kubectl")) is None:
        pytest.skip("kubectl is not here")
    kubectl = tmp_path / "kubectl"
    # No cluster is asked: what the script would apply is kept, and then nothing more is done.
    kubectl.write_text(f"""#!/bin/sh
case "$*" in
*" set image "*) exec {real} "$@" ;;
*"apply -f -") cat > {tmp_path}/applied.yaml; exit 1 ;;
esac
""")
    kubectl.chmod(0o755)
    (folder / "manifests/fill-model.sh").chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "KUBECTL": str(kubectl), "IMAGE": "registry.example.com/a/engine:1"}
    subprocess.run([folder / "manifests/fill-model.sh"], env=environment, capture_output=True, timeout=60)
    pod = yaml.safe_load((tmp_path / "applied.yaml").read_text())
    assert pod["spec"]["containers"][0]["image"] == "registry.example.com/a/engine:1"
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"].startswith("tiny-model-")


def test_every_object_is_what_kubernetes_takes(folder: Path) -> None:
    checker = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not here")
    loader = yaml.safe_load((folder / "manifests/model-loader.yaml").read_text())
    for made in (*kustomized(folder), *rendered(folder, CANARY), loader):
        if made["kind"] not in OWN_KINDS:
            checker.validate(made, KUBERNETES, strict=True)


def test_kubectl_reads_the_words_that_were_written(case: str, folder: Path) -> None:
    written = yaml.safe_load((folder / "manifests/deployment.yaml").read_text())
    read = by_name(kustomized(folder))["Deployment", "tiny"]
    assert read["spec"]["template"] == written["spec"]["template"]


def test_the_autoscaler_owns_the_number_of_replicas(case: str, folder: Path) -> None:
    spec = by_name(kustomized(folder))["Deployment", "tiny"]["spec"]
    assert ("replicas" in spec) == (case not in ("all", "keda"))


def test_helm_finds_nothing_to_say(folder: Path) -> None:
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not here")
    report = helm.lint(str(folder / "chart"), strict=True, namespace="tiny", kube_version=f"v{KUBERNETES}.0")
    assert [m["error"] for m in report["messages"] if m["severity"] > 1] == report["errors"] == []


def test_a_value_that_only_yaml_1_1_has_a_meaning_for_is_read() -> None:
    assert checks_kubernetes.objects_in("value: =\n") == [{"value": "="}]


@pytest.mark.parametrize("case", ["plain"])
def test_helm_hands_on_any_words(folder: Path) -> None:
    """As Kubernetes reads them: no template, no number, no variable."""
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not here")
    chart = helm.Chart.load(str(folder / "chart"))

    @settings(max_examples=60, deadline=None)
    @given(hostile.words, hostile.word)
    @example(["a b"], "=")
    @example(["a b"], "\xa0")  # white space to Go, text to YAML
    @example(["a b"], "a\n\n")
    def handed_on(argv: list[str], model: str) -> None:
        assume(not any(LOST.search(word) for word in (*argv, model)))
        values = {"engine": {"args": argv, "env": {"A": model}}}
        text = next(t for path, t in chart.render(values).items() if path.endswith("/templates/deployment.yaml"))
        (engine,) = checks_kubernetes.objects_in(text)[0]["spec"]["template"]["spec"]["containers"]
        assert engine["args"] == [word.replace("$", "$$") for word in argv]
        assert {"name": "A", "value": model.replace("$", "$$")} in engine["env"]

    handed_on()


@pytest.mark.parametrize("names", [VLLM_METRICS, {"e2e_time": "llmopt_hf:e2e_request_latency_seconds"}])
def test_prometheus_takes_what_the_autoscalers_ask(names: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not here")
    made = deployment(engine={"metrics": names})
    chosen = signal(made)
    assert chosen is not None
    (rule,) = adapter_rules(chosen)["rules"]["custom"]
    by_adapter = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'pod=~"tiny-.*"')
    by_keda = scaled_object(made, chosen)["spec"]["triggers"][0]["metadata"]["query"]
    asked = [
        {"record": f"asked:{n}", "expr": text} for n, text in enumerate((by_adapter, by_keda, rule["seriesQuery"]))
    ]
    file = tmp_path / "rules.json"
    file.write_text(json.dumps({"groups": [{"name": "asked", "rules": asked}]}))
    told = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("case", ["all"])
def test_prometheus_takes_the_rules(folder: Path, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not here")
    rule = yaml.safe_load((folder / "components/monitoring/prometheusrule.yaml").read_text())
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(rule["spec"]))
    told = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("case", ["plain"])
@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"image": {"tag": "latest"}}, "tag"),
        ({"replicas": "two"}, "replicas"),
        ({"autoscaling": {"kind": "vpa"}}, "kind"),
        ({"ingress": {"enabled": True}}, "host"),
        ({"ingress": {"enabled": True, "host": "LLM.example.org"}}, "host"),
    ],
)
def test_the_schema_refuses_what_makes_no_sense(folder: Path, values: dict[str, Any], word: str) -> None:
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not here")
    chart = helm.Chart.load(str(folder / "chart"))
    with pytest.raises(helm.HelmValuesError, match=word):
        chart.validate_schema(values)


@pytest.mark.parametrize("case", ["plain"])
def test_one_s_own_claim_takes_the_place_of_the_chart_s(folder: Path) -> None:
    made = by_name(rendered(folder, {"model": {"existingClaim": "models"}}))
    assert ("PersistentVolumeClaim", "tiny-model") not in made
    volumes = made["Deployment", "tiny"]["spec"]["template"]["spec"]["volumes"]
    assert volumes[0]["persistentVolumeClaim"]["claimName"] == "models"


@pytest.mark.parametrize("case", ["plain"])
def test_without_an_autoscaler_the_chart_says_how_many(folder: Path) -> None:
    made = by_name(rendered(folder, {"autoscaling": {"kind": "none"}, "replicas": 5}))
    assert made["Deployment", "tiny"]["spec"]["replicas"] == 5


@pytest.mark.parametrize("case", ["plain"])
def test_an_autoscaler_of_the_chart_has_the_engine_scraped(folder: Path) -> None:
    made = by_name(rendered(folder, {"autoscaling": {"kind": "hpa"}}))
    assert ("ServiceMonitor", "tiny") in made
    assert "monitoring" in str(made["NetworkPolicy", "tiny"])
    assert ("ServiceMonitor", "tiny") not in by_name(rendered(folder))


@pytest.mark.parametrize("case", ["all"])
def test_another_description_starts_the_chart_s_canary_anew(folder: Path) -> None:
    given = [CANARY["canary"] | {"deployment": text} for text in ("{}", "{} ")]
    pods = [by_kind(rendered(folder, {"canary": one}), "tiny-canary")["spec"]["template"] for one in given]
    assert pods[0]["metadata"]["annotations"] != pods[1]["metadata"]["annotations"]


@pytest.mark.parametrize("case", ["keda"])
def test_keda_asks_for_the_pods_of_the_release(folder: Path) -> None:
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not here")
    made = helm.Chart.load(str(folder / "chart")).render({"fullnameOverride": ""}, name="other", namespace="there")
    text = next(text for path, text in made.items() if path.endswith("scaledobject.yaml"))
    query = yaml.safe_load(text)["spec"]["triggers"][0]["metadata"]["query"]
    assert 'namespace="there",service="other-metrics"' in query


@pytest.mark.parametrize("case", ["all"])
def test_the_chart_has_no_canary_without_its_image(folder: Path) -> None:
    assert ("Deployment", "tiny-canary") not in by_name(rendered(folder))


@pytest.mark.parametrize("case", ["all", "keda"])
def test_the_checks_find_no_fault(folder: Path) -> None:
    (folder / "deployment.json").unlink()  # it is written when they are done
    found = check(folder, "kubernetes")
    assert [one for one in found if one.status == "failed"] == []
    assert {"kubectl kustomize", "helm template chart"} <= {one.name for one in found}


@pytest.mark.parametrize("case", ["plain"])
@pytest.mark.parametrize(
    ("path", "old", "new", "name"),
    [
        ("manifests/deployment.yaml", "replicas: 2", "replicsa: 2", "schemas of Kubernetes"),
        ("manifests/kustomization.yaml", "service.yaml", "no-such.yaml", "kubectl kustomize"),
        ("chart/templates/service.yaml", "{{ include", "{{ inclde", "helm template chart"),
    ],
)
def test_the_checks_find_a_fault(folder: Path, path: str, old: str, new: str, name: str) -> None:
    file = folder / path
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    found = [one for one in check(folder, "kubernetes") if one.name.startswith(name)]
    if all(one.status == "skipped" for one in found):
        pytest.skip(found[0].why)
    assert "failed" in [one.status for one in found]


def test_rules_that_make_one_series_twice_are_a_fault() -> None:
    twice = {"groups": [{"name": "a", "rules": [{"record": "b", "expr": "up"}] * 2}]}
    (found,) = checks_kubernetes.rules([{"kind": "PrometheusRule", "spec": twice}])
    if found.status == "skipped":
        pytest.skip(found.why)
    assert found.status == "failed"
    assert "duplicate" in found.why
