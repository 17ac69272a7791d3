import contextlib
import os
import signal
import time

import psutil
import pytest

from llmopt.core.environments import current
from llmopt.core.errors import StoreError, UsageError, WorkerError
from llmopt.core.worker import Worker, run_job


@pytest.fixture
def job(tmp_path):
    def run(function, arguments, **options):
        return run_job(current(), function, arguments, log=tmp_path / "job.log", **options)

    return run


def descendants():
    return psutil.Process().children(recursive=True)


STARTED = {"args": ["sh", "-c", "echo '(1/2): working'; sleep 60"]}


def kill_the_worker(done, total, what):
    """Kill the runner: the only descendant that has the job's folder as its argument."""
    for process in descendants():
        with contextlib.suppress(psutil.Error):  # killed a moment ago, and not yet reaped
            if any("runner.py" in word for word in process.cmdline()[:2]):
                os.kill(process.pid, signal.SIGKILL)


def test_a_result_comes_back_with_what_it_took(job):
    result = job("llmopt.core.statistics:percentile", {"values": [3, 1, 2], "percent": 50})
    assert result.value == 2
    assert result.seconds >= 0
    assert result.peak_memory_bytes > 1 << 20


def test_an_error_of_ours_comes_back_as_it_was_raised(job):
    with pytest.raises(UsageError, match=r"^unknown quantization 'nf5'$") as caught:
        job("llmopt.quantize:method", {"name": "nf5"})
    assert "nf4" in caught.value.hint


def test_a_foreign_error_is_a_worker_error_that_names_it(job):
    with pytest.raises(WorkerError, match="ValueError: percentile of an empty sample") as caught:
        job("llmopt.core.statistics:percentile", {"values": [], "percent": 50})
    assert "job.log" in caught.value.hint


def test_a_worker_started_early_does_its_first_thing_and_then_its_job(tmp_path):
    first = ("llmopt.core.files:write_atomic", {"path": tmp_path / "seen", "data": "x"})
    with pytest.raises(TypeError):  # not of JSON: told at once
        Worker(current(), log=tmp_path / "log", first=first)
    first = ("os:mkdir", {"path": str(tmp_path / "seen")})
    with Worker(current(), log=tmp_path / "log", first=first) as worker:
        assert wait_for((tmp_path / "seen").exists)
        assert worker.waiting
        result = worker.run("llmopt.core.statistics:percentile", {"values": [3, 1, 2], "percent": 50})
    assert result.value == 2
    assert not worker.waiting


def test_what_goes_wrong_beforehand_is_left_to_the_job(tmp_path):
    with Worker(current(), log=tmp_path / "log", first=("llmopt.no_such_module:run", {})) as worker:
        assert worker.run("llmopt.core.statistics:percentile", {"values": [3], "percent": 50}).value == 3


def test_a_worker_whose_job_never_came_is_ended(tmp_path):
    with Worker(current(), log=tmp_path / "log"):
        assert any("runner.py" in " ".join(p.cmdline()) for p in descendants())
    assert not any("runner.py" in " ".join(p.cmdline()) for p in descendants())


def wait_for(ready, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.01)
    return ready()


@pytest.mark.parametrize("function", ["llmopt.no_such_module:run", "llmopt.quantize:no_such_function"])
def test_a_job_that_is_not_there_is_a_worker_error(job, function):
    with pytest.raises(WorkerError, match="no_such"):
        job(function, {})


def test_a_result_that_is_no_json_is_a_worker_error(job):
    with pytest.raises(WorkerError, match="not JSON serializable"):
        job("llmopt.core.environments:current", {})


def test_a_killed_worker_is_reported_as_killed(job):
    with pytest.raises(WorkerError, match=r"SIGKILL.*memory"):
        job("subprocess:run", STARTED, progress=kill_the_worker)


def test_a_crash_names_its_signal(job):
    with pytest.raises(WorkerError, match=r"crashed \(SIGABRT\)"):
        job("os:abort", {})


def test_a_worker_that_somebody_ended_is_no_crash_and_its_log_says_nothing_of_it(job):
    script = "echo 'UserWarning: this op cannot be fused'; kill -TERM $PPID; sleep 5"
    with pytest.raises(WorkerError, match=r"ended from outside \(SIGTERM\)$"):
        job("subprocess:call", {"args": ["sh", "-c", script]})


def test_a_crash_brings_the_librarys_last_words(job, tmp_path):
    script = tmp_path / "library.py"
    script.write_text("import os\nos.write(2, b'ggml: assert failed: rows\\nbye\\n')\nos.abort()\n")
    with pytest.raises(WorkerError, match=r"crashed \(SIGABRT\): ggml: assert failed: rows$"):
        job("runpy:run_path", {"path_name": str(script)})


def test_a_job_that_takes_too_long_is_stopped(job):
    with pytest.raises(WorkerError, match="did not end within"):
        job("subprocess:run", {"args": ["sleep", "60"]}, timeout_s=0.1)
    assert descendants() == []


def test_an_interruption_leaves_no_worker(job):
    def interrupt(done, total, what):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job("subprocess:run", STARTED, progress=interrupt)
    assert descendants() == []


def test_how_far_a_job_is_comes_out_of_what_it_prints(job):
    steps = []
    job(
        "subprocess:call",
        {"args": ["sh", "-c", "echo '(1/3): a'; echo '(2/3): b'; sleep 0.4"]},
        progress=lambda *at: steps.append(at),
    )
    assert set(steps) == {(2, 3, "b")}


def test_a_full_disk_is_told_as_such(job, tmp_path):
    with pytest.raises(StoreError, match="the disk is full"):
        job("shutil:copyfile", {"src": "/dev/zero", "dst": "/dev/full"})


def test_what_a_job_prints_goes_to_its_log(job, tmp_path):
    job("subprocess:call", {"args": ["echo", "hello"]})
    assert "hello" in (tmp_path / "job.log").read_text()


def test_a_worker_sees_llmopt_but_not_what_lies_beside_it(job):
    with pytest.raises(WorkerError, match="No module named 'runner'"):
        job("runner:main", {})
