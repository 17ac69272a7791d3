from __future__ import annotations

import subprocess
from typing import Any

import pytest
import yaml
from hypothesis import given, settings

from llmopt.deploy.checks import interpolated, own_sources
from llmopt.deploy.compose import after, files, refusal, start, url
from llmopt.deploy.plan import Image, Launch
from tests.unit.deploy import hostile
from tests.unit.deploy.make import deployment

ALONE = {"monitoring": False}
EVERYTHING = {"gateway": "litellm", "cache": "redis", "monitoring": True}


def document(**changes: Any) -> dict[str, Any]:
    """As compose sees it once it has put the variables in."""
    found: dict[str, Any] = interpolated(yaml.safe_load(files(deployment(**changes))["compose.yaml"].text))
    return found


def service(name: str, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = document(**changes)["services"][name]
    return found


@given(hostile.words)
@settings(deadline=None)
def test_the_command_line_is_the_measured_one(argv: list[str]) -> None:
    engine = {"inside": Launch(argv=tuple(argv)), "image": Image(name="x:1")}
    assert service("engine-1", engine=engine, wishes=ALONE)["command"] == argv


@given(hostile.word, hostile.word)
@settings(deadline=None)
def test_variables_and_the_folder_of_the_model_are_the_measured_ones(value: str, name: str) -> None:
    engine = {"inside": Launch(argv=("x",), environment={"A": value}), "artifact": f"/srv/{name}"}
    made = service("engine-1", engine=engine, wishes=ALONE)
    assert made["environment"]["A"] == value
    assert made["volumes"][0]["source"] == f"/srv/{name}"


@given(hostile.word)
@settings(deadline=None)
def test_the_name_of_the_model_is_the_measured_one(name: str) -> None:
    (row,) = yaml.safe_load(
        files(deployment(engine={"model": name}, capacity={"replicas": 1}, wishes=EVERYTHING))[
            "litellm/config.yaml"
        ].text
    )["model_list"]
    assert row["model_name"] == name


def test_an_image_without_its_own_entry_point_gets_the_words_as_entry_point() -> None:
    made = service("engine-1", engine={"inside": Launch(argv=("a", "b"))})
    assert made["entrypoint"] == ["a", "b"]


def test_every_replica_has_gpus_of_its_own() -> None:
    made = document(engine={"gpus": 2})["services"]
    devices = [made[f"engine-{n}"]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for n in (1, 2)]
    assert devices == [["0", "1"], ["2", "3"]]


@pytest.mark.parametrize("gpus", [0, 1])
def test_the_measured_main_memory_limits_a_replica(gpus: int) -> None:
    peaks = {"peak_memory_bytes": 2**30, "peak_vram_bytes": 70 * 2**30}
    made = service("engine-1", engine={"gpus": gpus}, evidence=peaks)
    assert made["deploy"]["resources"]["limits"]["memory"] == str(int(2**30 * 1.25) + 2**28)


def test_every_container_is_read_only_and_without_privileges() -> None:
    for name, made in document(wishes=EVERYTHING)["services"].items():
        assert made["read_only"], name
        assert made["cap_drop"] == ["ALL"], name
        assert made["security_opt"] == ["no-new-privileges:true"], name


def test_engines_are_on_no_network_that_leads_outside() -> None:
    made = document(wishes=EVERYTHING)
    assert made["services"]["engine-1"]["networks"] == ["engines"]
    assert made["networks"]["engines"] == {"internal": True}
    assert "ports" not in made["services"]["engine-1"]


def test_only_a_domain_opens_the_gateway_to_others() -> None:
    assert service("gateway")["ports"][0]["host_ip"] == "127.0.0.1"
    assert "host_ip" not in service("gateway", wishes={"domain": "llm.example.org"})["ports"][0]


@pytest.mark.parametrize(("name", "port"), [("prometheus", 9090), ("alertmanager", 9093), ("grafana", 3000)])
def test_pages_of_monitoring_can_have_another_port(name: str, port: int) -> None:
    made = files(deployment())
    (found,) = yaml.safe_load(made["compose.yaml"].text)["services"][name]["ports"]
    assert found["published"] == f"${{{name.upper()}_PORT:-{port}}}"
    assert (found["host_ip"], found["target"]) == ("127.0.0.1", port)
    assert f"# {name.upper()}_PORT={port}" in made[".env.example"].text.splitlines()


def test_what_is_not_there_has_no_line_in_the_example() -> None:
    assert "GRAFANA_PORT" not in files(deployment(wishes=ALONE))[".env.example"].text


def test_a_gateway_that_others_reach_asks_for_a_key() -> None:
    made = files(deployment(wishes={"domain": "llm.example.org"}))
    assert "return 401" in made["nginx/nginx.conf"].text
    assert {"API_KEYS_FILE=", "CANARY_API_KEY="} <= set(made[".env.example"].text.splitlines())
    assert "401" not in files(deployment())["nginx/nginx.conf"].text


def test_no_secret_is_in_any_file() -> None:
    made = files(deployment(wishes=EVERYTHING | {"tls": True}))
    assert [x for x in made[".env.example"].text.splitlines() if x and x[0] != "#" and not x.endswith("=")] == []
    assert "${LITELLM_MASTER_KEY:?" in made["compose.yaml"].text


@pytest.mark.parametrize("wishes", [{}, EVERYTHING, {"tls": True}, {"monitoring": False}])
def test_every_file_that_is_mounted_is_written(wishes: dict[str, Any]) -> None:
    made = files(deployment(wishes=wishes))
    for source in own_sources(yaml.safe_load(made["compose.yaml"].text)):
        assert any(f"./{path}" == source or f"./{path}".startswith(f"{source}/") for path in made), source


def test_files_of_the_engine_are_mounted_where_it_reads_them() -> None:
    made = files(deployment(engine={"inside": Launch(argv=("x",), files={"/llmopt/options.yaml": "a: 1\n"})}))
    assert made["engine/files/0-options.yaml"].text == "a: 1\n"
    mounts = yaml.safe_load(made["compose.yaml"].text)["services"]["engine-1"]["volumes"]
    assert ("./engine/files/0-options.yaml", "/llmopt/options.yaml") in [(m["source"], m["target"]) for m in mounts]


def labels(**changes: Any) -> dict[str, str]:
    """Service → the hash of what it mounts from the folder."""
    services = document(**changes)["services"]
    return {name: made["labels"]["llmopt.files"] for name, made in services.items() if "labels" in made}


@pytest.mark.parametrize(
    ("changes", "anew"),
    [
        ({}, set()),
        ({"wishes": {"rate_limit_rps": 50.0}}, {"gateway"}),
        ({"evidence": {"slos": ()}}, {"canary", "prometheus", "grafana"}),
        ({"wishes": {"scrape_s": 7.0}}, {"prometheus", "grafana"}),
        ({"engine": {"health_path": "/alive"}}, {"engine-1", "engine-2", "gateway"}),
    ],
)
def test_a_container_is_made_anew_when_a_file_that_it_reads_has_changed(
    changes: dict[str, Any], anew: set[str]
) -> None:
    before, after = labels(), labels(**changes)
    assert {name for name in after if before[name] != after[name]} == anew


def test_files_of_the_engine_make_it_anew() -> None:
    one, other = (labels(engine={"inside": Launch(argv=("x",), files={"/o.yaml": text})}) for text in ("a: 1", "a: 2"))
    assert {name for name in one if one[name] != other[name]} == {"engine-1", "engine-2"}


def test_every_service_that_reads_files_of_the_folder_is_labelled() -> None:
    for name, made in document(wishes=EVERYTHING)["services"].items():
        reads = any(str(m.get("source")).startswith("./") for m in made.get("volumes", ()))
        assert reads == ("labels" in made), name


def test_what_is_wanted_no_more_is_taken_away() -> None:
    assert "--remove-orphans" in start(deployment())


def test_the_canary_s_image_keeps_nothing_else_from_starting() -> None:
    made = document()
    assert [name for name, service in made["services"].items() if service.get("profiles")] == ["canary"]
    assert all("canary" not in service.get("depends_on", ()) for service in made["services"].values())
    assert made["services"]["canary"]["build"]["args"] == {"LLMOPT": "llmopt==0.1.0"}
    (wheel, _), (words, _) = after(deployment())
    assert wheel[:2] == ("pip", "wheel")
    assert words[-1] == "canary"
    assert not after(deployment(wishes=ALONE))


def test_a_canary_without_a_key_keeps_nothing_else_from_starting() -> None:
    text = files(deployment(wishes={"domain": "llm.example.org"}))["compose.yaml"].text
    assert "${CANARY_API_KEY:-}" in text


@pytest.mark.parametrize(("key", "starts"), [("", False), ("k", True)])
def test_a_canary_without_a_key_that_the_gateway_asks_for_probes_nobody(key: str, starts: bool) -> None:
    words = document(wishes={"domain": "llm.example.org"})["services"]["canary"]["entrypoint"]
    done = subprocess.run(
        [*words[: words.index("llmopt")], "echo", "a  b"], env={"LLMOPT_API_KEY": key}, capture_output=True, text=True
    )
    assert (done.returncode == 0, done.stdout == "a  b\n", "CANARY_API_KEY is empty" in done.stderr) == (
        (starts, starts, not starts)
    )


def test_a_gateway_that_asks_nobody_has_a_canary_without_a_key() -> None:
    assert document()["services"]["canary"]["entrypoint"][0] == "llmopt"


def test_without_an_image_there_is_no_compose() -> None:
    assert refusal(deployment(engine={"image": None})) == "there is no image of vLLM that llmopt knows"


def test_a_cache_needs_litellm() -> None:
    assert "--gateway litellm" in str(refusal(deployment(wishes={"cache": "redis"})))


def test_the_address_is_that_of_the_gateway() -> None:
    assert url(deployment(wishes={"port": 9000})) == "http://127.0.0.1:9000/v1"
