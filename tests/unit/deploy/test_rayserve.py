from __future__ import annotations

import ast
from typing import Any

import pytest
import yaml
from hypothesis import given

from llmopt.deploy import rayserve
from llmopt.deploy.plan import Deployment, Launch
from tests.unit.deploy import hostile
from tests.unit.deploy.make import deployment


def config(made: Deployment) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(rayserve.files(made)["serve_config.yaml"].text)
    return found


def application(made: Deployment) -> dict[str, Any]:
    found: dict[str, Any] = config(made)["applications"][0]
    return found


def started(*argv: str, **environment: str) -> Any:
    """A start whose words hold the port where ``PORT`` stands."""

    def native(host: str, port: int) -> Launch:
        put = {name: word.replace("PORT", str(port)) for name, word in environment.items()}
        return Launch(argv=tuple(word.replace("PORT", str(port)) for word in argv), environment=put)

    return native


def word(pieces: str | list[str], port: int) -> str:
    """As app.py reads one."""
    return pieces if isinstance(pieces, str) else str(port).join(pieces)


@given(hostile.words)
def test_the_command_line_is_the_measured_one_on_any_port(argv: list[str]) -> None:
    native = started(*argv, "--port", "PORT", "--url=http://127.0.0.1:PORT/v1")
    got = application(deployment(engine={"native": native}))["args"]["command"]
    assert tuple(word(pieces, 7) for pieces in got) == native("127.0.0.1", 7).argv


@given(hostile.word, hostile.word)
def test_the_model_and_its_environment_keep_their_names(model: str, value: str) -> None:
    got = application(deployment(engine={"native": started("x", A=value), "model": model}))["args"]
    assert (got["model"], got["environment"]) == (model, {"A": value})


def test_a_start_that_is_another_one_on_another_port_is_refused() -> None:
    def native(host: str, port: int) -> Launch:
        return Launch(argv=("x", str(port + 1)))

    made = deployment(engine={"native": native}, wishes={"monitoring": False})
    assert "depends on the port" in (rayserve.refusal(made) or "")


def test_replicas_follow_the_measured_concurrency() -> None:
    (engine,) = application(deployment(evidence={"concurrency": 16}, capacity={"replicas": 3}))["deployments"]
    asked = engine["autoscaling_config"]
    assert (asked["target_ongoing_requests"], asked["min_replicas"], asked["max_replicas"]) == (16, 3, 6)


def test_without_an_autoscaler_there_are_as_many_as_planned() -> None:
    (engine,) = application(deployment(wishes={"autoscaler": "none"}, capacity={"replicas": 3}))["deployments"]
    assert engine["num_replicas"] == 3
    assert "autoscaling_config" not in engine


def test_a_replica_has_the_measured_gpus_and_threads() -> None:
    (engine,) = application(deployment(engine={"gpus": 2, "threads": 5}))["deployments"]
    assert engine["ray_actor_options"] == {"num_cpus": 5, "num_gpus": 2}


def test_vllm_goes_through_ray_s_own_application() -> None:
    made = application(deployment(engine={"arguments": {"max_num_seqs": 16}, "artifact": "/srv/a b"}))
    assert made["import_path"] == "ray.serve.llm:build_openai_app"
    (model,) = made["args"]["llm_configs"]
    assert model["engine_kwargs"] == {"max_num_seqs": 16}
    assert model["model_loading_config"] == {"model_id": "tiny", "model_source": "/srv/a b"}
    assert "app.py" not in rayserve.files(deployment(engine={"arguments": {}}))


def test_without_a_gpu_ray_s_own_application_asks_for_none() -> None:
    made = application(deployment(engine={"arguments": {}, "gpus": 0, "threads": 3}))
    assert made["args"]["llm_configs"][0]["placement_group_config"] == {"bundles": [{"CPU": 3}]}


@pytest.mark.parametrize(("backend", "held_back"), [("vllm", False), ("rayserve", True)])
def test_tokens_are_held_back_only_where_they_were_when_it_was_measured(backend: str, held_back: bool) -> None:
    made = application(deployment(engine={"arguments": {}, "backend": backend}))
    assert ("experimental_configs" not in made["args"]["llm_configs"][0]) == held_back


def test_prompts_stay_out_of_ray_s_logs() -> None:
    (model,) = application(deployment(engine={"arguments": {}}))["args"]["llm_configs"]
    assert model["runtime_env"]["env_vars"]["RAYLLM_ENABLE_REQUEST_PROMPT_LOGS"] == "0"


def test_the_ingress_takes_no_core_from_the_engines() -> None:
    made = application(deployment(engine={"arguments": {}}))
    assert made["args"]["ingress_deployment_config"]["ray_actor_options"] == {"num_cpus": 0}


@pytest.mark.parametrize(("domain", "host"), [(None, "127.0.0.1"), ("llm.example.com", "0.0.0.0")])
def test_it_listens_beyond_this_machine_only_where_a_name_was_asked_for(domain: str | None, host: str) -> None:
    assert config(deployment(wishes={"domain": domain}))["http_options"]["host"] == host


def test_what_the_application_imports_lies_beside_it() -> None:
    written = rayserve.files(deployment())
    assert {"app.py", "keeper.py", "segments.py"} <= written.keys()
    for name in ("app.py", "keeper.py", "segments.py"):
        ast.parse(written[name].text)


@pytest.mark.parametrize(
    ("wishes", "word"),
    [
        ({"gateway": "litellm"}, "litellm"),
        ({"cache": "redis"}, "--cache"),
        ({"tls": True}, "--tls"),
        ({"rate_limit_rps": 5.0}, "--rate-limit"),
        ({"monitoring": True}, "llmopt watch"),
    ],
)
def test_what_it_has_not_is_refused_by_name(wishes: dict[str, Any], word: str) -> None:
    assert word in (rayserve.refusal(deployment(wishes={"monitoring": False, **wishes})) or "")


def test_a_plain_wish_is_granted() -> None:
    assert rayserve.refusal(deployment(wishes={"monitoring": False})) is None


def test_variables_of_a_place_are_set_where_replicas_have_them_from() -> None:
    assert "`ray start` on each node" in rayserve.TARGET.secrets(deployment())
