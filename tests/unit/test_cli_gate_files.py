"""The files of ``llmopt gate``: no verdict is lost with one, and none of an earlier gate is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmopt.cli import app, gate_files
from llmopt.core.errors import StoreError
from llmopt.report import gate as report
from llmopt.report.page import page
from tests.unit.gate.blocks import blocks
from tests.unit.test_gate_document import found

FILES = ("--markdown", "gate.md", "--junit", "gate.xml", "--html", "gate.html")


@pytest.fixture
def nobody(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    """A gate that ends with an error: there are no such sides."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["gate", "nothing", "nowhere", *arguments])
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.count("hint: ") == 1
        return done.stderr

    return call


@pytest.fixture
def verdict() -> dict[str, Any]:
    return found(blocks(8, slower=0.06))


def test_files_of_an_earlier_gate_do_not_stay_when_this_one_ends_with_an_error(nobody, verdict):  # type: ignore[no-untyped-def]
    Path("gate.md").write_text(report.markdown(verdict))
    Path("gate.xml").write_text(report.junit(verdict))
    Path("gate.html").write_bytes(page(verdict))
    nobody(*FILES)
    assert not list(Path().glob("gate.*"))


def test_files_of_somebody_else_are_not_removed(nobody):  # type: ignore[no-untyped-def]
    Path("gate.md").write_text("# Notes")
    Path("gate.xml").write_text("<testsuites name='theirs'/>")
    nobody(*FILES[:4])
    assert (Path("gate.md").read_text(), Path("gate.xml").exists()) == ("# Notes", True)


@pytest.mark.parametrize("flag", ["--markdown", "--junit", "--html"])
def test_a_place_that_cannot_have_the_file_is_refused_at_the_start(nobody, flag):  # type: ignore[no-untyped-def]
    Path("folder").mkdir()
    assert f"{flag} folder is a folder" in nobody(flag, "folder")
    assert "there is no folder missing" in nobody(flag, "missing/gate")


def test_two_reports_in_one_file_are_refused(nobody):  # type: ignore[no-untyped-def]
    assert "both name" in nobody("--markdown", "gate", "--junit", "./gate")


def test_a_file_that_cannot_be_written_loses_neither_verdict_nor_the_others(tmp_path, verdict, capsys):  # type: ignore[no-untyped-def]
    (tmp_path / "gate.md").mkdir()  # somebody was faster
    with pytest.raises(StoreError, match=r"gate\.md"):
        gate_files.show(verdict, tmp_path / "gate.md", tmp_path / "gate.xml", None, False)
    assert "REGRESSION: tpot_p50" in capsys.readouterr().out
    assert (tmp_path / "gate.xml").exists()


def test_a_reader_who_went_away_loses_no_file(tmp_path, verdict, monkeypatch):  # type: ignore[no-untyped-def]
    def gone(_: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(gate_files, "print_json", gone)
    with pytest.raises(BrokenPipeError):
        gate_files.show(verdict, tmp_path / "gate.md", None, None, True)
    assert (tmp_path / "gate.md").exists()
