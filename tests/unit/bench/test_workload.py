from pathlib import Path

import pytest

from llmopt.bench.calibrate import Ceiling, keep
from llmopt.bench.workload import UNCALIBRATED_RATE, check_workload, make_workload
from llmopt.core.domain import Workload
from llmopt.core.errors import UsageError
from llmopt.core.machine import this_machine
from llmopt.core.metrics import MEASURING_REVISION


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path))


def test_what_is_left_out_has_its_default():
    made = make_workload()
    assert (made.load, made.concurrency, made.requests, made.warmup_requests) == ("closed", 4, 64, None)
    assert (made.input_tokens, made.output_tokens, made.input_lengths) == (64, 32, "")


@pytest.mark.parametrize(
    ("words", "load"),
    [
        ({"concurrency": 3}, "closed"),
        ({"rate": 2.0}, "open"),
        ({"ramp": "1:20"}, "ramp"),
        ({"trace": Path("x")}, "trace"),
    ],
)
def test_the_load_is_named_by_its_option(words, load):
    assert make_workload(**words).load == load


def test_a_ramp_has_two_rates():
    made = make_workload(ramp="1:20")
    assert (made.rate, made.rate_to) == (1.0, 20.0)


def test_lengths_that_spread_are_kept_as_written_beside_their_mean():
    made = make_workload(input_tokens="uniform:10:20", output_tokens="7")
    assert (made.input_tokens, made.input_lengths, made.output_tokens, made.output_lengths) == (
        15,
        "uniform:10:20",
        7,
        "",
    )


def test_a_duration_is_an_end_of_its_own():
    assert make_workload(duration=5.0).requests is None
    assert make_workload(duration=5.0, requests=9).requests == 9


def test_until_alone_ends_after_five_minutes_at_the_latest():
    made = make_workload(until="ttft_p50±5%")
    assert (made.requests, made.duration_s) == (None, 300)
    assert make_workload(until="ttft_p50±5%", requests=500).duration_s is None


def test_a_warm_up_is_found_or_told():
    assert make_workload(warmup="auto").warmup_requests is None
    assert make_workload(warmup="0").warmup_requests == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"concurrency": 4, "rate": 1.0}, "--concurrency and --rate are different loads"),
        ({"ramp": "1:2", "trace": Path("x")}, "different loads"),
        ({"trace": Path("x"), "requests": 5}, "ends by itself"),
        ({"image_size": "512x512"}, "--image-size without pictures"),
        ({"adapters": ("a", " ")}, "an --adapter has no name"),
        ({"ramp": "x"}, "is no ramp"),
        ({"ramp": "1"}, "is no ramp"),
        ({"ramp": "0:5"}, "--ramp must be more than 0"),
        ({"ramp": "1:0"}, "--ramp must be more than 0"),
        ({"ramp": "1:nan"}, "--ramp must be more than 0"),
        ({"rate": 0.0}, "--rate must be more than 0"),
        ({"rate": float("inf")}, "--rate must be more than 0"),
        ({"concurrency": 0}, "--concurrency must be 1 or more"),
        ({"requests": 0}, "--requests must be 1 or more"),
        ({"requests": 10**9}, "--requests must be"),
        ({"requests": 10**6, "input_tokens": "1000"}, "would take .* GiB"),
        ({"duration": 1e6, "rate": 100.0}, "would take .* GiB"),
        ({"duration": 1e7}, "--duration must be 1e[+]06 at most"),
        ({"request_timeout_s": 1e7}, "--request-timeout must be 1e[+]06 at most"),
        ({"think_s": 1e7}, "--think"),
        ({"trace": Path("x"), "turns": 2}, "a replayed trace has no --turns"),
        ({"duration": -1.0}, "--duration must be more than 0"),
        ({"warmup": "some"}, "--warmup must be"),
        ({"warmup": "-1"}, "--warmup must be"),
        ({"input_tokens": "uniform:9:3"}, "--input-tokens"),
        ({"output_tokens": "0"}, "--output-tokens must be 1 or more"),
        ({"workers": 0}, "--workers must be between"),
        ({"workers": 1000}, "--workers must be between"),
        ({"arrival": "bursty"}, "unknown arrival"),
        ({"endpoint": "chats"}, "unknown endpoint"),
        ({"burstiness": 0.0}, "--burstiness must be more than 0"),
        ({"max_concurrency": 5}, "--max-concurrency caps an open loop"),
        ({"rate": 1.0, "max_concurrency": 0}, "--max-concurrency must be 1 or more"),
        ({"turns": 0}, "--turns must be 1 or more"),
        ({"think_s": -1.0}, "--think"),
        ({"think_s": float("nan")}, "--think"),
        ({"retries": -1}, "--retries"),
        ({"request_timeout_s": 0.0}, "--request-timeout must be more than 0"),
        ({"stall_timeout_s": 0.0}, "--stall-timeout must be more than 0"),
        ({"slos": ("fast",)}, "no constraint"),
        ({"until": "soon"}, "no stopping rule"),
        ({"until": "ttft_p50±5%", "rate": 5.0}, "--until needs an end"),
    ],
)
def test_what_makes_no_run_is_said_with_its_option(words, message):
    with pytest.raises(UsageError, match=message) as caught:
        make_workload(**words)
    assert caught.value.hint


def test_a_rate_that_no_client_can_send_is_said_at_once():
    with pytest.raises(UsageError, match="1,000,000 requests/s is more than") as caught:
        make_workload(rate=1e6)
    assert "--workers" in caught.value.hint
    with pytest.raises(UsageError, match="more than"):
        make_workload(ramp=f"1:{UNCALIBRATED_RATE * 2}")


def test_more_clients_send_more():
    assert make_workload(rate=UNCALIBRATED_RATE * 1.5, workers=2).rate == UNCALIBRATED_RATE * 1.5


def test_a_calibration_knows_better():
    ceiling = Ceiling(
        s_per_read=1e-3, s_per_request=1e-3, measured_at="now", machine=this_machine().fingerprint, revision=MEASURING_REVISION
    )  # fmt: skip
    assert make_workload(rate=1_000.0).rate == 1_000.0
    keep(ceiling)
    with pytest.raises(UsageError, match="500/s was measured"):
        make_workload(rate=1_000.0)


@pytest.mark.parametrize("name", ["input_tokens", "output_tokens", "concurrency", "requests"])
def test_numbers_that_make_no_run(name):
    with pytest.raises(UsageError, match="--" + name.replace("_", "-")):
        check_workload(Workload(**{name: 0}))


def test_a_negative_warm_up_makes_no_run():
    with pytest.raises(UsageError, match="--warmup"):
        check_workload(Workload(warmup_requests=-1))


def test_a_timeout_of_no_time_makes_no_run():
    with pytest.raises(UsageError, match="--request-timeout"):
        check_workload(Workload(request_timeout_s=0))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"images": 8, "image_size": "2048x2048", "endpoint": "chat"}, "fewer --images or a smaller --image-size"),
        ({"input_tokens": "100000"}, "shorter --input-tokens"),
    ],
)
def test_what_makes_the_requests_too_large_is_named(words, named):
    with pytest.raises(UsageError, match="GiB before it begins") as caught:
        make_workload(requests=1_000_000, **words)
    assert named in caught.value.hint
