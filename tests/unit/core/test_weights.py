import json
import math
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt.core.errors import ModelError
from llmopt.core.weights import BLOCK_BYTES, INDEX, check_shards, require_finite, require_matching_tokenizer
from unit import shards
from unit.shards import base, bf16, shard


def refused(check, match):
    with pytest.raises(ModelError, match=match) as caught:
        check()
    assert caught.value.hint


def index(folder, places):
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


@pytest.fixture
def sharded(tmp_path):
    shard(tmp_path / "a.safetensors", {"x": bf16(2, 2)})
    shard(tmp_path / "b.safetensors", {"y": bf16(3)})
    index(tmp_path, {"x": "a.safetensors", "y": "b.safetensors"})
    return tmp_path


def test_whole_shards_pass(sharded):
    check_shards(sharded)


def test_a_shard_that_is_not_there(sharded):
    (sharded / "b.safetensors").unlink()
    refused(lambda: check_shards(sharded), "names b.safetensors, which is not there")


def test_a_tensor_that_its_shard_lacks(sharded):
    index(sharded, {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"})
    refused(lambda: check_shards(sharded), "lacks z")


def test_a_tensor_that_the_index_does_not_know(sharded):
    index(sharded, {"x": "a.safetensors"})
    refused(lambda: check_shards(sharded), "does not know y")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 5}', "\x00"])
def test_an_index_that_is_none(sharded, text):
    (sharded / INDEX).write_text(text)
    refused(lambda: check_shards(sharded), "cannot be read")


def test_a_truncated_shard(sharded):
    file = sharded / "a.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused(lambda: check_shards(sharded), "bytes expected")


@pytest.mark.parametrize("shape", [[2, 3], [1], [2, 2, 2]])
def test_bytes_that_are_not_the_shapes(tmp_path, shape):
    shard(tmp_path / "a.safetensors", {"x": bf16(2, 2)}, x={"dtype": "BF16", "shape": shape, "data_offsets": [0, 8]})
    refused(lambda: check_shards(tmp_path), "which is not BF16")


def test_tensors_that_overlap(tmp_path):
    entry = {"dtype": "BF16", "shape": [2], "data_offsets": [2, 6]}
    shard(tmp_path / "a.safetensors", {"x": bf16(2), "y": bf16(2)}, y=entry)
    refused(lambda: check_shards(tmp_path), "y overlaps")


def test_a_hundred_shards_take_no_time(tmp_path):
    for number in range(100):
        shard(tmp_path / f"{number}.safetensors", {f"t{number}.{n}": bf16(4, 4) for n in range(20)})
    started = time.monotonic()
    check_shards(tmp_path)
    assert time.monotonic() - started < 2


NOT_FINITE = [
    ("F64", 8, "<d", (math.nan, math.inf, -math.inf)),
    ("F32", 4, "<f", (math.nan, math.inf, -math.inf)),
    ("F16", 2, "<e", (math.nan, math.inf, -math.inf)),
    ("BF16", 2, "<H", (0x7F80, 0xFF80, 0x7FC0, 0xFFC1)),
    ("F8_E4M3", 1, "<B", (0x7F, 0xFF)),
    ("F8_E5M2", 1, "<B", (0x7C, 0xFC, 0x7D, 0xFF)),
]


@pytest.mark.parametrize(("dtype", "width", "code", "values"), NOT_FINITE)
def test_each_kind_of_broken_number_is_found_and_its_tensor_named(tmp_path, dtype, width, code, values):
    for number, value in enumerate(values):
        data = bytearray(width * 9)
        data[width * 7 : width * 8] = struct.pack(code, value)
        file = shard(tmp_path / f"{number}.safetensors", {"fine": bf16(3), "broken": (dtype, (9,), bytes(data))})
        refused(lambda file=file: require_finite([file]), "broken holds NaN")


@settings(deadline=None)  # it writes files
@given(st.lists(st.floats(width=16, allow_nan=True, allow_infinity=True), min_size=1, max_size=40))
def test_a_tensor_passes_exactly_when_numpy_calls_all_of_it_finite(tmp_path_factory, numbers):
    import numpy as np

    array = np.array(numbers, np.float16)
    file = shard(tmp_path_factory.mktemp("t") / "a.safetensors", {"x": ("F16", array.shape, array.tobytes())})
    if np.isfinite(array).all():
        require_finite([file])
    else:
        refused(lambda: require_finite([file]), "x holds NaN")


@pytest.mark.parametrize("largest", [("F8_E4M3", b"\x7e\xfe"), ("F8_E5M2", b"\x7b\xfb"), ("BF16", b"\x7f\x7f")])
def test_the_largest_number_is_still_one(tmp_path, largest):
    dtype, data = largest
    require_finite([shard(tmp_path / "a.safetensors", {"x": (dtype, (2 if dtype[1] == "8" else 1,), data)})])


def test_the_last_block_is_read_too(tmp_path):
    data = bytes(BLOCK_BYTES + 2) + struct.pack("<H", 0x7F80)
    file = shard(tmp_path / "a.safetensors", {"x": ("BF16", (len(data) // 2,), data)})
    refused(lambda: require_finite([file]), "x holds NaN")


def test_integers_and_empty_tensors_are_passed_over(tmp_path):
    nothing = ("F32", (0, 4), b"")
    require_finite([shard(tmp_path / "a.safetensors", {"x": ("I32", (1,), b"\xff" * 4), "y": nothing})])


def test_progress_ends_at_all_bytes(sharded):
    seen = []
    require_finite(sorted(sharded.glob("*.safetensors")), lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == [8, 14]
    assert {total for _, total in seen} == {sum(f.stat().st_size for f in sharded.glob("*.safetensors"))}


def test_tokenizer_and_embedding_of_one_model(tmp_path):
    require_matching_tokenizer(base(tmp_path))


def test_more_ids_than_rows(tmp_path):
    shards.tokenizer(base(tmp_path), 9)
    refused(lambda: require_matching_tokenizer(tmp_path), "ids up to 8, the embedding only 8 rows")


def test_an_added_token_beyond_the_rows(tmp_path):
    base(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": [["a", 0]]}, "added_tokens": [{"id": 8}]}')
    refused(lambda: require_matching_tokenizer(tmp_path), "ids up to 8")


def test_another_vocab_size(tmp_path):
    shards.config(base(tmp_path), vocab_size=9)
    refused(lambda: require_matching_tokenizer(tmp_path), "vocab_size 9, the embedding has 8 rows")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 5}', '{"model": {"vocab": {"a": "b"}}}'])
def test_a_tokenizer_that_is_none(tmp_path, text):
    (base(tmp_path) / "tokenizer.json").write_text(text)
    refused(lambda: require_matching_tokenizer(tmp_path), "tokenizer")
