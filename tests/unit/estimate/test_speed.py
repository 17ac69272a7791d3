"""Figures, intervals, refusals and prices."""

import pytest

from llmopt.core.errors import UsageError
from llmopt.estimate.hardware import device, devices
from llmopt.estimate.memory import memory_of
from llmopt.estimate.peak import peak_of
from llmopt.estimate.prices import given_price, price_of
from llmopt.estimate.speed import FIGURES, Draft, question, speed_document
from unit.estimate.make import QWEN, case, with_slots


def asked(gpu="h100", quant="bf16", config=QWEN, backend="vllm", prompt=512, output=128, sequences=4, **more):
    found = device(gpu)
    one = case(config, quant, backend, prompt, output, sequences, memory_bytes=found.memory_bytes, kind=found.kind)
    return question(one, peak_of(found), memory_of(one), **more)


def speed(**how):
    return speed_document(asked(**how))


@pytest.mark.parametrize("key", [key for key, one in devices().items() if one.kind == "gpu"])
def test_intervals_hold_their_values(key):
    found = speed(gpu=key, quant="gptq-int4-g128", sequences=1)
    if "unknown_because" in found:
        assert found["unknown_because"] == "what does not fit has no speed"
        return
    assert all(found[name]["low"] < found[name]["value"] < found[name]["high"] for name in FIGURES)


def test_every_figure_says_that_it_is_estimated():
    found = speed(price=given_price(2.0))
    assert {found[name]["evidence"] for name in (*FIGURES, "best_batch", "usd_per_million_output_tokens")} == {
        "estimated"
    }


def test_published_decoding_speeds_of_8_b_models_lie_within():
    """An H100 decodes 8 B parameters in 16 bits at 130 to 160 tokens a second: its bandwidth over 15 GB is 220."""
    found = speed(sequences=1)["tps"]
    assert found["low"] < 140 < found["high"]


def test_the_curve_goes_to_what_memory_holds():
    curve = speed(gpu="rtx-4090")["curve"]
    rates = [row["output_tps"] for row in curve]
    assert curve[0]["batch"] == 1
    assert curve[-1]["batch"] == asked(gpu="rtx-4090").most
    assert rates == sorted(rates)


def test_the_curve_of_a_large_gpu_goes_as_far_as_its_engine_does():
    """vLLM takes 1,024 sequences there, 256 on others."""
    assert asked(sequences=1, prompt=64, output=16).most == 1024
    assert asked(sequences=1, prompt=64, output=16, gpu="rtx-4090", quant="gptq-int4-g128").most == 256
    assert asked(sequences=1, prompt=64, output=16, backend="hf").most == 256


def with_eight_slots(**more):
    found = device("h100")
    one = with_slots(case(QWEN, "bf16", "vllm", 512, 128, 8, memory_bytes=found.memory_bytes, kind=found.kind), 8)
    return speed_document(question(one, peak_of(found), memory_of(one), **more))


def test_no_more_are_served_at_once_than_the_engine_was_told():
    found = with_eight_slots()
    assert found["curve"][-1]["batch"] == found["best_batch"]["value"] == 8
    assert "without end" in with_eight_slots(rate=20.0)["refused"][0]


def test_what_does_not_fit_has_no_speed():
    found = speed(gpu="rtx-4060")
    assert found["unknown_because"] == "what does not fit has no speed"
    assert found["itl_s"] is None


def test_near_saturation_there_is_no_ttft_and_it_is_said_why():
    found = speed(sequences=64, prompt=8192, output=16)
    assert found["ttft_s"]["value"] is None
    assert "saturation" in found["refused"][0]
    assert found["itl_s"]["value"] > 0


def test_an_open_loop_completes_what_is_asked():
    found = speed(rate=3.0)
    assert found["requests_per_s"]["value"] == 3.0
    assert found["output_tps"]["value"] == 3.0 * 128
    assert 0 < found["utilisation"] < 0.8
    assert found["ttft_s"]["value"] < speed(rate=12.0)["ttft_s"]["value"]


def test_where_it_may_be_saturated_the_intervals_say_so():
    sure, unsure = speed(rate=3.0), speed(rate=30.0)
    assert sure["requests_per_s"]["low"] == 3.0
    assert unsure["requests_per_s"]["low"] < 30.0 == unsure["requests_per_s"]["high"]
    assert unsure["ttft_s"]["high"] is None


def test_an_open_loop_beyond_capacity_is_refused():
    assert "without end" in speed(rate=1e6)["refused"][0]


def test_a_draft_of_unknown_acceptance_has_bounds_alone():
    known, unknown = (speed(sequences=1, draft=Draft(tokens=4, acceptance=rate)) for rate in (0.7, None))
    assert unknown["itl_s"]["value"] is None
    assert unknown["itl_s"]["low"] < known["itl_s"]["value"] < unknown["itl_s"]["high"]
    assert unknown["ttft_s"]["value"] == known["ttft_s"]["value"]


def test_a_token_costs_an_hour_over_the_tokens_of_an_hour():
    found = speed(price=given_price(3.6))
    assert found["usd_per_million_output_tokens"]["value"] == pytest.approx(1000 / found["output_tps"]["value"])
    at_best = found["usd_per_million_output_tokens_at_best_batch"]["value"]
    assert at_best < found["usd_per_million_output_tokens"]["value"]


def test_without_a_price_costs_are_unknown():
    assert speed(gpu="l4", quant="gptq-int4-g128")["usd_per_million_output_tokens"]["value"] is None


def test_spot_is_a_range_and_names_the_interruption():
    found = speed(price=price_of("h100"))["price"]
    assert found["spot"]["low"] < found["spot"]["high"] < found["per_hour"]
    assert "taken away" in found["spot"]["note"]


def test_a_file_of_prices_takes_any_spelling(tmp_path):
    file = tmp_path / "prices.toml"
    file.write_text('["RTX 4090"]\non_demand = 0.5\n')
    assert price_of("rtx-4090", file).per_hour == 0.5
    assert price_of("h100", file) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[h100]\non_demand = -1\n", "no amount"),
        ("[h100]\non_demand = 'much'\n", "no amount"),
        ("h100 = 2\n", "no price"),
        ("[h100]\n", "no price"),
        ("[h1000]\non_demand = 1\n", "no device"),
        ("[", "cannot be read"),
    ],
)
def test_a_file_that_is_no_table_of_prices_is_refused(tmp_path, text, words):
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=words):
        price_of("h100", file)


def test_an_engine_that_no_device_of_a_kind_runs_is_said_so():
    found = speed(gpu="epyc-9654", backend="trtllm")
    assert "nothing is known" in found["unknown_because"]


def test_every_device_says_whether_its_figures_were_looked_up():
    assert all(one.checked or "from memory" in one.source for one in devices().values())
    assert sum(bool(one.checked) for one in devices().values()) >= 20
