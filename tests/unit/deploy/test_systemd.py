"""Units of systemd: the measured words, a port for each instance, limits and hardening; proved by systemd where it is."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from llmopt.core.errors import UsageError
from llmopt.deploy import local, shell, target
from llmopt.deploy.checks_systemd import check
from llmopt.deploy.plan import Deployment, Launch
from llmopt.deploy.systemd import EVERY_PROGRAM
from unit.deploy import hostile
from unit.deploy.make import deployment

ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}
ENGINE = "units/llmopt-tiny@.service"


def of(**changes: Any) -> Deployment:
    wishes = {"target": "systemd", "monitoring": False} | changes.pop("wishes", {})
    return deployment(wishes=wishes, **changes)


def files(**changes: Any) -> dict[str, str]:
    return {path: file.text for path, file in target("systemd").files(of(**changes)).items()}


def setting(unit: str, name: str) -> list[str]:
    return [line.partition("=")[2] for line in unit.split("\n") if line.startswith(f"{name}=")]


def parsed(line: str, *, instance: str) -> list[str]:
    """As systemd 252 reads a command line: quotes and escapes, then specifiers, then variables; of the program without the last."""
    found = []
    for place, word in enumerate(re.findall(r'"((?:[^"\\]|\\.)*)"', line, re.DOTALL)):
        plain = re.sub(r"\\(?:x([0-9a-f]{2})|(.))", lambda m: chr(int(m[1], 16)) if m[1] else ESCAPES[m[2]], word)
        whole = re.sub(r"%(.)", lambda m: {"%": "%", "i": instance}[m[1]], plain)
        assert place == 0 or not re.search(r"(?<!\$)(?:\$\$)*\$(?!\$)", whole), f"{whole!r} would be expanded"
        found.append(whole if place == 0 else whole.replace("$$", "$"))
    return found


@settings(max_examples=150, deadline=None)
@given(words=hostile.words)
def test_an_engine_gets_the_very_words_that_it_was_measured_with(words):
    native = lambda host, port: Launch(argv=("/usr/bin/serve", *words, "--port", str(port)))  # noqa: E731
    unit = files(engine={"native": native})[ENGINE]
    [line] = setting(unit, "ExecStart")
    assert parsed(line, instance="8081") == ["/usr/bin/serve", *words, "--port", "8081"]


@settings(max_examples=50, deadline=None)
@given(value=hostile.word)
def test_an_engine_gets_the_very_environment(value):
    launch = Launch(argv=("/usr/bin/serve",), environment={"NAME": value})
    own = next(
        line
        for line in setting(files(engine={"native": lambda h, p: launch})[ENGINE], "Environment")
        if "NAME=" in line
    )
    assert own.count("\n") == 0
    plain = re.sub(r"\\(?:x([0-9a-f]{2})|(.))", lambda m: chr(int(m[1], 16)) if m[1] else ESCAPES[m[2]], own[1:-1])
    assert plain.replace("%%", "%") == f"NAME={value}"


def test_a_program_in_a_strange_place_is_found():
    native = lambda host, port: Launch(argv=("/opt/my $engines %/serve", str(port)))  # noqa: E731
    assert (
        parsed(setting(files(engine={"native": native})[ENGINE], "ExecStart")[0], instance="1")[0]
        == "/opt/my $engines %/serve"
    )


def test_the_port_may_be_a_part_of_a_word():
    native = lambda host, port: Launch(argv=("/usr/bin/serve", f"--listen={host}:{port}"))  # noqa: E731
    assert (
        parsed(setting(files(engine={"native": native})[ENGINE], "ExecStart")[0], instance="8082")[1]
        == "--listen=127.0.0.1:8082"
    )


@settings(max_examples=50, deadline=None)
@given(label=hostile.word)
def test_a_name_adds_no_setting(label):
    unit = files(evidence={"label": label})[ENGINE]
    assert sorted(re.findall(r"^(\w+)=", unit, re.MULTILINE)) == sorted(
        re.findall(r"^(\w+)=", files()[ENGINE], re.MULTILINE)
    )


def test_started_is_a_completion():
    assert setting(files()[ENGINE], "ExecStartPost") == ['/usr/bin/sh "/opt/llmopt/tiny/wait-ready.sh" %i']


def test_memory_is_limited_above_what_was_measured():
    assert setting(files(evidence={"peak_memory_bytes": 2**30})[ENGINE], "MemoryMax") == [
        str(int(2**30 * 1.25) + 2**28)
    ]


def test_without_a_measured_peak_there_is_no_limit():
    assert setting(files(evidence={"peak_memory_bytes": None})[ENGINE], "MemoryMax") == []


@pytest.mark.parametrize(("gpus", "private"), [(0, ["yes"]), (1, [])])
def test_devices_are_hidden_where_no_gpu_is_needed(gpus, private):
    assert setting(files(engine={"gpus": gpus})[ENGINE], "PrivateDevices") == private


def test_the_canary_starts_after_all_that_it_asks() -> None:
    made = files(wishes={"monitoring": True, "gateway": "litellm"})
    [after] = setting(made["units/llmopt-tiny-canary.service"], "After")
    engines = {"llmopt-tiny@8081.service", "llmopt-tiny@8082.service"}
    assert {*engines, "llmopt-tiny-litellm.service", "llmopt-tiny-gateway.service"} <= set(after.split())
    [started] = setting(made["units/llmopt-tiny-litellm.service"], "ExecStartPost")
    assert "http://127.0.0.1:8181/health/liveliness" in started


@pytest.mark.parametrize(
    ("key", "starts"), [({}, False), ({"LITELLM_MASTER_KEY": ""}, False), ({"LITELLM_MASTER_KEY": "k"}, True)]
)
def test_litellm_starts_with_a_key_alone(key: dict[str, str], starts: bool) -> None:
    """Without one it answers everybody."""
    [line] = setting(files(wishes={"gateway": "litellm"})["units/llmopt-tiny-litellm.service"], "ExecStartPre")
    done = subprocess.run(shlex.split(line.replace("$$", "$")), env=key, capture_output=True, text=True)
    assert (done.returncode == 0, "LITELLM_MASTER_KEY is empty" in done.stderr) == (starts, not starts)


def test_nobody_is_root():
    units = [text for path, text in files(wishes={"monitoring": True}).items() if path.endswith(".service")]
    assert {user for unit in units for user in setting(unit, "User")} == {"llmopt-tiny"}
    assert all(setting(unit, "NoNewPrivileges") == ["yes"] for unit in units)


def test_a_long_name_gives_a_user_that_linux_takes():
    name = "a" * 40
    unit = files(wishes={"name": name})[f"units/llmopt-{name}@.service"]
    assert len(setting(unit, "User")[0]) <= 31


@pytest.mark.parametrize(
    ("where", "own"),
    [("/srv/tmp/model", "yes"), ("/srv/models", "yes"), ("/tmp/model", "no"), ("/var/tmp/a b", "no"), ("/tmp", "no")],
)
def test_a_model_in_a_temporary_folder_is_seen_and_doubted(where: str, own: str) -> None:
    made = of(engine={"artifact": where}, wishes={"monitoring": True})
    units = target("systemd").files(made)
    assert setting(units[ENGINE].text, "PrivateTmp") == [own]
    assert setting(units["units/llmopt-tiny-canary.service"].text, "PrivateTmp") == [own]
    assert setting(units["units/llmopt-tiny-gateway.service"].text, "PrivateTmp") == ["yes"]
    assert any("which machines empty" in doubt for doubt in target("systemd").doubts(made)) == (own == "no")


def test_what_a_word_of_the_engine_names_is_seen_too() -> None:
    native = lambda host, port: Launch(argv=("/usr/bin/serve", '--draft={"model":"/tmp/draft"}', str(port)))  # noqa: E731
    assert setting(files(engine={"native": native})[ENGINE], "PrivateTmp") == ["no"]


def test_installing_asks_for_everything_that_the_engine_reads() -> None:
    made = files(engine={"artifact": "/srv/model", "mounts": (("/srv/a draft", "/llmopt/draft"),)})
    assert "for place in /srv/model '/srv/a draft' ; do" in made["install.sh"]


def test_an_engine_with_files_for_each_port_is_refused():
    launch = Launch(argv=("/usr/bin/serve",), files={"/x": "y"})
    with pytest.raises(UsageError, match="a template unit has not"):
        files(engine={"native": lambda h, p: launch})


def test_installing_can_be_rehearsed(tmp_path):
    for path, text in files(engine={"gpus": 1}).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    done = subprocess.run(["sh", "install.sh", "--dry-run"], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert (
        "systemctl restart llmopt-tiny@8081.service llmopt-tiny@8082.service llmopt-tiny-gateway.service" in done.stdout
    )
    assert "write_gpus 8082 1" in done.stdout
    # Not every system gives a user a group by itself, and the units name it.
    assert "useradd --system --user-group " in done.stdout


@pytest.mark.parametrize("words", [["--remove", "--dry-run"], ["--dry-run", "--remove"], ["--help"]])
def test_words_that_installing_does_not_know_change_nothing(tmp_path: Path, words: list[str]) -> None:
    """``--remove --dry-run`` took all of it away."""
    (tmp_path / "install.sh").write_text(files()["install.sh"].replace("id -u", "echo 1000"))
    done = subprocess.run(["sh", "install.sh", *words], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr.split(":")[0]) == (2, "", "usage")


def test_removing_takes_the_user_and_the_group_away(tmp_path: Path) -> None:
    """Of programs that only tell what they are asked."""
    (tmp_path / "bin").mkdir()
    for name in ("systemctl", "userdel", "groupdel", "rm"):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    text = files()["install.sh"].replace("id -u", "echo 0").replace("\nPATH=", f"\nPATH={tmp_path / 'bin'}:")
    (tmp_path / "install.sh").write_text(text)
    done = subprocess.run(["sh", "install.sh", "--remove"], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["userdel llmopt-tiny", "groupdel llmopt-tiny"]


def test_installing_wants_root(tmp_path):
    (tmp_path / "install.sh").write_text(files()["install.sh"].replace("id -u", "echo 1000"))
    done = subprocess.run(["sh", "install.sh"], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr[:16]) == (1, "error: only root")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
@pytest.mark.parametrize("label", ["plain", 'a\'b "c" 100% $HOME \\'])
def test_systemd_takes_the_units(tmp_path, label):
    for path, text in files(evidence={"label": label}, engine={"model": label}, wishes={"monitoring": True}).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert [one.status for one in check(tmp_path)] == ["passed"], list(check(tmp_path))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
def test_a_unit_that_systemd_does_not_take_is_a_failure(tmp_path):
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "broken.service").write_text("[Service]\nExecStart=relative/path\n")
    assert [one.status for one in check(tmp_path)] == ["failed"]


def test_who_can_be_reached_by_others_asks_for_keys_of_the_place() -> None:
    made = target("systemd").files(deployment(wishes={"target": "systemd", "domain": "llm.example.org"}))
    assert "include /etc/llmopt-tiny/keys.conf;" in made["nginx.conf"].text
    assert "test -s /etc/llmopt-tiny/keys.conf" in made["install.sh"].text


def test_installing_asks_for_the_certificate_before_anything_is_installed() -> None:
    made = target("systemd").files(of(wishes={"domain": "llm.example.org", "tls": True}))
    script = made["install.sh"].text
    for path in ("/etc/llmopt-tiny/tls.crt", "/etc/llmopt-tiny/tls.key"):
        assert script.index(f"test -s {path} -a -r {path}") < script.index('install -m 0644 -- "units/')
        assert path in made["settings.env.example"].text


def test_where_alerts_go_is_the_file_that_alertmanager_reads() -> None:
    made = files(wishes={"monitoring": True})
    place = "/etc/llmopt-tiny/alert_webhook_url"
    assert place in made["alertmanager.yml"]
    assert place in made["settings.env.example"]
    assert f"test -s {place}" in made["install.sh"]


def test_a_model_that_cannot_load_is_not_loaded_for_ever() -> None:
    made = files(evidence={"load_s": 60.0})[ENGINE]
    [interval], [burst] = setting(made, "StartLimitIntervalSec"), setting(made, "StartLimitBurst")
    [stop] = setting(made, "TimeoutStopSec")
    assert int(interval) > int(burst) * (180 + int(stop))  # three times the measured start is what one may take


def test_what_failed_too_often_is_started_once_it_is_mended(tmp_path: Path) -> None:
    (tmp_path / "install.sh").write_text(files()["install.sh"])
    done = subprocess.run(["sh", "install.sh", "--dry-run"], cwd=tmp_path, capture_output=True, text=True)
    said = [line.split()[:3] for line in done.stdout.splitlines() if line.startswith("systemctl")]
    reset, restart = (["systemctl", word, "llmopt-tiny@8081.service"] for word in ("reset-failed", "restart"))
    assert said.index(reset) < said.index(restart)


def test_an_alertmanager_that_would_end_at_once_is_not_started(tmp_path: Path) -> None:
    for path, text in files(wishes={"monitoring": True}).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    env = systemd_here(tmp_path)
    for name, line in {"amtool": "echo 'field url_file not found'; exit 1", "prometheus-alertmanager": ""}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    done = subprocess.run(["sh", "install.sh", "--dry-run"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "older than 0.26" in done.stderr
    (started,) = [line for line in done.stdout.splitlines() if line.startswith("systemctl restart")]
    assert "alertmanager" not in started


def test_a_program_that_services_need_is_named_with_what_brings_it(tmp_path: Path) -> None:
    (tmp_path / "install.sh").write_text(files(wishes={"gateway": "litellm"})["install.sh"])
    done = subprocess.run(["sh", "install.sh", "--dry-run"], cwd=tmp_path, capture_output=True, text=True)
    assert "litellm is in none of " in done.stderr
    assert "where systemd looks: pip install 'litellm[proxy]==" in done.stderr


def test_a_program_that_systemd_would_not_find_is_not_started(tmp_path: Path) -> None:
    """A virtual environment is on the PATH of whoever installs, and on no service's."""
    (tmp_path / "install.sh").write_text(files(wishes={"monitoring": True})["install.sh"])
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "llmopt").write_text("#!/bin/sh\n")
    (tmp_path / "venv" / "llmopt").chmod(0o755)
    env = {"PATH": f"{tmp_path / 'venv'}:/usr/sbin:/usr/bin:/bin"}
    done = subprocess.run(["sh", "install.sh", "--dry-run"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "llmopt-tiny-canary.service is left out: llmopt is in none of " in done.stderr
    assert "ln -s ELSEWHERE/llmopt /usr/local/bin/" in done.stderr
    assert not [line for line in done.stdout.splitlines() if "restart" in line and "canary" in line]


def test_an_engine_without_a_place_is_looked_for_as_systemd_does(tmp_path: Path) -> None:
    native = lambda host, port: Launch(argv=("no-such-engine", str(port)))  # noqa: E731
    (tmp_path / "install.sh").write_text(files(engine={"native": native})["install.sh"])
    done = subprocess.run(["sh", "install.sh", "--dry-run"], cwd=tmp_path, capture_output=True, text=True)
    assert "no-such-engine is in none of " in done.stderr


def systemd_here(tmp_path: Path, *known: str) -> dict[str, str]:
    """An environment whose ``systemctl`` is a fake that knows these services and does nothing."""
    fake = tmp_path / "bin" / "systemctl"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\n[ \"$1\" = list-units ] && printf '%s loaded\\n' " + " ".join(known) + "\nexit 0\n")
    fake.chmod(0o755)
    script = tmp_path / "install.sh"
    script.write_text(script.read_text().replace("\nPATH=", f"\nPATH={fake.parent}:"))
    return {"PATH": "/usr/bin:/bin"}


def test_a_replica_that_is_no_longer_wanted_is_stopped(tmp_path: Path) -> None:
    for path, text in files(capacity={"replicas": 2}).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    env = systemd_here(tmp_path, *(f"llmopt-tiny@{port}.service" for port in (8081, 8082, 8083)))
    done = subprocess.run(["sh", "install.sh", "--dry-run"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "systemctl disable --now llmopt-tiny@8083.service" in done.stdout.splitlines(), done.stderr
    assert "disable --now llmopt-tiny@8082.service" not in done.stdout


def test_every_program_is_known_by_name() -> None:
    every = of(wishes={"gateway": "litellm", "cache": "redis", "monitoring": True})
    names = {p.name for p in shell.programs_of(every, local.ports(every)) if not p.name.startswith("engine_")}
    assert names == set(EVERY_PROGRAM)
