"""Ranges of knobs in ``llmopt tune``: proposals become contestants, and what each gave is told to who proposes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from llmopt import serve
from llmopt.pipeline.contestants import Field, Job, enter
from llmopt.pipeline.reporter import Reporter
from llmopt.recommend.proposals import Proposal, Proposals
from llmopt.recommend.space import Configuration, changed


class Searching:
    """The proposals of a job. ``taken_up``: the labels of those that an earlier start made. Raises MissingEnvironment."""

    def __init__(
        self, job: Job, field: Field, folder: Path, report: Reporter, better: Literal["higher", "lower"],
        proposed: Sequence[Proposal],
    ) -> None:  # fmt: skip
        self.job, self.field, self.folder, self.report = job, field, folder, report
        self.bases = dict(field.configurations)
        knobs = {
            label: [name for name in job.ranges if name in serve.backend(base.options.backend).options]
            for label, base in self.bases.items()
        }
        self.proposals = Proposals(knobs, job.ranges, better, job.seed)
        self.by_label: dict[str, Proposal] = {}
        known = [p for p in proposed if p.base in self.bases and self.within(p, knobs[p.base])]
        for proposal in known:
            self.proposals.take_up(proposal)
        self.taken_up = [label for proposal in known if (label := self.entered(proposal))]

    def within(self, proposal: Proposal, knobs: Sequence[str]) -> bool:
        """Whether it lies in the ranges of this start."""
        values, ranges = dict(proposal.values), self.job.ranges
        return values.keys() == set(knobs) and all(ranges[n].low <= v <= ranges[n].high for n, v in values.items())

    def more(self) -> list[str]:
        """The labels of new contestants."""
        return [label for proposal in self.proposals.ask() if (label := self.entered(proposal))]

    def entered(self, proposal: Proposal) -> str | None:
        """Its label; ``None`` where it cannot be served, or is there already."""
        base = self.bases[proposal.base]
        configuration = changed(base, dict(base.changed) | dict(proposal.values))
        label = configuration.label
        there = self.same_as(configuration)
        if there is not None:
            self.by_label.setdefault(there, proposal)
            return None
        enter(self.field, self.job, configuration, self.folder, self.report)
        self.by_label[label] = proposal
        if label not in self.field.contestants:
            self.tell(label, None)
            return None
        return label

    def same_as(self, configuration: Configuration) -> str | None:
        """The label of a contestant that is served in the same way, whatever it was made from."""
        wanted = configuration.quantization, configuration.options
        return next((n for n, c in self.field.configurations.items() if (c.quantization, c.options) == wanted), None)

    def tell(self, label: str, value: float | None) -> None:
        if label in self.by_label:
            self.proposals.tell(self.by_label[label], value)

    def state(self) -> list[Proposal]:
        """What the next start takes up."""
        return list(self.by_label.values())
