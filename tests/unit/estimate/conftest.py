import pytest

from unit.estimate.make import folder_of


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path / "qwen")
