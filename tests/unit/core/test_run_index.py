import json
import os
import subprocess
import sys
from dataclasses import replace
from multiprocessing.synchronize import SemLock

import pytest

from llmopt.core import listing, run_files, run_index
from llmopt.core.errors import StoreError
from llmopt.core.run_index import INDEX, load_runs, read_store
from llmopt.core.store import save_run
from unit.make import MACHINE, metrics, run


@pytest.fixture
def indexed(tmp_path, monkeypatch):
    """A folder of three runs that has an index."""
    monkeypatch.setattr(run_index, "WORTH_WRITING", (1, 1))
    for n in range(3):
        save_run(
            tmp_path,
            run(f"q{n}", throughput=100.0 + n, run_id=f"r{n}", started_at=f"2025-01-0{n + 1}", intervals={}),
            [],
        )
    read_store(tmp_path)
    assert (tmp_path / INDEX).exists()
    return tmp_path


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that were read from here on."""
    names = []
    real = run_files.read_file
    monkeypatch.setattr(run_files, "read_file", lambda file: names.append(os.path.basename(file)) or real(file))  # noqa: PTH119
    return names


def throughputs(results):
    return read_store(results).table.column("output_tps").tolist()


def test_a_folder_becomes_a_table_oldest_first(tmp_path):
    save_run(tmp_path, run("late", throughput=2, started_at="2025-02-01"), [])
    save_run(tmp_path, run("early", throughput=1, started_at="2025-01-01"), [])
    table = read_store(tmp_path).table
    assert table.column("output_tps").tolist() == [1, 2]
    assert [table.record(row).artifact["quantization"] for row in (0, 1)] == ["early", "late"]


def test_a_small_folder_gets_no_index(tmp_path):
    save_run(tmp_path, run(), [])
    read_store(tmp_path)
    assert not (tmp_path / INDEX).exists()


def test_no_results_is_an_error_with_a_hint(tmp_path):
    with pytest.raises(StoreError, match="no results at"):
        read_store(tmp_path / "nowhere")


def test_new_records_are_put_into_the_index_and_not_read_again(indexed, reads):
    save_run(indexed, run("new", throughput=7, run_id="r9"), [])
    assert [sorted(throughputs(indexed)) for _ in range(2)] == [[7, 100, 101, 102]] * 2
    assert len(reads) == 1


ASIDE = """
import signal
import sys
from pathlib import Path
from llmopt.core import listing, run_files, run_index
run_index.WORTH_WRITING = 1, 1
run_index.free_cores = lambda: 2
if sys.argv[2] == "ignored":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("once")
run_index.read_store(Path(sys.argv[1]), aside=True)
"""


@pytest.mark.parametrize("ends_of_children", ["heard", "ignored"])
def test_an_index_that_is_written_aside_is_the_same_and_there_when_the_process_ends(indexed, ends_of_children):
    before = (indexed / INDEX).read_bytes()
    (indexed / INDEX).unlink()
    command = [sys.executable, "-c", ASIDE, indexed, ends_of_children]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("once\n", "")
    assert (indexed / INDEX).read_bytes() == before
    assert [file.name for file in indexed.glob(".*")] == [INDEX]


def test_what_several_processes_have_read_gets_an_index_where_not_every_file_is_a_run(indexed, monkeypatch):
    (indexed / INDEX).unlink()
    (indexed / "a.json").write_text("[]")
    monkeypatch.setattr(run_files, "AT_ONCE", 2)
    monkeypatch.setattr(run_files, "free_cores", lambda: 2)
    assert throughputs(indexed) == throughputs(indexed) == [100, 101, 102]
    assert (indexed / INDEX).exists()


@pytest.mark.parametrize("change", ["read again", "gone"])
def test_rows_of_records_that_changed_or_are_gone_do_not_stay_in_the_index(indexed, change):
    size = (indexed / INDEX).stat().st_size
    for n in range(5):
        if change == "gone":
            next(indexed.rglob(f"r*{n}.json")).unlink()
            save_run(indexed, run("new", throughput=7, run_id=f"r{n + 3}", started_at="2025-02-01", intervals={}), [])
        for file in indexed.rglob("r*.json"):
            os.utime(file)
        expected = sorted(json.loads(file.read_text())["metrics"]["output_tps"] for file in indexed.rglob("r*.json"))
        assert sorted(throughputs(indexed)) == sorted(throughputs(indexed)) == expected
    assert (indexed / INDEX).stat().st_size < 1.2 * size


def test_a_file_whose_name_is_no_text_is_read_each_time_and_named(indexed, reads):
    text = next(indexed.rglob("r1.json")).read_text().replace('"r1"', '"r7"')
    (indexed / os.fsdecode(b"caf\xe9.json")).write_text(text)
    (indexed / os.fsdecode(b"half\xe9.json")).write_text("{")
    (indexed / "é.json").write_text(text.replace('"r7"', '"r8"'))
    for _ in range(2):
        stored = read_store(indexed)
        assert (len(stored.table), [s.file for s in stored.skipped]) == (5, ["half\\xe9.json"])
    assert [os.fsencode(name)[:4] for name in sorted(reads)] == [
        b"caf\xe9",
        b"caf\xe9",
        b"half",
        b"half",
        "é.j".encode(),
    ]


def test_an_index_is_written_where_no_further_process_is_to_be_had(indexed, monkeypatch):
    def refused() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    (indexed / INDEX).unlink()
    monkeypatch.setattr(run_index, "free_cores", lambda: 2)
    monkeypatch.setattr(os, "fork", refused)
    read_store(indexed, aside=True)
    assert (indexed / INDEX).exists()


def test_many_files_are_read_where_no_processes_can_be_had(tmp_path, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    for n in range(5):
        save_run(tmp_path, run(f"q{n}", throughput=n + 1.0, run_id=f"r{n}"), [])
    monkeypatch.setattr(run_files, "AT_ONCE", 2)
    monkeypatch.setattr(run_files, "free_cores", lambda: 2)
    monkeypatch.setattr(SemLock, "__init__", refused)
    assert throughputs(tmp_path) == [n + 1.0 for n in range(5)]


FEW_PROCESSES = """
import os
import sys
from pathlib import Path
from llmopt.core import listing, run_files
fork, forks = os.fork, []
def one_fork():
    forks.append(0)
    if len(forks) > 1:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork, run_files.AT_ONCE, run_files.free_cores = one_fork, 1, lambda: 3
folder = Path(sys.argv[1])
print(len(run_files.read_files(folder, listing.record_files(folder)).table))
"""


def test_many_files_are_read_where_only_some_of_the_processes_can_be_had(indexed):
    command = [sys.executable, "-c", FEW_PROCESSES, indexed]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("3\n", "")


KILLED = """
import os
import sys
import time
from pathlib import Path
from llmopt.core import run_files
run_files.AT_ONCE, run_files.WATCHED_S, run_files.free_cores = 1, 0.05, lambda: 2
def slow(*_):
    os.write(1, b"reads\\n")
    time.sleep(60)
run_files.read_chunk = slow
run_files.read_files(Path("."), ["a", "b"])
"""


def test_processes_that_read_end_with_the_one_that_they_read_for():
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE) as parent:
        assert [parent.stdout.readline() for _ in range(2)] == [b"reads\n"] * 2
        parent.kill()
        parent.communicate(timeout=30)  # the other end of the pipe is theirs


def test_a_process_that_reads_and_is_killed_ends_no_reading(indexed, monkeypatch):
    real, here = run_files.read_chunk, os.getpid()

    def read_chunk(*arguments):
        if os.getpid() != here:
            os.kill(os.getpid(), 9)
        return real(*arguments)

    monkeypatch.setattr(run_files, "read_chunk", read_chunk)
    monkeypatch.setattr(run_files, "free_cores", lambda: 2)
    monkeypatch.setattr(run_files, "AT_ONCE", 1)
    assert len(run_files.read_files(indexed, listing.record_files(indexed)).table) == 3


def test_what_the_index_knows_is_not_read_again(indexed, reads):
    assert throughputs(indexed) == [100, 101, 102]
    assert reads == []


def test_a_record_that_changed_is_read_again(indexed, reads):
    file = next(indexed.rglob("r1.json"))
    file.write_text(file.read_text().replace('"output_tps": 101.0', '"output_tps": 901.0'))
    assert throughputs(indexed) == [100, 901, 102]
    assert reads == ["r1.json"]


def test_a_record_whose_time_was_set_back_is_read_again(indexed):
    file = next(indexed.rglob("r1.json"))
    before = file.stat()
    file.write_text(file.read_text().replace('"output_tps": 101.0', '"output_tps": 901.0'))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert throughputs(indexed) == [100, 901, 102]


def test_a_record_that_changes_after_it_was_read_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(run_index, "WORTH_WRITING", (1, 1))
    file = save_run(tmp_path, run(throughput=100.0, intervals={}), [])
    real = run_files.read_files

    def changed_afterwards(folder, names):
        parts = real(folder, names)
        file.write_text(json.dumps(json.loads(file.read_text()) | {"metrics": metrics(901)}))
        return parts

    monkeypatch.setattr(run_index, "read_files", changed_afterwards)
    assert throughputs(tmp_path) == [100]
    monkeypatch.setattr(run_index, "read_files", real)
    assert throughputs(tmp_path) == [901]


def test_a_record_that_is_gone_is_forgotten(indexed):
    next(indexed.rglob("r1.json")).unlink()
    assert throughputs(indexed) == [100, 102]


def test_a_new_record_joins_those_that_are_known(indexed):
    save_run(indexed, run("new", throughput=7, run_id="r9", machine=replace(MACHINE, fingerprint="other")), [])
    assert sorted(throughputs(indexed)) == [7, 100, 101, 102]
    table = read_store(indexed).table
    assert {table.word("machine", row) for row in range(4)} == {"abc123", "other"}


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: b"something else",
        lambda data: data[:-20],
        lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
        lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
    ],
    ids=["empty", "other", "cut", "a bit of its words", "a bit of its numbers"],
)
def test_a_damaged_index_is_made_anew(indexed, reads, change):
    (indexed / INDEX).write_bytes(change((indexed / INDEX).read_bytes()))
    assert throughputs(indexed) == [100, 101, 102]
    assert len(reads) == 3


def test_an_index_of_other_columns_is_made_anew(indexed, reads, monkeypatch):
    monkeypatch.setattr(run_index, "LAYOUT", "another")
    assert throughputs(indexed) == [100, 101, 102]
    assert len(reads) == 3


def test_a_folder_that_cannot_be_written_to_is_read_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(run_index, "WORTH_WRITING", (1, 1))
    save_run(tmp_path, run(throughput=5), [])
    (tmp_path / INDEX).mkdir()
    assert throughputs(tmp_path) == [5]


def test_many_files_are_read_by_several_processes_alike(tmp_path, monkeypatch):
    for n in range(9):
        save_run(tmp_path, run(f"q{n}", throughput=n + 1.0, run_id=f"r{n}"), [])
    alone = throughputs(tmp_path)
    monkeypatch.setattr(run_files, "AT_ONCE", 2)
    assert throughputs(tmp_path) == alone == [n + 1.0 for n in range(9)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"run_id": "x"', "not a whole run record"),
        ('{"run_id": "x"}', "missing required field"),
        ("", "not a whole run record"),
    ],
    ids=["cut", "half", "empty"],
)
def test_a_damaged_record_is_skipped_and_named(indexed, text, reason):
    (indexed / "bad.json").write_text(text)
    stored = read_store(indexed)
    assert len(stored.table) == 3
    assert [s.file for s in stored.skipped] == ["bad.json"]
    assert reason in stored.skipped[0].reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 7}, "it has schema 7"),
        ({"metrics": 5}, "metrics"),
        ({"verdict": {"status": "good"}}, "status"),
        ({"metrics": metrics() | {"output_tps": -4.0}}, "output_tps is -4, which cannot be"),
        ({"metrics": metrics() | {"error_rate": 3.0}}, "error_rate is 3, which cannot be"),
    ],
)
def test_a_record_that_somebody_wrote_into_is_skipped_and_named(tmp_path, change, reason):
    file = save_run(tmp_path, run(), [])
    save_run(tmp_path, run("good", throughput=3.0), [])
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    stored = read_store(tmp_path)
    assert stored.table.column("output_tps").tolist() == [3.0]
    assert reason in stored.skipped[0].reason


def test_a_skipped_record_is_named_again_with_an_index(indexed):
    (indexed / "bad.json").write_text("{")
    read_store(indexed)
    assert [s.file for s in read_store(indexed).skipped] == ["bad.json"]


def test_a_pipe_with_the_name_of_a_record_is_not_waited_for(indexed):
    os.mkfifo(indexed / "pipe.json")
    assert [s.file for s in read_store(indexed).skipped] == ["pipe.json"]


def test_json_that_is_no_run_is_passed_over(indexed):
    (indexed / "package.json").write_text('{"name": "x"}')
    (indexed / "list.json").write_text("[1, 2]")
    stored = read_store(indexed)
    assert (len(stored.table), stored.skipped) == (3, ())


def test_a_record_in_two_places_counts_once(tmp_path):
    file = save_run(tmp_path, run(), [])
    (tmp_path / "copy.json").write_bytes(file.read_bytes())
    stored = read_store(tmp_path)
    assert (len(stored.table), stored.copies) == (1, 1)


def changed_copy(tmp_path, name):
    """A run with 1 token/s, and a record of the same run_id with 900, in a file of that name."""
    file = save_run(tmp_path, run("own", throughput=1.0, intervals={}), [])
    text = file.read_text().replace('"output_tps": 1.0', '"output_tps": 900.0')
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / (name or file.name)).write_text(text)
    return read_store(tmp_path)


def test_a_changed_copy_is_named_and_is_no_second_run(tmp_path):
    stored = changed_copy(tmp_path, "other.json")
    assert stored.table.column("output_tps").tolist() == [1.0]
    assert [s.file for s in stored.skipped] == ["copy/other.json"]
    assert "the run_id of another" in stored.skipped[0].reason


def test_a_changed_copy_of_another_date_is_named_too(tmp_path):
    file = save_run(tmp_path, run("own", throughput=1.0, started_at="2025-01-01"), [])
    save_run(tmp_path, run("between", throughput=2.0, started_at="2025-02-01"), [])
    (tmp_path / "other.json").write_text(file.read_text().replace("2025-01-01", "2025-03-01"))
    stored = read_store(tmp_path)
    assert stored.table.column("output_tps").tolist() == [1.0, 2.0]
    assert [s.file for s in stored.skipped] == ["other.json"]


def test_of_two_that_may_both_be_the_changed_one_neither_counts(tmp_path):
    stored = changed_copy(tmp_path, None)
    assert (len(stored.table), len(stored.skipped)) == (0, 2)


def test_damaged_records_do_not_keep_the_others_from_being_taken_up(tmp_path):
    save_run(tmp_path, run("good"), [])
    save_run(tmp_path, run("cut"), []).write_text("{")
    said = []
    assert [r.artifact["quantization"] for r in load_runs(tmp_path, say=said.append)] == ["good"]
    assert len(said) == 1
    assert said[0].startswith("1 file skipped: ")
