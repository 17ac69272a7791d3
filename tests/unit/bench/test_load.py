"""Client processes: shares of a schedule, stopping, and what happens when one of us dies."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from llmopt.bench.endpoint import Endpoint
from llmopt.bench.load import clients, play, share
from llmopt.core.errors import LlmoptError
from unit.bench.playing import kinds, run, schedule
from unit.make import ns

QUICK = "scripted?ttft_ms=0&tpot_ms=0"
SLOW = "scripted?ttft_ms=50&tpot_ms=1"


@pytest.fixture
def crew():
    with clients() as started:
        yield started


def children():
    return {p.pid for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE}


def gone(pid, seconds=5.0):
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# --- shares -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 3])
def test_several_clients_give_every_trace_once(server, workers):
    result = run(server, schedule(20, users=4), workers=workers)
    assert [t.index for t in result.traces] == list(range(20))
    assert (kinds(result), result.workers) == ([None] * 20, workers)


def test_several_clients_keep_one_schedule(server):
    plan = schedule(40, offsets_ns=tuple(ns(0.01 * n) for n in range(40)), users=0)
    traces = run(server, plan, workers=2).traces
    assert [t.planned_ns - traces[0].planned_ns for t in traces] == list(plan.offsets_ns)


def test_the_turns_of_a_conversation_stay_together(server):
    plan = schedule(9, first=(0, 3, 6), follower=(1, 2, -1, 4, 5, -1, 7, 8, -1), users=3)
    traces = run(server, plan, workers=2).traces
    assert [t.index for t in traces] == list(range(9))
    assert all(traces[n].planned_ns >= traces[n - 1].closed_ns for n in range(9) if n % 3)


def test_more_clients_than_requests(server):
    assert kinds(run(server, schedule(1, users=4), workers=3)) == [None]


def test_a_client_without_a_slot_has_no_part(server):
    result = run(server, schedule(12, users=2), workers=3)
    assert (kinds(result), result.workers, result.connections) == ([None] * 12, 2, 2)


@pytest.mark.parametrize(
    ("rate", "users", "of", "warm"), [(10, 0, 1, 8), (1000, 0, 1, 50), (1000, 0, 2, 25), (1000, 3, 1, 3)]
)
def test_an_open_loop_begins_with_the_connections_of_its_first_moment(rate, users, of, warm):
    plan = schedule(200, users=users, offsets_ns=tuple(ns(n / rate) for n in range(200)))
    _, mine = share(plan, Endpoint.of("http://localhost/v1", "chat"), 2, ("127.0.0.1", 1), 0, of, "")
    assert mine.warm_connections == warm


# --- progress and the early end -------------------------------------------------------------------------------------


def test_progress_is_told(server):
    told = []
    run(server, schedule([SLOW] * 10, users=2), progress=told.append)
    assert [p.finished for p in told] == sorted(p.finished for p in told)
    assert max(p.active for p in told) == 2


def test_a_run_that_is_stopped_keeps_what_was_measured(server):
    plan = schedule([SLOW] * 200, users=0, offsets_ns=tuple(ns(0.01 * n) for n in range(200)))
    result = run(server, plan, stop_when=lambda now: now.finished >= 20)
    assert result.stopped == "stopped by the caller"
    assert kinds(result).count(None) >= 20
    assert set(kinds(result)) <= {None, "stopped"}
    assert result.seconds < 2


def test_enough_ends_a_run_when_what_is_under_way_has_ended(server):
    seen = []

    def enough(traces):
        seen.append(len(traces))
        return len(traces) >= 10

    result = run(server, schedule([SLOW] * 1000, users=4), enough=enough)
    assert seen[-1] >= 10
    assert seen == sorted(seen)
    assert (result.enough, result.stopped) == (True, None)
    assert kinds(result) == [None] * len(result.traces)
    assert 10 <= len(result.traces) < 200


def test_enough_of_an_open_loop_leaves_no_failures(server):
    plan = schedule(1000, users=0, offsets_ns=tuple(ns(0.01 * n) for n in range(1000)))
    result = run(server, plan, enough=lambda traces: len(traces) >= 20)
    assert kinds(result) == [None] * len(result.traces)
    assert 20 <= len(result.traces) < 300


def test_what_waits_behind_a_cap_when_it_is_enough_is_sent_all_the_same(server):
    plan = schedule(200, users=2, offsets_ns=tuple(ns(0.001 * n) for n in range(200)))
    result = run(server, plan, enough=lambda traces: len(traces) >= 20)
    assert result.enough
    assert kinds(result) == [None] * 200


def test_an_interruption_keeps_what_was_measured(server):
    def interrupt(now):
        if now.finished >= 10:
            raise KeyboardInterrupt

    result = run(server, schedule([SLOW] * 500, users=2), progress=interrupt)
    assert result.stopped == "interrupted"
    assert kinds(result).count(None) >= 10
    assert len(result.traces) < 100


# --- processes that die -------------------------------------------------------------------------------------------


def test_no_client_outlives_its_block():
    before = children()
    with clients(2) as crew:
        assert len(children() - before) == 2
    assert all(c.process.returncode is not None for c in crew)
    assert children() == before


def test_a_client_that_is_killed_before_anything_is_recorded_is_an_error_and_no_hang(server, crew):
    crew[0].process.kill()
    with pytest.raises(LlmoptError, match="a load client died"):
        play(crew, schedule([SLOW] * 50), Endpoint.of(server, "completions"))


def test_what_a_client_had_finished_when_it_was_killed_is_kept(server, crew):
    def kill(now):
        if now.finished >= 4:
            crew[0].process.kill()

    result = play(crew, schedule([SLOW] * 50), Endpoint.of(server, "completions"), progress=kill)
    assert result.stopped.startswith("a load client died (status -9)")
    assert kinds(result) == [None] * len(result.traces)
    assert 3 <= len(result.traces) < 50


@pytest.mark.parametrize("busy", [False, True])
def test_a_client_ends_when_its_parent_is_gone(server, tmp_path, busy):
    """As when we are killed: nothing of ours says goodbye, the pipe just closes."""
    code = f"""
import sys, time
sys.path[:0] = {sys.path!r}
from unit.bench.playing import schedule
from llmopt.bench.endpoint import Endpoint
from llmopt.bench.load import clients, play, share
with clients() as crew:
    print(crew[0].process.pid, flush=True)
    if {busy}:
        play(crew, schedule(["scripted?tpot_ms=500"] * 50), Endpoint.of({server!r}, "completions"))
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    time.sleep(0.5)
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.communicate()
    assert gone(pid)


def test_an_interrupt_of_the_terminal_is_for_us_alone(server, crew):
    """Ctrl-C goes to the whole group of processes: the client is in a group of its own, and hands over what it has."""
    assert os.getpgid(crew[0].process.pid) != os.getpgid(0)


def test_nothing_is_left_on_disk(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    run(server, schedule(2), progress=lambda _: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs a limit on open files")
def test_too_few_open_files_are_failures_with_their_reason(server):
    """Every slot beyond the limit fails at once, and so do thousands after it: no recursion, and what was sent is kept."""
    with clients() as crew:
        resource.prlimit(crew[0].process.pid, resource.RLIMIT_NOFILE, (64, 64))
        result = play(crew, schedule([QUICK] * 5000, tokens=1, users=200), Endpoint.of(server, "completions"))
    assert any("too many open files" in (t.error or "") for t in result.traces)
    assert any(t.sent_ns is not None for t in result.traces)


def test_a_server_that_dies_is_a_row_of_failures(tmp_path):
    from llmopt.serve.process import free_port
    from llmopt.serve.scripted import SERVER

    port = free_port(None)
    process = subprocess.Popen([sys.executable, SERVER, "--port", str(port)])
    try:
        time.sleep(0.5)

        def kill(now):
            if now.finished > 20:
                process.send_signal(signal.SIGKILL)

        result = run(f"http://127.0.0.1:{port}/v1", schedule(3000, users=4), progress=kill)
    finally:
        process.kill()
        process.wait()
    assert set(kinds(result)) <= {None, "cut", "reset", "refused"}
    assert kinds(result)[-1] == "refused"
    assert len(result.traces) == 3000
