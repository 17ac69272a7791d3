"""Factors that are known are found again from runs that they made."""

import random
import re
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llmopt.estimate.calibration import Observation, calibrated
from llmopt.estimate.efficiency import Coordinate, Knowledge, coordinates, group_of, prior_factors, variance
from llmopt.estimate.roofline import Factors, Peak, demand_of, times, work_of
from unit.estimate.make import QWEN, case

PEAK = Peak(name="a GPU", key="a", kind="gpu", bandwidth=1e12, flops={"fp16": 150e12})
SMALL = QWEN | {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8, "num_hidden_layers": 12}


def truth(layout):
    """Of an engine that reaches less than the table says, and pays more for each step."""
    group = group_of("vllm", layout, "gpu")
    return Factors(
        **{
            k: v * {"bandwidth": 0.6, "step_s": 3.0, "prefill": 0.5}.get(k, 1.0)
            for k, v in asdict(prior_factors(group)).items()
        }
    )


def run(batch, config=QWEN, quant="bf16", prompt=512, noise=0.0, seed=0):
    asked = case(config, quant=quant, backend="vllm", prompt=prompt, output=128)
    demand = demand_of(work_of(asked), batch)
    at = times(demand, PEAK.bandwidth, PEAK.computing(asked.layout.name), truth(asked.layout))
    off = random.Random(f"{batch} {prompt} {quant} {config['hidden_size']} {seed}")
    measured = {n: getattr(at, n) * off.lognormvariate(0, noise) for n in ("itl_s", "output_tps", "ttft_s")}
    key = f"{batch} {quant} {prompt} {config['hidden_size']}"
    return Observation(
        group=group_of("vllm", asked.layout, "gpu"), peak=PEAK, demand=demand, measured=measured, key=key
    )


def matrix(**how):
    return [
        run(batch, config, quant, prompt, **how)
        for batch in (1, 2, 8, 32) for config in (QWEN, SMALL) for quant in ("bf16", "gptq-int4-g128") for prompt in (64, 1024)
    ]  # fmt: skip


def errors(knowledge, observations):
    found = []
    for o in observations:
        at = times(o.demand, o.peak.bandwidth, o.peak.computing(o.group.layout), knowledge.factors(o.group))
        found += [abs(getattr(at, n) / o.measured[n] - 1) for n in ("itl_s", "output_tps")]
    return statistics.median(found)


def test_half_of_a_matrix_predicts_the_other_half():
    every = random.Random(1).sample(matrix(noise=0.03), 32)
    taught = calibrated(every[:16])
    assert errors(taught, every[16:]) < 0.05 < errors(Knowledge(), every[16:])


def test_the_error_of_what_is_left_out_is_that_of_the_noise():
    found = calibrated(matrix(noise=0.05)).left_out
    assert 0.01 < found["itl_s"] < 0.08


def test_one_run_moves_little_and_many_are_followed():
    bandwidth = Coordinate(engine="vllm", factor="bandwidth")
    one, many = (calibrated(own).found[bandwidth] for own in ([run(1)], matrix()))
    assert many < one < 0


def test_a_single_wild_run_bends_nothing():
    every = matrix(noise=0.02)
    wild = replace(every[5], measured={name: 10 * value for name, value in every[5].measured.items()})
    assert errors(calibrated([*every[:5], wild, *every[6:]]), every) < 0.05


def test_what_runs_taught_is_known_more_narrowly():
    taught, group = calibrated(matrix(noise=0.03)), run(1).group
    slopes = [(c, 1.0) for c in coordinates(group) if c.factor == "bandwidth"]
    assert variance(taught, slopes) < variance(Knowledge(), slopes) / 3


def test_repeats_are_one_configuration():
    assert calibrated([run(8, noise=0.03, seed=n) for n in range(10)]).runs == 1


def test_an_engine_without_runs_keeps_the_tables_factors():
    other = group_of("hf", case().layout, "gpu")
    assert calibrated(matrix()).factors(other) == prior_factors(other)


def test_without_runs_nothing_is_known():
    assert calibrated([]) == Knowledge()


@pytest.mark.parametrize("backend", ["vllm", "hf", "llamacpp"])
def test_shares_are_shares(backend):
    found = prior_factors(group_of(backend, case().layout, "gpu"))
    assert all(0 < share <= 1 for share in (found.bandwidth, found.decode, found.prefill, found.interleave))


def test_the_page_tells_what_the_benchmark_measured():
    docs = Path(__file__).parents[3] / "docs" / "estimate.md"
    table = (docs.parents[1] / "benchmarks" / "estimate" / "speed.md").read_text()
    configurations = re.search(r"(\d+) configurations", table)[1]
    row = next(line for line in table.splitlines() if line.startswith("| half of the configurations"))
    _, itl, _, held_itl, tps, _, held_tps = (cell.strip() for cell in row.strip("|").split("|"))
    page = docs.read_text().replace(" %", "%")
    assert f"{configurations} configurations" in page
    assert f"half of them | {itl} | {tps} |" in page
    assert f"held {held_itl} of the\nmeasured ITLs and {held_tps}" in page
