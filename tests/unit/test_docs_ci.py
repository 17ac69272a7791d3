"""The files that docs/gate-ci.md shows are sound, and every command line of llmopt in them is one that llmopt takes."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

import llmopt
from llmopt.cli import app

ROOT = Path(llmopt.__file__).parents[1]
PAGE = (ROOT / "docs/gate-ci.md").read_text()
FILES = {
    text.splitlines()[0].removeprefix("# "): yaml.safe_load(text)
    for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
}


def scripts():
    """Every shell script of the files, and of the action."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    jobs = [job for name, file in FILES.items() if name.startswith(".github") for job in file["jobs"].values()]
    steps = [*(step for job in jobs for step in job["steps"]), *action["runs"]["steps"]]
    return [step["run"] for step in steps if "run" in step] + ["\n".join(FILES[".gitlab-ci.yml"]["gate"]["script"])]


def commands():
    joined = [script.replace("\\\n", " ") for script in scripts()]
    lines = [line.strip() for text in joined for line in text.splitlines()]
    found = [line for line in lines if line.startswith("llmopt ")]
    inline = [text for text in re.findall(r"`(llmopt [a-z][^`]+)`", PAGE) if " " in text.removeprefix("llmopt ")]
    return [re.split(r" (?:\|\||\||2>&1|>|&&)", line)[0] for line in found] + inline


def parsed(words):
    """Let the command line's own parser take them, without running the command."""
    command, context = typer.main.get_command(app), None
    while True:
        context = command.make_context(words[0], [*words[1:]], parent=context)
        if not hasattr(command, "resolve_command"):
            return context
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        words = [name, *rest]


def test_there_are_three_files():
    assert list(FILES) == [".github/workflows/gate.yml", ".github/workflows/baseline.yml", ".gitlab-ci.yml"]


def test_every_script_is_sound():
    for script in scripts():
        subprocess.run(["bash", "-n"], input=re.sub(r"\$\{\{.*?\}\}", "x", script), text=True, check=True)


@pytest.mark.parametrize("line", commands())
def test_every_command_is_taken(line):
    words = [word for word in shlex.split(line) if not word.startswith("${")]
    assert parsed(words).info_name


def test_the_parser_would_refuse_an_option_that_is_none():
    with pytest.raises(Exception, match="No such option"):
        parsed(["llmopt", "gate", "a", "b", "--metrics", "x"])


def test_the_workflow_gives_the_action_only_inputs_that_it_has():
    inputs = yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]
    (used,) = [s for s in FILES[".github/workflows/gate.yml"]["jobs"]["gate"]["steps"] if "llmopt" in s.get("uses", "")]
    assert set(used["with"]) <= set(inputs)
    assert {name for name, one in inputs.items() if one.get("required")} <= set(used["with"])
    parsed(["llmopt", "gate", "a", "b", *shlex.split(used["with"]["args"])])


def test_every_input_of_the_action_is_on_the_page():
    inputs = yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]
    assert [name for name in inputs if f"`{name}`" not in PAGE] == []
