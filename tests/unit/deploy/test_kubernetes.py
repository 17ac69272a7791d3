from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given

from llmopt import deploy as targets
from llmopt.core.escaping import one_line
from llmopt.deploy import kubernetes
from llmopt.deploy.documents import yaml_text
from llmopt.deploy.kubernetes_engine import config_map, drain_s, engine_deployment
from llmopt.deploy.nginx import nginx_conf
from llmopt.deploy.plan import Deployment, Figure, Launch
from tests.unit.deploy import hostile
from tests.unit.deploy.make import VLLM_METRICS, deployment, engine

LLAMACPP_METRICS = {"running": "llamacpp:requests_processing", "waiting": "llamacpp:requests_deferred"}


def documents(made: Deployment) -> dict[str, Any]:
    """Every YAML file, read back."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
    return {
        path: yaml.load(file.text, Loader=loader)
        for path, file in kubernetes.files(made).items()
        if path.endswith((".yaml", ".yml")) and "templates" not in path
    }


def workload(made: Deployment) -> dict[str, Any]:
    """The Deployment alone, written and read back: everything takes a tenth of a second."""
    found: dict[str, Any] = yaml.safe_load(yaml_text(engine_deployment(made)))
    return found


def pod(made: Deployment) -> dict[str, Any]:
    found: dict[str, Any] = workload(made)["spec"]["template"]["spec"]
    return found


def container(made: Deployment) -> dict[str, Any]:
    found: dict[str, Any] = pod(made)["containers"][0]
    return found


def expanded(word: str) -> str:
    """As Kubernetes reads a word: ``$$`` is ``$``, and ``$(NAME)`` is a variable, which would be somebody else's text."""
    return re.sub(r"\$(\$|\([^)]*\))", lambda found: "$" if found[1] == "$" else "EXPANDED", word)


@given(hostile.words)
def test_the_command_line_is_the_measured_one(argv: list[str]) -> None:
    got = container(deployment(engine={"inside": Launch(argv=tuple(argv))}))
    assert [expanded(word) for word in got["command"]] == argv


@given(hostile.word)
def test_variables_are_the_measured_ones(value: str) -> None:
    got = container(deployment(engine={"inside": Launch(argv=("x",), environment={"A": value})}))
    assert {v["name"]: expanded(v["value"]) for v in got["env"]}["A"] == value


@given(hostile.word)
def test_the_start_is_a_completion_of_the_very_model(name: str) -> None:
    asking = container(deployment(engine={"model": name}))["startupProbe"]["exec"]["command"]
    bodies = [json.loads(word) for word in map(expanded, asking) if word.startswith("{")]
    assert [(body["model"], body["max_tokens"]) for body in bodies] == [(name, 1)]


@given(hostile.word, hostile.word)
def test_what_is_known_stands_in_annotations(label: str, source: str) -> None:
    made = deployment(evidence={"label": label, "source": source})
    told = workload(made)["metadata"]["annotations"]
    assert (told.get("llmopt/label", ""), told.get("llmopt/source", "")) == (one_line(label), one_line(source))


def test_an_image_with_its_own_entry_point_gets_arguments_alone() -> None:
    plain = replace(engine().image, entrypoint=None)  # type: ignore[type-var]
    got = container(deployment(engine={"image": plain}))
    assert "command" not in got
    assert got["args"][0] == "python3"


def test_a_named_entry_point_comes_first() -> None:
    got = container(deployment(engine={"image": replace(engine().image, entrypoint="/bin/tini")}))  # type: ignore[type-var]
    assert got["command"][:2] == ["/bin/tini", "python3"]


def test_health_is_cheap_once_it_is_up() -> None:
    got = container(deployment())
    assert got["readinessProbe"]["httpGet"] == got["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"}


def test_the_start_may_take_three_times_what_it_took() -> None:
    asked = container(deployment(evidence={"load_s": 100.0}))["startupProbe"]
    assert asked["failureThreshold"] * asked["periodSeconds"] == 300


def test_memory_is_kept_and_limited_at_the_measured_peak_with_headroom() -> None:
    got = container(deployment(evidence={"peak_memory_bytes": 4 * 2**30}))["resources"]
    assert got["limits"]["memory"] == got["requests"]["memory"] == "5376Mi"


def test_an_unknown_peak_limits_nothing() -> None:
    assert "memory" not in container(deployment(evidence={"peak_memory_bytes": None}))["resources"]["limits"]


def test_a_cpu_engine_asks_for_its_threads_and_no_gpu() -> None:
    got = container(deployment(engine={"gpus": 0, "threads": 6}))["resources"]
    assert got["requests"]["cpu"] == "6"
    assert "nvidia.com/gpu" not in got["limits"]


def test_it_may_do_nothing_that_it_need_not() -> None:
    made = pod(deployment())
    assert made["securityContext"]["runAsNonRoot"]
    assert not made["automountServiceAccountToken"]
    inside = made["containers"][0]["securityContext"]
    assert (inside["readOnlyRootFilesystem"], inside["allowPrivilegeEscalation"]) == (True, False)
    assert inside["capabilities"] == {"drop": ["ALL"]}


def test_a_replica_to_spare_is_replaced_without_another_gpu() -> None:
    spec = workload(deployment())["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}


@pytest.mark.parametrize("changes", [{"capacity": {"spare": 0}}, {"engine": {"gpus": 0}}])
def test_else_the_new_one_comes_first(changes: dict[str, Any]) -> None:
    spec = workload(deployment(**changes))["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_a_pod_answers_on_for_twice_the_slowest_answer() -> None:
    figures = {"e2e_p99": Figure(value=12.0, unit="s")}
    made = deployment(evidence={"figures": figures})
    assert drain_s(made) == 10 + 24
    assert container(made)["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "34"]
    assert pod(made)["terminationGracePeriodSeconds"] > 34


def test_an_unmeasured_answer_may_take_the_limit_of_a_request() -> None:
    assert drain_s(deployment(evidence={"figures": {}, "workload": {"request_timeout_s": 90.0}})) == 100


def test_nodes_are_emptied_within_the_capacity() -> None:
    made = documents(deployment(capacity={"spare": 2, "replicas": 5}))
    assert made["manifests/poddisruptionbudget.yaml"]["spec"]["maxUnavailable"] == 2


def test_a_single_replica_does_not_hold_a_node_for_ever() -> None:
    made = documents(deployment(capacity={"spare": 0, "replicas": 1}))
    assert made["manifests/poddisruptionbudget.yaml"]["spec"]["maxUnavailable"] == 1


def test_drafts_and_adapters_lie_beside_the_model() -> None:
    made = deployment(engine={"mounts": (("/srv/draft model", "/llmopt/draft"),)})
    (name,) = (m["subPath"] for m in container(made)["volumeMounts"] if m["mountPath"] == "/llmopt/draft")
    assert name.startswith("beside-")
    assert f"copy '/srv/draft model' {name}" in kubernetes.files(made)["manifests/fill-model.sh"].text


def of_weights(key: str, beside: str = "a draft", **changes: Any) -> Deployment:
    weights = {"/srv/models/tiny": key, "/srv/draft": beside}
    return deployment(engine={"weights": weights, "mounts": (("/srv/draft", "/llmopt/draft"),), **changes})


@pytest.mark.parametrize("others", [of_weights("two", artifact_bytes=2**30), of_weights("one", "another draft")])
def test_other_weights_in_the_same_place_have_another_claim(others: Deployment) -> None:
    """A claim never shrinks, and what a rollback goes back to is still there."""
    made = [documents(one) for one in (of_weights("one"), others)]
    claims = [one["manifests/persistentvolumeclaim.yaml"]["metadata"]["name"] for one in made]
    assert claims[0] != claims[1]
    for claim, one in zip(claims, made, strict=True):
        pods = [one[f"{place}/deployment.yaml"]["spec"]["template"] for place in ("manifests", "components/canary")]
        for spec in (one["manifests/model-loader.yaml"]["spec"], *(pod["spec"] for pod in pods)):
            named = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
            assert named == [claim]


def test_the_same_weights_keep_their_claim_whatever_else_changes() -> None:
    made = [of_weights("one"), replace(of_weights("one", version="9"), llmopt_version="9")]
    assert len({documents(one)["manifests/persistentvolumeclaim.yaml"]["metadata"]["name"] for one in made}) == 1


def test_the_claim_has_room_for_what_lies_beside_the_model() -> None:
    spec = documents(of_weights("one", mounts_bytes=20 * 2**30))["manifests/persistentvolumeclaim.yaml"]["spec"]
    assert spec["resources"]["requests"]["storage"] == "40Gi"  # of 15 and 20


@given(hostile.word, hostile.word)
def test_files_of_the_engine_come_back_as_they_were(name: str, text: str) -> None:
    path = f"/llmopt/{name.replace('/', '')}"
    made = deployment(engine={"inside": Launch(argv=("x",), files={path: text, "/llmopt/0": "first"})})
    data = yaml.safe_load(yaml_text(config_map(made)))["data"]
    mounts = {m["mountPath"]: data[m["subPath"]] for m in container(made)["volumeMounts"] if m["name"] == "files"}
    assert mounts == {path: text, "/llmopt/0": "first"} | ({path: "first"} if path == "/llmopt/0" else {})


def test_pods_are_replaced_when_a_file_changes() -> None:
    made = [deployment(engine={"inside": Launch(argv=("x",), files={"/llmopt/a": text})}) for text in "ab"]
    sums = [workload(d)["spec"]["template"]["metadata"]["annotations"] for d in made]
    assert sums[0] != sums[1]


def autoscaler(made: Deployment) -> dict[str, Any]:
    found: dict[str, Any] = documents(made)["components/autoscaling/horizontalpodautoscaler.yaml"]["spec"]
    return found


def test_pods_are_added_above_the_measured_concurrency() -> None:
    (metric,) = autoscaler(deployment(evidence={"concurrency": 16}))["metrics"]
    assert metric["pods"]["metric"]["name"] == "llmopt_requests_in_flight"
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "16"}


@pytest.mark.parametrize("names", [VLLM_METRICS, LLAMACPP_METRICS])
def test_in_flight_is_what_runs_and_what_waits_under_the_engine_s_own_names(names: dict[str, str]) -> None:
    made = documents(deployment(engine={"metrics": names}))
    (rule,) = made["components/autoscaling/prometheus-adapter.yaml"]["rules"]["custom"]
    assert f'__name__=~"{names["running"]}|{names["waiting"]}"' in rule["metricsQuery"]


def test_without_gauges_answers_a_second_are_counted_against_a_share_of_the_measured() -> None:
    made = deployment(engine={"metrics": {"e2e_time": "e2e_seconds"}}, capacity={"per_replica_rps": 5.0})
    (metric,) = autoscaler(made)["metrics"]
    assert metric["pods"]["target"]["averageValue"] == "4"
    (rule,) = documents(made)["components/autoscaling/prometheus-adapter.yaml"]["rules"]["custom"]
    assert 'rate({__name__=~"e2e_seconds_count"' in rule["metricsQuery"]


@pytest.mark.parametrize("changes", [{"engine": {"metrics": {}}}, {"wishes": {"autoscaler": "none"}}])
def test_nothing_to_scale_by_scales_nothing(changes: dict[str, Any]) -> None:
    made = documents(deployment(**changes))
    assert not [path for path in made if "autoscaling" in path]
    assert made["kustomization.yaml"]["components"] == ["components/canary", "components/monitoring"]


@pytest.mark.parametrize("autoscaler", ["hpa", "none"])
def test_an_autoscaler_is_written_only_where_its_metric_is_scraped(autoscaler: str) -> None:
    made = deployment(wishes={"monitoring": False, "autoscaler": autoscaler})
    written = documents(made)
    assert not [path for path in written if "autoscaling" in path]
    assert written["chart/values.yaml"]["autoscaling"]["kind"] == "none"
    doubts = kubernetes.TARGET.doubts(made)
    assert ["--monitoring" in doubt for doubt in doubts] == ([True] if autoscaler == "hpa" else [])


@pytest.mark.parametrize("autoscaler", ["hpa", "keda"])
def test_what_an_autoscaler_asks_for_is_scraped_and_let_in(autoscaler: str) -> None:
    made = deployment(wishes={"autoscaler": autoscaler})
    written = documents(made)
    assert {"components/autoscaling", "components/monitoring"} <= set(written["kustomization.yaml"]["components"])
    assert "components/monitoring/servicemonitor.yaml" in written
    assert "monitoring" in str(written["manifests/networkpolicy.yaml"]["spec"]["ingress"])
    assert kubernetes.TARGET.doubts(made) == ()


def test_scaling_stays_between_the_plan_and_twice_the_plan() -> None:
    spec = autoscaler(deployment(capacity={"replicas": 3}))
    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 6)


def test_no_more_pods_are_asked_for_before_the_last_ones_could_have_come() -> None:
    spec = autoscaler(deployment(evidence={"load_s": 95.2}))
    assert spec["behavior"]["scaleUp"]["policies"][0]["periodSeconds"] == 96


def test_keda_asks_prometheus_itself() -> None:
    made = documents(deployment(wishes={"autoscaler": "keda"}))
    spec = made["components/autoscaling/scaledobject.yaml"]["spec"]
    (trigger,) = spec["triggers"]
    assert trigger["metadata"]["threshold"] == "16"
    assert 'namespace="tiny",service="tiny-metrics"' in trigger["metadata"]["query"]
    assert spec["fallback"]["replicas"] == spec["minReplicaCount"] == 2


def ingress(made: Deployment) -> dict[str, Any]:
    found: dict[str, Any] = documents(made)["manifests/ingress.yaml"]
    return found


def test_without_a_domain_nothing_is_open_to_the_outside() -> None:
    assert "manifests/ingress.yaml" not in documents(deployment())


def test_tokens_pass_the_gateway_as_they_come() -> None:
    told = ingress(deployment(wishes={"domain": "llm.example.com"}))["metadata"]["annotations"]
    assert told["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"


def test_a_client_gets_twice_the_measured_rate_and_all_measured_users_twice_at_once() -> None:
    made = deployment(
        wishes={"domain": "a.b"}, capacity={"total_rps": 2.0}, evidence={"concurrency": 16, "figures": {}}
    )
    told = ingress(made)["metadata"]["annotations"]
    assert told["nginx.ingress.kubernetes.io/limit-rps"] == "4"
    assert told["nginx.ingress.kubernetes.io/limit-burst-multiplier"] == "16"


@pytest.mark.parametrize(
    ("asked", "limit"), [(0.3, ("limit-rpm", "18")), (1.5, ("limit-rpm", "90")), (50.0, ("limit-rps", "50"))]
)
def test_a_client_gets_the_rate_that_was_asked_for(asked: float, limit: tuple[str, str]) -> None:
    told = ingress(deployment(wishes={"domain": "a.b", "rate_limit_rps": asked}))["metadata"]["annotations"]
    limits = {name.partition("/")[2]: value for name, value in told.items() if "/limit-r" in name}
    assert limits == dict([limit])


def test_without_a_measured_concurrency_the_burst_is_what_engines_take_at_once() -> None:
    made = deployment(
        wishes={"domain": "a.b"}, capacity={"total_rps": 2.0}, evidence={"concurrency": None, "figures": {}}
    )
    assert ingress(made)["metadata"]["annotations"]["nginx.ingress.kubernetes.io/limit-burst-multiplier"] == "16"
    assert "burst=64 " in nginx_conf(made, upstreams=["a:1"])


def test_an_unknown_rate_limits_nobody() -> None:
    made = deployment(wishes={"domain": "a.b"}, capacity={"total_rps": None}, evidence={"figures": {}})
    assert "nginx.ingress.kubernetes.io/limit-rps" not in ingress(made)["metadata"]["annotations"]


def test_the_certificate_is_a_secret_by_name() -> None:
    spec = ingress(deployment(wishes={"domain": "a.b", "tls": True}))["spec"]
    assert spec["tls"] == [{"hosts": ["a.b"], "secretName": "tiny-tls"}]


def test_an_api_server_takes_a_host_in_lower_case_alone() -> None:
    made = deployment(wishes={"domain": "LLM.Example.org", "tls": True})
    spec = ingress(made)["spec"]
    assert [spec["rules"][0]["host"], *spec["tls"][0]["hosts"]] == ["llm.example.org"] * 2
    assert documents(made)["chart/values.yaml"]["ingress"]["host"] == "llm.example.org"
    assert kubernetes.TARGET.url(made) == "https://llm.example.org/v1"
    assert kubernetes.refusal(made) is None


def test_only_the_engine_s_api_is_open() -> None:
    (rule,) = ingress(deployment(wishes={"domain": "a.b"}))["spec"]["rules"]
    assert [path["path"] for path in rule["http"]["paths"]] == ["/v1/"]


def test_clients_gateway_and_monitoring_may_ask_and_the_engine_may_ask_for_names() -> None:
    made = deployment(wishes={"domain": "a.b", "monitoring": True})
    spec = documents(made)["manifests/networkpolicy.yaml"]["spec"]
    (rule,) = spec["ingress"]
    named = [peer["namespaceSelector"].get("matchLabels") for peer in rule["from"] if "podSelector" not in peer]
    assert named == [{"kubernetes.io/metadata.name": name} for name in ("ingress-nginx", "monitoring")]
    assert [port["port"] for port in spec["egress"][0]["ports"]] == [53, 53]


def test_rules_and_scraping_call_the_job_by_one_name() -> None:
    made = documents(deployment(wishes={"monitoring": True}))
    monitor = made["components/monitoring/servicemonitor.yaml"]["spec"]
    label = made["manifests/service-metrics.yaml"]["metadata"]["labels"][monitor["jobLabel"]]
    rules = json.dumps(made["components/monitoring/prometheusrule.yaml"])
    assert f'job=\\"{label}\\"' in rules.replace('\\\\"', '\\"')


def test_monitoring_is_left_out_where_nobody_asked() -> None:
    made = documents(deployment(wishes={"monitoring": False}))
    assert not [path for path in made if "monitoring" in path]


def test_every_file_that_a_kustomization_names_is_there() -> None:
    written = kubernetes.files(deployment(wishes={"domain": "a.b"}))
    folders = {str(Path(path).parent) for path in written}
    for path, made in documents(deployment(wishes={"domain": "a.b"})).items():
        if path.endswith("kustomization.yaml"):
            named = [str(Path(path).parent / n) for n in (*made.get("resources", ()), *made.get("components", ()))]
            assert all(name in written or name in folders for name in named)


def test_no_secret_is_written() -> None:
    kinds = [made.get("kind") for path, made in documents(deployment(wishes={"domain": "a.b", "tls": True})).items()]
    assert "Secret" not in kinds


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"wishes": {"name": "7b"}}, "7b"),
        ({"engine": {"image": None}}, "image"),
        ({"engine": {"inside": None}}, "image"),
        ({"wishes": {"gateway": "litellm"}}, "litellm"),
        ({"wishes": {"cache": "redis"}}, "redis"),
        ({"wishes": {"tls": True}}, "--domain"),
        ({"wishes": {"domain": "1.2.3.4"}}, "1.2.3.4 is an address"),
        ({"wishes": {"rate_limit_rps": 5.0}}, "--domain"),
        ({"wishes": {"domain": "a.b", "port": 9000}}, "--port 9000"),
        ({"wishes": {"autoscaler": "keda", "monitoring": False}}, "--monitoring"),
        ({"engine": {"model": "a\x7fb"}}, "a\\x7fb"),
        ({"engine": {"inside": Launch(argv=("a\x85b",))}}, "lose"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(changes: dict[str, Any], word: str) -> None:
    assert word in (kubernetes.refusal(deployment(**changes)) or "")


FAKE_KUBECTL = """#!/bin/sh
# Stands for kubectl: what would run in the pod runs here, with its volume at $VOLUME.
case "$*" in
*" exec "*)
    while [ "$1" != -- ]; do shift; done; shift
    for word do shift; set -- "$@" "$(printf '%s' "$word" | sed "s|/volume|$VOLUME|g")"; done
    exec "$@";;
*) echo "$*" >> "$VOLUME.calls";;
esac
"""


@pytest.mark.parametrize("name", ["plain", "a b'c\"d$(id)`id`\n{{ e }} #"])
def test_the_script_fills_the_volume_byte_by_byte(tmp_path: Path, name: str) -> None:
    model, volume, kubectl = tmp_path / name, tmp_path / "volume", tmp_path / "kubectl"
    model.mkdir()
    volume.mkdir()
    (tmp_path / "blob").write_bytes(bytes(range(256)))
    (model / "model.safetensors").symlink_to(tmp_path / "blob")
    (model / "config.json").write_text("{}")
    kubectl.write_text(FAKE_KUBECTL)
    kubectl.chmod(0o755)
    script = tmp_path / "fill-model.sh"
    script.write_text(kubernetes.files(deployment(engine={"artifact": str(model)}))["manifests/fill-model.sh"].text)
    told = subprocess.run(
        ["sh", str(script)], capture_output=True, text=True, timeout=60,
        env={"PATH": "/usr/bin:/bin", "KUBECTL": str(kubectl), "VOLUME": str(volume)},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    (folder,) = volume.iterdir()
    assert (folder / "model.safetensors").read_bytes() == bytes(range(256))
    assert not (folder / "model.safetensors").is_symlink()
    assert "delete pod tiny-model-loader" in (tmp_path / "volume.calls").read_text()


def test_a_folder_is_looked_for_from_where_the_script_was_started(tmp_path: Path) -> None:
    stack, volume, kubectl = tmp_path / "stack", tmp_path / "volume", tmp_path / "kubectl"
    for folder in (stack, volume, tmp_path / "copy"):
        folder.mkdir()
    (tmp_path / "copy" / "config.json").write_text("{}")
    kubectl.write_text(FAKE_KUBECTL)
    kubectl.chmod(0o755)
    script = stack / "fill-model.sh"
    script.write_text(kubernetes.files(deployment())["manifests/fill-model.sh"].text)
    told = subprocess.run(
        ["sh", "stack/fill-model.sh", "copy"], capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "KUBECTL": str(kubectl), "VOLUME": str(volume)},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert next(volume.glob("model-*/config.json")).read_text() == "{}"


def filled(tmp_path: Path, made: Deployment, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    kubectl, script = tmp_path / "kubectl", tmp_path / "fill-model.sh"
    (tmp_path / "volume").mkdir(exist_ok=True)
    kubectl.write_text(FAKE_KUBECTL)
    kubectl.chmod(0o755)
    script.write_text(kubernetes.files(made)["manifests/fill-model.sh"].text)
    return subprocess.run(
        ["sh", str(script)], capture_output=True, text=True, timeout=60,
        env={"PATH": path, "KUBECTL": str(kubectl), "VOLUME": str(tmp_path / "volume")},
    )  # fmt: skip


def test_weights_that_are_filled_in_leave_the_former_as_they_were(tmp_path: Path) -> None:
    """In one volume: a claim of one's own may hold several."""
    model = tmp_path / "model"
    model.mkdir()
    for key in ("one", "two"):
        (model / "model.safetensors").write_text(key)
        (model / f"of-{key}").write_text("")
        assert (
            filled(tmp_path, deployment(engine={"artifact": str(model), "weights": {str(model): key}})).returncode == 0
        )
        (model / f"of-{key}").unlink()
    found = {p.read_text(): sorted(f.name for f in p.parent.iterdir()) for p in tmp_path.glob("volume/*/*.safetensors")}
    assert found == {"one": ["model.safetensors", "of-one"], "two": ["model.safetensors", "of-two"]}


def test_weights_that_are_damaged_are_filled_in_anew(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    made = deployment(engine={"artifact": str(model)})
    assert filled(tmp_path, made).returncode == 0
    (there,) = (tmp_path / "volume").iterdir()
    (there / "config.json").write_text("damaged")
    (there / "else").write_text("somebody's")
    assert filled(tmp_path, made).returncode == 0
    assert {p.name: p.read_text() for p in there.iterdir()} == {"config.json": "{}"}
    assert [p.name for p in (tmp_path / "volume").iterdir()] == [there.name]


def test_engines_that_wait_see_the_model_when_all_of_it_is_there(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "bin").mkdir()
    # Stands for a connection that breaks off.
    (tmp_path / "bin" / "tar").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "tar").chmod(0o755)
    made = deployment(engine={"artifact": str(model)})
    assert filled(tmp_path, made, path=f"{tmp_path / 'bin'}:/usr/bin:/bin").returncode == 1
    assert [p.name for p in (tmp_path / "volume").iterdir() if not p.name.endswith(".partial")] == []


def removed(made: Deployment) -> set[str]:
    return {w for words, _ in kubernetes.TARGET.after(made) if "delete" in words for w in words if "/" in w}


def test_what_a_former_configuration_had_and_this_one_has_not_is_deleted_by_name() -> None:
    """And nothing that is there: an object is either applied or deleted."""
    full = deployment(wishes={"domain": "a.b"}, engine={"inside": Launch(argv=("x",), files={"/a": "b"})})
    assert removed(full) == set()
    bare = deployment(wishes={"monitoring": False}, engine={"metrics_path": None})
    gone = {"ingress/tiny", "horizontalpodautoscaler/tiny", "service/tiny-metrics", "configmap/tiny-files"}
    of_the_canary = {f"{kind}/tiny-canary" for kind in ("deployment", "service", "configmap")}
    assert removed(bare) == gone | of_the_canary | {"configmap/tiny-dashboard"}
    for made in (full, bare):
        there = {f"{o['kind'].lower()}/{o['metadata']['name']}" for o in documents(made).values() if "metadata" in o}
        assert not removed(made) & there
        assert (gone | {"deployment/tiny-canary"}) - there == (
            set() if made is full else gone | {"deployment/tiny-canary"}
        )


@pytest.mark.parametrize(("changes", "anew"), [({}, False), ({"slos": ()}, True)])
def test_another_description_starts_the_canary_anew(changes: dict[str, Any], anew: bool) -> None:
    pods = [
        documents(made)["components/canary/deployment.yaml"]["spec"]["template"]["metadata"]["annotations"]
        for made in (deployment(), deployment(evidence=changes))
    ]
    assert (pods[0] != pods[1]) == anew


def test_a_model_that_is_not_there_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    kubectl, script = tmp_path / "kubectl", tmp_path / "fill-model.sh"
    kubectl.write_text(FAKE_KUBECTL)
    kubectl.chmod(0o755)
    script.write_text(kubernetes.files(deployment(engine={"artifact": "/no/such"}))["manifests/fill-model.sh"].text)
    told = subprocess.run(
        ["sh", str(script)], capture_output=True, text=True, timeout=60,
        env={"PATH": "/usr/bin:/bin", "KUBECTL": str(kubectl), "VOLUME": str(tmp_path / "volume")},
    )  # fmt: skip
    assert told.returncode == 1
    assert told.stderr == "error: there is no /no/such: name a copy of the model, ./fill-model.sh FOLDER\n"


def test_the_canary_is_let_in_and_is_scraped_under_its_own_name() -> None:
    made = documents(deployment(wishes={"monitoring": True}))
    spec = made["components/canary/deployment.yaml"]["spec"]["template"]
    assert spec["metadata"]["labels"]["llmopt/client-of"] == "tiny"
    label = made["components/canary/service.yaml"]["metadata"]["labels"]["llmopt/scrape"]
    assert made["components/canary/servicemonitor.yaml"]["spec"]["selector"]["matchLabels"]["llmopt/scrape"] == label
    assert label in json.dumps(made["components/monitoring/prometheusrule.yaml"])


def test_nobody_is_told_to_edit_what_the_next_deploy_would_then_refuse() -> None:
    own = replace(engine().image, build="FROM x")  # type: ignore[type-var]
    steps = [why for words, why in kubernetes.TARGET.before(deployment(engine={"image": own})) if words[0] == "docker"]
    assert len(steps) == 2  # the engine's and the canary's
    written = {str(Path("/there/stack", path)) for path in kubernetes.files(deployment())}
    for why in steps:
        (named,) = re.findall(r"under images in (\S+)", why)
        assert os.path.normpath(Path("/there/stack", named)) == "/there/site/kustomization.yaml"
        assert os.path.normpath(Path("/there/stack", named)) not in written


def test_a_gateway_that_it_has_not_is_offered_where_there_is_one() -> None:
    wished = deployment(wishes={"gateway": "litellm", "cache": "redis"})
    offered = {name for name in targets.TARGETS if targets.target(name).refusal(wished) is None}
    assert offered == set(kubernetes.OF_ONE_MACHINE)
    assert all(name in (kubernetes.refusal(wished) or "") for name in offered)


def test_a_plain_wish_is_granted() -> None:
    assert kubernetes.refusal(deployment()) is None


def test_the_canary_s_image_is_built_with_an_llmopt_that_there_is() -> None:
    words = [words for words, _ in kubernetes.TARGET.before(deployment())]
    wheel, build = (
        next(n for n, w in enumerate(words) if w[:2] == begin) for begin in (("pip", "wheel"), ("docker", "build"))
    )
    assert wheel < build
    assert words[wheel][words[wheel].index("--wheel-dir") + 1] == words[build][-1] == "canary"
    assert "pip" not in [
        w for words, _ in kubernetes.TARGET.before(deployment(wishes={"monitoring": False})) for w in words
    ]
