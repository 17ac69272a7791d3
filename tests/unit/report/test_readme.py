"""The ranking that README shows is one that this program prints: its columns and phrases are held against a played one."""

from __future__ import annotations

import inspect
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

import llmopt
from llmopt.core.domain import Doubt, Verdict
from llmopt.recommend import diagnosis
from llmopt.recommend.constraints import make_goal
from llmopt.recommend.rank import recommend
from llmopt.report.document import ranking_document
from llmopt.report.table import columns
from llmopt.report.terminal import print_ranking
from unit.make import MACHINE, WORKLOAD, candidate, distribution

README = Path(llmopt.__file__).parents[1] / "README.md"
SHOWN = next(b for b in re.findall(r"```\n(.*?)```", README.read_text(), re.S) if "\ngoal: " in b).splitlines()
TPOT = {"tpot_s": distribution(0.01)}
LABEL = re.compile(r"[a-z]+[a-z0-9_.-]* on (?:hf|llamacpp)\b")
NUMBER = re.compile(r"[+-]?\d[\d.]*")
UNIT = re.compile(r" (?:tok/s|ms|s|MiB|GiB)(?=[],\s])")
CODES = re.findall(r'code="([a-z-]+)"', inspect.getsource(diagnosis))
OF_A_RUN = (
    "doubt: ",
    "note: ",
    *(f"{code}: " for code in CODES),
)  # of its verdict, of its engine, what keeps it from more


def played():
    """Two that tie and a base that both beat, as in the demo."""
    doubted = Verdict(
        status="suspect", reasons=(Doubt(code="c", severity="suspect", message="message", remedy="remedy"),)
    )
    found = recommend(
        [
            candidate(
                "gguf-q4_k_m",
                throughput=210,
                figures=TPOT,
                engine="llamacpp",
                spread=0.2,
                memory=2**27,
                verdict=doubted,
            ),
            candidate("gguf-q8_0", throughput=200, figures=TPOT, engine="llamacpp", spread=0.2, memory=2**26),
            candidate("bf16", throughput=100, kl=0.0, figures=TPOT),
            candidate("nf4-dq", throughput=50, latency_s=3),
        ],
        goal := make_goal(slos=[], max_kl=0.1, optimize="throughput"),
    )
    return ranking_document(
        goal, found.ranked, found.rejected, machine={"gpus": [], "cpu": MACHINE.cpu, "logical_cores": 2},
        workload=WORKLOAD, base="llmopt demo model", left_out={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def document():
    return played()


@pytest.fixture(scope="module")
def lines(document):
    out = io.StringIO()
    print_ranking(document, Console(file=out, width=170))
    return out.getvalue().splitlines()


def shape(line):
    """Its words, without what differs from run to run; of what it is the best in nothing is left."""
    words = UNIT.sub("", NUMBER.sub("#", LABEL.sub("L", line))).strip().replace("over blocks and runs", "over runs")
    return re.sub(r"best of all in .*", "best of all in", re.sub(r"L(, L)+", "L", words))


def reasons(lines):
    return [line for line in lines if line.startswith("   ") and not line.strip().startswith(OF_A_RUN)]


def test_its_columns_are_those_of_the_table(document):
    head = next(line for line in SHOWN if "quantization" in line)
    assert re.split(r"\s{2,}", head.strip()) == [c.title for c in columns(document["ranked"])]


def test_its_reasons_are_phrases_of_the_program(lines):
    known = {shape(line) for line in reasons(lines)}
    assert reasons(SHOWN)
    assert [line for line in reasons(SHOWN) if shape(line) not in known] == []


def test_its_footnotes_are_those_of_the_program(lines):
    known = {shape(line) for line in lines}
    end = SHOWN[SHOWN.index("…") + 1 :]
    assert end
    assert [line for line in end if shape(line) not in known] == []
