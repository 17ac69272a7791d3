import io
import os
from pathlib import Path

import pytest

from llmopt.bench import load
from llmopt.bench.client import LoadClient
from llmopt.bench.endpoint import Endpoint
from llmopt.bench.load import clients, play, share
from llmopt.bench.recording import Spool
from llmopt.bench.waits import Waits, go_first
from unit.bench.playing import schedule

MS = 1_000_000


def told(file, *readings):
    """What is added up of these (milliseconds waited, times run), in nanoseconds."""
    waits = Waits(source=str(file))
    for waited_ms, times in readings:
        file.write_text(f"123456 {waited_ms * MS} {times}\n")
        waits.look()
    return waits.long_ns


def test_a_long_wait_is_counted_whole(tmp_path):
    assert told(tmp_path / "schedstat", (5, 10), (195, 12), (196, 30)) == 190 * MS


def test_many_short_waits_are_those_of_a_client_with_much_to_do(tmp_path):
    assert told(tmp_path / "schedstat", (0, 1), (40, 400)) == 0


def test_a_wait_of_less_than_a_tenth_of_the_time_counts_for_nothing(tmp_path):
    assert told(tmp_path / "schedstat", (0, 1), (9, 2), (20, 3)) == 11 * MS


def test_one_look_says_nothing(tmp_path):
    assert told(tmp_path / "schedstat", (500, 1)) is None


def test_a_system_that_does_not_tell(tmp_path):
    waits = Waits(source=str(tmp_path / "none"))
    waits.look()
    assert waits.long_ns is None


def test_a_kernel_that_counts_nothing(tmp_path):
    assert told(tmp_path / "schedstat", (0, 0), (0, 0)) is None


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="no schedstat here")
def test_a_process_beside_one_that_goes_first_on_its_core_is_seen_to_wait():
    """A child that pins itself beside a busy child, on one core, at the lowest weight."""
    read, write = os.pipe()
    core = min(os.sched_getaffinity(0))
    if not (busy := os.fork()):
        os.sched_setaffinity(0, {core})
        while True:
            pass
    if not (child := os.fork()):
        os.sched_setaffinity(0, {core})
        os.nice(19)
        waits = Waits()
        waits.look()
        end = os.times().elapsed + 1.0
        while os.times().elapsed < end:
            pass
        waits.look()
        os.write(write, str(waits.long_ns).encode())
        os._exit(0)
    try:
        os.waitpid(child, 0)
        assert int(os.read(read, 100)) > 100 * MS
    finally:
        os.kill(busy, 9)
        os.waitpid(busy, 0)
        os.close(read)
        os.close(write)


def test_the_client_has_real_time_priority_where_it_may_and_says_so(server):
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, b"yes" if go_first() else b"no")
        os._exit(0)
    os.waitpid(child, 0)
    allowed = os.read(read, 3) == b"yes"
    os.close(read)
    os.close(write)
    policies = set()
    with clients() as crew:

        def progress(now):
            if now.active:
                policies.add(os.sched_getscheduler(crew[0].process.pid) & ~os.SCHED_RESET_ON_FORK)

        slow = schedule(["scripted?ttft_ms=300&tpot_ms=1"] * 2, users=2)
        result = play(crew, slow, Endpoint.of(server, "completions"), progress=progress)
    assert result.realtime is allowed
    assert policies == {os.SCHED_FIFO if allowed else os.SCHED_OTHER}
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.mark.parametrize(
    ("workers", "cores", "allowed"), [(1, 1, True), (1, 2, True), (2, 2, False), (2, 3, True), (4, 2, False)]
)
def test_several_clients_go_first_only_where_they_leave_the_server_a_core(workers, cores, allowed, monkeypatch):
    monkeypatch.setattr(load, "available_cores", lambda: cores)
    assert load.may_go_first(workers) is allowed


def test_clients_on_all_cores_have_the_priority_of_everybody(server, monkeypatch):
    monkeypatch.setattr(load, "available_cores", lambda: 2)
    with clients(2) as crew:
        result = play(crew, schedule(20, users=2), Endpoint.of(server, "completions"))
    assert result.realtime is False


def test_waits_are_looked_at_before_during_and_after(server):
    """What is under way at each look: also a run that is shorter than a tick has two."""
    endpoint = Endpoint.of(server, "completions")
    plan = share(schedule(["scripted?ttft_ms=150&tpot_ms=1"]), endpoint, *endpoint.resolve(5.0), 0, 1, "")[1]
    client, active = LoadClient(plan, Spool(io.BytesIO())), []
    client.waits.look = lambda: active.append(client.active)
    client.run()
    assert (active[0], set(active[1:-1]), active[-1]) == (0, {1}, 0)
    assert len(active) > 3
