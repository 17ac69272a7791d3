import contextlib
import os
import signal
import subprocess
import sys
import time
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil
import pytest

from llmopt.core.errors import LlmoptError
from llmopt.core.process import KeptProcess
from llmopt.core.segments import late_segments

# Leaves its process group twice over, as a daemon does, and tells who it is.
DAEMON = """
import os, sys, time
if os.fork():
    time.sleep(60)
os.setsid()
if os.fork():
    os._exit(0)
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
# A parent that keeps a shell with a child of its own, and then waits to be killed.
PARENT = """
import sys, time
from pathlib import Path
from llmopt.core.process import KeptProcess
kept = KeptProcess(["sh", "-c", "sleep 61 & echo $! $$; wait"], log=Path(sys.argv[1]), grace_s=1)
print("up", flush=True)
time.sleep(60)
"""


@pytest.fixture
def log(tmp_path):
    return tmp_path / "logs" / "log"


def python(code, *arguments):
    return [sys.executable, "-S", "-c", code, *map(str, arguments)]


def until(condition, timeout_s=10.0):
    """The first true answer, polled with a bound."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def text(file):
    return file.read_text().strip() if file.exists() else ""


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_output_goes_to_the_log(log):
    with KeptProcess(["sh", "-c", "echo out; echo err >&2"], log=log) as process:
        process.wait(10)
    assert process.log_tail() == ["out", "err"]


def test_log_tail_is_the_last_lines(log):
    with KeptProcess(["seq", "9"], log=log) as process:
        process.wait(10)
    assert process.log_tail(2) == ["8", "9"]


def test_the_exit_status_comes_back(log):
    with KeptProcess(["sh", "-c", "exit 7"], log=log) as process:
        assert process.wait(10) == 7


def test_a_signal_is_a_negative_status(log):
    with KeptProcess(["sh", "-c", "kill -SEGV $$"], log=log) as process:
        assert process.wait(10) == -signal.SIGSEGV


def test_waiting_ends_while_the_command_runs(log):
    with KeptProcess(["sleep", "60"], log=log) as process:
        assert process.wait(0.05) is None
        assert process.running


def test_the_environment_is_added_to_ours(log):
    with KeptProcess(["sh", "-c", "echo $WORD $HOME"], log=log, environment={"WORD": "hello"}) as process:
        process.wait(10)
    assert process.log_tail() == [f"hello {os.environ['HOME']}"]


def test_a_command_that_is_not_there(log):
    with pytest.raises(LlmoptError, match="cannot start no-such-command"):
        KeptProcess(["no-such-command"], log=log)


def test_a_log_folder_that_cannot_be_made_is_our_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LlmoptError, match="file"):
        KeptProcess(["true"], log=tmp_path / "file" / "log")


def test_stop_ends_the_command_and_may_be_called_twice(log):
    process = KeptProcess(["sleep", "60"], log=log)
    process.stop()
    process.stop()
    assert process.returncode == -signal.SIGTERM
    assert gone(process.pid)


def test_stop_kills_what_ignores_the_polite_signal(log):
    process = KeptProcess(python(STUBBORN), log=log, grace_s=0.2)
    assert until(lambda: text(log))
    process.stop()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux adopts orphans")
def test_stop_ends_a_grandchild_that_left_the_group(log, tmp_path):
    with KeptProcess(python(DAEMON, tmp_path / "pid"), log=log):
        pid = int(until(lambda: text(tmp_path / "pid")))
        assert not gone(pid)
    assert gone(pid)


def test_children_do_not_outlive_a_command_that_ends_by_itself(log):
    with KeptProcess(["sh", "-c", "sleep 60 & echo $!"], log=log) as process:
        process.wait(10)
        assert gone(int(text(log)))


def test_leaving_by_an_error_stops_too(log):
    with pytest.raises(RuntimeError), KeptProcess(["sleep", "60"], log=log) as process:
        raise RuntimeError
    assert gone(process.pid)


def test_nothing_outlives_a_parent_that_was_killed(log):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(log)], stdout=subprocess.PIPE)
    try:
        assert parent.stdout.readline() == b"up\n"
        pids = [int(word) for word in until(lambda: text(log)).split()]
    finally:
        parent.kill()
        parent.communicate()
    assert len(pids) == 2
    assert until(lambda: all(gone(pid) for pid in pids))


def test_a_killed_command_leaves_no_shared_memory(log):
    make = "from multiprocessing.shared_memory import SharedMemory as S; s = S(create=True, size=4096); print(s.name, flush=True)"
    with KeptProcess(python(f"{make}; import time; time.sleep(60)"), log=log) as process:
        segment = Path("/dev/shm") / until(lambda: log.read_text().strip())
        assert segment.exists()
        command = psutil.Process(process.pid)
        for one in [*command.children(recursive=True), command]:
            one.kill()
        process.wait(10)
    assert not segment.exists()


def test_nor_a_semaphore_that_only_its_maker_knows(log):
    make = "import multiprocessing as m; s = m.get_context('spawn').Semaphore(); print(s._semlock.name, flush=True)"
    with KeptProcess(python(f"{make}; import time; time.sleep(60)"), log=log) as process:
        segment = Path(f"/dev/shm/sem.{until(lambda: log.read_text().strip()).strip('/')}")
        assert segment.exists()
        command = psutil.Process(process.pid)
        for one in [*command.children(recursive=True), command]:
            one.kill()
        process.wait(10)
    assert not segment.exists()


def test_shared_memory_of_others_stays(log):
    with contextlib.ExitStack() as stack:
        stack.callback(resource_tracker._resource_tracker._stop)  # a process of ours that others would stumble over
        segments = []
        with KeptProcess(python("import time; time.sleep(60)"), log=log):
            segments.append(SharedMemory(create=True, size=4096))
            stack.callback(segments[0].unlink)
            time.sleep(1.2)
        assert Path("/dev/shm", segments[0].name).exists()
        segments[0].close()


def test_a_temporary_folder_of_its_own_goes_with_the_command(log):
    leave = "import tempfile, pathlib; p = pathlib.Path(tempfile.mkdtemp()); (p / 'left').touch(); print(p, flush=True)"
    with KeptProcess(python(leave), log=log, own_temporary=True) as process:
        process.wait(10)
    left = Path(log.read_text().strip())
    assert left.parent.name.startswith("llmopt-")
    assert not left.parent.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the environment of a process is read from /proc")
def test_a_killed_keeper_leaves_neither_a_grandchild_nor_what_it_should_have_removed(log, tmp_path):
    (tmp_path / "launch/engine").mkdir(parents=True)
    (tmp_path / "launch/engine/file").touch()
    with KeptProcess(
        python(DAEMON, tmp_path / "pid"),
        log=log,
        own_temporary=True,
        cleanup=("touch", str(tmp_path / "cleaned")),
        files=(str(tmp_path / "launch/engine/file"),),
    ) as process:
        pid = int(until(lambda: text(tmp_path / "pid")))
        keeper = psutil.Process(process.pid).parent()
        folder = Path(psutil.Process(pid).environ()["TMPDIR"])
        keeper.kill()
        assert process.wait(10) == -9
        assert not gone(pid)
    assert gone(pid)
    assert not folder.exists()
    assert not (tmp_path / "launch/engine").exists()
    assert (tmp_path / "launch").exists()  # not its own
    assert (tmp_path / "cleaned").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="segments of shared memory are files on Linux")
def test_nor_shared_memory(log):
    make = "from multiprocessing.shared_memory import SharedMemory as S; s = S(create=True, size=4096); print(s.name, flush=True)"
    with KeptProcess(python(f"{make}; import time; time.sleep(60)"), log=log, own_temporary=True) as process:
        segment = Path("/dev/shm") / until(lambda: log.read_text().strip())
        assert segment.exists()
        keeper = psutil.Process(process.pid).parent()
        for one in (keeper, *keeper.children(recursive=True)):  # its resource tracker would remove it too
            one.kill()
        process.wait(10)
    assert not segment.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="segments of shared memory are files on Linux")
def test_nor_shared_memory_that_a_keeper_did_not_live_to_see(log, tmp_path):
    code = """
import os, pathlib, sys, time
from multiprocessing.shared_memory import SharedMemory
if os.fork():
    time.sleep(60)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
made = SharedMemory(create=True, size=4096)
print(made.name, flush=True)
time.sleep(60)
"""
    with KeptProcess(python(code, tmp_path / "go"), log=log, own_temporary=True) as process:
        keeper = psutil.Process(process.pid).parent()
        keeper.suspend()
        (tmp_path / "go").touch()
        segment = Path("/dev/shm") / until(lambda: log.read_text().strip())
        assert segment.exists()
        keeper.kill()
    assert not segment.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="segments of shared memory are files on Linux")
def test_of_what_nobody_holds_only_the_latest_is_taken_for_its_own():
    started = time.time() - 0.1  # the kernel's clock of files is coarse
    made = Path(f"/dev/shm/psm_test{os.getpid()}")
    made.touch()
    try:
        assert made.name in late_segments(set(), started)
        assert made.name not in late_segments({made.name}, started)
        assert made.name not in late_segments(set(), time.time() + 0.1)
    finally:
        made.unlink()


def test_a_segment_of_another_program_outlives_a_killed_keeper(log):
    make = "from multiprocessing.shared_memory import SharedMemory as S; s = S(create=True, size=4096); print(s.name, flush=True)"
    with KeptProcess(python("import time; time.sleep(60)"), log=log, own_temporary=True) as process:
        other = subprocess.Popen(python(f"{make}; input(); s.unlink()"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        segment = Path("/dev/shm") / other.stdout.readline().decode().strip()
        psutil.Process(process.pid).parent().kill()
    assert segment.exists()
    other.communicate(b"\n")
    assert not segment.exists()


def test_what_it_would_have_cleaned_up_is_cleaned_up_after_a_parent_that_was_killed(log, tmp_path):
    (tmp_path / "launch/engine").mkdir(parents=True)
    (tmp_path / "launch/engine/file").touch()
    (tmp_path / "job").mkdir()
    more = (
        f'log=Path(sys.argv[1]), cleanup=("touch", "{tmp_path}/cleaned"), files=("{tmp_path}/launch/engine/file",)'
        f', folders=("{tmp_path}/job",)'
    )
    code = PARENT.replace("log=Path(sys.argv[1])", more)
    parent = subprocess.Popen([sys.executable, "-c", code, str(log)], stdout=subprocess.PIPE)
    assert parent.stdout.readline() == b"up\n"
    parent.kill()
    parent.communicate()
    assert until((tmp_path / "cleaned").exists)
    assert until(lambda: not (tmp_path / "launch/engine").exists())
    assert until(lambda: not (tmp_path / "job").exists())


def test_a_folder_stays_for_a_parent_that_reads_what_the_command_left(log, tmp_path):
    (tmp_path / "job").mkdir()
    with KeptProcess(python("pass"), log=log, folders=(str(tmp_path / "job"),)) as process:
        assert process.wait(10) == 0
    assert (tmp_path / "job").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the session of a process is read from /proc")
def test_a_child_without_its_environment_goes_with_a_killed_keeper(log):
    """vLLM's engine sets its title, and what it was started with cannot be read any more."""
    child = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    code = f"import subprocess, sys, time; print(subprocess.Popen({child}, env={{}}).pid, flush=True); time.sleep(60)"
    with KeptProcess(python(code), log=log, own_temporary=True) as process:
        pid = int(until(lambda: log.read_text().strip()))
        psutil.Process(process.pid).parent().kill()
        assert process.wait(10) == -9
        assert not gone(pid)
    assert gone(pid)
