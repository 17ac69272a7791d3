"""What needs no clock: requests that failed or were cut short, tokens that came and went. Each can fail a gate by itself.

Failures come in bursts: a run has its luck with them as with its speed.  So a share is another one only where both tests say
so: Fisher's over all requests, and Welch's t over the shares of blocks, which knows how far they are apart anyway.

Counts are of the run's own timelines, so they are there for runs that were measured before anybody thought of a gate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llmopt.core.domain import RequestTrace
from llmopt.core.student import tail

Outcome = Literal["pass", "regression", "inconclusive"]
OFF = 0.02  # an answer, or a prompt, of another length than asked by more than that is another one
# A share of failures that is not worth a word, whatever chance says of it.
LEAST_SHARE = 0.01
# Failures that all fall into one block may be one accident.
FEWEST_BLOCKS = 2
MOST_BEFORE = 0.5  # of the base's requests, where all of the candidate's fail
LEAST_SPREAD = 1e-4  # of the share of a block: equal shares are no proof of no spread at all


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of one run, or of several added up.

    Token sums, and how many answers were cut short, are ``None`` where the server did not tell lengths for every answer.
    """

    planned: int = 0
    failed: int = 0
    dropped: int = 0
    short: int | None = 0
    errors: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int | None = 0
    output_tokens: int | None = 0
    requested_tokens: int = 0
    crashes: int = 0

    @property
    def ok(self) -> int:
        return self.planned - self.failed


def counts_of(traces: Sequence[RequestTrace]) -> Counts:
    good = [t for t in traces if t.ok]
    lengths = [(t.output_tokens, t.requested_output_tokens) for t in good if t.output_tokens is not None]
    prompts = [t.prompt_tokens for t in good if t.prompt_tokens is not None]
    told = len(lengths) == len(good)
    return Counts(
        planned=len(traces),
        failed=len(traces) - len(good),
        dropped=sum(t.sent_ns is None for t in traces),
        short=sum(length < asked * (1 - OFF) for length, asked in lengths) if told else None,
        errors=dict(Counter(t.error_kind or "" for t in traces if not t.ok)),
        prompt_tokens=sum(prompts) if len(prompts) == len(good) else None,
        output_tokens=sum(length for length, _ in lengths) if told else None,
        requested_tokens=sum(t.requested_output_tokens for t in good),
    )


def total(parts: Iterable[Counts]) -> Counts:
    """Added up; a sum is unknown as soon as one part is."""
    parts = list(parts)

    def known(values: Sequence[int | None]) -> int | None:
        return None if None in values else sum(v for v in values if v is not None)

    return Counts(
        planned=sum(p.planned for p in parts),
        failed=sum(p.failed for p in parts),
        dropped=sum(p.dropped for p in parts),
        short=known([p.short for p in parts]),
        errors=dict(sum((Counter(p.errors) for p in parts), Counter())),
        prompt_tokens=known([p.prompt_tokens for p in parts]),
        output_tokens=known([p.output_tokens for p in parts]),
        requested_tokens=sum(p.requested_tokens for p in parts),
        crashes=sum(p.crashes for p in parts),
    )


@dataclass(frozen=True, kw_only=True)
class Counted:
    """One row of what was counted: base and candidate as shares or means, and what it means."""

    name: str
    unit: Literal["share", "tokens", "count"]
    base: float | None
    candidate: float | None
    outcome: Outcome
    words: str


def compare(base: Sequence[Counts], candidate: Sequence[Counts], error: float) -> list[Counted]:
    """Every count, from one entry for each block (of stored runs: each run).

    ``error``: the probability with which chance may be called a regression, by all rows together.
    """
    error /= 4  # rows that chance has a hand in
    rows: list[Counted | None] = [
        share(
            "failed requests", [(c.failed, c.planned) for c in base], [(c.failed, c.planned) for c in candidate], error
        )
    ]
    cut = [[(c.short, c.ok) for c in side if c.short is not None] for side in (base, candidate)]
    if all(cut):  # where one side tells no lengths, the row of output tokens says so
        rows.append(share("answers cut short", cut[0], cut[1], error))
    rows.append(crashes(base, candidate))
    for name, field_name in (("prompt", "prompt_tokens"), ("output", "output_tokens")):
        ours, theirs = ([(getattr(c, field_name), c.ok) for c in side if c.ok] for side in (base, candidate))
        rows.append(mean(f"{name} tokens of a request", ours, theirs, error))
    return [row for row in rows if row is not None]


def share(name: str, base: Sequence[tuple[int, int]], candidate: Sequence[tuple[int, int]], error: float) -> Counted:
    """Pairs of bad ones and all. No verdict from what one block alone has, or from less than blocks differ by anyway."""
    (bad_a, all_a), (bad_b, all_b) = ([sum(column) for column in zip(*side, strict=True)] for side in (base, candidate))
    if not all_a or not all_b:
        known = [bad / every if every else None for bad, every in ((bad_a, all_a), (bad_b, all_b))]
        return Counted(
            name=name, unit="share", base=known[0], candidate=known[1], outcome="inconclusive", words="nothing to count"
        )
    before, now = bad_a / all_a, bad_b / all_b
    outcome: Outcome = "pass"
    words = "as many" if bad_a == bad_b else f"{bad_b} of {all_b} against {bad_a} of {all_a}"
    if now - before >= LEAST_SHARE:
        # One session of the base says nothing of how far sessions are apart, and all of every one is no chance.
        all_of_all = bad_b == all_b and len(candidate) >= FEWEST_BLOCKS and before < MOST_BEFORE
        surely = fisher(bad_a, all_a, bad_b, all_b) <= error
        surely = surely and (all_of_all or welch(shares(base), shares(candidate)) <= error)
        outcome = "regression" if surely else "inconclusive"
        alone = sum(bad > 0 for bad, _ in candidate) < FEWEST_BLOCKS
        words += "" if surely else f"{', all in one block' if alone else ''}: that may be chance, or not"
    return Counted(name=name, unit="share", base=before, candidate=now, outcome=outcome, words=words)


def shares(side: Sequence[tuple[int, int]]) -> list[float]:
    return [bad / every for bad, every in side if every]


def crashes(base: Sequence[Counts], candidate: Sequence[Counts]) -> Counted | None:
    """A server that dies now and then may be one that does so by chance; one that dies in every block does not."""
    before, now = (sum(c.crashes > 0 for c in side) for side in (base, candidate))
    if not before and not now:
        return None
    worse = now == len(candidate) >= FEWEST_BLOCKS and not before
    return Counted(
        name="blocks in which the server died", unit="count", base=before, candidate=now,
        outcome="regression" if worse else "inconclusive",
        words="only the candidate's died, in every block" if worse else f"{now} of {len(candidate)} against {before}",
    )  # fmt: skip


def mean(
    name: str, base: Sequence[tuple[int | None, int]], candidate: Sequence[tuple[int | None, int]], error: float
) -> Counted | None:
    """Tokens of a request: other ones are another work, whoever is faster at it. ``None`` where the base does not tell.

    Answers that end where the model pleases differ by chance; blocks say by how much, those that tell.  No pass where the
    candidate tells less often than the base, but for a single block: what it does not tell may be what it does not do.
    """
    known = [[(n, count) for n, count in side if n is not None] for side in (base, candidate)]
    if not known[0] or not candidate:
        return None
    if not known[1]:
        told = sum(n for n, _ in known[0]) / sum(count for _, count in known[0])
        return Counted(
            name=name, unit="tokens", base=told, candidate=None, outcome="inconclusive", words="known of the base alone"
        )
    silent = [len(side) - len(told) for side, told in zip((base, candidate), known, strict=True)]
    before, now = (sum(n for n, _ in side) / sum(count for _, count in side) for side in known)
    ours, theirs = ([n / count for n, count in side] for side in known)
    outcome, words = tokens_outcome(ours, theirs, OFF * before, error)
    if abs(now - before) <= OFF * before:
        outcome, words = "pass", "as many"
    if outcome == "pass" and silent[1] >= FEWEST_BLOCKS and silent[1] / len(candidate) > silent[0] / len(base):
        words = f"as many where they are told, and the candidate does not tell them in {silent[1]} of {len(candidate)} blocks"
        outcome = "inconclusive"
    return Counted(name=name, unit="tokens", base=before, candidate=now, outcome=outcome, words=words)


def tokens_outcome(base: Sequence[float], candidate: Sequence[float], off: float, error: float) -> tuple[Outcome, str]:
    """Of means of blocks that are farther apart than ``off``: surely, or perhaps by chance."""
    difference, doubt, freedom = apart(base, candidate)
    if tail((abs(difference) - off) / doubt, freedom) <= error / 2:
        return "regression", "the sides did not do the same work"
    return "inconclusive", "not as many: it may be other work"


def fisher(bad_a: int, all_a: int, bad_b: int, all_b: int) -> float:
    """P of ``bad_b`` or more of all bad ones among the candidate's requests, by chance (Fisher 1935, one-sided)."""
    bad, every = bad_a + bad_b, all_a + all_b

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    whole = log_choose(every, bad)
    return min(
        1.0,
        math.fsum(
            math.exp(log_choose(all_b, k) + log_choose(all_a, bad - k) - whole)
            for k in range(bad_b, min(bad, all_b) + 1)
            if bad - k <= all_a
        ),
    )


def welch(base: Sequence[float], candidate: Sequence[float]) -> float:
    """P of means so far apart, the candidate's above, or farther (Welch 1947); 1 where a side has but one value."""
    if min(len(base), len(candidate)) < 2:
        return 1.0
    difference, doubt, freedom = apart(base, candidate)
    return tail(difference / doubt, freedom)


def apart(base: Sequence[float], candidate: Sequence[float]) -> tuple[float, float, float]:
    """The difference of the means, its standard error and degrees of freedom; infinite error where a side has one value."""
    means = [math.fsum(side) / len(side) for side in (base, candidate)]
    if min(len(base), len(candidate)) < 2:
        return means[1] - means[0], math.inf, 1.0
    parts = [
        max(math.fsum((v - mean) ** 2 for v in side) / (len(side) - 1), LEAST_SPREAD**2) / len(side)
        for side, mean in zip((base, candidate), means, strict=True)
    ]
    squares = (part**2 / (len(side) - 1) for part, side in zip(parts, (base, candidate), strict=True))
    return means[1] - means[0], math.sqrt(sum(parts)), sum(parts) ** 2 / math.fsum(squares)
