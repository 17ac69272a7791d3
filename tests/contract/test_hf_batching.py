"""transformers' two ways of batching, side by side on one model: the same tokens, at other times."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmopt import demo, serve
from llmopt.core import environments
from llmopt.core.artifacts import open_model, unquantized
from llmopt.core.domain import ServeOptions
from llmopt.serve.process import DIRECT, RunningServer, serving

pytestmark = pytest.mark.engine
SLOW, QUICK = 400, 4  # tokens


def started(folder: Path, **options: Any) -> Any:
    backend = serve.backend("hf")
    chosen = ServeOptions(backend="hf", max_num_seqs=2, max_model_len=512, **options)
    artifact = unquantized(open_model(demo.MODEL))
    return serving(backend, artifact, chosen, environments.find(backend.needs), log=folder / "hf.log")


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with started(tmp_path_factory.mktemp("static"), batching="static") as server:
        yield server


@pytest.fixture(scope="module")
def continuous(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with started(tmp_path_factory.mktemp("continuous"), batching="continuous", enable_prefix_caching=True) as server:
        yield server


def ask(server: RunningServer, prompt: str | list[int], tokens: int) -> dict[str, Any]:
    body = {"model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{server.command.base_url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with DIRECT.open(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def quick_behind_slow(server: RunningServer) -> tuple[float, float]:
    """Seconds that a short request took which came just after a long one had started, and that the long one took."""
    ends = {}

    def slow() -> None:
        ask(server, "Once upon a time", SLOW)
        ends["slow"] = time.monotonic()

    begun = time.monotonic()
    thread = threading.Thread(target=slow)
    thread.start()
    time.sleep(0.2)
    asked = time.monotonic()
    ask(server, "The sea", QUICK)
    ends["quick"] = time.monotonic()
    thread.join()
    return ends["quick"] - asked, ends["slow"] - begun


def test_a_static_batch_keeps_the_next_request_waiting_to_its_end(static: RunningServer) -> None:
    quick_s, slow_s = quick_behind_slow(static)
    assert quick_s > 0.7 * (slow_s - 0.2)


def test_with_continuous_batching_it_joins_the_running_one(continuous: RunningServer) -> None:
    quick_s, slow_s = quick_behind_slow(continuous)
    assert quick_s < 0.5 * slow_s


def test_both_say_the_same(static: RunningServer, continuous: RunningServer) -> None:
    answers = [ask(server, "def add(a, b):", 24)["choices"][0]["text"] for server in (static, continuous)]
    assert answers[0] == answers[1]


def test_rows_of_different_length_are_padded_without_effect(static: RunningServer) -> None:
    """The short prompt of a batch is padded on the left; alone it is not."""
    alone = ask(static, "The sea", 24)["choices"][0]["text"]
    found: list[str] = []
    long = threading.Thread(target=lambda: ask(static, "Once upon a time there was a house by the river. " * 6, 24))
    short = threading.Thread(target=lambda: found.append(ask(static, "The sea", 24)["choices"][0]["text"]))
    for thread in (long, short):
        thread.start()
    for thread in (long, short):
        thread.join()
    assert found == [alone]


def test_a_shared_prefix_is_found_in_the_cache(continuous: RunningServer) -> None:
    prompt = "A prompt that is longer than one block of the cache, and so may be shared with the next one. " * 3
    counts = [ask(continuous, prompt, 2)["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in range(2)]
    assert counts[0] == 0
    assert counts[1] >= 32


def test_it_tells_where_memory_goes(continuous: RunningServer) -> None:
    facts = serve.backend("hf").facts(continuous.process.log_tail(500))
    weights = sum(file.stat().st_size for file in demo.MODEL.glob("*.safetensors"))
    assert facts.weights_bytes == pytest.approx(weights, rel=0.01)
    assert facts.kv_cache_bytes is not None
    assert facts.kv_capacity_tokens == 2 * 512
    assert facts.baseline_bytes is not None


def test_its_histograms_count_the_requests(continuous: RunningServer) -> None:
    before = counted(continuous)
    ask(continuous, "The sea", QUICK)
    assert counted(continuous) == before + 1


def counted(server: RunningServer) -> int:
    with DIRECT.open(server.command.base_url.removesuffix("/v1") + "/metrics", timeout=10) as response:
        page = response.read().decode()
    return int(page.split("llmopt_hf:request_queue_time_seconds_count ")[1].split()[0])


def test_an_id_that_is_no_token_harms_nobody(continuous: RunningServer) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(continuous, [99_999_999], QUICK)
    with caught.value:
        assert caught.value.code == 400
    assert ask(continuous, "The sea", QUICK)["usage"]["completion_tokens"] == QUICK
