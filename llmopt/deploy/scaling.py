"""How far any autoscaler may go."""

from __future__ import annotations

from llmopt.deploy.plan import Deployment

AT_MOST = 2  # times the replicas of the plan: a bill that runs away is an incident too


def bounds(deployment: Deployment) -> tuple[int, int]:
    """Fewest and most replicas: the plan holds the asked load with one of them lost."""
    return deployment.replicas, AT_MOST * deployment.replicas
