"""The benchmark of rude ends: what it looks for after a cycle."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).parents[2] / "benchmarks" / "serving" / "cycles.py"
WAITING = "import sys; print('up', flush=True); sys.stdin.read()"


def cycles():
    spec = importlib.util.spec_from_file_location("cycles", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["cycles"] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


def test_a_process_outside_of_the_tree_is_known_by_the_folder_it_was_given(tmp_path):
    own, other = tmp_path / "tmp1", tmp_path / "tmp10"
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", WAITING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        env=os.environ | {"TMPDIR": f"{own}/deeper"},
    )  # fmt: skip
    try:
        assert process.stdout.readline() == b"up\n"
        module = cycles()
        assert [one.pid for one in module.marked(own)] == [process.pid]
        assert module.marked(other) == []
        assert module.wait_for_end(module.marked(own), patience_s=0.1) == 1
        assert process.wait(5) != 0, "an orphan is counted and ended"
    finally:
        process.communicate()
