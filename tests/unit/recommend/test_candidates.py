import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.core.domain import Doubt, Verdict
from llmopt.core.errors import Inconclusive
from llmopt.recommend.candidates import comparable
from llmopt.recommend.rows import curve_point
from unit.make import MACHINE, QUALITY, WORKLOAD, curve, metrics, run

INVALID = Verdict.of((Doubt(code="errors", severity="invalid", message="it failed", remedy="r"),))


def repeats(*throughputs, **fields):
    return [run(throughput=t, started_at=f"2025-01-{day:02}", **fields) for day, t in enumerate(throughputs, 1)]


def only(runs):
    (found,) = comparable(runs).candidates
    return found


def codes(candidate):
    return [d.code for d in candidate.verdict.reasons]


def test_no_run_is_inconclusive():
    with pytest.raises(Inconclusive, match="no run") as caught:
        comparable([])
    assert "llmopt bench" in caught.value.hint


def test_repeats_of_a_case_are_one_candidate():
    assert only(repeats(100, 101, 102)).runs == 3


def test_figures_are_medians_over_runs():
    found = only(repeats(100, 108, 101))
    assert found.value("output_tps") == 101


def test_medians_reach_into_distributions():
    runs = [run(metrics=metrics(latency_s=s), run_id=str(s)) for s in (1.0, 2.0, 9.0)]
    assert only(runs).value("e2e", "p50") == 2.0


def test_unknown_in_one_run_is_unknown():
    runs = [run(run_id="a"), run(run_id="b", metrics=metrics() | {"ttft_s": None})]
    assert only(runs[::-1]).value("ttft", "p50") is None


def test_a_run_that_was_never_steady_leaves_the_rate_to_its_repeats():
    unsteady = Verdict.of((Doubt(code="never_steady", severity="suspect", message="m", remedy="r"),))
    runs = [*repeats(100, 110, 120), run(metrics=metrics() | {"output_tps": None}, verdict=unsteady)]
    found = only(runs)
    assert found.value("output_tps") == 110
    assert found.intervals["output_tps"]["over"] == "runs"
    assert "never_steady" in codes(found)


def test_a_rate_that_no_run_has_is_unknown():
    assert only([run(metrics=metrics() | {"output_tps": None})] * 3).value("output_tps") is None


def test_memory_is_the_highest_peak_of_all_runs():
    runs = [run(metrics=metrics(memory=m)) for m in (5.0, 9.0, None, 7.0)]
    assert only(runs).value("peak_rss_bytes") == 9.0


def test_only_runs_of_the_newest_engine_version_count():
    old = run(throughput=1, started_at="2025-01-01", backend={"name": "hf", "version": "1.0"})
    new = run(throughput=9, started_at="2025-02-01", backend={"name": "hf", "version": "2.0"})
    found = comparable([old, new])
    (one,) = found.candidates
    assert (one.runs, one.value("output_tps")) == (1, 9)
    assert found.left_out == {"an older version of the engine": 1}


def test_quality_becomes_a_metric():
    found = only([run()])
    assert found.value("kl") == QUALITY["kl_mean"]
    assert found.value("top1") == QUALITY["top1_agreement"]


def test_without_quality_its_metrics_are_unknown():
    assert only([run(quality=None)]).value("kl") is None


def test_three_runs_give_an_interval_over_runs():
    found = only(repeats(100, 104, 102)).intervals["output_tps"]
    half = 4.303 * 2 / math.sqrt(3)
    assert found == {"low": pytest.approx(102 - half), "high": pytest.approx(102 + half), "over": "runs"}


def test_two_runs_keep_the_widest_of_their_own_intervals():
    found = only(repeats(100, 104)).intervals["output_tps"]
    assert found == {"low": pytest.approx(99), "high": pytest.approx(105.04), "over": "blocks"}


def test_an_interval_holds_the_figure_that_it_is_printed_beside():
    found = only(repeats(*[1] * 4, *[100] * 3))
    assert found.intervals["output_tps"]["low"] <= found.value("output_tps") <= found.intervals["output_tps"]["high"]


def test_a_peak_is_the_highest_that_was_seen_and_has_no_interval():
    found = only([run(metrics=metrics(memory=m)) for m in (1.0, 1.0, 1.0, 1.0, 1.0, 9.0)])
    assert (found.value("peak_rss_bytes"), found.intervals["peak_rss_bytes"]) == (9.0, None)


def test_no_failure_in_three_runs_is_no_proof_that_there_are_none():
    found = only([run(metrics=metrics(t) | {"requests_ok": 64, "requests_failed": 0}) for t in (100, 101, 102)])
    bounds = found.interval("error_rate")
    assert (bounds["low"], bounds["over"]) == (0.0, "requests (Wilson)")
    assert bounds["high"] == pytest.approx(0.0196, abs=1e-4)


def failing(*shares, **figures):
    return only([run(run_id=str(n), metrics=metrics() | {"error_rate": s} | figures) for n, s in enumerate(shares)])


def test_a_run_that_failed_is_not_hidden_by_the_others():
    counts = {"requests_ok": 64, "requests_failed": 0}
    found = failing(0.0, 0.0, 0.3, **counts)
    assert found.value("error_rate") == pytest.approx(0.1)
    bounds = found.interval("error_rate")
    assert bounds["low"] < 0.1 < bounds["high"]


def test_shares_are_weighed_by_their_requests_where_all_runs_tell_them():
    big = run(run_id="a", metrics=metrics() | {"error_rate": 0.5, "requests_ok": 90, "requests_failed": 90})
    small = run(run_id="b", metrics=metrics() | {"error_rate": 0.0, "requests_ok": 20, "requests_failed": 0})
    assert only([big, small]).value("error_rate") == pytest.approx(0.45)
    assert failing(0.5, 0.0).value("error_rate") == 0.25


def test_memory_of_an_invalid_load_on_the_way_up_does_not_count():
    low = run(metrics=metrics(memory=7.0), verdict=INVALID, workload=WORKLOAD | {"concurrency": 1}, run_id="a")
    (found,) = comparable([low, run(metrics=metrics(memory=1.0))]).candidates
    assert found.value_at(1, "peak_rss_bytes") == 1.0
    assert found.value_at(0, "peak_rss_bytes") == 7.0


def test_runs_that_disagree_are_noisy():
    assert codes(only(repeats(100, 115))) == ["machine_noisy"]
    assert codes(only(repeats(100, 105))) == []


def test_invalid_runs_are_left_out_of_the_figures():
    found = only([*repeats(100, 101), run(throughput=5000, verdict=INVALID)])
    assert (found.runs, found.value("output_tps"), found.verdict.status) == (2, 100.5, "valid")


def test_a_case_of_invalid_runs_alone_is_invalid():
    assert only([run(verdict=INVALID)]).verdict.status == "invalid"


def test_each_reason_is_named_once():
    doubt = Verdict.of((Doubt(code="too_few_samples", severity="suspect", message="m", remedy="r"),))
    assert codes(only(repeats(100, 101, verdict=doubt))) == ["too_few_samples"]


@pytest.mark.parametrize(
    "other",
    [
        {"workload": WORKLOAD | {"input_tokens": 8}},
        {"workload": WORKLOAD | {"load": "open", "rate": 8.0}},
        {"measuring_revision": 1},
        {"machine": replace(MACHINE, fingerprint="other")},
        {"artifact": run().artifact | {"base_key": "other"}},
    ],
    ids=["workload", "loop", "definitions", "machine", "model"],
)
def test_runs_of_another_context_are_left_out_and_counted(other):
    old = run("old", started_at="2024-01-01", **other)
    found = comparable([old, run("new")])
    assert [c.label for c in found.candidates] == ["new on hf"]
    assert sum(found.left_out.values()) == 1


def test_an_imported_run_does_not_decide_the_context():
    imported = run(
        run_id="imported-c0ffee", machine=replace(MACHINE, fingerprint="imported-x"), started_at="2025-06-01"
    )
    found = comparable([run(run_id="ours", started_at="2025-01-01"), imported])
    assert found.machine["fingerprint"] == MACHINE.fingerprint


def test_the_newest_run_decides_the_context():
    new = run("new", started_at="2026-01-01", workload=WORKLOAD | {"input_tokens": 8})
    assert comparable([new, run("old")]).workload["input_tokens"] == 8


def test_runs_at_several_loads_are_points_of_one_candidate():
    found = only(curve(u1=(50, 0.1), u8=(200, 0.2), u4=(150, 0.1)))
    assert [p.level for p in found.points] == [1, 4, 8]


def test_how_long_a_run_lasted_and_its_seed_make_it_no_other_point():
    longer = WORKLOAD | {"requests": 500, "seed": 7, "warmup_requests": 8, "until": "ttft_p50±5%"}
    assert [p.runs for p in only([run(), run(workload=longer, run_id="other")]).points] == [2]


def test_the_rates_of_a_sweep_are_one_curve():
    runs = [run(workload=WORKLOAD | {"load": "open", "rate": r, "requests": round(99 * r)}) for r in (4.0, 2.0)]
    assert [p.load for p in only(runs).points] == ["2 requests/s", "4 requests/s"]


def test_other_options_of_the_server_are_another_candidate_that_says_so():
    runs = [run(serve={"backend": "hf", "max_num_seqs": n}) for n in (4, 8)]
    assert [c.label for c in comparable(runs).candidates] == [
        "nf4-dq on hf, max_num_seqs 4",
        "nf4-dq on hf, max_num_seqs 8",
    ]


def test_an_option_that_is_left_to_the_engine_makes_no_other_candidate():
    assert only([run(), run(serve={"backend": "hf", "block_size": None})]).runs == 2


def test_forced_runs_of_another_context_are_candidates_that_say_so():
    other = run("old", workload=WORKLOAD | {"load": "open", "rate": 2.0}, started_at="2024-01-01")
    found = comparable([other, run("old")], force=True)
    assert len(found.candidates) == 2
    assert found.left_out == {}
    assert found.forced
    assert "loop open" in " ".join(c.label for c in found.candidates)


def test_counts_of_other_slos_are_not_mixed():
    def counted(share, slo, run_id):
        workload = WORKLOAD | {"slos": [slo]}
        return run(
            run_id=run_id,
            workload=workload,
            metrics=metrics() | {"slo_attainment": share},
            started_at=f"2025-01-0{run_id}",
        )

    found = only([counted(0.2, "ttft<1ms", "1"), counted(0.9, "ttft<1s", "2")])
    assert found.value("slo_attainment") is None
    assert found.value("output_tps") == 100


def test_a_measurement_takes_the_place_of_an_estimate():
    found = only([run(throughput=900, evidence="estimated", started_at="2026-01-01"), run(throughput=100)])
    assert (found.evidence, found.value("output_tps")) == ("measured", 100)


FIGURE = st.one_of(st.none(), st.floats(0.1, 1e6))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([1, 4]), FIGURE, FIGURE), min_size=1, max_size=12))
def test_figures_are_those_of_the_runs_one_by_one(rows):
    """The medians of columns against the definition: steady rates of the runs that have one, others only where all do."""
    runs = [
        run(name, run_id=f"{n:02}", intervals={}, workload=WORKLOAD | {"concurrency": users},
            metrics=metrics() | {"output_tps": rate, "load_s": load})
        for n, (name, users, rate, load) in enumerate(rows)
    ]  # fmt: skip
    found = {
        (c.artifact["quantization"], p.level): (p.value("output_tps"), p.value("load_s"))
        for c in comparable(runs).candidates
        for p in c.points
    }
    for key in {(name, users) for name, users, *_ in rows}:
        rates = [r for name, users, r, _ in rows if (name, users) == key and r is not None]
        loads = [x for name, users, _, x in rows if (name, users) == key]
        wanted = statistics.median(rates) if rates else None, None if None in loads else statistics.median(loads)
        assert found[key] == wanted


def test_many_runs_are_not_noisy_for_being_many():
    assert codes(only([run(throughput=100 + (n % 7) - 3, run_id=str(n)) for n in range(90)])) == []


def test_a_share_of_requests_keeps_how_its_interval_was_found():
    known = {"error_rate": {"low": 0.0, "high": 0.058, "over": "requests (Wilson)"}}
    for count in (1, 3):
        runs = [run(intervals=known, run_id=str(n)) for n in range(count)]
        assert only(runs).interval("error_rate") == known["error_rate"]


def test_quality_is_told_at_every_load_whichever_run_holds_it():
    runs = [
        run(workload=WORKLOAD | {"concurrency": n}, quality=QUALITY if n == 1 else None, run_id=str(n)) for n in (1, 4)
    ]
    found = only(runs)
    assert [curve_point(found, place)["metrics"]["kl"] for place in (0, 1)] == [QUALITY["kl_mean"]] * 2
