"""What holds for every line of the quantization table, with the real libraries."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from llmopt.core.artifacts import MANIFEST, open_artifact
from llmopt.core.errors import UsageError
from llmopt.pipeline import making, proving
from llmopt.quantize import METHODS
from llmopt.report.progress import Reporter
from tests.contract.conftest import Workshop

pytestmark = pytest.mark.engine
EVERY = pytest.mark.parametrize("name", list(METHODS))


@EVERY
def test_makes_an_artifact_that_opens_and_knows_what_it_is(workshop: Workshop, name: str) -> None:
    artifact = workshop.artifact(name)
    assert open_artifact(artifact.path) == artifact
    assert artifact.quantization.name == name


@EVERY
def test_manifest_says_how_it_was_made(workshop: Workshop, name: str) -> None:
    manifest = json.loads((Path(workshop.artifact(name).path) / MANIFEST).read_text())
    assert manifest["seconds"] > 0
    assert manifest["peak_memory_bytes"] > 100 << 20
    assert manifest["base"]["fingerprint"] == workshop.model.fingerprint
    assert METHODS[name].distribution in manifest["versions"]


@EVERY
def test_real_bits_lie_between_the_nominal_and_the_base(workshop: Workshop, name: str) -> None:
    artifact = workshop.artifact(name)
    assert artifact.quantization.bits < artifact.bits_per_weight < 10


@EVERY
def test_stays_close_to_its_base(workshop: Workshop, name: str) -> None:
    quality = proving.read_quality(proving.quality_file(workshop.artifact(name)))
    assert quality is not None
    low, high = quality["kl_mean_interval"]
    assert 0 < low <= quality["kl_mean"] <= high < 0.2
    assert quality["top1_agreement"] > 0.8


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


def test_eight_bits_are_closer_than_four(workshop: Workshop) -> None:
    kl = {n: (proving.read_quality(proving.quality_file(workshop.artifact(n))) or {})["kl_mean"] for n in METHODS}
    assert kl["gguf-q8_0"] < 0.2 * kl["gguf-q4_k_m"]


def test_a_folder_with_something_else_is_refused_and_left_alone(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds something else"):
        making.quantize(workshop.request("gguf-q8_0"), tmp_path, Reporter(quiet=True))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_other_settings_do_not_pass_for_the_same_artifact(workshop: Workshop) -> None:
    made = workshop.artifact("gptq-int4-g128")
    other = making.quantize_request(workshop.model, "gptq-int4-g128", samples=4)
    with pytest.raises(UsageError, match="other settings"):
        making.quantize(other, Path(made.path), Reporter(quiet=True))
