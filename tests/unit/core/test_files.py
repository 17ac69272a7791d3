import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmopt.core.errors import StoreError
from llmopt.core.files import folder_bytes, locked, partial_folder, partial_folders, scratch_folder, write_atomic

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


# Takes a lock, says so, and holds it until it is killed or its input ends.
HOLDER = """
import sys
from pathlib import Path
from llmopt.core.files import locked, scratch_folder
how = locked(Path(sys.argv[2]), wait=lambda: None) if sys.argv[1] == "lock" else scratch_folder(Path(sys.argv[2]), "s-")
with how:
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Starts processes that hold a lock or a scratch folder; what still runs at the end is killed."""
    started = []

    def hold(what, path):
        child = subprocess.Popen(
            [sys.executable, "-c", HOLDER, what, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(child)
        assert child.stdout.readline() == "held\n"
        return child

    yield hold
    for child in started:
        child.kill()
        child.stdin.close()
        child.stdout.close()
        child.wait()


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


@pytest.mark.parametrize("name", ["out", "model[1]"])
def test_every_partial_folder_has_a_name_of_its_own_and_is_found(tmp_path, name):
    made = {partial_folder(tmp_path / name), partial_folder(tmp_path / name)}
    partial_folder(tmp_path / "other")
    assert set(partial_folders(tmp_path / name)) == made
    assert len(made) == 2


def refuse():
    raise StoreError("it is held")


def test_a_lock_is_held_by_one_process_and_goes_with_it(tmp_path, holder):
    other = holder("lock", tmp_path / "lock")
    with pytest.raises(StoreError, match="held"), locked(tmp_path / "lock", wait=refuse):
        pass
    other.kill()
    other.wait()
    with locked(tmp_path / "lock", wait=refuse):
        assert (tmp_path / "lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_who_waits_for_a_lock_gets_the_one_that_others_see(tmp_path, holder):
    """The one before removes the file: a lock on what was removed would keep nobody out."""
    other = holder("lock", tmp_path / "lock")
    with locked(tmp_path / "lock", wait=other.stdin.close):
        with pytest.raises(StoreError, match="held"), locked(tmp_path / "lock", wait=refuse):
            pass
        assert (tmp_path / "lock").exists()


def test_a_scratch_folder_of_a_killed_process_goes_and_that_of_a_living_one_stays(tmp_path, holder):
    killed, living = holder("scratch", tmp_path), holder("scratch", tmp_path)
    killed.kill()
    killed.wait()
    with scratch_folder(tmp_path, "s-") as own:
        assert len(list(tmp_path.iterdir())) == 2
        assert list(own.iterdir()) == []
    (left,) = tmp_path.iterdir()
    living.stdin.close()
    living.wait()
    assert not left.exists()


def test_folder_bytes_adds_the_files_of_the_patterns(tmp_path: Path):
    (tmp_path / "a.gguf").write_bytes(bytes(10))
    (tmp_path / "b.json").write_bytes(bytes(5))
    assert (folder_bytes(tmp_path), folder_bytes(tmp_path, ("*.gguf",))) == (15, 10)
