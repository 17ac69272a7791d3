import gzip
import json
from dataclasses import replace

import pytest

from llmopt.core.domain import Doubt, Verdict
from llmopt.core.errors import StoreError
from llmopt.core.run_index import load_runs
from llmopt.core.store import frame, load_series, load_traces, save_run
from unit.make import MACHINE, closed_loop, run

DOUBT = Doubt(code="errors", severity="invalid", message="m", remedy="r")


def test_a_run_comes_back_as_it_was(tmp_path):
    saved = run(verdict=Verdict.of((DOUBT,)))
    save_run(tmp_path, saved, [])
    assert load_runs(tmp_path) == [saved]


def test_the_timelines_come_back_as_they_were(tmp_path):
    traces = closed_loop(8)
    assert load_traces(save_run(tmp_path, run(), traces)) == traces


def test_one_record_is_named_by_its_file(tmp_path):
    path = save_run(tmp_path, run(), [])
    save_run(tmp_path, run("other"), [])
    assert len(load_runs(path)) == 1


def test_the_machine_lies_beside_its_runs(tmp_path):
    folder = save_run(tmp_path, run(), []).parent
    assert json.loads((folder / "machine.json").read_text())["cpu"] == MACHINE.cpu
    assert folder.name == "some-cpu-9000-abc123"


def test_runs_are_ordered_by_their_start(tmp_path):
    late, early = run("late", started_at="2025-02-01"), run("early", started_at="2025-01-01")
    save_run(tmp_path, late, [])
    save_run(tmp_path, early, [])
    assert load_runs(tmp_path) == [early, late]


def test_runs_of_another_machine_are_left_out_on_request(tmp_path):
    other = replace(MACHINE, fingerprint="other")
    save_run(tmp_path, run(), [])
    save_run(tmp_path, run("there", machine=other), [])
    assert [r.machine for r in load_runs(tmp_path, machine=other)] == [other]


def test_no_results_is_an_error_with_a_hint(tmp_path):
    with pytest.raises(StoreError, match="no results at") as caught:
        load_runs(tmp_path / "nowhere")
    assert "llmopt bench" in caught.value.hint


def test_json_that_is_no_run_is_passed_over(tmp_path):
    save_run(tmp_path, run(), [])
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / "list.json").write_text("[1, 2]")
    assert len(load_runs(tmp_path)) == 1


def damaged_traces(tmp_path, change):
    record = save_run(tmp_path, run(), closed_loop(8))
    file = record.with_name(record.stem + ".traces.json.gz")
    file.write_bytes(change(file.read_bytes()))
    return record


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: b"not gzip at all",
        lambda data: data[: len(data) // 2],
        lambda data: data[:12] + b"\xff" * 40 + data[52:],
        lambda data: data[:-5] + b"\x00" * 5,
        lambda data: gzip.compress(b'{"no": "list"}'),
    ],
    ids=["empty", "no gzip", "cut", "overwritten", "wrong sum", "other json"],
)
def test_damaged_timelines_are_a_store_error(tmp_path, change):
    record = damaged_traces(tmp_path, change)
    with pytest.raises(StoreError, match="timelines"):
        load_traces(record)


def test_infinity_never_reaches_a_record(tmp_path):
    path = save_run(tmp_path, run(metrics={"output_tps": float("inf")}), [])
    assert json.loads(path.read_text())["metrics"]["output_tps"] is None


def test_the_frame_has_one_row_per_run_and_dotted_columns():
    table = frame([run(throughput=1.0), run(throughput=2.0)])
    assert list(table["metrics.output_tps"]) == [1.0, 2.0]
    assert "metrics.ttft_s.p50" in table.columns


def test_what_was_sampled_beside_a_run_comes_back(tmp_path):
    path = save_run(tmp_path, run(), [], {"t_ns": [1, 2], "pss_bytes": [5, None]})
    assert load_series(path) == {"t_ns": [1, 2], "pss_bytes": [5, None]}
    assert load_series(save_run(tmp_path, run("other"), [])) == {}


def test_samples_that_were_cut_are_an_error(tmp_path):
    path = save_run(tmp_path, run(), [], {"t_ns": [1]})
    file = path.with_name(path.stem + ".telemetry.json.gz")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(StoreError, match="cannot be read"):
        load_series(path)
