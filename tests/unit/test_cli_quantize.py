"""``llmopt quantize`` from outside: what cannot work is one line with a hint, and leaves nothing."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from llmopt import demo
from unit.make import decoder

SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture
def llmopt(tmp_path):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "llmopt", *map(str, arguments)], capture_output=True, text=True, timeout=60, cwd=tmp_path,
            env=os.environ | {"LLMOPT_HOME": str(tmp_path / "home")},
        )  # fmt: skip

    return call


@pytest.fixture
def refused(llmopt, tmp_path):
    """The error line of a quantization that must not start; nothing is left of it."""

    def call(model, *arguments, status=1, quant="nf4"):
        told = llmopt("quantize", model, "-q", quant, "-o", "out", *arguments)
        errors = [line for line in told.stderr.splitlines() if line.startswith("error: ")]
        hints = [line for line in told.stderr.splitlines() if line.startswith("hint: ")]
        assert told.returncode == status, told.stderr
        assert told.stdout == ""
        assert "Traceback" not in told.stderr
        assert "defect" not in told.stderr
        assert (len(errors), len(hints)) == (1, 1), told.stderr
        assert not (tmp_path / "out").exists()
        assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
        return errors[0] + "\n" + hints[0]

    return call


@pytest.fixture
def bundled(tmp_path):
    """A copy of the bundled model, to be spoiled."""
    return shutil.copytree(demo.MODEL, tmp_path / "model")


def poison(folder, value):
    """Overwrite the last two bytes of the weights with one bfloat16."""
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-2:] = value
    file.write_bytes(data)


def test_a_truncated_shard(refused, bundled):
    file = bundled / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "model.safetensors" in refused(bundled)


def test_a_shard_that_is_no_safetensors_file(refused, bundled):
    (bundled / "model.safetensors").write_bytes(b"\x00garbage" * 1000)
    assert "is not a whole safetensors file" in refused(bundled)


@pytest.mark.parametrize("value", [b"\xc0\x7f", b"\x80\x7f", b"\x80\xff"], ids=["nan", "inf", "-inf"])
def test_weights_that_are_not_finite(refused, bundled, value):
    poison(bundled, value)
    words = refused(bundled)
    assert "NaN or inf" in words or "not finite" in words


def test_an_index_that_names_a_missing_shard(refused, bundled):
    index = {"metadata": {}, "weight_map": {"model.norm.weight": SHARD}}
    (bundled / "model.safetensors.index.json").write_text(json.dumps(index))
    assert SHARD in refused(bundled)


def test_a_tokenizer_of_another_model(refused, tmp_path):
    assert "tokenizer" in refused(decoder(tmp_path / "small", vocabulary=512))


def test_an_unsupported_architecture(refused, bundled):
    config = json.loads((bundled / "config.json").read_text()) | {"model_type": "nosuch", "architectures": ["NoSuchLM"]}
    (bundled / "config.json").write_text(json.dumps(config))
    assert "no causal language model of type 'nosuch'" in refused(bundled)
    assert "converter does not know NoSuchLM" in refused(bundled, quant="gguf-q8_0")


def test_rows_that_no_group_divides(refused, tmp_path):
    assert "rows of 96" in refused(
        decoder(tmp_path / "odd", hidden=96, inner=192, vocabulary=4096), quant="gptq-int4-g128"
    )


@pytest.mark.parametrize(
    ("content", "word"), [(b"", "is empty"), (b"\x00\x01" * 99, "binary"), (b"\xff\xfe", "not UTF-8")]
)
def test_a_calibration_that_is_no_text(refused, tmp_path, content, word):
    (tmp_path / "t.txt").write_bytes(content)
    assert word in refused("demo", "--calibration", "t.txt", quant="gptq-int4-g128", status=2)


def test_a_calibration_that_is_not_there(refused):
    assert "no" in refused("demo", "--calibration", "nowhere.jsonl", quant="gptq-int4-g128", status=2)


def test_too_little_memory_is_said_before_the_start(refused):
    words = refused("demo", "--max-memory", "1MiB")
    assert "needs about" in words
    assert "--force" in words


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--format", "gguf"), "not made in the layout 'gguf'"),
        (("--for", "llamacpp"), "llamacpp does not load nf4"),
        (("--for", "vlm"), "unknown backend 'vlm'"),
        (("--imatrix", "auto"), "--imatrix is of GGUF"),
        (("--max-memory", "16"), "needs a unit"),
        (("--samples", "0"), "--samples must be 1 or more"),
        (("--shard-size", "0"), "--shard-size must be 1 or more"),
        (("--kv-cache-dtype", "fp8"), "hf has no KV cache of type 'fp8'"),
        (("--text", "nowhere.txt"), "cannot read nowhere.txt"),
        (("--text", str(demo.MODEL / "README.md")), "three windows need 1536"),
    ],
)
def test_options_that_make_no_sense(refused, options, word):
    assert word in refused("demo", *options, status=2)


def test_an_importance_matrix_that_is_not_there(refused):
    assert "no importance matrix at x.gguf" in refused("demo", "--imatrix", "x.gguf", quant="gguf-q4_k_m", status=2)


def test_a_type_that_needs_an_importance_matrix_does_not_go_without(refused):
    words = refused("demo", "--imatrix", "none", quant="gguf-iq2_xxs", status=2)
    assert "cannot be made without an importance matrix" in words or "tools are not here" in words


@pytest.mark.parametrize("option", [("--max-kl", "-1"), ("--min-top1", "2")])
def test_limits_that_nothing_can_keep(llmopt, option):
    told = llmopt("quantize", "demo", "-q", "nf4", "-o", "out", *option)
    assert (told.returncode, option[0] in told.stderr) == (2, True)


@pytest.mark.parametrize("words", [("demo",), ("-q", "nf4"), ("--imatrix", "auto"), ("--no-proof",), ("--env", "x")])
def test_what_a_recipe_would_not_hear_of(llmopt, words):
    told = llmopt("quantize", *words, "--recipe", "r.yaml", "-o", "out")
    assert (told.returncode, "names its model" in told.stderr) == (2, True)


@pytest.mark.parametrize(
    "words", [("quantize",), ("quantize", "demo", "-o", "out"), ("quantize", "-q", "nf4", "-o", "out")]
)
def test_what_is_missing_is_said(llmopt, words):
    told = llmopt(*words)
    assert told.returncode == 2
    assert told.stderr.startswith("error: no ")
    assert "hint: " in told.stderr


def test_a_dry_run_makes_nothing_and_says_what_it_knows(llmopt, tmp_path):
    told = llmopt("quantize", "demo", "-q", "gptq-int4-g128", "--for", "hf", "-o", "out", "--dry-run", "--json")
    document = json.loads(told.stdout)
    assert not (tmp_path / "out").exists()
    assert document["loads"] == {"loads": True, "evidence": "tried with hf 5.17.0"}
    assert document["quantized_layers"] == 56
    assert document["calibration"]["samples"] == 64
    assert document["memory_bytes"] > 100 << 20


def test_a_dry_run_for_people(llmopt):
    told = llmopt("quantize", "demo", "-q", "gguf-q4_k_m", "-o", "out", "--dry-run")
    assert told.returncode == 0
    assert "5.0" in told.stdout
    assert "56 linear layers" in told.stdout


def test_a_dry_run_is_quick_enough_to_ask_first(llmopt):
    import time

    started = time.monotonic()
    llmopt("quantize", "demo", "-q", "gptq-int4-g128", "-o", "out", "--dry-run")
    assert time.monotonic() - started < 5
