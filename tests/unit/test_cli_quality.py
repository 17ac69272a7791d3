"""``llmopt quality``: what it takes, and how it ends; the engine itself is replaced by figures that lie there already."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from llmopt.cli import app
from llmopt.core.artifacts import manifest_of
from llmopt.core.domain import Artifact
from llmopt.pipeline import proving
from llmopt.quality import declared
from unit.make import QUALITY
from unit.shards import base, gguf, gptq

FIGURES = QUALITY | {"base_perplexity": 11.0, "perplexity_interval": [11.0, 13.0], "tokens": 4088}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A GPTQ artifact of llmopt's own, and a worker that answers with ``FIGURES``."""
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(proving, "measure", lambda *_, **__: dict(FIGURES))
    model = base(tmp_path / "base")
    artifact = declared.foreign_artifact(gptq(tmp_path / "out"), model)
    (tmp_path / "out" / "llmopt.json").write_bytes(manifest_of(artifact))
    return artifact


def run(*words):
    result = CliRunner().invoke(app, ["quality", *map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def test_figures_are_printed_and_kept(made: Artifact, tmp_path):
    status, out, _ = run(made.path)
    assert status == 0
    assert "KL to the base   0.01000 [0.00900, 0.01100] nats" in out
    assert "2 layers quantized" in out
    assert json.loads((tmp_path / "out" / "quality.json").read_text())["quality"]["kl_mean"] == 0.01


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--max-kl", "0.009"), "0.01 nats, above 0.009"), (("--min-top1", "0.98"), "97.0% of the base's top tokens")],
)
def test_a_limit_that_is_not_kept_is_status_3_after_the_figures(made: Artifact, words, said):
    status, out, err = run(made.path, *words)
    assert status == 3
    assert "top-1 agreement  97.00%" in out
    assert said in err
    assert "hint:" in err


def test_garbage_is_an_error_without_any_option(made: Artifact, monkeypatch):
    monkeypatch.setattr(proving, "measure", lambda *_, **__: FIGURES | {"kl_mean": 3.47, "top1_agreement": 0.002})
    status, _, err = run(made.path)
    assert status == 1
    assert "is broken: its mean KL divergence to the base is 3.47 nats, above 0.5; 0.2% of the base's top tokens" in err


def test_one_json_document(made: Artifact):
    status, out, _ = run(made.path, "--json")
    assert status == 0
    assert json.loads(out)["structure"]["quantized_layers"] == 2


def test_figures_against_another_base_are_not_mistaken_for_its_own(made: Artifact, tmp_path):
    other = base(tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    assert run(made.path, "--against", other)[0] == 0
    assert not (tmp_path / "out" / "quality.json").exists()
    assert run(made.path, "--against", tmp_path / "base")[0] == 0
    assert (tmp_path / "out" / "quality.json").exists()


def test_somebody_elses_checkpoint_needs_its_base(made: Artifact, tmp_path):
    (tmp_path / "out" / "llmopt.json").unlink()
    status, _, err = run(tmp_path / "out")
    assert status == 2
    assert "hint: name its base: --against MODEL" in err
    assert run(tmp_path / "out", "--against", tmp_path / "base")[0] == 0


def test_so_does_a_gguf_file(made: Artifact, tmp_path):
    layers = {f"blk.{n}.ffn_up.weight": ("Q4_K", (256, 256)) for n in range(2)}
    file = gguf(tmp_path / "a.gguf", {"token_embd.weight": ("F32", (256, 8)), "n.weight": ("F32", (256,)), **layers})
    assert run(file)[0] == 2
    assert run(file, "--against", tmp_path / "base")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--backend", "vlm"), "did you mean vllm"),
        (("--backend", "llamacpp"), "reads no gptq"),
        (("--kv-cache-dtype", "q8_0"), "no KV cache of type"),
        (("--tasks", "nowhere.yaml"), "no task file at"),
        (("--tasks", "a", "--url", "http://host/v1"), "--url and --model go together"),
    ],
)
def test_wrong_words_are_usage(made: Artifact, words, said):
    status, _, err = run(made.path, *words)
    assert status == 2
    assert said in err


def test_a_relabelled_manifest_is_not_believed(made: Artifact, tmp_path):
    file = tmp_path / "out" / "llmopt.json"
    file.write_text(file.read_text().replace('"gptq-int4-g128"', '"awq-int4-g128"'))
    status, _, err = run(made.path)
    assert status == 1
    assert "was edited" in err
