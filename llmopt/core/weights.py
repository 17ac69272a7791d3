"""What can be wrong with weights on disk: shards that do not fit their index, broken numbers, a tokenizer of another model.

Standard library only at import, numpy where numbers are read; torch is never needed, so all of this runs in the first
second, before a worker starts.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llmopt.core.errors import ModelError

INDEX = "model.safetensors.index.json"
FETCH_AGAIN = "fetch or copy it again"
LONGEST_HEADER = 100 << 20
# dtype → bits of one element, as the safetensors format names them.
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
BITS |= {"U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64}
# dtype → (bytes, mask without the sign, smallest masked value that is NaN or infinite).
# E4M3 has no infinity, and one NaN: all bits set.
NOT_FINITE = {
    "F64": (8, 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "F32": (4, 0x7FFF_FFFF, 0x7F80_0000),
    "F16": (2, 0x7FFF, 0x7C00),
    "BF16": (2, 0x7FFF, 0x7F80),
    "F8_E4M3": (1, 0x7F, 0x7F),
    "F8_E5M2": (1, 0x7F, 0x7C),
}
BLOCK_BYTES = 4 << 20  # fits a core's cache, so that mask and maximum cost one pass over memory
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight", "embed_in.weight")


def safetensors_header(file: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: name → {dtype, shape, data_offsets}.

    Raises ModelError for a file that is cut, or whose tensors overlap or have not the bytes of their shape.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > LONGEST_HEADER:
                raise ValueError("its header claims more than 100 MB")
            header: dict[str, Any] = json.loads(stream.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no table of tensors")
        header.pop("__metadata__", None)
        end = check_places(header)
        if file.stat().st_size < 8 + length + end:
            raise ValueError(f"{8 + length + end:,} bytes expected, {file.stat().st_size:,} found")
    except (OSError, ValueError, struct.error, KeyError, TypeError) as error:
        raise ModelError(f"{file} is not a whole safetensors file: {error}", hint=FETCH_AGAIN) from error
    return header


def check_places(header: dict[str, Any]) -> int:
    """The end of the last tensor, in bytes after the header. Raises ValueError for a place that cannot be."""
    end = 0
    if any(not {"dtype", "shape", "data_offsets"} <= set(entry) for entry in header.values()):
        raise ValueError("a tensor has no dtype, shape or place")
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        if first < end:
            raise ValueError(f"{name} overlaps the tensor before it")
        bits = BITS.get(entry["dtype"])
        if last < first or (bits is not None and (last - first) * 8 != math.prod(entry["shape"]) * bits):
            raise ValueError(f"{name} has {last - first:,} bytes, which is not {entry['dtype']} × {entry['shape']}")
        end = last
    return end


def data_start(file: Path) -> int:
    """Where the tensors of a safetensors file begin, in bytes from its start."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
    return 8 + int(length)


def count_parameters(file: Path) -> int:
    return sum(math.prod(entry["shape"]) for entry in safetensors_header(file).values())


def tensors(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Name → (file, header entry) of every tensor in the safetensors files of a folder. Raises ModelError."""
    return {
        name: (file, entry)
        for file in sorted(folder.glob("*.safetensors"))
        for name, entry in safetensors_header(file).items()
    }


def check_shards(folder: Path) -> None:
    """Every safetensors file whole, and the index in agreement with them; reads headers only.

    Raises ModelError that names the file. A folder without safetensors passes: that is for ``open_model`` to judge.
    """
    headers = {file.name: safetensors_header(file) for file in sorted(folder.glob("*.safetensors"))}
    index = folder / INDEX
    if not index.exists():
        return
    try:
        places: dict[str, str] = dict(json.loads(index.read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{index} cannot be read: {error}", hint=FETCH_AGAIN) from error
    for name, shard in places.items():
        if shard not in headers:
            raise ModelError(f"{index} names {shard}, which is not there", hint=f"fetch {shard}")
        if name not in headers[shard]:
            raise ModelError(
                f"{folder / shard} lacks {name}, which the index places there",
                hint="index and shards are not of one save: fetch both again",
            )
    for shard, header in headers.items():
        if (stray := next((name for name in header if name not in places), None)) is not None:
            raise ModelError(
                f"{index} does not know {stray}, which is in {shard}",
                hint="index and shards are not of one save: fetch both again",
            )


def require_finite(files: Sequence[Path], progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """No NaN and no infinity in any float tensor of these safetensors files; other files are passed over.

    Reads everything once, in blocks of a few megabytes; ``progress`` gets (bytes done, bytes in all).
    Raises ModelError that names file and tensor.
    """
    files = [file for file in files if file.suffix == ".safetensors"]
    total = sum(file.stat().st_size for file in files)
    done = 0
    for file in files:
        start = data_start(file)
        for name, entry in safetensors_header(file).items():
            if not all(finite_blocks(file, start, entry)):
                raise ModelError(f"{file}: {name} holds NaN or infinite numbers", hint=FETCH_AGAIN)
            done += entry["data_offsets"][1] - entry["data_offsets"][0]
            progress(done, total)


def finite_blocks(file: Path, start: int, entry: dict[str, Any]) -> Iterator[bool]:
    """Whether each block of a tensor is finite, by its bits: no float arithmetic, no conversion of bf16 and fp8.

    Read, not mapped: mapped pages would count as memory of this process.
    """
    import numpy as np

    if entry["dtype"] not in NOT_FINITE:
        return
    width, mask, limit = NOT_FINITE[entry["dtype"]]
    first, last = entry["data_offsets"]
    kind = np.dtype(f"<u{width}")
    keep, left = np.array(mask, kind), (last - first) // width
    with file.open("rb", buffering=0) as stream:
        stream.seek(start + first)
        while left:
            numbers = np.fromfile(stream, kind, min(left, BLOCK_BYTES // width))
            if not len(numbers):
                raise ModelError(f"{file} ended while it was read", hint=FETCH_AGAIN)
            left -= len(numbers)
            np.bitwise_and(numbers, keep, out=numbers)
            yield bool(numbers.max() < limit)


def require_matching_tokenizer(folder: Path) -> None:
    """Every token id has a row in the input embedding, and config.json counts the same rows. Raises ModelError.

    Passes where there is nothing to compare: no embedding under a known name, or one that is stored packed.
    """
    rows = embedding_rows(folder)
    if rows is None:
        return
    config = read_json(folder / "config.json")
    said = (config.get("text_config") or config).get("vocab_size")
    if said is not None and said != rows:
        raise ModelError(
            f"{folder / 'config.json'} says vocab_size {said}, the embedding has {rows} rows",
            hint="config.json and weights are not of one model: fetch both again",
        )
    file = folder / "tokenizer.json"
    highest = highest_token_id(file) if file.exists() else -1
    if highest >= rows:
        raise ModelError(
            f"{file} has token ids up to {highest}, the embedding only {rows} rows",
            hint="tokenizer and weights are not of one model: fetch both again",
        )


def embedding_rows(folder: Path) -> int | None:
    """Rows of the input embedding in the safetensors files; ``None`` where none can be told."""
    for name, (_, entry) in tensors(folder).items():
        if name.endswith(EMBEDDINGS) and len(entry["shape"]) == 2 and entry["dtype"] in NOT_FINITE:
            return int(entry["shape"][0])
    return None


def highest_token_id(file: Path) -> int:
    """The highest id that a tokenizer.json can give: its vocabulary (a table or a list) and its added tokens."""
    stored = read_json(file)
    try:
        vocabulary = stored["model"].get("vocab", {})
        known = len(vocabulary) - 1 if isinstance(vocabulary, list) else max(vocabulary.values(), default=-1)
        return int(max(known, *(token["id"] for token in stored.get("added_tokens") or [{"id": -1}]), -1))
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is no tokenizer: {error!r}", hint=FETCH_AGAIN) from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object on disk. Raises ModelError for anything else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}", hint=FETCH_AGAIN) from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} is no JSON object", hint=FETCH_AGAIN)
    return found
