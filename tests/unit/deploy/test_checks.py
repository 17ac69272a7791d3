from __future__ import annotations

from pathlib import Path

import pytest

from llmopt.deploy import checks
from llmopt.deploy.checks import Check, check, interpolated


def only(folder: Path, name: str, text: str) -> list[Check]:
    (folder / name).write_text(text)
    return check(folder, "shell")


def test_a_program_that_is_not_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(checks, "BESIDE_PATH", "/nowhere")
    (found,) = only(tmp_path, "nginx.conf", "")
    assert (found.status, found.why) == ("skipped", "nginx is not here (Debian: nginx-light)")


def test_nginx_is_found_where_debian_has_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nginx"
    program.write_text("#!/bin/sh\necho syntax is ok\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setattr(checks, "BESIDE_PATH", str(tmp_path))
    (found,) = only(tmp_path, "nginx.conf", "")
    assert (found.status, found.why) == ("passed", "syntax is ok")


def test_a_script_that_no_shell_reads_fails(tmp_path: Path) -> None:
    (found,) = only(tmp_path, "run.sh", "if true\n")
    assert found.status == "failed"
    assert found.name == "sh -n run.sh"


def test_the_deployment_before_this_one_is_not_checked_again(tmp_path: Path) -> None:
    (tmp_path / "previous").mkdir()
    (tmp_path / "previous" / "run.sh").write_text("if true\n")
    assert check(tmp_path, "shell") == []


def test_a_program_that_does_not_end_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LIMIT_S", 0.05)
    end, told = checks.run(["sleep", "10"])
    assert end
    assert "timed out" in told


def test_a_dashboard_without_panels_fails(tmp_path: Path) -> None:
    (found,) = only(tmp_path, "llmopt.json", "{}")
    assert found.status == "failed"


@pytest.mark.parametrize(
    ("text", "seen"), [("$$HOME", "$HOME"), ("${A:-b}", "b"), ("${A:?set it}", "/set"), ("a $$${A:-}b", "a $b")]
)
def test_variables_are_put_in_as_compose_does(text: str, seen: str) -> None:
    assert interpolated({"a": [text]}) == {"a": [seen]}
