"""What the estimate says of the configurations of a race before they are measured."""

from __future__ import annotations

import pytest

from llmopt import demo, quantize
from llmopt.core.artifacts import open_artifact
from llmopt.core.domain import ServeOptions, Workload
from llmopt.estimate.prior import Expected
from llmopt.pipeline import expecting
from llmopt.pipeline.plans import case_of
from llmopt.pipeline.visiting import Contestant
from llmopt.recommend.constraints import make_goal

OPTIONS = ServeOptions(backend="scripted", max_num_seqs=4)


@pytest.fixture
def priors(monkeypatch, tmp_path):
    """Asks with so many loads a configuration; ``expected`` stands for what the estimate says, in order."""
    monkeypatch.setattr(expecting, "USUAL", (str(tmp_path),))

    def ask(expected, better="higher", own="elsewhere"):
        monkeypatch.setattr(expecting, "prior", lambda *_: expected)
        loads = tuple(Workload(concurrency=users) for users in (1, 4))
        case = case_of(open_artifact(demo.MODEL), OPTIONS, loads[0])
        contestants = {label: Contestant(label=label, case=case, workloads=loads) for label in ("a", "b")}
        return expecting.priors(demo.MODEL, contestants, "output_tps", better, tmp_path / own)

    return ask


def test_each_is_expected_at_its_best_load(priors):
    found = priors([Expected(value=v, error=0.2) for v in (10.0, 20.0, 30.0, 15.0)])
    assert {label: prior.value for label, prior in found.items()} == {"a": 20.0, "b": 30.0}


def test_one_that_is_not_known_leaves_the_race_without(priors):
    assert priors([Expected(value=1.0, error=0.2)] * 3 + [None]) == {}


def test_so_does_one_that_is_too_unsure(priors):
    assert priors([Expected(value=1.0, error=0.2)] * 3 + [Expected(value=9.0, error=0.9)]) == {}


def test_no_estimate_is_surer_than_the_surest(priors):
    assert priors([Expected(value=1.0, error=0.001)] * 4)["a"].error == expecting.SUREST


def test_without_runs_of_this_machine_nothing_is_expected(priors, monkeypatch):
    monkeypatch.setattr(expecting, "USUAL", ("nowhere",))
    assert priors([Expected(value=1.0, error=0.1)] * 4) == {}


def test_a_race_does_not_vouch_for_its_own_estimates(priors):
    """``tune`` without -o writes where the estimate looks."""
    assert priors([Expected(value=1.0, error=0.2)] * 4, own="") == {}


def test_what_does_not_fit_is_told_with_the_figure(monkeypatch):
    monkeypatch.setattr(expecting, "free_bytes", lambda *_: 1 << 20)
    load = Workload(input_tokens=64, output_tokens=32)
    reason = expecting.cannot_fit(
        demo.MODEL, quantize.quantization("bf16"), ServeOptions(backend="hf", max_num_seqs=4), load, make_goal([])
    )
    assert "(estimated), 1 MiB of memory are free" in reason


def test_a_limit_on_memory_counts_too():
    load = Workload(input_tokens=64, output_tokens=32)
    asked = demo.MODEL, quantize.quantization("bf16"), ServeOptions(backend="hf", max_num_seqs=4), load
    assert "above" in expecting.cannot_fit(*asked, make_goal([], max_memory="1MiB"))
    assert expecting.cannot_fit(*asked, make_goal([], max_memory="4GiB")) is None
