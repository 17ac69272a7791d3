"""``llmopt baseline`` as it is typed, where a baseline is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmopt.cli import app
from llmopt.gate.baselines import set_baseline
from tests.unit.gate.blocks import GOOD
from tests.unit.make import run as make_run


@pytest.fixture
def baseline(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    """The command, in a folder with one good baseline, an empty and a damaged one."""
    monkeypatch.chdir(tmp_path)
    for name in ("good", "torn"):
        (file,) = set_baseline(Path("results"), name, [(make_run(run_id="a"), GOOD)])
    file.write_text("{")
    Path("results/baselines/empty").mkdir()
    return lambda *arguments: CliRunner().invoke(app, ["baseline", *arguments])


def test_one_that_cannot_be_read_hides_no_other(baseline):  # type: ignore[no-untyped-def]
    done = baseline("list", "--json")
    assert done.exit_code == 0, done.output
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert (rows["good"]["runs"], rows["good"]["reason"]) == (1, None)
    assert (rows["torn"]["runs"], "no whole baseline" in rows["torn"]["reason"]) == (None, True)
    assert "has no file" in rows["empty"]["reason"]
    assert set(rows["torn"]) == set(rows["good"])


def test_the_list_says_what_is_wrong(baseline):  # type: ignore[no-untyped-def]
    lines = baseline("list").stdout.splitlines()
    assert any(line.startswith("torn: ") and "no whole baseline" in line for line in lines)
    assert any("good" in line and "1" in line for line in lines)


def test_an_empty_one_is_not_said_to_be_missing(baseline):  # type: ignore[no-untyped-def]
    done = baseline("show", "empty")
    assert (done.exit_code, "has no file" in done.stderr) == (1, True)
