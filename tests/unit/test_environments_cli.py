"""``llmopt env`` and ``llmopt doctor`` from outside."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from unit.core.conftest import FAKE


@pytest.fixture
def llmopt(tmp_path):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "llmopt", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"LLMOPT_HOME": str(tmp_path / "home")},
        )

    return call


def test_the_list_names_what_can_be_made_and_what_it_costs(llmopt):
    told = llmopt("env", "list").stdout
    for name in ("local", "vllm", "llamacpp", "eval"):
        assert any(line.startswith(name) and "absent" in line and "GB" in line for line in told.splitlines())
    assert {row["state"] for row in json.loads(llmopt("env", "list", "--json").stdout)} == {"absent"}


def test_a_dry_run_says_cost_and_steps_and_writes_nothing(llmopt, tmp_path):
    told = llmopt("env", "create", "vllm", "--dry-run").stdout.splitlines()
    assert "GB, about" in told[0]
    assert "installing torch" in told[2]
    plan = json.loads(llmopt("env", "create", "vllm", "--dry-run", "--json").stdout)
    assert plan["wanted_bytes"] > 10**9
    assert [step["done"] for step in plan["steps"]] == [False] * len(plan["steps"])
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "vlm"), "unknown environment 'vlm'"),
        (("create", "vllm", "--here"), "environment of its own"),
        (("remove", "vllm"), "there is no environment vllm"),
        (("freeze", "vllm"), "no environment 'vllm'"),
    ],
)
def test_a_mistake_is_one_line_and_a_hint(llmopt, arguments, message):
    told = llmopt("env", *arguments)
    assert (told.returncode, told.stdout) == (2, "")
    lines = told.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"]
    assert message in lines[0]


def test_a_freeze_is_a_requirements_file(llmopt, tmp_path):
    told = llmopt("env", "freeze", "here").stdout.splitlines()
    assert f"pytest=={pytest.__version__}" in told
    assert llmopt("env", "freeze", sys.prefix, "-o", str(tmp_path / "all.txt")).returncode == 0
    assert (tmp_path / "all.txt").read_text().splitlines() == told
    assert json.loads(llmopt("env", "freeze", "here", "--json").stdout)["requirements"] == told


def test_the_doctor_knows_environments_and_tools(llmopt):
    rows = json.loads(llmopt("doctor", "--json").stdout)
    assert {row["name"] for row in rows["environments"]} >= {"local", "vllm", "llamacpp", "eval"}
    assert {row["name"] for row in rows["tools"]} >= {"llama-quantize", "llama-imatrix"}
    assert "llmopt env create vllm" in llmopt("doctor").stdout


def test_ctrl_c_ends_the_installer_and_says_how_to_go_on(tmp_path):
    orders = tmp_path / "orders"
    orders.mkdir()
    (orders / "hang-torch==2.13.0").touch()
    environment = os.environ | {"LLMOPT_HOME": str(tmp_path / "home"), "FAKE_PIP": str(orders)}
    code = (
        "import sys; from llmopt.core import installation; from llmopt.cli import main; "
        f"installation.VENV = (sys.executable, {str(FAKE)!r}); main()"
    )
    argv = [sys.executable, "-c", code, "env", "create", "vllm"]
    process = subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True)
    said = orders / "hanging"
    while not (said.exists() and said.read_text()) and process.poll() is None:
        time.sleep(0.01)
    installer = int(said.read_text())
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped while installing torch; kept: venv" in told
    assert not psutil.pid_exists(installer)
