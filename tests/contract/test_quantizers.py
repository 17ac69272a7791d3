"""What holds for every line of the quantization table, with the real libraries."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from llmopt.core import environments
from llmopt.core.artifacts import MANIFEST, open_artifact
from llmopt.core.domain import ServeOptions, Workload
from llmopt.core.errors import UsageError
from llmopt.core.gguf_types import FILE_TYPES
from llmopt.pipeline import making, plans, proving, requesting
from llmopt.pipeline.measuring import bench_artifact
from llmopt.quantize import METHODS, quantization
from llmopt.report.progress import Reporter
from tests.contract.conftest import PROOF_TOKENS, SAMPLES, Workshop

pytestmark = pytest.mark.engine
# Every method in its default layout, every other layout, and a GGUF of each kind (plain, K-quant, IQ); the other file
# types are made below, from one conversion.
LAYOUTS = [f"{m.name}:{route.format}" for m in METHODS.values() for route in m.routes[1:]]
NAMES = (
    [name for name in METHODS if not name.startswith("gguf-")] + LAYOUTS + ["gguf-q8_0", "gguf-q4_k_m", "gguf-iq4_xs"]
)
EVERY = pytest.mark.parametrize("name", NAMES)
# Whoever wrote a layout, it is served by the same loader, and every proof has loaded it: once each is enough.
WRITTEN = {name.partition(":")[2]: name for name in reversed(LAYOUTS)}
SERVED = [name for name in NAMES if name not in LAYOUTS or name in WRITTEN.values()]
SMALL = Workload(input_tokens=32, output_tokens=8, concurrency=2, requests=8, warmup_requests=1)


def plain(name: str) -> str:
    return name.partition(":")[0]


@EVERY
def test_makes_an_artifact_that_opens_and_knows_what_it_is(workshop: Workshop, name: str) -> None:
    artifact = workshop.artifact(name)
    assert open_artifact(artifact.path) == artifact
    assert artifact.quantization == quantization(plain(name), name.partition(":")[2] or None)


@EVERY
def test_manifest_says_how_it_was_made(workshop: Workshop, name: str) -> None:
    manifest = json.loads((Path(workshop.artifact(name).path) / MANIFEST).read_text())
    assert manifest["seconds"] > 0
    assert manifest["peak_memory_bytes"] > 100 << 20
    assert manifest["base"]["fingerprint"] == workshop.model.fingerprint
    assert manifest["library"]["version"]
    assert manifest["versions"]["torch"]


@EVERY
def test_real_bits_are_what_was_forecast(workshop: Workshop, name: str) -> None:
    artifact = workshop.artifact(name)
    coming = requesting.prepared(workshop.request(name), Path(artifact.path), None).forecast
    assert artifact.bits_per_weight == pytest.approx(coming.bits_per_weight, rel=0.03)
    assert artifact.quantization.bits < artifact.bits_per_weight < 11


@EVERY
def test_card_holds_the_figures_and_the_command(workshop: Workshop, name: str) -> None:
    artifact = workshop.artifact(name)
    text = (Path(artifact.path) / "README.md").read_text()
    quality = proving.read_quality(proving.quality_file(artifact))
    assert quality is not None
    assert f"{quality['kl_mean']:.5f}" in text
    assert f"--quant {plain(name)} --format {artifact.quantization.format}" in text


@pytest.mark.parametrize("name", SERVED)
def test_is_served_and_measured(workshop: Workshop, name: str, tmp_path: Path) -> None:
    case = plans.open_case(Path(workshop.artifact(name).path), ServeOptions(backend="", max_num_seqs=2), SMALL)
    (run,) = bench_artifact(case, Reporter(quiet=True), results=tmp_path, repeats=1)
    assert run.metrics["requests_ok"] == SMALL.requests
    assert run.metrics["output_tps_whole"] > 0


@EVERY
def test_stays_close_to_its_base(workshop: Workshop, name: str) -> None:
    quality = proving.read_quality(proving.quality_file(workshop.artifact(name)))
    assert quality is not None
    low, high = quality["kl_mean_interval"]
    assert 0 < low <= quality["kl_mean"] <= high < 0.2
    assert quality["top1_agreement"] > 0.8
    in_files = None if name == "dynamic-int8" else 56
    assert quality["structure"]["quantized_layers"] == in_files


@EVERY
def test_tokenizer_is_the_bases_own(workshop: Workshop, name: str) -> None:
    own = (Path(workshop.artifact(name).path) / "tokenizer.json").read_bytes()
    assert own == (Path(workshop.model.path) / "tokenizer.json").read_bytes()


@EVERY
def test_second_time_it_is_already_there_at_once(workshop: Workshop, name: str) -> None:
    first, _ = workshop.make(name)
    started = time.monotonic()
    second, there = workshop.make(name)
    assert there
    assert second == first
    assert time.monotonic() - started < 2


def test_more_bits_are_closer(workshop: Workshop) -> None:
    kl = {n: (proving.read_quality(proving.quality_file(workshop.artifact(n))) or {})["kl_mean"] for n in NAMES}
    assert kl["gguf-q8_0"] < 0.2 * kl["gguf-q4_k_m"]
    assert kl["gptq-int8"] < 0.2 * kl["gptq-int4-g32"]
    assert kl["gptq-int4-g32"] < kl["gptq-int4-g128"] < kl["w4a16"]


EVERY_TYPE = """
import sys
from pathlib import Path
from llmopt.core.environments import CONVERTER_FOLDER
from llmopt.quantize import gguf
folder = Path(sys.argv[2])
sys.path.insert(0, str(Path(sys.prefix) / CONVERTER_FOLDER))
kinds = sys.argv[3:]  # the converter has its own
gguf.convert(Path(sys.argv[1]), folder / "base.gguf")
for kind in kinds:
    gguf.quantize(folder / "base.gguf", folder / f"{kind}.gguf", kind, None)
"""


def test_every_file_type_that_needs_no_matrix_is_written_as_its_name_says(workshop: Workshop, tmp_path: Path) -> None:
    environment = environments.find(METHODS["gguf-q8_0"].needs)
    kinds = [kind for kind, t in FILE_TYPES.items() if not t.needs_imatrix]
    argv = [str(environment.python), "-c", EVERY_TYPE, workshop.model.path, str(tmp_path), *kinds]
    said = subprocess.run(argv, check=True, capture_output=True, timeout=200).stderr
    assert b"hf-to-gguf" in said
    assert b"%|" not in said  # a bar is redrawn ten times a second into the log
    for kind in kinds:
        found = making.gguf_details(tmp_path / f"{kind}.gguf", kind)
        types = {t: n for t, n in found["tensor_types"].items() if t != "F32" or kind == "f32"}
        expected = "Q8_0" if kind == "mxfp4_moe" else FILE_TYPES[kind].main  # the bundled model has no experts
        assert max(types, key=lambda t: types[t]) == expected
        assert found["fallback_types"] == []


def test_a_folder_with_something_else_is_refused_and_left_alone(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds something else"):
        making.quantize(workshop.request("gguf-q8_0"), tmp_path, Reporter(quiet=True))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_other_settings_do_not_pass_for_the_same_artifact(workshop: Workshop) -> None:
    made = workshop.artifact("gptq-int4-g128")
    other = requesting.quantize_request(workshop.model, "gptq-int4-g128", requesting.Options(samples=4))
    with pytest.raises(UsageError, match="other settings"):
        making.quantize(other, Path(made.path), Reporter(quiet=True))


def test_a_result_that_fails_its_proof_is_kept_aside_and_not_made_again(workshop: Workshop, tmp_path: Path) -> None:
    out, proof = tmp_path / "nf4", proving.QualityText(tokens=PROOF_TOKENS)
    request = workshop.request("nf4")
    with pytest.raises(proving.ProofFailed, match="farther from its base than was asked") as caught:
        making.quantize(
            request, out, Reporter(quiet=True), proof=proof, limits=proving.ProofLimits(max_kl=1e-9, min_top1=None)
        )
    assert caught.value.exit_status == 3
    refused = tmp_path / "nf4.refused"
    assert str(refused) in (caught.value.hint or "")
    assert json.loads((refused / "refused.json").read_text())["quality"]["kl_mean"] > 1e-9
    assert not out.exists()
    started = time.monotonic()
    artifact, there = making.quantize(request, out, Reporter(quiet=True), proof=proof)
    assert not there
    assert open_artifact(out) == artifact
    assert not refused.exists()
    assert not (out / "refused.json").exists()
    assert time.monotonic() - started < 15  # neither quantized nor measured again
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(environments.tool("llama-imatrix") is None, reason="llama.cpp's own tools are not here")
def test_a_type_below_three_bits_is_made_with_an_importance_matrix(workshop: Workshop, tmp_path: Path) -> None:
    request, out = workshop.request("gguf-iq2_xxs"), tmp_path / "iq2"
    artifact, _ = making.quantize(request, out, Reporter(quiet=True), proof=proving.QualityText(tokens=PROOF_TOKENS))
    manifest = json.loads((out / MANIFEST).read_text())
    assert manifest["details"]["imatrix"]["computed_from"] == "calibration"
    assert manifest["calibration"]["samples"] == SAMPLES
    assert 2 < artifact.bits_per_weight < 3
    assert (out / "imatrix" / "imatrix.gguf").exists()


@pytest.mark.skipif(environments.tool("llama-imatrix") is None, reason="llama.cpp's own tools are not here")
def test_an_importance_matrix_is_kept_only_where_it_measures_better(workshop: Workshop, tmp_path: Path) -> None:
    options = requesting.Options(imatrix="auto", samples=SAMPLES)
    request, out = requesting.quantize_request(workshop.model, "gguf-q3_k_m", options), tmp_path / "q3"
    making.quantize(request, out, Reporter(quiet=True))
    matrix = json.loads((out / MANIFEST).read_text())["details"]["imatrix"]
    assert matrix["kept"] == (matrix["kl_with"] < matrix["kl_without"])
    assert (out / "imatrix").exists() == matrix["kept"]
    assert sorted(p.name for p in out.glob("*.gguf")) == ["model.gguf"]
