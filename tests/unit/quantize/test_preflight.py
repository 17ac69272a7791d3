import json
import statistics
import struct
from pathlib import Path

import pytest

from llmopt import demo
from llmopt.core import environments
from llmopt.core.artifacts import open_model
from llmopt.core.environments import Environment
from llmopt.core.errors import ModelError, StoreError, UsageError
from llmopt.quantize import METHODS, method, preflight, sizes
from llmopt.quantize.costs import COSTS, Cost, cost_of
from unit.make import decoder, weights

# Bits per weight that the libraries really wrote for the bundled model (benchmarks/quantize/results.json).
WRITTEN = {"gguf-q8_0": 8.522, "gguf-q4_k_m": 5.041, "gguf-q6_k": 6.587, "gguf-iq4_xs": 4.585, "gguf-q2_k": 3.378,
           "nf4-dq": 5.60, "gptq-int4-g128": 5.53, "awq-int4-g128": 5.56}  # fmt: skip
# What each method took there, by itself.
TOOK = json.loads((Path(__file__).parents[3] / "benchmarks/quantize/results.json").read_text())


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))


def forecast(folder, name, **settings):
    """``name`` may have a layout behind a slash."""
    quantization, _, layout = name.partition("/")
    chosen = method(quantization)
    route = chosen.route(layout or None)
    return preflight.forecast(open_model(folder), chosen, route, route.settings | settings, 4096)


@pytest.mark.parametrize("name", WRITTEN)
def test_sizes_are_what_the_libraries_write(name):
    assert forecast(demo.MODEL, name).bits_per_weight == pytest.approx(WRITTEN[name], rel=0.02)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_forecast(name):
    coming = forecast(demo.MODEL, name)
    assert coming.linears == 56
    assert coming.memory_bytes > 100 << 20
    assert coming.seconds > 0


def test_layers_that_wait_on_disk_take_their_room_twice():
    coming, other = forecast(demo.MODEL, "gptq-int4-g128/gptq"), forecast(demo.MODEL, "gptq-int4-g128")
    assert (coming.disk_bytes, other.disk_bytes) == (2 * coming.size_bytes, other.size_bytes)


def test_embeddings_heads_and_norms_are_no_linear_layers(tmp_path):
    found = preflight.tensors(decoder(tmp_path, layers=3))
    assert sum(t.linear for t in found) == 3 * 6
    assert not any(t.linear for t in found if "embed" in t.name or "norm" in t.name)


def test_rows_that_k_quants_cannot_take_are_counted(tmp_path):
    coming = forecast(decoder(tmp_path, hidden=896, inner=1792), "gguf-q4_k_m")
    assert set(coming.fallbacks.values()) == {"Q5_0"}
    assert "no multiple of 256" in coming.doubts[0]
    assert coming.bits_per_weight > forecast(decoder(tmp_path / "b"), "gguf-q4_k_m").bits_per_weight


def require(folder, name, tools=False, environment=None):
    chosen = method(name)
    preflight.require_possible(
        open_model(folder), chosen, chosen.routes[0], environment or environments.current(), tools, "cpu"
    )


def test_rows_that_no_group_divides_are_refused_at_once(tmp_path):
    folder = decoder(tmp_path, hidden=96, inner=192)
    with pytest.raises(
        ModelError, match=r"rows of 96, which groups of 128 do not divide \(12 layers in all\)"
    ) as caught:
        require(folder, "gptq-int4-g128")
    assert "g32" in caught.value.hint
    require(folder, "gptq-int4-g32")


@pytest.mark.parametrize(("hidden", "inner"), [(96, 256), (256, 336)])
def test_shapes_that_the_four_bit_kernel_cannot_run(tmp_path, hidden, inner):
    with pytest.raises(ModelError, match="cannot run that without a GPU"):
        require(decoder(tmp_path, hidden=hidden, inner=inner), "nf4")
    require(decoder(tmp_path, hidden=hidden, inner=inner), "int8")


def fake_packages(tmp_path, **files):
    """An environment whose packages are the few source files that the checks read."""
    for name, text in files.items():
        file = tmp_path / "env/lib/python3.11/site-packages" / name.replace("__", "/")
        file = file.with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Environment(python=tmp_path / "env/bin/python", prefix=tmp_path / "env", origin="user")


def test_an_architecture_that_transformers_does_not_know(tmp_path):
    table = 'MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict([("llama", "LlamaForCausalLM")])'
    environment = fake_packages(tmp_path, transformers__models__auto__modeling_auto=table)
    with pytest.raises(ModelError, match="no causal language model of type 'qwen2'"):
        require(decoder(tmp_path / "m"), "nf4", environment=environment)
    require(decoder(tmp_path / "l", model_type="llama"), "nf4", environment=environment)


def test_an_architecture_without_awq_mappings_names_another_method(tmp_path):
    table = 'AWQ_MAPPING_REGISTRY: dict[str, list] = {"LlamaForCausalLM": default}'
    environment = fake_packages(tmp_path, llmcompressor__modifiers__transform__awq__mappings=table)
    model = decoder(tmp_path / "m")
    weights(model / "model.safetensors", {"h.0.attn.c_attn.weight": (512, 256)})
    with pytest.raises(ModelError, match="no AWQ mapping for Qwen2ForCausalLM") as caught:
        require(model, "awq-int4-g128", environment=environment)
    assert "gptq" in caught.value.hint


def test_layers_named_as_llamas_get_the_default_awq_mapping(tmp_path):
    table = 'AWQ_MAPPING_REGISTRY: dict[str, list] = {"LlamaForCausalLM": default}'
    environment = fake_packages(tmp_path, llmcompressor__modifiers__transform__awq__mappings=table)
    require(decoder(tmp_path / "m"), "awq-int4-g128", environment=environment)


def test_an_architecture_that_the_converter_does_not_know(tmp_path):
    environment = fake_packages(tmp_path)
    (environment.converter / "conversion").mkdir(parents=True)
    (environment.converter / "conversion/llama.py").write_text(
        '@ModelBase.register("LlamaForCausalLM",\n "Other")\nclass A: ...'
    )
    with pytest.raises(ModelError, match="converter does not know Qwen2ForCausalLM"):
        require(decoder(tmp_path / "m"), "gguf-q8_0", environment=environment)


def test_a_type_that_needs_an_importance_matrix_needs_the_tools(tmp_path):
    with pytest.raises(UsageError, match="without an importance matrix") as caught:
        require(decoder(tmp_path), "gguf-iq2_xxs")
    assert "--build" in caught.value.hint
    require(decoder(tmp_path), "gguf-iq2_xxs", tools=True)


def test_a_model_without_linear_layers(tmp_path):
    with pytest.raises(ModelError, match="no linear layer"):
        require(decoder(tmp_path, layers=0), "nf4")


def test_too_little_memory_is_said_before(tmp_path):
    with pytest.raises(ModelError, match=r"needs about .* of memory .* --max-memory allows") as caught:
        preflight.require_room(forecast(demo.MODEL, "nf4"), tmp_path, 1 << 20, "nf4")
    assert "--force" in caught.value.hint


def test_a_model_larger_than_the_limit_goes_file_by_file_where_the_library_can(tmp_path):
    for number in range(4):
        weights(tmp_path / f"model-{number}.safetensors", {f"model.layers.{number}.mlp.up_proj.weight": (4096, 8192)})
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    limit = 200 << 20
    libraries = COSTS["rtn", "compressed-tensors"].memory_bytes(0)
    assert forecast(tmp_path, "w4a16", max_memory_bytes=limit).memory_bytes < libraries + 4 * (65 << 20)
    assert forecast(tmp_path, "gptq-int4-g128/gptq", max_memory_bytes=limit) == forecast(
        tmp_path, "gptq-int4-g128/gptq"
    )


def test_where_layers_wait_on_disk_the_limit_is_kept_until_one_does_not_fit(tmp_path):
    for number in range(8):
        weights(tmp_path / f"model-{number}.safetensors", {f"model.layers.{number}.mlp.up_proj.weight": (8192, 4096)})
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    one_layer, hessians = 2 * 4096 * 8192, 2 * 4 * 4096**2
    least = COSTS["gptq", "compressed-tensors"].memory_bytes(0) + one_layer + hessians
    whole = forecast(tmp_path, "gptq-int4-g128").memory_bytes
    assert least < least + 1000 < whole
    assert forecast(tmp_path, "gptq-int4-g128", max_memory_bytes=least + 1000).memory_bytes == least + 1000
    assert forecast(tmp_path, "gptq-int4-g128", max_memory_bytes=1000).memory_bytes == least


def test_too_little_disk_is_said_before(tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(StoreError, match="has 0 MiB free"):
        preflight.require_room(forecast(demo.MODEL, "gguf-q8_0"), tmp_path / "not/there/yet", None, "gguf-q8_0")


def test_earlier_runs_on_this_machine_correct_the_forecast():
    chosen = method("nf4")
    route = chosen.routes[0]
    before = forecast(demo.MODEL, "nf4")
    preflight.remember("nf4", route, parameters=8921344, tokens=4096, seconds=99.0, memory_bytes=5 << 30)
    after = forecast(demo.MODEL, "nf4")
    assert "rough" in before.evidence
    assert after.evidence == "from 1 earlier run on this machine"
    assert after.seconds == pytest.approx(99.0)
    assert after.memory_bytes == pytest.approx(5 << 30)


def test_a_torn_line_of_the_history_costs_no_other(tmp_path):
    route = method("nf4").routes[0]
    preflight.remember("nf4", route, parameters=8921344, tokens=0, seconds=9.0, memory_bytes=5 << 30)
    with (tmp_path / "home/quantize-history.jsonl").open("a") as file:
        file.write('{"name": "nf4", "format": "bitsandb\n')
        file.write(json.dumps({"name": "nf4", "format": "bitsandbytes", "parameters": None}) + "\n")
    assert forecast(demo.MODEL, "nf4").evidence == "from 1 earlier run on this machine"


def test_a_run_of_a_much_smaller_model_is_rough():
    route = method("nf4").routes[0]
    preflight.remember("nf4", route, parameters=8921344 // 100, tokens=0, seconds=9.0, memory_bytes=5 << 30)
    assert forecast(demo.MODEL, "nf4").evidence.startswith(
        "rough: from 1 earlier run on this machine, the nearest of 0 M"
    )


MATRIX = struct.pack("<ii", 1, 20) + b"blk.0.attn_q.weight\0"


@pytest.mark.parametrize("tools", [{}, {"llama-quantize": "x"}])
def test_an_importance_matrix_needs_the_tools_that_use_it(tmp_path, tools):
    (tmp_path / "matrix").write_bytes(MATRIX)
    with pytest.raises(UsageError, match="llama-imatrix"):
        preflight.require_matrix(method("gguf-q4_k_m"), "auto", tools)
    if tools:
        preflight.require_matrix(method("gguf-q4_k_m"), str(tmp_path / "matrix"), tools)


@pytest.mark.parametrize(
    ("content", "is_one"),
    [(b"GGUF\3\0\0\0", True), (MATRIX, True), (b"", False), (b"\xff" * 99, False), (b"some text of anybody", False)],
)
def test_what_is_no_importance_matrix_is_refused_at_once(tmp_path, content, is_one):
    (tmp_path / "matrix").write_bytes(content)
    assert preflight.looks_like_matrix(tmp_path / "matrix") is is_one


def test_embeddings_that_are_no_head_are_written_as_most_weights(tmp_path):
    """As llama.cpp wrote a Qwen2 with 512 columns and a head of its own: 3.61 bits in Q2_K."""
    folder = decoder(tmp_path, hidden=512, inner=1536, vocabulary=4096)
    found = sorted(sizes.tensors(folder), key=lambda t: "embed" not in t.name)
    config = json.loads((folder / "config.json").read_text())
    head = sizes.Tensor(name="lm_head.weight", shape=(4096, 512), elements=4096 * 512)
    tied, untied = (sizes.gguf_bits(tensors, "q2_k", config)[0] for tensors in (found, [*found, head]))
    assert (tied, untied) == (6.5625, 2.625)


def test_two_results_lie_beside_each_other_while_a_matrix_is_chosen():
    one, two = forecast(demo.MODEL, "gguf-q4_k_m"), forecast(demo.MODEL, "gguf-q4_k_m", imatrix="auto")
    assert two.disk_bytes == one.disk_bytes + one.size_bytes


@pytest.mark.parametrize("text", ["", "no json\n", "5\n", json.dumps({"name": "other"})])
def test_a_damaged_history_is_no_history(tmp_path, text):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/quantize-history.jsonl").write_text(text)
    assert "rough" in forecast(demo.MODEL, "nf4").evidence


@pytest.mark.parametrize("cost", COSTS.values())
def test_costs_grow_with_the_model_and_the_calibration(cost: Cost):
    assert cost.seconds(10**9, 0) < cost.seconds(10**10, 0) <= cost.seconds(10**10, 10**6)
    assert cost.memory_bytes(10**9) < cost.memory_bytes(10**10)


@pytest.mark.parametrize("name", TOOK["cases"])
def test_what_the_first_run_takes_is_told_as_it_was_measured(name: str):
    chosen = method(name.partition("/")[0])
    route = chosen.route(name.partition("/")[2] or None)
    tokens = TOOK["samples"] * TOOK["sample_tokens"] if route.calibrated else 0
    cost, rounds = cost_of(chosen, route), [one["llmopt"] for one in TOOK["cases"][name]["rounds"]]
    parameters = open_model(demo.MODEL).parameters
    seconds = statistics.median(one["worker_s"] for one in rounds)
    memory = statistics.median(one["worker_peak_bytes"] for one in rounds)
    assert seconds / 1.5 < cost.seconds(parameters, tokens) < 1.5 * seconds
    assert cost.memory_bytes(parameters) == pytest.approx(memory, rel=0.1)


@pytest.mark.parametrize(
    ("tokens", "seconds"), [(2048, 20.6), (4096, 32.1), (16_384, 57.2)]
)  # of 256-token samples, measured
def test_the_grid_of_awq_costs_alike_for_few_samples_and_many(tokens: int, seconds: float):
    chosen = method("awq-int4-g128")
    found = cost_of(chosen, chosen.routes[0]).seconds(open_model(demo.MODEL).parameters, tokens)
    assert found == pytest.approx(seconds, rel=0.35)
