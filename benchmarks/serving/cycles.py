"""Start a server with ``llmopt serve``, end it in every rude way there is, and look for what is left.

    python benchmarks/serving/cycles.py [--engines hf,llamacpp,scripted] [--cycles 50] [--seed 0] [--write]

Cycles take turns over the engines; how each ends is drawn from the seed: Ctrl-C, SIGTERM or SIGKILL of llmopt, SIGKILL of
the server, of its keeper, of one of its children (then Ctrl-C, where it can do without that one), or of llmopt while it
still loads.
Stop time is from the signal until no process of the tree is left.  An orphan is one that still lives after 15 s, or any
process, of the tree or not, whose environment names the cycle's own temporary folder then; a leftover is a new segment in
/dev/shm that no process uses, or anything in that folder.
``--write`` puts the table into cycles.md, below what is there of other engines.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from llmopt import demo
from llmopt.core.artifacts import open_model
from llmopt.core.machine import this_machine
from llmopt.core.segments import mapped
from llmopt.pipeline import making, requesting
from llmopt.report.progress import Reporter

TABLE = Path(__file__).with_name("cycles.md")
SHARED_MEMORY = Path("/dev/shm")
PATIENCE_S = 15.0
LATE_S = 2.0  # for what was started while the tree ended: the keeper of a killed llmopt is ending it
LIVES_ON_S = 5.0
READY_S = 240.0
OPTIONS = {"vllm": ["--enforce-eager", "--max-model-len", "512"]}
ENDINGS = (
    "Ctrl-C",
    "SIGTERM llmopt",
    "SIGKILL llmopt",
    "SIGKILL server",
    "SIGKILL a child",
    "SIGKILL llmopt, loading",
    "SIGKILL keeper",
)
SIGNALS = {"Ctrl-C": signal.SIGINT, "SIGTERM llmopt": signal.SIGTERM}


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """``load_s`` is ``None`` where it was ended before it was ready."""

    engine: str
    ending: str
    load_s: float | None
    stop_s: float
    orphans: int
    leftovers: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="hf,llamacpp,scripted")
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    draw, engines = random.Random(arguments.seed), arguments.engines.split(",")
    cycles = []
    with tempfile.TemporaryDirectory(prefix="llmopt-cycles-") as folder:
        artifacts = {engine: artifact_for(engine, Path(folder)) for engine in engines}
        for number in range(arguments.cycles):
            engine = engines[number % len(engines)]
            ending = (
                ENDINGS[(number // len(engines)) % len(ENDINGS)]
                if number < len(engines) * len(ENDINGS)
                else draw.choice(ENDINGS)
            )
            cycles.append(cycle(engine, artifacts[engine], ending, draw, Path(folder) / f"tmp{number}"))
            print(number + 1, cycles[-1], file=sys.stderr, flush=True)
    text = report(cycles)
    print(text)
    if arguments.write:
        TABLE.write_text(
            (TABLE.read_text() + "\n" if TABLE.exists() else "# Start, rude end, and what is left\n\n") + text
        )


def artifact_for(engine: str, folder: Path) -> str:
    """The bundled model; for llama.cpp quantized first."""
    if engine != "llamacpp":
        return "demo"
    request = requesting.quantize_request(open_model(demo.MODEL), "gguf-q8_0", requesting.Options())
    return making.quantize(request, folder / "gguf", Reporter(quiet=True))[0].path


def cycle(engine: str, artifact: str, ending: str, draw: random.Random, temporary: Path) -> Cycle:
    """One server from its start to the last trace of it."""
    temporary.mkdir()
    before = set(SHARED_MEMORY.iterdir())
    argv = [sys.executable, "-m", "llmopt", "serve", artifact, "--backend", engine, "--json", *OPTIONS.get(engine, [])]
    process = subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=(temporary.with_suffix(".err")).open("w"),
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    if ending.endswith("loading"):
        time.sleep(draw.uniform(0.3, 4.0))  # somewhere between its first import and its first answer
        document = None
    else:
        document = first_document(process)
        time.sleep(draw.uniform(0, 0.5))
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    send(ending, process.pid, document["pid"] if document else 0, draw)
    asked = time.monotonic()
    if ending == "SIGKILL a child" and not ends_within(process, LIVES_ON_S):
        asked = time.monotonic()  # it was one that the engine can do without: Python's resource tracker
        process.send_signal(signal.SIGINT)
    orphans = wait_for_end(tree)
    stop_s = time.monotonic() - asked
    process.wait(10)
    orphans += wait_for_end(marked(temporary), patience_s=LATE_S)
    left = {*unused(set(SHARED_MEMORY.iterdir()) - before), *temporary.iterdir()}
    return Cycle(
        engine=engine,
        ending=ending,
        load_s=document["load_s"] if document else None,
        stop_s=stop_s,
        orphans=orphans,
        leftovers=tuple(sorted(map(str, left))),
    )


def marked(temporary: Path) -> list[psutil.Process]:
    """Every process that was given this temporary folder, however it came into being and whoever its parent is now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(
                value == str(temporary) or value.startswith(f"{temporary}/") for value in process.environ().values()
            ):
                found.append(process)
    return found


def ends_within(process: subprocess.Popen[str], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def unused(segments: set[Path]) -> set[Path]:
    """Those that no living process maps: what others on this machine share meanwhile is theirs."""
    if not segments:
        return set()
    used = mapped(psutil.pids())
    return {segment for segment in segments if segment.exists() and segment.stat().st_ino not in used}


def first_document(process: subprocess.Popen[str]) -> dict[str, float]:
    """What ``llmopt serve --json`` prints when the server is ready."""
    assert process.stdout is not None
    lines: list[str] = []
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and (line := process.stdout.readline()):
        lines.append(line)
        try:
            document: dict[str, float] = json.loads("".join(lines))
        except ValueError:
            continue
        return document
    raise SystemExit(f"it did not become ready: {''.join(lines)}")


def send(ending: str, llmopt: int, server: int, draw: random.Random) -> None:
    if ending in SIGNALS:
        os.kill(llmopt, SIGNALS[ending])
    elif ending.startswith("SIGKILL llmopt"):
        os.kill(llmopt, signal.SIGKILL)
    elif ending == "SIGKILL keeper":
        os.kill(psutil.Process(server).ppid(), signal.SIGKILL)
    else:
        children = psutil.Process(server).children(recursive=True)
        victim = draw.choice(children).pid if children and ending == "SIGKILL a child" else server
        os.kill(victim, signal.SIGKILL)


def wait_for_end(tree: Sequence[psutil.Process], patience_s: float = PATIENCE_S) -> int:
    """How many are left after the patience is over; those are then killed."""
    _, alive = psutil.wait_procs(tree, timeout=patience_s)
    alive = [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    for one in alive:
        one.kill()
    return len(alive)


def report(cycles: Sequence[Cycle]) -> str:
    machine = this_machine()
    lines = [
        f"{len(cycles)} cycles on {machine.cpu}, {machine.logical_cores} cores, {platform.system()}; "
        f"load average at the end {os.getloadavg()[0]:.1f}.",
        "",
        "| engine | ended by | cycles | load s, median | stop s, median | stop s, longest | orphans | leftovers |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (engine, ending), count in sorted(Counter((c.engine, c.ending) for c in cycles).items()):
        some = [c for c in cycles if (c.engine, c.ending) == (engine, ending)]
        loads = [c.load_s for c in some if c.load_s is not None]
        load = f"{statistics.median(loads):.1f}" if loads else "–"
        stops = [c.stop_s for c in some]
        lines.append(
            f"| {engine} | {ending} | {count} | {load} | {statistics.median(stops):.2f} | {max(stops):.2f} "
            f"| {sum(c.orphans for c in some)} | {sum(len(c.leftovers) for c in some)} |"
        )
    total = f"all: longest stop {max(c.stop_s for c in cycles):.2f} s, {sum(c.orphans for c in cycles)} orphans, "
    return "\n".join([*lines, "", f"{total}{sum(len(c.leftovers) for c in cycles)} leftovers.", ""])


if __name__ == "__main__":
    main()
