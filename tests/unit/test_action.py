"""The GitHub action without GitHub: its file is sound, and its shell steps do what they say in a runner's surroundings."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

import llmopt
from llmopt.serve.scripted import running

ROOT = Path(llmopt.__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step.get("name", step.get("uses")): step for step in ACTION["runs"]["steps"]}
SHELL = {name: step for name, step in STEPS.items() if "run" in step}
# What the comment's step asks of GitHub's own program: who wrote what, and to write.
GH = """#!/bin/bash
printf '%s\\n' "$*" >> "$GH_LOG"
for word in "$@"; do case $word in body=@*) cp "${word#body=@}" "$GH_LOG.body";; esac; done
[ -z "$GH_FAILS" ] || exit 1
case "$*" in *--jq*) [ -z "$GH_FOUND" ] || echo "$GH_FOUND";; esac
"""


class Runner:
    """One job: its folder, its files, and the outputs of the steps that were run."""

    def __init__(self, folder, **inputs):
        self.folder, self.outputs = folder, {}
        defaults = {name: str(one.get("default", "")) for name, one in ACTION["inputs"].items()}
        self.values = {f"inputs.{name}": value for name, value in (defaults | inputs).items()}
        self.values |= {"runner.os": "Linux", "runner.arch": "X64", "github.event.pull_request.number": "7"}
        programs = folder / "programs"
        programs.mkdir()
        (programs / "gh").write_text(GH)
        (programs / "gh").chmod(stat.S_IRWXU)
        self.environment = {
            "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(folder), "GITHUB_ACTION_PATH": str(ROOT), "GITHUB_REPOSITORY": "some/repo", "RUNNER_TEMP": str(folder),
            "GITHUB_STEP_SUMMARY": str(folder / "summary.md"), "GITHUB_OUTPUT": str(folder / "output"),
            "GITHUB_PATH": str(folder / "path"), "GH_LOG": str(folder / "gh.log"),
        }  # fmt: skip

    def run(self, name, **environment):
        step = STEPS[name]
        (self.folder / "output").write_text("")
        own = {
            key: re.sub(r"\$\{\{ (.+?) \}\}", lambda m: self.values[m[1]], str(text))
            for key, text in step.get("env", {}).items()
        }
        script = self.folder / "script"
        script.write_text(step["run"])
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)], cwd=self.folder, capture_output=True, text=True,
            env=self.environment | own | environment, timeout=120, check=False,
        )  # fmt: skip
        lines = (self.folder / "output").read_text().splitlines()
        found = dict(line.split("=", 1) for line in lines)
        self.values |= {f"steps.{step.get('id')}.outputs.{key}": value for key, value in found.items()}
        return done, found


@pytest.fixture(scope="module")
def server():
    with running() as url:
        yield url.removesuffix("/v1")


@pytest.fixture
def job(tmp_path):
    return lambda **inputs: Runner(tmp_path, **inputs)


LOAD = "--model truth --requests 12 --concurrency 4 --input-tokens 16 --output-tokens 16 --rounds 5"


@pytest.fixture
def slower(job, server):
    """A gate of a candidate that takes twice as long for a token."""
    found = job(
        base=f"{server}/x/ttft=5,itl=3/v1", candidate=f"{server}/x/ttft=5,itl=6/v1", metrics="tpot_p50:5%", args=LOAD
    )
    found.values["steps.python.outputs.python-version"] = "3.11.7"
    return found


def test_every_step_of_the_shell_is_sound():
    assert set(SHELL) == {"Name the cache", "Install llmopt", "Gate", "Comment", "Verdict"}
    for step in SHELL.values():
        assert step["shell"] == "bash"
        subprocess.run(["bash", "-n"], input=step["run"], text=True, check=True)


def test_nothing_that_a_user_wrote_is_put_into_a_script():
    assert not [name for name, step in SHELL.items() if "${{" in step["run"]]


def test_every_input_is_used_and_every_one_used_is_declared():
    used = set(re.findall(r"inputs\.([a-z-]+)", (ROOT / "action.yml").read_text()))
    assert used == set(ACTION["inputs"])


def test_every_output_is_of_a_step_that_writes_it():
    for name, output in ACTION["outputs"].items():
        assert output["value"] == f"${{{{ steps.gate.outputs.{name} }}}}"
        assert f"{name}=" in STEPS["Gate"]["run"]


def test_the_key_of_the_cache_follows_what_is_wanted(job, tmp_path):
    keys = set()
    for place, wanted in enumerate(("", "local", "local", "vllm")):
        (tmp_path / str(place)).mkdir()
        runner = Runner(tmp_path / str(place), environments=wanted)
        runner.values["steps.python.outputs.python-version"] = "3.11.7"
        keys.add(runner.run("Name the cache")[1]["key"])
    assert len(keys) == 3
    assert all(re.fullmatch(r"llmopt-Linux-X64-[0-9a-f]{20}", key) for key in keys)


def test_a_regression_is_told_everywhere_and_fails_the_job(slower, tmp_path):
    pytest.importorskip("vl_convert")
    done, found = slower.run("Gate")
    assert done.returncode == 0, done.stderr
    assert (found["status"], found["exit-status"]) == ("regression", "3")
    assert found["words"].startswith("REGRESSION: tpot_p50")
    report = Path(found["report"])
    assert ElementTree.parse(report / "gate.xml").getroot().find(".//failure") is not None
    assert "REGRESSION" in (tmp_path / "summary.md").read_text()
    assert b"llmopt report" in (report / "gate.html").read_bytes()[:200]
    assert "tolerated" in (report / "gate.log").read_text()
    verdict, _ = slower.run("Verdict")
    assert verdict.returncode == 3
    assert verdict.stdout.startswith("::error title=llmopt gate::REGRESSION")


def test_an_error_has_its_words_and_its_status(job, tmp_path):
    runner = job(base="http://127.0.0.1:1/v1", candidate="http://127.0.0.1:1/v1")
    done, found = runner.run("Gate")
    assert done.returncode == 0, done.stderr
    assert (found["status"], found["exit-status"]) == ("error", "2")
    assert "hint: --model NAME" in found["words"]
    assert "--model NAME" in (tmp_path / "summary.md").read_text()
    assert runner.run("Verdict")[0].returncode == 2


def test_what_ended_without_a_document_is_inconclusive_by_its_status(job, server):
    runner = job(base=f"{server}/v1", candidate=f"{server}/v1", args=LOAD.replace("--rounds 5", "--budget 1ms"))
    assert runner.run("Gate")[1]["status"] == "inconclusive"
    assert runner.run("Verdict")[0].returncode == 4


def test_what_cannot_be_told_may_be_let_through(job, server):
    """Next to nothing is tolerated of noise; the confidence makes a false alarm of the server against itself one in a million."""
    runner = job(base=f"{server}/v1", candidate=f"{server}/v1", metrics="tpot_p50:0.0001%", **{"on-inconclusive": "pass"},
                 args=LOAD.replace("--rounds 5", "--rounds 3 --confidence 0.999999"))  # fmt: skip
    assert runner.run("Gate")[1] | {"words": "", "report": ""} == {
        "status": "inconclusive", "exit-status": "0", "words": "", "report": ""}  # fmt: skip
    assert runner.run("Verdict")[0].returncode == 0


def test_words_of_args_that_cannot_be_told_apart_are_an_error(job, server):
    """They would be dropped, and another gate be run than was asked for."""
    runner = job(base=f"{server}/v1", candidate=f"{server}/v1", args=f"{LOAD} --header 'one: two")
    done, found = runner.run("Gate")
    assert done.returncode == 0, done.stderr
    assert (found["status"], found["exit-status"]) == ("error", "2")
    assert "No closing quotation" in found["words"]
    assert runner.run("Verdict")[0].returncode == 2


def test_a_verdict_that_nobody_could_read_is_refused(job, server):
    runner = job(base=f"{server}/v1", candidate=f"{server}/v1", args=f"{LOAD} --json")
    done, found = runner.run("Gate")
    assert done.returncode == 0, done.stderr
    assert (found["status"], found["exit-status"]) == ("error", "2")
    assert "args cannot have --json" in found["words"]


@pytest.mark.parametrize("word", ["-h", "--no-such-option"])
def test_what_gates_nothing_is_an_error_that_says_why(job, server, word):
    runner = job(base=f"{server}/v1", candidate=f"{server}/v1", args=f"{LOAD} {word}")
    done, found = runner.run("Gate")
    assert done.returncode == 0, done.stderr
    assert found["status"] == "error"
    assert ("without a verdict" if word == "-h" else "No such option: --no-such-option") in found["words"]
    assert runner.run("Verdict")[0].returncode == {"-h": 1}.get(word, 2)


def test_words_of_args_arrive_as_they_are_quoted(job, tmp_path):
    program = tmp_path / "llmopt"
    program.write_text("#!/bin/bash\nprintf '<%s>' \"$@\"\n")
    program.chmod(stat.S_IRWXU)
    runner = job(base="a", candidate="b", args="--header 'one: two' *  ''")
    runner.environment["PATH"] = f"{tmp_path}{os.pathsep}{runner.environment['PATH']}"
    runner.run("Gate")
    log = Path(runner.values["steps.gate.outputs.report"]) / "gate.log"
    assert "<--header><one: two><*><><--results>" in log.read_text()


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_a_runner_that_forces_colours_changes_no_verdict(slower, name):
    _, found = slower.run("Gate", **{name: "1"})
    assert found["words"].startswith("REGRESSION: tpot_p50")


@pytest.mark.parametrize("field", ["base", "args", "metrics", "name", "report"])
def test_an_input_is_never_run(job, tmp_path, field):
    trap = tmp_path / "trap"
    runner = job(**{"base": "a", "candidate": "b"} | {field: f"$(touch {trap}) `touch {trap}` ; touch {trap}"})
    runner.run("Gate")
    runner.values.setdefault("steps.gate.outputs.report", str(tmp_path))
    (tmp_path / "gate.md").write_text("x")
    runner.run("Comment")
    assert not trap.exists()


# --- the comment --------------------------------------------------------------------------------------------------


@pytest.fixture
def commented(job, tmp_path):
    """Runs the step; gives what was asked of GitHub, and the body that was sent."""

    def call(text="# llmopt gate", **environment):
        (tmp_path / "gate.md").write_text(text)
        runner = job(name="my gate")
        runner.values["steps.gate.outputs.report"] = str(tmp_path)
        done, _ = runner.run("Comment", **environment)
        assert done.returncode == 0, done.stderr
        body = tmp_path / "gh.log.body"
        return done, (tmp_path / "gh.log").read_text().splitlines(), body.read_text() if body.exists() else ""

    return call


def test_the_first_time_a_comment_is_made(commented):
    _, asked, body = commented()
    assert "-X POST repos/some/repo/issues/7/comments " in asked[-1]
    assert body == "<!-- llmopt gate: my-gate -->\n# llmopt gate"


def test_afterwards_it_is_the_same_one(commented):
    _, asked, _ = commented(GH_FOUND="42")
    assert "-X PATCH repos/some/repo/issues/comments/42 " in asked[-1]


def test_a_token_that_may_not_comment_is_a_warning(commented):
    done, _, _ = commented(GH_FAILS="1")
    assert done.stdout.startswith("::warning::")


def test_a_long_verdict_is_cut_to_what_a_comment_holds(commented):
    _, _, body = commented("ü" * 40_000)
    assert 59_000 < len(body.encode()) < 65_536
