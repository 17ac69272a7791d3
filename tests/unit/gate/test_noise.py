"""Noise of a machine: what blocks of one thing against itself say of it, and what it asks of a gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmopt.core.errors import UsageError
from llmopt.core.machine import this_machine
from llmopt.gate import noise
from llmopt.gate.design import make_design
from llmopt.gate.noise import Kept, Noise, blocks_to_find, keep, noise_between_sessions, noise_of, share_of_error
from llmopt.gate.thresholds import parse_thresholds
from llmopt.pipeline.calibrating import plan
from llmopt.report.gate import print_noise
from tests.unit.gate.blocks import blocks
from tests.unit.make import run as make_run

TPOT, TTFT, OUTPUT = parse_thresholds(["tpot_p50:2%:3%", "ttft_p50:2%:3%", "output_tps:2%:3%"])
(BYTES,) = parse_thresholds(["peak_rss_bytes:2%:3%"])


def known(metric: str, **rest: Any) -> Noise:
    values = {"block": 0.01, "session": 0.02, "run": 0.01, "blocks": 8, "sessions": 32}
    return Noise(metric=metric, **values | rest)


def calibrated(results: Path, *found: Noise, case_key: str = "a" * 16) -> None:
    keep(results, Kept(case_key=case_key, label="one", machine=this_machine().fingerprint, measured_at="2026-11-22T00:00:00+00:00",
                       block_s=10.0, noise=list(found)))  # fmt: skip


def between(results: Path, threshold: Any = TPOT, case_key: str = "a" * 16) -> Any:
    return noise_between_sessions(results, make_run(case_key=case_key, machine=this_machine()), threshold)


# --- between sessions -----------------------------------------------------------------------------------------------


def test_noise_of_a_run_is_part_of_that_between_sessions(tmp_path: Path) -> None:
    calibrated(tmp_path, known("tpot_p50", session=0.03, run=0.04))
    found = between(tmp_path)
    assert (found.spread, found.freedom, found.source) == (pytest.approx(0.05), 31, "calibrated")


def test_no_noise_between_sessions_is_not_believed_of_a_clock(tmp_path: Path) -> None:
    calibrated(tmp_path, known("tpot_p50", session=0.0, run=None), known("peak_rss_bytes", session=0.0, run=None))
    assert between(tmp_path).spread == noise.LEAST_SESSION
    assert between(tmp_path, BYTES).spread == noise.LEAST_SPREAD


def test_another_case_is_judged_by_the_largest_noise(tmp_path: Path) -> None:
    calibrated(tmp_path, known("tpot_p50", session=0.03, run=0.0), case_key="b" * 16)
    calibrated(tmp_path, known("tpot_p50", session=0.02, run=0.05), case_key="c" * 16)
    assert between(tmp_path).spread == pytest.approx((0.02**2 + 0.05**2) ** 0.5)


def test_what_was_found_in_one_session_is_not_known_between_them(tmp_path: Path) -> None:
    found = noise_of(blocks(8), TPOT)  # of a URL: nobody started its server
    assert (found.session, found.sessions) == (None, 1)
    calibrated(tmp_path, found)
    assert between(tmp_path).source == "assumed"


def test_what_is_not_known_between_starts_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"metric": "tpot_p50", "block": 0.01, "session": None, "run": 0.02, "blocks": 8, "sessions": 1}
    print_noise({"cases": [{"label": "one", "block_s": 1.0, "noise": [row], "file": "f"}]}, Console(width=120))
    assert "–" in capsys.readouterr().out


# --- the plan -------------------------------------------------------------------------------------------------------


def test_metrics_beside_the_primary_one_share_half_of_the_error() -> None:
    assert [share_of_error(place, 3) for place in range(3)] == [0.5, 0.25, 0.25]
    assert share_of_error(0, 1) == 1


def test_a_plan_asks_more_blocks_of_the_metrics_that_share(tmp_path: Path) -> None:
    calibrated(tmp_path, *(known(t.name, block=0.03) for t in (TPOT, TTFT, OUTPUT)))
    first, second, _ = plan(tmp_path, [TPOT, TTFT, OUTPUT], "5%", 0.99)["cases"][0]["thresholds"]
    alone = plan(tmp_path, [TPOT], "5%", 0.99)["cases"][0]["thresholds"][0]
    assert alone["blocks"] < first["blocks"] < second["blocks"]
    assert second["blocks"] == blocks_to_find(0.05, TTFT, 0.03, 0.01 / 4)


def test_what_was_not_calibrated_has_no_place_in_a_plan(tmp_path: Path) -> None:
    calibrated(tmp_path, known("ttft_p50", block=0.03))
    (row,) = plan(tmp_path, [TPOT, TTFT], "5%", 0.99)["cases"][0]["thresholds"]
    assert row["blocks"] == blocks_to_find(0.05, TTFT, 0.03, 0.01)


@pytest.mark.parametrize("confidence", [2.0, 1.0, 0.0, float("nan")])
def test_a_confidence_that_is_none_is_refused(tmp_path: Path, confidence: float) -> None:
    calibrated(tmp_path, known("tpot_p50"))
    with pytest.raises(UsageError) as caught:
        plan(tmp_path, [TPOT], "", confidence)
    with pytest.raises(UsageError) as as_in_a_gate:
        make_design(5, confidence, 0)
    assert str(caught.value) == str(as_in_a_gate.value)
