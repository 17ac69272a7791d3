"""One scripted server for every test that only asks it something: what it does is said by each request's model."""

import pytest

from llmopt.serve.scripted import running


@pytest.fixture(scope="session")
def server():
    """Its base URL."""
    with running("--ttft-ms", "20", "--tpot-ms", "5") as base_url:
        yield base_url
