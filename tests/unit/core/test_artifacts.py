import json
import struct
from dataclasses import replace

import pytest

from llmopt.core.artifacts import MANIFEST, count_parameters, manifest_of, open_artifact, open_model, safetensors_header
from llmopt.core.errors import ModelError
from unit.make import artifact, model, safetensors


def refused(folder, match):
    with pytest.raises(ModelError, match=match) as caught:
        open_model(folder)
    assert caught.value.hint
    return caught.value


def test_a_model_is_described(tmp_path):
    found = open_model(model(tmp_path))
    assert (found.model_type, found.architecture, found.parameters) == ("llama", "Tiny", 8)


def test_parameters_are_summed_over_all_files(tmp_path):
    safetensors(model(tmp_path) / "more.safetensors", shape=(3, 5))
    assert open_model(tmp_path).parameters == 8 + 15


def test_no_folder(tmp_path):
    refused(tmp_path / "nowhere", "no model at")


def test_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    refused(file, "is a file")


def test_no_config(tmp_path):
    refused(tmp_path, "no config.json")


@pytest.mark.parametrize("config", ["{}", "[]", "5", '{"model_type": ""}'])
def test_no_model_type(tmp_path, config):
    (model(tmp_path) / "config.json").write_text(config)
    refused(tmp_path, "model_type")


def test_a_config_that_is_no_json(tmp_path):
    (model(tmp_path) / "config.json").write_bytes(b"\xff{")
    with pytest.raises(ModelError, match="cannot be read"):
        open_model(tmp_path)


def test_only_pickles(tmp_path):
    (model(tmp_path) / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "safetensors" in refused(tmp_path, "pickle").hint


def test_no_weights(tmp_path):
    (model(tmp_path) / "model.safetensors").unlink()
    refused(tmp_path, "no \\*.safetensors")


def test_no_tokenizer(tmp_path):
    (model(tmp_path) / "tokenizer.json").unlink()
    refused(tmp_path, "no tokenizer.json")


def test_an_already_quantized_base(tmp_path):
    refused(model(tmp_path, quantization_config={"quant_method": "gptq"}), "already quantized .gptq.")


@pytest.mark.parametrize("kept", [0, 5, 20, -1])
def test_truncated_safetensors(tmp_path, kept):
    file = model(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    refused(tmp_path, "not a whole safetensors")


@pytest.mark.parametrize("header", [b"[]", b"5", b'"x"', b"null", b'{"w": 5}', b'{"w": {}}', b"\xff\xff"])
def test_a_senseless_safetensors_header(tmp_path, header):
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelError, match="not a whole safetensors"):
        safetensors_header(file)


def test_a_tensor_without_a_shape(tmp_path):
    header = json.dumps({"w": {"dtype": "F16", "data_offsets": [0, 0]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelError):
        count_parameters(tmp_path / "x.safetensors")


def test_weights_without_a_tensor(tmp_path):
    (model(tmp_path) / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(ModelError):
        open_artifact(tmp_path)


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 1 << 40))
    with pytest.raises(ModelError, match="100 MB"):
        safetensors_header(tmp_path / "x.safetensors")


def test_metadata_is_no_tensor(tmp_path):
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert count_parameters(tmp_path / "x.safetensors") == 0


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_the_fingerprint_changes_with_every_file(tmp_path, name):
    before = open_model(model(tmp_path)).fingerprint
    with (tmp_path / name).open("ab") as file:
        file.write(b"\n")
    assert open_model(tmp_path).fingerprint != before


def test_the_fingerprint_changes_with_one_weight_byte(tmp_path):
    before = open_model(model(tmp_path)).fingerprint
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert open_model(tmp_path).fingerprint != before


def test_the_fingerprint_does_not_depend_on_the_place(tmp_path):
    assert open_model(model(tmp_path / "a")).fingerprint == open_model(model(tmp_path / "b")).fingerprint


def test_a_base_is_an_artifact_too(tmp_path):
    found = open_artifact(model(tmp_path))
    assert (found.quantization.name, found.quantization.method, found.base) == ("bf16", "none", found.path)


def test_a_base_of_half_precision_is_called_so(tmp_path):
    safetensors(model(tmp_path) / "model.safetensors", dtype="F16")
    assert open_artifact(tmp_path).quantization.name == "fp16"


def test_an_artifact_comes_back_as_it_was_described(tmp_path):
    made = artifact(tmp_path / "nf4")
    assert open_artifact(tmp_path / "nf4") == made


def test_a_moved_artifact_knows_its_new_place(tmp_path):
    artifact(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert open_artifact(tmp_path / "new").path == str(tmp_path / "new")


def test_weights_of_another_size_are_refused(tmp_path):
    artifact(tmp_path)
    safetensors(tmp_path / "model.safetensors", shape=(9, 9))
    with pytest.raises(ModelError, match="not those of its"):
        open_artifact(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"artifact": {}}', '{"artifact": {"key": "k"}}'])
def test_a_damaged_manifest(tmp_path, text):
    artifact(tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ModelError, match="damaged"):
        open_artifact(tmp_path)


def test_what_is_quantized_when_it_is_loaded_needs_its_base_as_it_was(tmp_path):
    base = model(tmp_path / "base")
    made = artifact(tmp_path / "out", "dynamic-int8", "in-memory")
    (tmp_path / "out" / "model.safetensors").unlink()
    fields = {"base": str(base), "base_fingerprint": open_model(base).fingerprint, "size_bytes": 0}
    (tmp_path / "out" / MANIFEST).write_bytes(manifest_of(replace(made, **fields)))
    assert open_artifact(tmp_path / "out").size_bytes == 0
    safetensors(base / "model.safetensors", fill=9)
    with pytest.raises(ModelError, match="is not the model that it was"):
        open_artifact(tmp_path / "out")
