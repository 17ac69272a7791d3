from llmopt.report.server_notes import LABEL, WIDTH, server_notes

MIB = 1 << 20
SERVER = {
    "requests": 64,
    "server_ttft_s": {"mean": 0.02, "n": 64},
    "server_itl_s": {"mean": 0.005, "n": 640},
    "server_queue_s": {"mean": 0.001, "n": 64},
    "cache_hit_rate": 0.25,
    "preemptions": 2.0,
    "agreement": {
        "ttft": {"client_s": 0.021, "server_s": 0.02, "agrees": True, "why": None},
        "itl": {"client_s": None, "server_s": None, "agrees": None, "why": "the counts differ"},
    },
}
MEMORY = {
    "weights_bytes": 17 * MIB,
    "kv_cache_bytes": 100 * MIB,
    "kv_cache_used_bytes": 10 * MIB,
    "activation_bytes": None,
    "rest_bytes": 200 * MIB,
    "total_bytes": 400 * MIB,
    "total_is": "PSS",
    "unexplained_bytes": 83 * MIB,
    "adds_up": None,
    "kv_capacity_tokens": 4096,
    "max_concurrency": 4.0,
}


def notes(**record):
    """Label → words, lines that were broken put together."""
    found, label = {}, ""
    for line in server_notes(record):
        assert len(line) <= WIDTH
        label = line[:LABEL].strip() or label
        found[label] = f"{found[label]} {line[LABEL:]}" if label in found else line[LABEL:]
    return found


def test_a_run_of_which_nothing_is_known_has_no_notes():
    assert server_notes({}) == []
    assert (
        server_notes({"server": {}, "memory": {"total_bytes": 5, "total_is": "PSS"}, "metrics": {}, "telemetry": {}})
        == []
    )


def test_both_clocks_stand_beside_each_other():
    words = notes(server=SERVER)["server's clock"]
    assert words.startswith("TTFT 20.0 ms (client 21.0 ms), ITL 5.0 ms (not compared: the counts differ), queue 1.0 ms")
    assert words.endswith("means of 64 requests")


def test_caches_and_queues():
    words = notes(server=SERVER, metrics={"kv_usage_peak": 0.5}, telemetry={"peak_running": 4.0, "peak_waiting": 1.0})
    assert words["server's queue"] == (
        "25.0% of prompt tokens from the prefix cache, 2 preemptions, KV cache at most 50.0% full, at most 4 running, 1 waiting"
    )


def test_where_memory_goes():
    found = notes(memory=MEMORY)
    assert found["memory"] == (
        "400 MiB PSS sampled: weights 17 MiB + KV cache 100 MiB (10 MiB used) + held before 200 MiB + unexplained 83 MiB"
    )
    assert found["KV capacity"] == "4,096 tokens, 4.0 sequences of the whole context"


def test_parts_that_are_more_than_the_whole_say_so():
    assert "5 MiB more than sampled" in notes(memory=MEMORY | {"unexplained_bytes": -5 * MIB})["memory"]


def test_energy_where_it_is_known():
    metrics = {"energy_j": 1234.0, "energy_per_token_j": 0.5, "power_w": 412.0, "gpu_util": 0.9}
    words = notes(metrics=metrics, telemetry={"clock_reasons": {"power_cap": 0.25}})["GPU"]
    assert words == "1,234 J, 0.5 J a token, 412 W on average, 90.0% busy, power cap 25.0% of the time"
