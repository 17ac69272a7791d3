"""The part of the command that is about speed and cost."""

import pytest

from unit.estimate.make import document, estimate

SPEED = ("--gpu", "h100", "--backend", "vllm", "--input-tokens", 512, "--output-tokens", 128)


@pytest.fixture
def apart(tmp_path, monkeypatch):
    """Where no runs of this machine lie."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))


def test_speed_and_its_price(folder, apart):
    found = document(folder, *SPEED, "--batch", 4, "--price-per-hour", 3.6)["speed"]
    assert found["device"] == "H100 SXM5 80 GB"
    assert found["usd_per_million_output_tokens"]["value"] == pytest.approx(1000 / found["output_tps"]["value"])
    assert found["calibration"]["configurations"] == 0


def test_speed_for_people_says_what_it_rests_on(folder, apart):
    said = estimate(folder, *SPEED, "--rate", 2).stdout
    assert "2 requests/s" in said
    assert "by the table alone" in said
    assert "taken away" in said  # spot


def test_a_device_by_its_numbers(folder, apart):
    found = document(folder, "--backend", "vllm", "--vram", "80GiB", "--bandwidth", "2TB", "--flops", "300e12")["speed"]
    assert found["tps"]["value"] > 0
    assert document(folder, "--vram", "80GiB")["speed"]["unknown_because"]


def test_without_a_device_it_is_this_machine(folder, apart):
    found = document(folder, "--quant", "q4_k_m", "--output-tokens", 16)
    assert "this machine" in found["speed"]["device"]
    assert found["fits"] is None
    assert document(folder, "--quant", "q2_k", "--gpu", "this", "--context", 128)["devices"]["memory_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--bandwidth", "2TB"), "together"),
        (("--bandwidth", "0GB", "--flops", "1e12"), "more than 0"),
        (("--acceptance-rate", "0.5"), "a draft"),
        (("--rate", "2"), "the length of an answer"),
        (("--price-per-hour", "0"), "more than 0"),
        (("--results", "nowhere"), "no results"),
    ],
)
def test_options_of_speed_that_say_nothing_are_one_line(folder, apart, arguments, words):
    found = estimate(folder, *arguments)
    assert found.exit_code == 2
    error, said = found.stderr.strip().splitlines()
    assert words in error
    assert said.startswith("hint: ")


def test_a_file_of_prices_without_the_gpu_is_refused(folder, tmp_path):
    (tmp_path / "prices.toml").write_text("[h200]\non_demand = 3\n")
    found = estimate(folder, "--gpu", "h100", "--prices", tmp_path / "prices.toml")
    assert found.exit_code == 2
    assert "no price of h100" in found.stderr
