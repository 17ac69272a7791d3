"""Laws that no figure of speed may break."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.estimate.efficiency import group_of, prior_factors
from llmopt.estimate.roofline import demand_of, experts_touched, times, with_draft, work_of
from unit.estimate.make import DEEPSEEK, MIXTRAL, QWEN, case

BANDWIDTH, FLOPS = 3.35e12, 989e12


def at(batch=1, config=QWEN, bandwidth=BANDWIDTH, flops=FLOPS, **asked):
    asked = case(config, **{"backend": "vllm", "prompt": 512, "output": 128, **asked})
    factors = prior_factors(group_of(asked.backend, asked.layout, "gpu"))
    return times(demand_of(work_of(asked), batch), bandwidth, flops, factors)


@given(st.floats(1e10, 1e13), st.floats(1.0, 10.0), st.sampled_from([1, 8, 64]))
def test_more_bandwidth_is_never_slower(bandwidth, times_more, batch):
    assert at(batch, bandwidth=bandwidth * times_more).itl_s <= at(batch, bandwidth=bandwidth).itl_s


@pytest.mark.parametrize("config", [QWEN, MIXTRAL, DEEPSEEK])
def test_a_larger_batch_never_lowers_throughput(config):
    rates = [at(1 << n, config).output_tps for n in range(10)]
    assert rates == sorted(rates)


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_tensor_parallel_is_at_most_linear(gpus):
    one, many = at(8), at(8, count=gpus, tensor_parallel=gpus)
    assert one.itl_s / gpus < many.itl_s < one.itl_s


def test_fewer_bits_are_faster_where_the_bandwidth_binds():
    found = [at(1, quant=quant, bandwidth=3e11) for quant in ("bf16", "w8a8-int8", "gptq-int4-g128")]
    assert {f.bound for f in found} == {"bandwidth"}
    assert found[0].itl_s > found[1].itl_s > found[2].itl_s


def test_weights_in_few_bits_do_not_compute_a_prompt_faster():
    assert at(quant="gptq-int4-g128").prefill_s > at(quant="bf16").prefill_s


def test_a_prompt_of_twice_the_length_takes_more_than_twice_the_time():
    shorter, longer = (at(prompt=n).prefill_s for n in (8192, 16384))
    assert longer > 2 * shorter


def test_a_step_reads_the_experts_that_its_tokens_go_to():
    assert experts_touched(8, 2, 1) == pytest.approx(2)
    assert experts_touched(8, 2, 2) == pytest.approx(3.5)
    assert experts_touched(8, 2, 1000) == pytest.approx(8)
    work = work_of(case(MIXTRAL))
    assert work.read(1) == pytest.approx(0.27 * work.read(1000), rel=0.05)


def test_an_embedding_is_read_by_rows_and_a_tied_one_whole():
    plain = work_of(case(QWEN))
    assert plain.read(1) == pytest.approx(2 * (7_615_616_512 - 152064 * 3584), rel=1e-3)
    assert work_of(case(QWEN | {"tie_word_embeddings": True})).read(1) == pytest.approx(plain.read(1), rel=1e-3)


def test_the_times_of_a_closed_loop_add_up():
    found = at(8)
    assert found.e2e_s == pytest.approx(found.ttft_s + 127 * found.itl_s)
    assert found.output_tps == pytest.approx(8 * 128 / found.e2e_s)


def test_a_draft_whose_tokens_are_kept_pays_and_one_whose_are_not_costs():
    asked = case(backend="vllm", prompt=512, output=128)
    factors = prior_factors(group_of("vllm", asked.layout, "gpu"))
    plain, work = demand_of(work_of(asked), 1), work_of(asked)
    drafted = {rate: with_draft(work, 1, None, tokens=4, acceptance=rate, draft_bytes=1e8) for rate in (0.0, 0.7, 1.0)}
    of = {rate: times(demand, BANDWIDTH, FLOPS, factors).itl_s for rate, demand in drafted.items()}
    assert of[1.0] < of[0.7] < times(plain, BANDWIDTH, FLOPS, factors).itl_s < of[0.0]


def test_decoding_of_many_is_bound_by_computing():
    assert at(1).bound == "bandwidth"
    slow = replace(case(backend="vllm", prompt=16, output=16))
    factors = prior_factors(group_of("vllm", slow.layout, "gpu"))
    assert times(demand_of(work_of(slow), 256), BANDWIDTH, 1e13, factors).bound == "compute"


@pytest.mark.parametrize("engine", ["vllm", "hf", "llamacpp"])
@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_no_throughput_is_beyond_the_roofline(engine, kind):
    asked = case(backend=engine, quant="gguf-q4_k_m" if engine == "llamacpp" else "bf16", prompt=1, output=1024)
    factors = prior_factors(group_of(engine, asked.layout, kind))
    for batch in (1, 2, 16, 256, 1 << 16):
        demand = demand_of(work_of(asked), batch)
        step = times(demand, BANDWIDTH, FLOPS, factors).step_s
        assert demand.step_flops / step <= FLOPS
        assert demand.step_bytes / step <= BANDWIDTH


def test_checking_a_draft_reads_the_experts_of_all_its_tokens():
    work = work_of(case(MIXTRAL))
    checked = with_draft(work, 1, None, tokens=4, acceptance=0.7)
    assert checked.step_bytes - demand_of(work, 1).step_bytes == pytest.approx(work.read(5) - work.read(1))


def test_a_draft_pays_its_own_launches():
    asked = case(backend="hf", prompt=512, output=128)
    factors = prior_factors(group_of("hf", asked.layout, "gpu"))
    plain = demand_of(work_of(asked), 1)
    dropped = with_draft(work_of(asked), 1, None, tokens=4, acceptance=0.0, draft_bytes=1e9)
    more = times(dropped, BANDWIDTH, FLOPS, factors).itl_s - times(plain, BANDWIDTH, FLOPS, factors).itl_s
    assert more > 4 * (factors.step_s + 10 * factors.layer_s)
