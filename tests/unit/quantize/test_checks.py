"""What quantizers on torch share: memory that is handed back."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# Freed once, a piece of 8 MiB has glibc take all up to its size from the heap from then on.
PROGRAM = """
import ctypes, sys
from llmopt.quantize.checks import give_freed_memory_back

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.free.argtypes, libc.mallinfo2.restype = [ctypes.c_void_p], Info
libc.free(libc.malloc(8 << 20))
give_freed_memory_back(piece_by_piece=sys.argv[1] == "True")
before = libc.mallinfo2().hblks
pieces = [libc.malloc(1 << 20) for _ in range(4)]
print(libc.mallinfo2().hblks - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="another C library")
@pytest.mark.parametrize(("piece_by_piece", "mapped"), [(True, 4), (False, 0)])
def test_large_pieces_are_mapped_one_by_one_where_that_is_asked_for(piece_by_piece: bool, mapped: int):
    argv = [sys.executable, "-c", PROGRAM, str(piece_by_piece)]
    assert int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout) == mapped
