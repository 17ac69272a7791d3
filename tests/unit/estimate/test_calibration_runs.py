"""Which records teach, and what is taken from them."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from llmopt import demo
from llmopt.cli import app
from llmopt.core.domain import Quantization, ServeOptions, Verdict, Workload
from llmopt.core.machine import this_machine
from llmopt.core.store import save_run
from llmopt.estimate.calibration_runs import observations
from llmopt.estimate.peak import this_peak
from llmopt.estimate.prior import best_of, prior
from unit import make

SERVE = {"backend": "hf", "max_num_seqs": 4}
ARTIFACT = {"quantization": "bf16", "method": "none", "format": "plain", "path": str(demo.MODEL), "base_key": "base"}


def run(users=4, itl_s=0.02, **fields):
    metrics = make.metrics(throughput=users / itl_s * 0.9) | {"tpot_s": make.distribution(itl_s), "cache_hit_rate": 0.0}
    fields = {"artifact": ARTIFACT, "serve": SERVE, "metrics": metrics, "machine": this_machine()} | fields
    workload = make.WORKLOAD | {"concurrency": users} | fields.pop("workload", {})
    key = f"case {users} {workload}"
    return replace(
        make.run("bf16", workload=workload, case_key=key, **fields),
        run_id=f"run-{users}-{abs(hash(str(fields) + key))}",
    )


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))
    return tmp_path / "results"


def seen(place, *runs):
    for one in runs:
        save_run(place, one, [])
    return observations([place], this_peak())


def test_a_run_of_this_machine_is_an_observation(place):
    (found,) = seen(place, run())
    assert found.group.backend == "hf"
    assert found.demand.batch == 4
    assert found.measured == {"itl_s": 0.02, "output_tps": pytest.approx(180), "ttft_s": pytest.approx(0.1)}


@pytest.mark.parametrize(
    "other",
    [
        {"machine": replace(this_machine(), fingerprint="another")},
        {"verdict": Verdict(status="invalid")},
        {"artifact": ARTIFACT | {"path": "/gone"}},
        {"workload": {"turns": 3}},
        {"workload": {"prefix_tokens": 32}},
        {"workload": {"load": "trace"}},
    ],
)
def test_what_says_nothing_of_the_question_is_passed_over(place, other):
    assert seen(place, run(**other)) == []


def test_users_without_a_slot_say_nothing_of_ttft(place):
    (found,) = seen(place, run(users=16))
    assert found.demand.batch == 4
    assert "ttft_s" not in found.measured


def test_an_open_loop_is_known_by_its_requests_in_flight(place):
    metrics = run().metrics | {"requests_per_s": 3.0, "e2e_s": make.distribution(1.0)}
    (found,) = seen(place, run(workload={"load": "open", "rate": 3.0}, metrics=metrics))
    assert found.demand.batch == 3
    assert set(found.measured) == {"itl_s"}


def test_a_damaged_record_is_passed_over(place):
    seen(place, run())
    folder = next(place.glob("*/machine.json")).parent
    (folder / "20261121T000000-half.json").write_text('{"run_id": ')
    assert len(observations([place], this_peak())) == 1


def estimate(*arguments):
    found = CliRunner().invoke(app, ["estimate", "builtin", *map(str, arguments), "--json"])
    assert found.exit_code == 0, found.stderr
    return json.loads(found.stdout)["speed"]


ASKED = ("--backend", "hf", "--input-tokens", 64, "--output-tokens", 32, "--batch", 4)


def test_estimates_follow_the_runs_and_say_how_far_off_they_are(place):
    before = estimate(*ASKED)
    seen(place, *(run(users, itl_s=0.2 + 0.01 * users) for users in (1, 2, 3, 4)))
    after = estimate(*ASKED)
    assert before["calibration"]["of_this_engine"] == 0
    assert after["calibration"]["of_this_engine"] == 4
    assert after["calibration"]["left_out_error"]["itl_s"] < 0.1
    assert after["itl_s"]["value"] == pytest.approx(0.24, rel=0.15)
    assert after["itl_s"]["high"] / after["itl_s"]["low"] < before["itl_s"]["high"] / before["itl_s"]["low"]


def test_results_elsewhere_are_named(place):
    seen(place, run())
    assert estimate(*ASKED, "--results", place)["calibration"]["configurations"] == 1
    empty = place.parent / "empty"
    empty.mkdir()
    assert estimate(*ASKED, "--results", empty)["calibration"]["configurations"] == 0


def test_a_search_is_told_what_to_expect(place):
    bf16 = Quantization(name="bf16", method="none", format="plain", bits=16)
    questions = [
        (bf16, ServeOptions(backend=backend, max_num_seqs=8), Workload(concurrency=users))
        for backend in ("hf", "sglang") for users in (1, 8)
    ]  # fmt: skip
    one, eight, *unknown = prior(demo.MODEL, questions, "output_tps")
    assert eight.value > one.value > 0
    assert 0 < one.error < 3
    assert unknown == [None, None]  # nothing is known of sglang on a processor
    assert prior(demo.MODEL, questions, "kl") == [None] * 4
    assert best_of([one, eight], higher=True) == eight
    assert best_of([one, None], higher=True) is None
