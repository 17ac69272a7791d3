"""Pictures made by us, for models that see: each one different, so that no engine answers from a cache."""

from __future__ import annotations

import base64
import random
import struct
import zlib

from llmopt.core.errors import UsageError

MOST_PIXELS = 1 << 24
TILE = 16  # pixels: large areas of one colour compress well, and a picture still is unlike every other


def parse_size(text: str) -> tuple[int, int]:
    """``"512x384"`` → (512, 384) pixels, width first. Raises UsageError."""
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and 0 < int(width) * int(height) <= MOST_PIXELS):
        raise UsageError(f"--image-size {text!r} is no size in pixels", hint="--image-size 512x512")
    return int(width), int(height)


def png(width: int, height: int, generator: random.Random) -> bytes:
    """An RGB picture of coloured tiles as PNG (W3C, Portable Network Graphics, third edition)."""
    columns, rows = -(-width // TILE), -(-height // TILE)
    lines = []
    for _ in range(rows):
        tiles = [generator.randbytes(3) * TILE for _ in range(columns)]
        lines.append(b"\0" + b"".join(tiles)[: 3 * width])
    pixels = b"".join(line * TILE for line in lines)[: height * (3 * width + 1)]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(pixels, 6)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def image_part(width: int, height: int, generator: random.Random) -> dict[str, object]:
    """One picture as a part of a chat message."""
    url = "data:image/png;base64," + base64.b64encode(png(width, height, generator)).decode()
    return {"type": "image_url", "image_url": {"url": url}}
