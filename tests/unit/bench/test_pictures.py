"""Pictures that any decoder reads, none like another."""

from __future__ import annotations

import random
import struct
import zlib

import pytest

from llmopt.bench.pictures import image_part, parse_size, png
from llmopt.core.errors import UsageError


def chunks(data: bytes) -> dict[bytes, bytes]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, place = {}, 8
    while place < len(data):
        size = struct.unpack(">I", data[place : place + 4])[0]
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        assert struct.unpack(">I", data[place + 8 + size : place + 12 + size])[0] == zlib.crc32(kind + body)
        found[kind] = body
        place += 12 + size
    return found


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (33, 7), (100, 250)])
def test_every_line_is_there(size: tuple[int, int]) -> None:
    width, height = size
    found = chunks(png(width, height, random.Random(0)))
    assert struct.unpack(">II", found[b"IHDR"][:8]) == size
    assert len(zlib.decompress(found[b"IDAT"])) == height * (1 + 3 * width)
    assert b"IEND" in found


def test_no_two_are_alike() -> None:
    generator = random.Random(0)
    assert len({str(image_part(64, 64, generator)) for _ in range(20)}) == 20


@pytest.mark.parametrize("text", ["512", "0x5", "axb", "99999x99999", "-5x5"])
def test_a_size_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="no size in pixels"):
        parse_size(text)
