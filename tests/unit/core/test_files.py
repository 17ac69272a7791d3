import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmopt.core.errors import StoreError
from llmopt.core.files import alive, folder_bytes, partial_folder, write_atomic

# Writes a megabyte where a file may hold 64 KiB: what a full disk looks like.
FULL_DISK = """
import resource, sys
from pathlib import Path
from llmopt.core.errors import StoreError
from llmopt.core.files import write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    write_atomic(Path(sys.argv[1]), bytes(1 << 20))
except StoreError as error:
    print(error)
"""


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    return child.pid


def test_write_atomic_makes_the_folder_and_the_file(tmp_path):
    write_atomic(tmp_path / "a" / "b" / "file", b"data")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"data"


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path):
    write_atomic(tmp_path / "file", b"old")
    write_atomic(tmp_path / "file", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"new")]


def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_partial(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    told = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "file")], capture_output=True, text=True, check=True
    )
    assert str(tmp_path / "file") in told.stdout
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot write"):
        write_atomic(tmp_path / "file" / "below", b"data")


def test_a_target_that_is_a_folder_leaves_nothing_partial(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(StoreError):
        write_atomic(tmp_path / "taken", b"data")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_a_store_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="no permission"):
        write_atomic(tmp_path / "file", b"data")


def test_a_partial_folder_lies_beside_its_target_and_is_empty(tmp_path):
    aside = partial_folder(tmp_path / "out")
    assert aside.parent == tmp_path
    assert aside != tmp_path / "out"
    assert list(aside.iterdir()) == []


def test_a_partial_folder_of_this_process_starts_anew(tmp_path):
    (partial_folder(tmp_path / "out") / "half").write_bytes(b"")
    assert list(partial_folder(tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["out", "model[1]"])
def test_leftovers_of_dead_processes_go(tmp_path, name):
    left = tmp_path / f".{name}.partial-{dead_pid()}"
    left.mkdir()
    (left / "half").write_bytes(b"")
    partial_folder(tmp_path / name)
    assert not left.exists()


def test_folders_of_living_processes_and_other_targets_stay(tmp_path):
    living, other = tmp_path / f".out.partial-{os.getppid()}", tmp_path / f".else.partial-{dead_pid()}"
    living.mkdir()
    other.mkdir()
    partial_folder(tmp_path / "out")
    assert living.exists()
    assert other.exists()


@pytest.mark.parametrize(("pid", "runs"), [(str(os.getpid()), True), ("1", True), ("", False), ("x", False)])
def test_alive(pid, runs):
    assert alive(pid) is runs


def test_folder_bytes_adds_the_files_of_the_patterns(tmp_path: Path):
    (tmp_path / "a.gguf").write_bytes(bytes(10))
    (tmp_path / "b.json").write_bytes(bytes(5))
    assert (folder_bytes(tmp_path), folder_bytes(tmp_path, ("*.gguf",))) == (15, 10)
