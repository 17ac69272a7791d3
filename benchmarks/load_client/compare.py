"""Load clients against a server that knows what it did: reported minus true, for llmopt and its peers.

python benchmarks/load_client/compare.py [--peers llmopt,guidellm] [--cases closed-1,open-200] [--env-dir DIR] [--out DIR]

Makes missing environments, then runs every peer on every case, each against a fresh scripted server on the loopback
interface, and writes results.json and table.md.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cases import CASES
from peers import PEERS, Case, Peer, Run
from table import table

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
SERVER = REPOSITORY / "llmopt" / "serve" / "shims" / "scripted_server.py"
TOKENIZER = REPOSITORY / "llmopt" / "demo" / "model"
PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
GRACE_S = 5.0
USAGE = "last"  # as servers do that are asked for include_usage only


@dataclass(frozen=True)
class Finished:
    """``cpu_s`` is of the whole process tree; ``killed`` of it were still there 5 s after its first process ended."""

    return_code: int
    wall_s: float
    cpu_s: float
    timed_out: bool
    killed: bool


def adopt_orphans() -> None:
    """Make processes that a peer leaves behind children of this one, so that their CPU time is known too."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")


def run_child(command: Sequence[str], variables: Mapping[str, str], folder: Path, timeout_s: float) -> Finished:
    """Run in a process group of its own, which is ended whole; the output goes into the folder."""
    started = time.monotonic()
    with (folder / "stdout.txt").open("wb") as out, (folder / "stderr.txt").open("wb") as err:
        child = subprocess.Popen(
            command, env=variables, cwd=folder, stdout=out, stderr=err, stdin=subprocess.DEVNULL, start_new_session=True
        )
    late = threading.Event()
    timer = threading.Timer(timeout_s, lambda: (late.set(), kill_group(child.pid)))
    timer.start()
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        kill_group(child.pid)
        raise
    finally:
        timer.cancel()
    wall_s = time.monotonic() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    orphans_cpu_s, killed = reap_group(child.pid)
    cpu_s = usage.ru_utime + usage.ru_stime + orphans_cpu_s
    return Finished(child.returncode, wall_s, cpu_s, late.is_set(), killed)


def reap_group(group: int) -> tuple[float, bool]:
    """CPU seconds of the adopted processes of a group, and whether they had to be killed."""
    cpu_s, killed, deadline = 0.0, False, time.monotonic() + GRACE_S
    while True:
        try:
            pid, _, usage = os.wait4(-group, os.WNOHANG)
        except ChildProcessError:
            return cpu_s, killed
        if pid:
            cpu_s += usage.ru_utime + usage.ru_stime
        elif time.monotonic() < deadline:
            time.sleep(0.02)
        elif not killed:
            killed = True
            kill_group(group)


def kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


@contextlib.contextmanager
def scripted_server(case: Case, folder: Path) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(SERVER), "--port", str(port), "--max-num-seqs", str(case.max_num_seqs)]
    command += ["--ttft-ms", f"{case.ttft_ms:g}", "--tpot-ms", f"{case.tpot_ms:g}", "--usage", USAGE]
    with (folder / "server.txt").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        wait_until_healthy(url, server)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until_healthy(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        if server.poll() is not None:
            sys.exit(f"the scripted server ended with {server.returncode}")
        with contextlib.suppress(OSError):
            fetch(f"{url}/health")
            return
        time.sleep(0.05)
    sys.exit("the scripted server does not answer")


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def truth(log: list[dict[str, Any]], case: Case) -> dict[str, Any]:
    """What the server did for the run: its last requests, since probes and warm-ups come before.

    The plan of an open loop: request i of a constant rate, counted from the first that arrived.
    """
    requests = sorted(log, key=lambda request: request["received_ns"])[-case.requests :]
    if not requests:
        return {"requests_seen": 0}
    answered = [(i, r) for i, r in enumerate(requests) if r["token_ns"]]
    first_ns, last_ns = requests[0]["received_ns"], requests[-1]["received_ns"]
    values: dict[str, Any] = {
        "requests_seen": len(requests),
        "requests_before": len(log) - len(requests),
        "ended": dict(Counter(str(request["ended"]) for request in requests)),
        "output_tokens": sum(request["tokens"] for request in requests),
        "arrival_rate_rps": (len(requests) - 1) / (last_ns - first_ns) * 1e9 if last_ns > first_ns else None,
        **of_percentiles("ttft", [(r["token_ns"][0] - r["received_ns"]) / 1e9 for _, r in answered]),
        "tpot_p50_s": percentile([tpot_s(r) for _, r in answered if r["tokens"] > 1], 50),
    }
    if case.rate is not None:
        planned_ns = [first_ns + i * 1e9 / case.rate for i in range(len(requests))]
        from_plan = [(r["token_ns"][0] - planned_ns[i]) / 1e9 for i, r in answered]
        late = [(r["received_ns"] - planned_ns[i]) / 1e9 for i, r in enumerate(requests)]
        values |= of_percentiles("ttft_from_plan", from_plan) | of_percentiles("arrival_late", late)
    return values


def tpot_s(request: Mapping[str, Any]) -> float:
    stamps = request["token_ns"]
    return (stamps[-1] - stamps[0]) / 1e9 / max(1, request["tokens"] - request["chunk_tokens"][0])


def of_percentiles(name: str, values: list[float]) -> dict[str, float | None]:
    return {f"{name}_p50_s": percentile(values, 50), f"{name}_p99_s": percentile(values, 99)}


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Linear between the two nearest values, as numpy does."""
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def errors(reported: Mapping[str, Any], true: Mapping[str, Any]) -> dict[str, float | None]:
    """Service: from the sending, as the server saw it. Plan: the headline against the planned times of an open loop."""

    def minus(said: float | None, name: str) -> float | None:
        return None if said is None or true.get(name) is None else said - true[name]

    found: dict[str, float | None] = {}
    for p in ("p50", "p99"):
        headline, service = reported.get(f"ttft_{p}_s"), reported.get(f"ttft_service_{p}_s")
        found[f"ttft_service_{p}_error_s"] = minus(headline if service is None else service, f"ttft_{p}_s")
        found[f"ttft_plan_{p}_error_s"] = minus(headline, f"ttft_from_plan_{p}_s")
    return found


def measure(peer: Peer, python: Path, case: Case, folder: Path, timeout_s: float) -> dict[str, Any]:
    folder.mkdir(parents=True)
    result: dict[str, Any] = {"peer": peer.name, "case": case.name, "arrival": peer.arrival}
    result["load_before"] = os.getloadavg()[0]
    variables = os.environ | {"PYTHONUNBUFFERED": "1"} | dict(peer.variables)
    if peer.environment is None:
        variables["PYTHONPATH"] = str(REPOSITORY)
    with scripted_server(case, folder) as url:
        run = Run(python, url, TOKENIZER, case, folder)
        command = peer.command(run)
        finished = run_child(command, variables, folder, timeout_s)
        true, server = truth(fetch(f"{url}/scripted/log"), case), fetch(f"{url}/scripted/stats")
    result |= {"command": readable(command, run), "process": asdict(finished), "truth": true, "server": server}
    try:
        result["reported"] = asdict(peer.parse(run))
        result |= errors(result["reported"], true)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as problem:
        result["problem"] = f"{type(problem).__name__}: {problem}; {last_line(folder)}"
    return result


def readable(command: Sequence[str], run: Run) -> str:
    """The command line without the paths of this machine."""
    line = " ".join(command)
    places = {run.folder: "RESULTS", run.tokenizer: "TOKENIZER", run.python.parent: "ENV/bin", REPOSITORY: "REPOSITORY"}
    for place, word in places.items():
        line = line.replace(str(place), word)
    return line.replace(run.url, "URL")


def last_line(folder: Path) -> str:
    lines = [
        line
        for name in ("stderr.txt", "stdout.txt")
        for line in (folder / name).read_text("utf-8", "replace").splitlines()
    ]
    words = [line.strip() for line in lines if line.strip()]
    return words[-1][:200].replace(str(folder), "RESULTS") if words else "no output"


def environment(peer: Peer, env_dir: Path, llmopt_python: Path) -> Path:
    """The interpreter of the peer; its environment is made where it is missing or was not finished."""
    if peer.environment is None:
        return llmopt_python
    place = env_dir / peer.environment
    python, made = place / "bin" / "python", place / "made.json"
    if made.exists() and json.loads(made.read_text())["pip"] == peer.pip:
        return python
    print(f"installing {peer.environment} into {place}", flush=True)
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
    for arguments in peer.pip:
        install([str(python), "-m", "pip", "install", "--quiet", *arguments])
    size = sum(file.lstat().st_size for file in place.rglob("*") if file.is_file())
    facts = {"pip": peer.pip, "install_s": round(time.monotonic() - started), "size_mb": round(size / 1e6)}
    made.write_text(json.dumps(facts, indent=1))
    return python


def install(command: Sequence[str]) -> None:
    """pip's words are shown only where it fails: it always complains about what --no-deps left out."""
    finished = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    if finished.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{finished.stderr[-4000:]}")


def about_peer(peer: Peer, python: Path) -> dict[str, Any]:
    query = f"from importlib.metadata import version; print(version({peer.package!r}))"
    asked = subprocess.run([str(python), "-c", query], capture_output=True, text=True, timeout=60, cwd=REPOSITORY)
    facts: dict[str, Any] = {"version": asked.stdout.strip() or None, "arrival": peer.arrival}
    made = python.parents[1] / "made.json"
    if made.exists():
        facts |= {name: value for name, value in json.loads(made.read_text()).items() if name != "pip"}
    if peer.environment is None:
        facts["commit"] = git("describe", "--always", "--dirty")
    return facts


def git(*arguments: str) -> str | None:
    asked = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    return asked.stdout.strip() or None


def machine() -> dict[str, Any]:
    models = [line.partition(":")[2].strip() for line in read_lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in read_lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory[0] / 2**20) if memory else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def chosen(names: str | None, known: Mapping[str, Any], what: str) -> list[Any]:
    wanted = names.split(",") if names else list(known)
    if unknown := [name for name in wanted if name not in known]:
        sys.exit(f"unknown {what} {', '.join(unknown)}; known are {', '.join(known)}")
    return [known[name] for name in wanted]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help=f"of {','.join(PEERS)}; default: all")
    parser.add_argument("--cases", help=f"of {','.join(CASES)}; default: all")
    parser.add_argument(
        "--env-dir", type=Path, default=Path.home() / ".cache" / "llmopt-peers", help="the environments"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and table.md")
    parser.add_argument("--llmopt-python", type=Path, help="default: .venv of this repository, else this interpreter")
    parser.add_argument("--timeout", type=float, default=240, help="seconds for one run")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    peers: list[Peer] = chosen(options.peers, PEERS, "peers")
    cases: list[Case] = chosen(options.cases, CASES, "cases")
    own = REPOSITORY / ".venv" / "bin" / "python"
    llmopt_python = options.llmopt_python or (own if own.exists() else Path(sys.executable))
    pythons = {peer.name: environment(peer, options.env_dir.resolve(), llmopt_python.absolute()) for peer in peers}
    document: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "peers": {peer.name: about_peer(peer, pythons[peer.name]) for peer in peers},
        "cases": {case.name: asdict(case) for case in cases},
        "runs": [],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="load-client-") as place:
        for case in cases:
            for peer in peers:
                folder = Path(place) / case.name / peer.name
                result = measure(peer, pythons[peer.name], case, folder, options.timeout)
                document["runs"].append(result)
                print(f"{case.name:16} {peer.name:12} {result.get('problem', 'done')}", flush=True)
                (options.out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
                (options.out / "table.md").write_text(table(document))


if __name__ == "__main__":
    main()
