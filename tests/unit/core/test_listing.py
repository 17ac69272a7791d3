import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmopt.core import listing as module
from llmopt.core.listing import listing, record_files


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.json", "b/1.json", "b/machine.json", "b/.hidden.json", "a/ä\n.json", "a/x.txt", "c.json/3.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "a" / os.fsdecode(b"\xff.json")).write_text("{}")
    return tmp_path


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(module, "free_cores", lambda: 2)


def test_a_child_lists_the_same(folder):
    assert listing(folder)() == record_files(folder) != []


def test_an_empty_folder(tmp_path):
    assert listing(tmp_path)() == []


def test_nothing_is_started_for_what_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    with pytest.raises(FileNotFoundError):
        listing(tmp_path / "none")()


def test_what_is_wrong_with_a_name_is_said_when_it_is_asked_for():
    listed = listing(Path("n" * 300))
    with pytest.raises(OSError, match="File name too long"):
        listed()


def test_without_a_further_process_it_is_listed_here(folder, monkeypatch):
    def refused():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    assert listing(folder)() == record_files(folder)


def test_a_child_that_dies_before_it_has_said_all_is_not_believed(folder, monkeypatch):
    monkeypatch.setattr(module, "END", b"")  # of the child alone
    listed = listing(folder)
    monkeypatch.setattr(module, "END", b"\0/")
    assert listed() == record_files(folder)


FORSAKEN = """
import os, sys
from pathlib import Path
from llmopt.core import listing
listing.free_cores = lambda: 2
listing.record_files = lambda folder: ["x" * 1000] * 1000  # more than a pipe holds
listing.listing(Path(sys.argv[1]))
print(listing.os.getpid(), flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_child_ends_when_nobody_will_listen(folder):
    """Its standard output, which is awaited, ends with it."""
    done = subprocess.run([sys.executable, "-c", FORSAKEN, str(folder)], capture_output=True, timeout=20, check=False)
    assert done.returncode == -9
