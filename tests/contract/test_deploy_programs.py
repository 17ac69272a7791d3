"""What is written is what the real programs read, and do: nginx, promtool, amtool."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from llmopt.core.process import KeptProcess
from llmopt.deploy import target
from llmopt.deploy.alertmanager import alertmanager_config
from llmopt.deploy.checks import Check, check, with_certificate
from llmopt.deploy.compose import files
from llmopt.deploy.documents import yaml_text
from llmopt.deploy.nginx import KEY_LINE, nginx_conf
from llmopt.deploy.plan import MOST_REPLICAS, Slo
from llmopt.deploy.rules import rules
from llmopt.serve import scripted
from llmopt.serve.process import DIRECT, HOST, free_port
from tests.programs import Answer, answers, ask, gateway, require, until
from tests.unit.deploy.make import deployment

STREAM = {"model": "scripted?ttft_ms=20&tpot_ms=50", "prompt": "x", "max_tokens": 8, "stream": True}
SHORT = {"model": "scripted?ttft_ms=1&tpot_ms=1", "prompt": "x", "max_tokens": 2}
EVERYTHING = {"gateway": "litellm", "cache": "redis", "monitoring": True, "tls": True, "domain": "llm.example.org"}


def host_port(base_url: str) -> str:
    return urlsplit(base_url).netloc


def completions(url: str, body: dict[str, Any], **more: Any) -> Answer:
    return ask(f"{url}/v1/completions", body, **more)


def one(checks: list[Check], begins: str) -> Check:
    (found,) = [c for c in checks if c.name.startswith(begins)]
    if found.status == "skipped":
        pytest.skip(found.why)
    return found


@pytest.mark.parametrize("wishes", [{"domain": "llm.example.org"}, {"tls": True, "domain": "llm.example.org"}])
def test_nginx_takes_what_asks_for_keys(tmp_path: Path, wishes: dict[str, Any]) -> None:
    (tmp_path / "nginx.conf").write_text(files(deployment(wishes=wishes))["nginx/nginx.conf"].text)
    assert one(check(tmp_path, "compose"), "nginx").status == "passed"


def test_nginx_has_room_for_as_many_replicas_as_may_be_asked_for(tmp_path: Path) -> None:
    """Addresses alone: a name that nobody resolves would be asked for a thousand times."""
    upstreams = [f"127.0.0.1:{20_000 + n}" for n in range(MOST_REPLICAS)]
    (tmp_path / "nginx.conf").write_text(nginx_conf(deployment(), upstreams=upstreams, listen="127.0.0.1:8123"))
    assert one(check(tmp_path, "shell"), "nginx").status == "passed"


def test_room_for_a_key_is_checked(tmp_path: Path) -> None:
    text = files(deployment(wishes={"domain": "llm.example.org"}))["nginx/nginx.conf"].text
    (tmp_path / "nginx.conf").write_text(text.replace("map_hash_bucket_size 512;", "map_hash_bucket_size 64;"))
    found = one(check(tmp_path, "compose"), "nginx")
    assert found.status == "failed"
    assert "map_hash_bucket_size" in found.why


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> list[Check]:
    """Of everything that compose can be asked for."""
    folder = tmp_path_factory.mktemp("compose")
    for path, file in files(deployment(wishes=EVERYTHING)).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(file.text)
    return check(folder, "compose")


@pytest.mark.parametrize(
    "program",
    ["nginx -t", "promtool check config", "promtool check rules", "queries of", "amtool", "compose spec", "sh -n"],
)
def test_real_programs_take_what_is_written(checked: list[Check], program: str) -> None:
    found = one(checked, program)
    assert found.status == "passed", found.why


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nginx.conf", "events {}\nhttp { server { listen 127.0.0.1:1; no_such_directive on; } }\n"),
        ("rules.yml", "groups: [{name: a, rules: [{record: b, expr: 'sum('}]}]\n"),
        ("rules.yml", "groups: [{name: a, rules: [{record: b, expr: up}, {record: b, expr: up}]}]\n"),
        ("prometheus.yml", "global: {scrape_interval: soon}\n"),
        ("alertmanager.yml", "route: {receiver: nobody}\n"),
        ("llmopt.json", json.dumps({"panels": [{"targets": [{"expr": "rate(x[5m]"}]}]})),
    ],
)
def test_what_a_program_would_refuse_fails(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    (found,) = check(tmp_path, "compose")
    if found.status == "skipped":
        pytest.skip(found.why)
    assert found.status == "failed"
    assert found.why


# nginx ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[str]:
    with scripted.running() as url:
        yield url


def test_chunks_of_a_stream_arrive_one_by_one(tmp_path: Path, server: str) -> None:
    with gateway(tmp_path, deployment(), [host_port(server)]) as url:
        answer = completions(url, STREAM)
    assert answer.status == 200
    # Seven pauses of 50 ms between eight tokens: held back, they would come in a read or two at the end.
    assert len(answer.arrived_s) >= 8
    assert answer.arrived_s[-1] > 0.3


def test_a_dead_replica_costs_nobody_an_answer(tmp_path: Path, server: str) -> None:
    dead = f"{HOST}:{free_port(None)}"
    with gateway(tmp_path, deployment(), [dead, host_port(server)]) as url:
        assert {completions(url, SHORT).status for _ in range(10)} == {200}


def test_a_replica_that_hangs_up_without_an_answer_is_asked_again_elsewhere(tmp_path: Path, server: str) -> None:
    with listening(lambda connection: connection.recv(65536)) as (bad, asked):
        with gateway(tmp_path, deployment(), [bad, host_port(server)]) as url:
            assert {completions(url, SHORT).status for _ in range(4)} == {200}
        assert asked


def test_a_slow_answer_is_not_asked_for_twice(tmp_path: Path) -> None:
    def quick(text: str) -> str:
        text = re.sub(r"proxy_read_timeout \d\d+s", "proxy_read_timeout 2s", text)
        return re.sub(r"proxy_next_upstream_timeout \d+s", "proxy_next_upstream_timeout 1s", text)

    waited = threading.Event()
    with (
        listening(lambda connection: waited.wait(20)) as (one, first),
        listening(lambda connection: waited.wait(20)) as (two, second),
        gateway(tmp_path, deployment(), [one, two], edit=quick) as url,
    ):
        assert completions(url, SHORT).status == 504
        waited.set()
        assert len(first) + len(second) == 1


def test_a_client_that_asks_too_much_is_told_when_to_come_back(tmp_path: Path, server: str) -> None:
    few = {"rate_limit_rps": 0.1}
    made = deployment(wishes=few, evidence={"concurrency": 2}, capacity={"replicas": 1})
    with gateway(tmp_path, made, [host_port(server)]) as url:
        seen = [completions(url, SHORT) for _ in range(8)]
    assert [a.status for a in seen].count(200) == 5  # one, and a burst of twice the users that were measured
    assert seen[-1].status == 429
    assert seen[-1].headers["Retry-After"] == "10"
    assert json.loads(seen[-1].body)["error"]["type"] == "rate_limit_error"


def test_a_body_beyond_the_limit_is_refused(tmp_path: Path, server: str) -> None:
    with gateway(tmp_path, deployment(wishes={"max_body_bytes": 1000}), [host_port(server)]) as url:
        assert completions(url, SHORT | {"prompt": "x" * 2000}).status == 413


@pytest.mark.parametrize("path", ["/metrics", "/scripted/log", "/"])
def test_only_the_api_is_reached_from_outside(tmp_path: Path, server: str, path: str) -> None:
    with gateway(tmp_path, deployment(), [host_port(server)]) as url:
        assert ask(url + path, {}).status == 404


def test_ready_is_what_an_engine_says(tmp_path: Path) -> None:
    with gateway(tmp_path, deployment(), [f"{HOST}:{free_port(None)}"]) as url:
        assert ask(f"{url}/readyz", {}).status == 502
        assert ask(f"{url}/healthz", {}).status == 200


def test_the_log_is_json_with_times_and_without_secrets(tmp_path: Path, server: str) -> None:
    with gateway(tmp_path, deployment(), [host_port(server)]) as url:
        completions(url, SHORT | {"prompt": "a secret"}, headers={"Authorization": "Bearer hush"})
        (line,) = until(lambda: (tmp_path / "access.log").read_text().splitlines())
    assert json.loads(line)["status"] == "200"
    assert float(json.loads(line)["header_s"]) >= 0
    assert "hush" not in line
    assert "secret" not in line


def test_with_tls_it_answers_by_the_certificate_that_it_was_given(tmp_path: Path, server: str) -> None:
    require("openssl")
    made = deployment(wishes={"tls": True, "domain": "localhost"})
    trusted = ssl.create_default_context()
    with gateway(tmp_path, made, [host_port(server)], edit=lambda text: with_certificate(text, tmp_path)) as url:
        trusted.load_verify_locations(tmp_path / "tls.crt")
        port = urlsplit(url).port
        with urllib.request.urlopen(f"https://localhost:{port}/v1/models", context=trusted, timeout=5) as answer:
            assert answer.status == 200
            assert "max-age" in answer.headers["Strict-Transport-Security"]


KEY = "sk-" + "aB1+/=._~-" * 6 + "c"  # 64 characters, each kind that such a key may have
OTHER_KEY = "sk-one"


@pytest.fixture
def guarded(tmp_path: Path, server: str) -> Iterator[str]:
    lines = [KEY_LINE.replace("THE-KEY", key) for key in (KEY, OTHER_KEY)]
    (tmp_path / "keys.conf").write_text("".join(f"{line}\n" for line in lines))
    with gateway(tmp_path, deployment(), [host_port(server)], keys="keys.conf") as url:
        yield url


def with_key(url: str, authorization: str | None) -> Any:
    return completions(url, SHORT, headers={} if authorization is None else {"Authorization": authorization})


@pytest.mark.parametrize("authorization", [f"Bearer {KEY}", f"Bearer {OTHER_KEY}", f"bearer {KEY}"])
def test_with_keys_those_are_answered(guarded: str, authorization: str) -> None:
    assert with_key(guarded, authorization).status == 200


@pytest.mark.parametrize(
    "authorization",
    [
        *(None, "", "Bearer", "Bearer ", "Bearer sk-two", f"Basic {KEY}", KEY),
        *(
            f"Bearer {KEY.upper()}",
            f"Bearer {KEY.lower()}",
            f"Bearer {KEY[:-1]}",
            f"Bearer {KEY}d",
            f"Bearer {KEY} {KEY}",
        ),
        *(f"Bearer {OTHER_KEY} {KEY}", "Bearer SK-one", f"Bearer {KEY.replace('.', 'x')}"),
    ],
)
def test_with_keys_nobody_else_is_answered(guarded: str, authorization: str | None) -> None:
    answer = with_key(guarded, authorization)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (401, 401)
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_line_that_does_not_name_its_key_twice_lets_nobody_in(tmp_path: Path, server: str) -> None:
    (tmp_path / "keys.conf").write_text('"Bearer sk-one" 1;\n')
    with gateway(tmp_path, deployment(), [host_port(server)], keys="keys.conf") as url:
        assert [with_key(url, f"Bearer {key}").status for key in ("sk-one", "1", "SK-ONE")] == [401] * 3


def test_whoever_tries_keys_is_held_up_and_those_who_have_one_are_not(guarded: str) -> None:
    tried = [with_key(guarded, f"Bearer sk-{n}") for n in range(60)]
    counted = {status: sum(answer.status == status for answer in tried) for status in (401, 429)}
    assert counted[401] + counted[429] == 60
    assert counted[429] >= 40
    assert with_key(guarded, f"Bearer {KEY}").status == 200


def test_the_question_for_a_key_is_none_of_the_outside(guarded: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{guarded}/known-key", timeout=5)


def test_nobody_answering_is_said_in_the_form_of_the_api(tmp_path: Path) -> None:
    with gateway(tmp_path, deployment(), [f"{HOST}:{free_port(None)}"]) as url:
        answer = completions(url, SHORT)
    assert answer.status == 502
    assert json.loads(answer.body)["error"]["message"] == "no engine answered"


@contextlib.contextmanager
def listening(serve: Any) -> Iterator[tuple[str, list[int]]]:
    """A replica that takes requests and closes after ``serve``, and how many it took."""
    asked: list[int] = []
    listener = socket.create_server((HOST, 0))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                asked.append(1)
                with connection:
                    serve(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"{HOST}:{listener.getsockname()[1]}", asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(20)


# Prometheus ----------------------------------------------------------------------------------------------------------

P95 = Slo(text="ttft_p95<500ms", metric="ttft", share=0.95, bound=0.5, measured=0.4)
CANARY_ONLY = {"metrics_path": None, "gpus": 0}
NAME = "vllm:time_to_first_token_seconds"


def promtool(
    folder: Path, made: Any, series: dict[str, str], *, at: str, expected: list[dict[str, Any]], name: str
) -> None:
    """``promtool test rules``: whether ``name`` fires at that time, given a sample a minute of each series."""
    require("promtool")
    (folder / "rules.yml").write_text(yaml_text(rules(made)))
    case = {
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        "alert_rule_test": [{"eval_time": at, "alertname": name, "exp_alerts": expected}],
    }
    (folder / "test.yml").write_text(
        yaml_text({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [case]})
    )
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def labels_of(made: Any, name: str, **which: str) -> dict[str, Any]:
    """Labels and annotations of a rule whose annotations expand nothing but a number that the test gives."""
    found = [r for g in rules(made)["groups"] for r in g["rules"] if r.get("alert") == name]
    (rule,) = [r for r in found if which.items() <= r["labels"].items()]
    return {"labels": dict(rule["labels"]), "annotations": dict(rule["annotations"])}


def with_value(fired: dict[str, Any], text: str) -> dict[str, Any]:
    said = {k: re.sub(r"\{\{ \$value[^}]*\}\}", text, v) for k, v in fired["annotations"].items()}
    return {"exp_labels": fired["labels"], "exp_annotations": said}


def test_a_budget_that_burns_calls_somebody(tmp_path: Path) -> None:
    made = deployment(evidence={"slos": (P95,)})
    # Of 100 requests a minute one in ten is in time.
    series = {f'{NAME}_count{{job="engine"}}': "0+100x90", f'{NAME}_bucket{{job="engine",le="0.5"}}': "0+10x90"}
    fired = [labels_of(made, "SloBurn", window=w) for w in ("1h", "6h", "1d", "3d")]
    promtool(tmp_path, made, series, at="80m", expected=[with_value(f, "90%") for f in fired], name="SloBurn")


def test_a_healthy_series_calls_nobody(tmp_path: Path) -> None:
    made = deployment(evidence={"slos": (P95,)})
    series = {f'{NAME}_count{{job="engine"}}': "0+100x90", f'{NAME}_bucket{{job="engine",le="0.5"}}': "0+96x90"}
    promtool(tmp_path, made, series, at="80m", expected=[], name="SloBurn")


def test_a_burn_that_is_over_calls_nobody_any_more(tmp_path: Path) -> None:
    made = deployment(evidence={"slos": (P95,)})
    counts = {
        f'{NAME}_count{{job="engine"}}': "0+100x180",
        f'{NAME}_bucket{{job="engine",le="0.5"}}': "0+10x60 700+100x119",
    }
    pages = [labels_of(made, "SloBurn", window=w) for w in ("3d", "1d")]
    require("promtool")
    # Half an hour later the short windows are clean, and of the tickets' windows only the six hours still remember.
    promtool(tmp_path, made, counts, at="110m", expected=[with_value(f, "49.09%") for f in pages], name="SloBurn")


def test_the_canary_burns_a_budget_too(tmp_path: Path) -> None:
    made = deployment(evidence={"slos": (P95,)}, engine=CANARY_ONLY)
    series = {
        'llmopt_probe_slo_requests_total{job="canary",slo="ttft_p95"}': "0+4x90",
        'llmopt_probe_slo_missed_total{job="canary",slo="ttft_p95"}': "0+4x90",
    }
    fired = [labels_of(made, "SloBurn", window=w) for w in ("1h", "6h", "1d", "3d")]
    promtool(tmp_path, made, series, at="80m", expected=[with_value(f, "100%") for f in fired], name="SloBurn")


def test_nobody_asking_is_no_burn(tmp_path: Path) -> None:
    made = deployment(evidence={"slos": (P95,)})
    series = {f'{NAME}_count{{job="engine"}}': "5x90", f'{NAME}_bucket{{job="engine",le="0.5"}}': "1x90"}
    promtool(tmp_path, made, series, at="80m", expected=[], name="SloBurn")


def test_a_lost_replica_is_told_by_its_name(tmp_path: Path) -> None:
    made = deployment()
    fired = labels_of(made, "InstanceDown")
    alert = {
        "exp_labels": fired["labels"] | {"instance": "a:1", "job": "engine"},
        "exp_annotations": fired["annotations"] | {"summary": "a:1 does not answer"},
    }
    series = {'up{job="engine",instance="a:1"}': "1x5 0x10", 'up{job="engine",instance="b:1"}': "1x20"}
    promtool(tmp_path, made, series, at="10m", expected=[alert], name="InstanceDown")


@pytest.mark.parametrize(("waiting", "fires"), [(17, True), (16, False)])
def test_a_queue_longer_than_measured_is_told(tmp_path: Path, waiting: int, fires: bool) -> None:
    made = deployment()
    fired = labels_of(made, "QueueGrowing")
    alert = {
        "exp_labels": fired["labels"] | {"instance": "a:1", "job": "engine"},
        "exp_annotations": fired["annotations"] | {"summary": f"{waiting} requests wait at a:1"},
    }
    series = {'vllm:num_requests_waiting{job="engine",instance="a:1"}': f"{waiting}x20"}
    promtool(tmp_path, made, series, at="10m", expected=[alert] if fires else [], name="QueueGrowing")


@pytest.mark.parametrize(("failures", "value"), [("0x10 1x50", None), ("0x10 1x9 2x40", "3.333%")])
def test_one_failed_probe_of_half_an_hour_is_no_ticket(tmp_path: Path, failures: str, value: str | None) -> None:
    made = deployment()
    name = "llmopt_probe_requests_total"
    series = {  # two probes a minute
        f'{name}{{job="canary",outcome="ok"}}': "0+2x10 21+2x9 40+2x40" if value else "0+2x10 21+2x50",
        f'{name}{{job="canary",outcome="failed"}}': failures,
    }
    expected = [with_value(labels_of(made, "CanaryErrors"), value)] if value else []
    promtool(tmp_path, made, series, at="35m", expected=expected, name="CanaryErrors")


def test_an_alert_is_posted_to_the_webhook(tmp_path: Path) -> None:
    """By a real Alertmanager; one older than 0.26 is given the address in the place of the file that holds it."""
    require("prometheus-alertmanager")
    posted: list[bytes] = []

    def receive(connection: socket.socket) -> None:
        posted.append(connection.recv(1 << 16))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with listening(receive) as (webhook, _):
        config = alertmanager_config(deployment())
        config["route"]["group_wait"] = "100ms"
        config["receivers"][0]["webhook_configs"] = [{"url": f"http://{webhook}/"}]
        (tmp_path / "alertmanager.yml").write_text(yaml_text(config))
        address = f"{HOST}:{free_port(None)}"
        words = ("prometheus-alertmanager", f"--config.file={tmp_path / 'alertmanager.yml'}", f"--storage.path={tmp_path}",
                 f"--web.listen-address={address}", "--cluster.listen-address=")  # fmt: skip
        with KeptProcess(words, log=tmp_path / "log") as process:
            until(lambda: answers(f"http://{address}/-/ready"), process=process)
            alert = [{"labels": {"alertname": "InstanceDown", "deployment": "tiny", "severity": "page"}}]
            assert ask(f"http://{address}/api/v2/alerts", alert).status == 200
            until(lambda: posted, process=process)
    assert b"InstanceDown" in posted[0]


def test_the_gateway_is_ready_as_soon_as_one_engine_is(tmp_path: Path, server: str) -> None:
    with gateway(tmp_path, deployment(), [host_port(server)]) as url, DIRECT.open(f"{url}/readyz", timeout=5) as answer:
        assert answer.status == 200


def installed(folder: Path, settings: str = "", **changes: Any) -> tuple[int, list[str], str]:
    """What ``install.sh`` ends with, does and says where nginx is the real one, and the programs of the system only tell
    what they are asked.  ``settings``: of the place.
    """
    require("nginx")
    for path, file in target("systemd").files(deployment(**changes)).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(file.text)
    (folder / "bin").mkdir()
    for name in ("systemctl", "runuser", "useradd", "install", "litellm", "llmopt"):
        (folder / "bin" / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
    (folder / "bin" / "id").write_text("#!/bin/sh\necho 0\n")
    for file in (folder / "bin").iterdir():
        file.chmod(0o755)
    script = folder / "install.sh"
    (folder / "settings.env").write_text(settings)
    text = script.read_text().replace("/etc/llmopt-tiny/settings.env", "settings.env")
    script.write_text(text.replace("\nPATH=", f"\nPATH={folder / 'bin'}:"))
    done = subprocess.run(["sh", "install.sh"], cwd=folder, capture_output=True, text=True, timeout=20)
    return done.returncode, done.stdout.splitlines(), done.stderr


WITHOUT_MORE = {"target": "systemd", "monitoring": False, "replicas": 1}


def test_installing_enables_what_nginx_takes(tmp_path: Path) -> None:
    end, done, told = installed(tmp_path, engine={"gpus": 0}, wishes=WITHOUT_MORE)
    assert end == 0, told
    copied = next(n for n, line in enumerate(done) if line.endswith("/opt/llmopt/tiny/nginx.conf"))
    assert copied < next(n for n, line in enumerate(done) if line.startswith("systemctl enable"))


def test_installing_what_nginx_does_not_take_changes_nothing_that_runs(tmp_path: Path) -> None:
    """Here are no keys, and who reads them as the services' user is a program that only tells what it is asked."""
    end, done, told = installed(tmp_path, engine={"gpus": 0}, wishes={**WITHOUT_MORE, "domain": "llm.example.org"})
    assert end == 1
    assert told.startswith("error: nginx does not take nginx.conf, and nothing was started or copied: ")
    assert "/etc/llmopt-tiny/" in told
    assert not [line for line in done if line.startswith(("systemctl enable", "systemctl restart", "install -m"))]


LITELLM = {**WITHOUT_MORE, "gateway": "litellm", "monitoring": True}


@pytest.mark.parametrize(("settings", "end"), [
    ("", 1), ("LITELLM_MASTER_KEY=\n", 1), ("LITELLM_MASTER_KEY=''\n", 1), ("#LITELLM_MASTER_KEY=k\n", 1),
    ("LITELLM_MASTER_KEY=k\n", 0), ("OTHER=1\nLITELLM_MASTER_KEY='sk-1'\n", 0),
])  # fmt: skip
def test_installing_starts_no_litellm_that_answers_everybody(tmp_path: Path, settings: str, end: int) -> None:
    found, done, told = installed(tmp_path, settings=settings, engine={"gpus": 0}, wishes=LITELLM)
    assert found == end, told
    assert ("LITELLM_MASTER_KEY is not in " in told) == bool(end)
    assert bool([line for line in done if line.startswith("systemctl enable")]) == (not end)


@pytest.mark.parametrize(("settings", "there"), [("", False), ("LLMOPT_API_KEY=\n", False), ("LLMOPT_API_KEY=k", True)])
def test_installing_leaves_out_a_canary_without_a_key(tmp_path: Path, settings: str, there: bool) -> None:
    _, done, told = installed(
        tmp_path, settings="LITELLM_MASTER_KEY=k\n" + settings, engine={"gpus": 0}, wishes=LITELLM
    )
    [enabled] = [line for line in done if line.startswith("systemctl enable")]
    assert ("llmopt-tiny-canary.service" in enabled) == there, told
