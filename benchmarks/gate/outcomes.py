"""What came out of many gates, and the page that is made of it."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from peers import SETTINGS, VERSIONS
from statements import Tried

from llmopt.gate.design import DEFAULT_BLOCKS
from llmopt.gate.thresholds import DEFAULT_BLOCK, DEFAULT_TOLERATE


@dataclass(frozen=True)
class Row:
    """Shares of the gates. ``peers``: for each of ``SETTINGS`` how many failed and how many passed."""

    words: str
    what: str
    gates: int
    regression: float
    passed: float
    blocks: float | None
    peers: tuple[tuple[float, float], ...]

    @staticmethod
    def of(
        words: str, what: str, statuses: Sequence[str], theirs: Sequence[Sequence[str]], blocks: float | None = None
    ) -> Row:
        def shares(found: Sequence[str], fail: str, ok: str) -> tuple[float, float]:
            counts = Counter(found)
            return counts[fail] / len(found), counts[ok] / len(found)

        regression, passed = shares(statuses, "regression", "pass")
        peers = tuple(shares(column, "FAIL", "PASS") for column in zip(*(t for t in theirs if t), strict=True))
        return Row(words, what, len(statuses), regression, passed, blocks, peers)


def print_row(row: Row) -> Row:
    print(row, flush=True)
    return row


def tables(
    interleaved: Sequence[Row], stored: Sequence[Row], own: Sequence[Row], tried: Sequence[Tried], seconds: float,
    peer_gates: int,
) -> str:  # fmt: skip
    versions = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
    lines = [
        "# Simulated gates",
        "",
        f"{datetime.date.today()}, {interleaved[0].gates} gates a row, {seconds:.0f} s. Ours with its default thresholds"
        f" (tolerated {DEFAULT_TOLERATE:.0%}, blocks from {DEFAULT_BLOCK:.0%}), confidence 99 %, at most {DEFAULT_BLOCKS}"
        f" blocks of four runs. Beside it {versions}, which judge the first {peer_gates} of each row: by thresholds of their own"
        " (what they fail from on, and the confidence of their interval), and by some like ours. Written by `simulate.py --peers"
        " DIR --write`.",
        "",
        "A cell is: called a regression / passed; what is missing to 100 % is inconclusive, which llmtest-perf does not have.",
        "",
        "## Both sides measured in turn",
        "",
        *page(interleaved, blocks=True),
        "",
        "The peers judge the very same runs, all that the gate had planned: they run nothing themselves in such an order.",
        "",
        "## All of the base first, then all of the candidate",
        "",
        *page(stored, blocks=False),
        "",
        "Ours is the gate for stored runs here. Nothing was paired, so what differs between the sessions is in the change, and no"
        " number of runs takes it out: it says so, and does not guess.",
        "",
        "## Thresholds of one's own",
        "",
        *page(own, blocks=True),
        "",
    ]
    if tried:
        lines += ["## What issue 7 says of the peers, tried", "", "| said | tried | came out |", "|---|---|---|"]
        lines += [f"| {one.said} | {one.how} | {one.found} |" for one in tried]
        lines.append("")
    return "\n".join(lines)


def page(rows: Sequence[Row], *, blocks: bool) -> list[str]:
    heads = ["noise", "truth", "**llmopt gate**", *(["blocks, mean"] if blocks else [])]
    heads += [setting.words for setting in SETTINGS] if rows[0].peers else []
    lines = [line(heads), line(["---"] * len(heads))]
    for row in rows:
        cells = [row.words, row.what, f"**{row.regression:.2%} / {row.passed:.1%}**"]
        cells += [f"{row.blocks:.1f}"] if blocks else []
        lines.append(line([*cells, *(f"{fail:.1%} / {ok:.1%}" for fail, ok in row.peers)]))
    return lines


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
