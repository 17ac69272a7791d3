"""``run.sh``: the measured words whatever they are, ports, and what is left out by name."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmopt.core.errors import UsageError
from llmopt.deploy import local, target
from llmopt.deploy.litellm import VERSION
from llmopt.deploy.plan import Deployment, Launch
from unit.deploy import hostile
from unit.deploy.make import deployment


def of(**changes: Any) -> Deployment:
    wishes = {"target": "shell", "monitoring": False} | changes.pop("wishes", {})
    return deployment(wishes=wishes, **changes)


def script(made: Deployment) -> str:
    return target("shell").files(made)["run.sh"].text


def become(text: str, name: str, folder: Path) -> bytes:
    """What the words that run.sh gives a program print: the function of the written script, in the real shell."""
    start = text.index("become() {")
    function = text[start : text.index("\n}\n", start) + 3]
    done = subprocess.run(
        ["sh", "-c", f"GROUP=\n{function}\nbecome {name}"], capture_output=True, cwd=folder, timeout=20
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# A program that prints the words it was given, and one that prints its environment, a NUL after each.
def printing(words: list[str], environment: dict[str, str]) -> Any:
    return lambda host, port: Launch(argv=("printf", "%s\\0", *words), environment=environment)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(words=hostile.words)
def test_an_engine_gets_the_very_words_that_it_was_measured_with(tmp_path, words):
    text = script(of(engine={"native": printing(words, {})}))
    assert become(text, "engine_1", tmp_path).decode() == "".join(f"{word}\0" for word in words)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(value=hostile.word)
def test_an_engine_gets_the_very_environment(tmp_path, value):
    launch = Launch(argv=("printenv", "-0", "NAME"), environment={"NAME": value})
    text = script(of(engine={"native": lambda host, port: launch}))
    assert become(text, "engine_1", tmp_path).decode() == f"{value}\0"


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    label=hostile.text
    | st.sampled_from(["'; touch broken; '", "$(touch broken)", "a\n touch broken", "`touch broken`"])
)
def test_a_name_is_no_command(tmp_path, label):
    made = of(evidence={"label": label}, engine={"native": printing([], {})})
    subprocess.run(["sh", "-c", f"{script(made)}", "run.sh", "help"], cwd=tmp_path, capture_output=True, timeout=20)
    assert not (tmp_path / "broken").exists()


def test_files_that_an_engine_reads_are_written_before_it_starts(tmp_path):
    place = str(tmp_path / "a folder" / "it's.yaml")
    launch = Launch(argv=("cat", place), files={place: "{\n'a': \"$HOME\"}\n"})
    text = script(of(engine={"native": lambda host, port: launch}))
    assert become(text, "engine_2", tmp_path).decode() == "{\n'a': \"$HOME\"}\n"


def test_every_replica_has_a_port_of_its_own_after_the_gateways():
    text = script(of(capacity={"replicas": 3}, wishes={"port": 9000}))
    assert [f"engine_{n}) echo {9000 + n} ;;" in text for n in (1, 2, 3)] == [True] * 3


def test_no_two_programs_share_a_port():
    ports = local.ports(of(capacity={"replicas": 5}))
    every = [
        ports.gateway,
        *ports.engines,
        ports.status,
        ports.litellm,
        ports.redis,
        ports.prometheus,
        ports.alertmanager,
        ports.canary,
    ]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("port", [80, 443, 1023])
def test_the_gateway_alone_has_a_port_that_root_alone_may_take(port):
    made = local.ports(of(capacity={"replicas": 99}, wishes={"port": port}))
    beside = [*made.engines, made.status, made.litellm, made.redis, made.prometheus, made.alertmanager, made.canary]
    assert (made.gateway, min(beside) >= 1024) == (port, True)


def test_ports_that_do_not_suffice_are_refused():
    with pytest.raises(UsageError, match="leaves no ports"):
        local.ports(of(wishes={"port": 65530}))


def test_more_replicas_than_a_machine_is_given_are_refused():
    with pytest.raises(UsageError, match="more than one machine is given") as told:
        local.ports(of(capacity={"replicas": 100}))
    assert "kubernetes" in (told.value.hint or "")


def test_ports_beside_the_replicas_do_not_move_with_their_number():
    few, many = (local.ports(of(capacity={"replicas": n})) for n in (1, 9))
    assert (few.status, few.canary) == (many.status, many.canary)


def test_replicas_on_gpus_have_gpus_of_their_own():
    made = of(engine={"gpus": 2})
    assert [local.replica(made, n, 1).environment["CUDA_VISIBLE_DEVICES"] for n in (0, 1)] == ["0,1", "2,3"]


@pytest.mark.parametrize(("replicas", "bound"), [(1, "3"), (2, "nobind")])
def test_replicas_of_one_machine_are_not_bound_to_the_same_cores(replicas, bound):
    launch = Launch(argv=("serve",), environment={"VLLM_CPU_OMP_THREADS_BIND": "3", "OMP_NUM_THREADS": "1"})
    made = of(engine={"native": lambda host, port: launch, "gpus": 0}, capacity={"replicas": replicas})
    assert local.replica(made, 0, 1).environment == {"VLLM_CPU_OMP_THREADS_BIND": bound, "OMP_NUM_THREADS": "1"}


def test_without_gpus_nothing_is_said_of_them():
    assert "CUDA_VISIBLE_DEVICES" not in local.replica(of(engine={"gpus": 0}), 0, 1).environment


def test_nobody_but_this_machine_is_answered_until_a_domain_is_named():
    files = target("shell").files
    assert "listen 127.0.0.1:8080" in files(of())["nginx.conf"].text
    assert "listen 0.0.0.0:8080" in files(of(wishes={"domain": "llm.example.org"}))["nginx.conf"].text


def test_ready_is_a_completion_of_the_deployed_model():
    made = target("shell").files(of(engine={"model": 'a "model"\n'}))
    assert json.loads(made["completion.json"].text)["model"] == 'a "model"\n'


def test_monitoring_is_written_where_it_is_asked_for():
    files = target("shell").files
    assert "prometheus.yml" not in files(of())
    assert {"prometheus.yml", "rules.yml", "alertmanager.yml", "grafana/llmopt.json"} <= set(
        files(of(wishes={"monitoring": True}))
    )


@pytest.mark.parametrize("name", ["shell", "systemd"])
@pytest.mark.parametrize("gpus", [0, 2])
def test_what_rules_and_panels_ask_for_is_scraped(name: str, gpus: int) -> None:
    made = deployment(engine={"gpus": gpus}, wishes={"target": name})
    files = target(name).files(made)
    scraped = {job["job_name"] for job in yaml.safe_load(files["prometheus.yml"].text)["scrape_configs"]}
    asked = set(re.findall(r'job=\\?"([^"\\]+)', files["rules.yml"].text + files["grafana/llmopt.json"].text))
    assert asked == scraped
    told = [doubt for doubt in target(name).doubts(made) if "dcgm-exporter answers at 127.0.0.1:9400" in doubt]
    assert len(told) == (1 if gpus else 0)


def test_litellm_stands_between_nginx_and_the_engines():
    made = target("shell").files(of(wishes={"gateway": "litellm"}))
    ports = local.ports(of())
    assert f"server 127.0.0.1:{ports.litellm} " in made["nginx.conf"].text
    assert f"http://127.0.0.1:{ports.engines[0]}/v1" in made["litellm.yaml"].text


def test_secrets_are_named_and_have_no_value():
    text = target("shell").files(of(wishes={"gateway": "litellm"}))[".env.example"].text
    assert "LITELLM_MASTER_KEY=\n" in text


def test_the_script_is_one_for_every_shell(tmp_path):
    (tmp_path / "run.sh").write_text(script(of(wishes={"monitoring": True, "gateway": "litellm", "cache": "redis"})))
    assert subprocess.run(["sh", "-n", tmp_path / "run.sh"], capture_output=True).returncode == 0


def test_an_unknown_word_is_refused(tmp_path):
    (tmp_path / "run.sh").write_text(script(of()))
    done = subprocess.run(["sh", "run.sh", "destroy"], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (2, "usage: ./run.sh [start|status|stop]\n")


def test_status_of_what_does_not_run_is_1(tmp_path):
    (tmp_path / "run.sh").write_text(script(of()))
    done = subprocess.run(["sh", "run.sh", "status"], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "gateway: does not run")


@pytest.mark.parametrize("pid", ["", "gone"])
def test_what_cannot_be_stopped_is_not_waited_for(tmp_path: Path, pid: str) -> None:
    (tmp_path / "run.sh").write_text(script(of()))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "supervisor.pid").write_text(pid and f"{ended()}\n")
    with (tmp_path / "run" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(["sh", "run.sh", "stop"], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "takes no signal from" in done.stderr


def ended() -> int:
    """The number of a process that is no more."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root becomes somebody else")
def test_status_is_the_same_whoever_asks() -> None:
    with tempfile.TemporaryDirectory(prefix="llmopt-status-") as name:
        folder, made = Path(name), of(capacity={"replicas": 1})
        folder.chmod(0o755)
        (folder / "run.sh").write_text(script(made))
        for part in ("run/nginx", "logs"):
            (folder / part).mkdir(parents=True)
        (folder / "run" / "programs").write_text("engine_1 1 http://127.0.0.1:1/health\n")
        (folder / "run" / "engine_1.pid").write_text(f"{os.getpid()}\n")
        (folder / ".env").write_text("LITELLM_MASTER_KEY=x\n")  # a secret of who started it
        (folder / ".env").chmod(0o600)
        words = ["setpriv", "--reuid", "65534", "--clear-groups", "sh", "run.sh", "status"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=20)
    assert done.stdout == "engine_1: runs, and does not answer on port 1\n", done.stderr


def told(tmp_path: Path, made: Deployment, **fakes: str) -> str:
    """What run.sh says where these programs alone are, each a line of shell; ``flock``, which is asked late, ends it."""
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("sh", "dirname", "mkdir", "date", "rm", "cat", "grep", "tr"):
        (bare / name).symlink_to(f"/bin/{name}")
    for name, line in {"setsid": "", "curl": "", "nginx": "", "flock": "exit 1", **fakes}.items():
        (bare / name).write_text(f"#!/bin/sh\n{line}\n")
        (bare / name).chmod(0o755)
    for path, file in target("shell").files(made).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(file.text)
    done = subprocess.run(
        ["/bin/sh", "run.sh"], cwd=tmp_path, env={"PATH": str(bare)}, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 1
    return done.stderr


def test_a_missing_program_is_named_with_what_brings_it_before_anything_starts(tmp_path: Path) -> None:
    said = told(tmp_path, of(wishes={"gateway": "litellm"}))
    assert f"litellm is not on the PATH: pip install 'litellm[proxy]=={VERSION}'" in said


def test_what_is_left_out_is_named_with_what_brings_it(tmp_path: Path) -> None:
    said = told(tmp_path, of(wishes={"monitoring": True}))
    assert "canary is left out: llmopt is not on the PATH: pip install llmopt==0.1.0" in said
    assert "prometheus is left out: prometheus is not on the PATH: apt-get install prometheus (Debian)" in said


def test_an_alertmanager_that_is_too_old_is_left_out_by_that_reason(tmp_path: Path) -> None:
    old = "echo 'line 33: field url_file not found'; echo 'failed to validate 1 file(s)'; exit 1"
    said = told(tmp_path, of(wishes={"monitoring": True}), amtool=old, **{"prometheus-alertmanager": ""})
    assert "alertmanager is left out" in said
    assert "older than 0.26" in said


def test_an_alertmanager_that_takes_its_file_is_not_left_out(tmp_path: Path) -> None:
    said = told(tmp_path, of(wishes={"monitoring": True}), amtool="", **{"prometheus-alertmanager": ""})
    assert "alertmanager is left out" not in said


def test_who_can_be_reached_by_others_asks_for_keys_and_does_not_start_without_them() -> None:
    open_to_all = target("shell").files(deployment(wishes={"target": "shell", "domain": "llm.example.org"}))
    assert "include keys.conf;" in open_to_all["nginx.conf"].text
    assert "[ -s keys.conf ] || fail" in open_to_all["run.sh"].text
    assert "LLMOPT_API_KEY=" in open_to_all[".env.example"].text


def test_who_listens_for_this_machine_alone_asks_nobody_for_a_key() -> None:
    own = target("shell").files(deployment(wishes={"target": "shell"}))
    assert "keys.conf" not in own["nginx.conf"].text + own["run.sh"].text


def test_the_certificate_has_a_place_that_is_named() -> None:
    made = deployment(wishes={"target": "shell", "domain": "llm.example.org", "tls": True})
    assert "certs/tls.crt" in target("shell").files(made)[".env.example"].text
    assert target("shell").secrets(made) == "`.env`, `keys.conf`, `certs/tls.crt`, `certs/tls.key`"


def test_the_canary_asks_by_the_name_in_the_certificate() -> None:
    wishes = {"target": "shell", "domain": "llm.example.org", "tls": True}
    assert "https://llm.example.org:8080/v1" in target("shell").files(deployment(wishes=wishes))["run.sh"].text


@pytest.mark.parametrize(("name", "file"), [("shell", ".env.example"), ("systemd", "settings.env.example")])
def test_the_canary_has_a_key_of_litellm_s(name: str, file: str) -> None:
    made = deployment(wishes={"target": name, "gateway": "litellm", "monitoring": True})
    assert "LLMOPT_API_KEY=" in target(name).files(made)[file].text
