"""What a race is told before it measures: only what the estimate knows, and never surer than it is."""

from __future__ import annotations

import pytest

from llmopt import demo, quantize
from llmopt.core.domain import ServeOptions, Workload
from llmopt.estimate import prior as prior_module
from llmopt.estimate.efficiency import Knowledge
from llmopt.estimate.prior import Expected, best_of, prior, without_certainty
from llmopt.estimate.roofline import Peak

PEAK = Peak(name="a processor", key="k", kind="cpu", bandwidth=30e9, flops={"fp16": 100e9})
LOAD = Workload(input_tokens=64, output_tokens=32, concurrency=4)


@pytest.fixture(autouse=True)
def processor(monkeypatch):
    monkeypatch.setattr(prior_module, "this_peak", lambda: PEAK)
    monkeypatch.setattr(prior_module, "knowledge_of", lambda results, peak: Knowledge())


def asked(name="gguf-q8_0", workload=LOAD, **options):
    served = ServeOptions(backend="llamacpp", **{"max_num_seqs": 4} | options)
    return quantize.quantization(name), served, workload


def test_fewer_bits_are_expected_to_give_more():
    alone = Workload(input_tokens=64, output_tokens=32, concurrency=1)
    eight, sixteen = prior(demo.MODEL, [asked(workload=alone), asked("gguf-f16", alone)], "output_tps")
    assert eight.value > sixteen.value
    assert eight.error > 0


def test_who_finds_no_slot_waits():
    one, two = prior(demo.MODEL, [asked(max_num_seqs=4), asked(max_num_seqs=2)], "e2e")
    assert two.value > one.value


@pytest.mark.parametrize(
    "workload",
    [Workload(load="open", rate=2.0), Workload(concurrency=4, prefix_tokens=32)],
    ids=["open loop", "shared prefix"],
)
def test_what_the_estimate_does_not_know_is_not_expected(workload):
    assert prior(demo.MODEL, [asked(workload=workload)], "output_tps") == [None]


def test_nor_is_a_metric_that_it_does_not_predict():
    assert prior(demo.MODEL, [asked(), asked()], "peak_rss_bytes") == [None, None]


def test_nor_anything_without_a_measured_device(monkeypatch):
    monkeypatch.setattr(prior_module, "this_peak", lambda: None)
    assert prior(demo.MODEL, [asked()], "output_tps") == [None]


def test_a_curve_is_expected_at_its_best_load():
    curve = [Expected(value=v, error=0.1) for v in (50.0, 90.0, 80.0)]
    assert best_of(curve, higher=True).value == 90
    assert best_of(curve, higher=False).value == 50
    assert best_of([*curve, None], higher=True) is None
    assert best_of([], higher=True) is None


def test_nothing_is_surer_than_the_surest():
    assert without_certainty(Expected(value=1.0, error=0.01), 0.1).error == 0.1
    assert without_certainty(Expected(value=1.0, error=0.3), 0.1).error == 0.3
