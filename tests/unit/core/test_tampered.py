"""Records that somebody wrote into: each is skipped and named, whatever part of it is wrong, and the others are ranked."""

import json

import pytest

from llmopt.core import run_index
from llmopt.core.run_index import read_store
from llmopt.core.store import save_run
from llmopt.recommend.candidates import comparable
from unit.make import QUALITY, WORKLOAD, distribution, metrics, run


def written(tmp_path, change):
    """A good record beside one with these parts; the reasons for which files were skipped."""
    save_run(tmp_path, run("good", throughput=3.0), [])
    file = save_run(tmp_path, run("bad"), [])
    file.write_bytes(
        change if isinstance(change, bytes) else json.dumps(json.loads(file.read_text()) | change).encode()
    )
    stored = read_store(tmp_path)
    assert stored.table.column("output_tps").tolist() == [3.0]
    (skipped,) = stored.skipped
    assert skipped.file.endswith(file.name)
    return skipped.reason


@pytest.mark.parametrize(
    "change",
    [
        {"telemetry": "oops"},
        {"machine": {"fingerprint": "abc123"}},
        {"workload": WORKLOAD | {"concurrency": "many"}},
        {"workload": WORKLOAD | {"slos": [1, "a"]}},
        {"workload": WORKLOAD | {"load": ["x"]}},
        {"workload": WORKLOAD | {"concurrency": 10**400}},
        {"serve": {}},
        {"serve": {"backend": None}},
        {"artifact": {}},
        {"artifact": {"quantization": "nf4", "bits_per_weight": "four"}},
        {"quality": QUALITY | {"kl_mean_interval": "zz"}},
        {"quality": QUALITY | {"tasks": [{"value": 1}]}},
        {"quality": QUALITY | {"tasks": [{"task": "a", "value": "x"}]}},
        {"memory": {"total_bytes": "huge"}},
        {"client": {"ceiling": 3}},
        {"llmopt_version": 7},
        {"run_id": "../../etc/passwd"},
        {"run_id": "\ud800"},
        {"race": {"round": "first"}},
        {"started_at": "yesterday"},
        {"started_at": "20250101"},
        {"started_at": "9999-01-01"},
    ],
    ids=lambda change: json.dumps(change)[:40],
)
def test_a_part_of_another_type_is_named(tmp_path, change):
    assert written(tmp_path, change)


@pytest.mark.parametrize(
    "data",
    [b'{"run_id": "\xff\xfe"}', b"[" * 200_000, b'{"run_id": ' + b"[" * 200_000],
    ids=["no text", "deep", "deep run"],
)
def test_bytes_that_are_no_document_are_named(tmp_path, data):
    assert "not a whole run record" in written(tmp_path, data)


def test_bytes_that_are_no_text_are_found_in_a_part_that_nobody_asks_for(tmp_path):
    file = save_run(tmp_path, run("x", definitions={"word": "WORD"}), [])
    file.write_bytes(file.read_bytes().replace(b"WORD", b"\xff\xfe"))
    assert len(read_store(tmp_path).skipped) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"quality": QUALITY | {"kl_mean": -5.0}},
        {"metrics": metrics() | {"ttft_s": distribution(0.1) | {"p50": 9.0, "p95": 0.001}}},
        {"metrics": metrics() | {"ttft_s": distribution(0.1) | {"min": 5.0}}},
        {"workload": WORKLOAD | {"concurrency": -3}},
        {"workload": WORKLOAD | {"concurrency": 0}},
        {"metrics": metrics() | {"cache_hit_rate": 7.0}},
        {"metrics": metrics(1e300)},
        {"intervals": {"output_tps": {"low": 9e9, "high": -5}}},
        {"intervals": {"output_tps": {"low": -7, "high": 200}}},
    ],
    ids=lambda change: json.dumps(change)[-40:],
)
def test_figures_that_no_run_can_have_are_named(tmp_path, change):
    assert "which cannot be" in written(tmp_path, change)


def test_an_interval_of_quality_that_cannot_be_is_named(tmp_path):
    assert "an interval of its quality" in written(tmp_path, {"quality": QUALITY | {"kl_mean_interval": [-7, 1]}})


@pytest.mark.parametrize(("low", "told"), [(99.0, 99.0), (100.5, 100.5), (1.0, None)])
def test_an_interval_that_leaves_its_figure_out_says_nothing_of_it(tmp_path, low, told):
    save_run(tmp_path, run(throughput=100.0, intervals={"output_tps": {"low": low, "high": low + 1}}), [])
    (found,) = comparable(read_store(tmp_path).table).candidates
    assert (found.interval("output_tps") or {"low": None})["low"] == told


def test_a_run_whose_name_was_taken_out_is_named(tmp_path):
    file = save_run(tmp_path, run(), [])
    document = json.loads(file.read_text())
    del document["run_id"]
    file.write_text(json.dumps(document))
    (skipped,) = read_store(tmp_path).skipped
    assert "run_id" in skipped.reason


def test_a_link_to_itself_is_named_and_ends_nothing(tmp_path):
    save_run(tmp_path, run(), [])
    (tmp_path / "loop.json").symlink_to("loop.json")
    stored = read_store(tmp_path)
    assert (len(stored.table), [s.file for s in stored.skipped]) == (1, ["loop.json"])


def test_a_link_to_nothing_is_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(run_index, "WORTH_WRITING", (1, 1))
    save_run(tmp_path, run(), [])
    (tmp_path / "gone.json").symlink_to("nothing.json")
    for _ in ("without an index", "with it"):
        stored = read_store(tmp_path)
        assert (len(stored.table), stored.skipped) == (1, ())
    (tmp_path / "nothing.json").write_text("{")
    assert {s.file for s in read_store(tmp_path).skipped} == {"gone.json", "nothing.json"}


def test_kl_may_be_rounded_below_nothing(tmp_path):
    save_run(tmp_path, run(quality=QUALITY | {"kl_mean": -1e-9, "kl_mean_interval": [-1e-8, 1e-8]}), [])
    assert read_store(tmp_path).skipped == ()


def test_a_record_of_another_schema_is_refused_by_name_whatever_it_holds(tmp_path):
    assert written(tmp_path, {"schema": 2, "metrics": "elsewhere"}) == "it has schema 2, and this llmopt reads 1"
