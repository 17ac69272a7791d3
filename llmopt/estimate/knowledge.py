"""What is known of a device: by the runs that lie where llmopt writes them, or in the folders that were named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmopt.core.errors import UsageError
from llmopt.estimate.efficiency import Knowledge
from llmopt.estimate.roofline import Peak

USUAL = ("results", "llmopt-demo/results", "llmopt-tune/results")  # where bench, demo and tune write by default


def knowledge_of(named: Sequence[Path] | None, peak: Peak) -> Knowledge:
    """What the runs of this device teach; nothing where there are none. Raises UsageError for a folder that is none."""
    for folder in named or ():
        if not folder.is_dir():
            raise UsageError(f"no results at {folder}", hint="measure something first: llmopt bench, or llmopt demo")
    places = list(named) if named is not None else [Path(name) for name in USUAL if Path(name).is_dir()]
    if not places:
        return Knowledge()
    from llmopt.estimate.calibration import calibrated
    from llmopt.estimate.calibration_runs import observations

    return calibrated(observations(places, peak))
