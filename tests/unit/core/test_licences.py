import pytest

from llmopt.core.licences import licence_of, licence_of_artifact
from unit.make import artifact


@pytest.fixture(autouse=True)
def fresh():
    licence_of.cache_clear()


def card(folder, words):
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(
        f"---\nbase_model: x\n{words}\n---\n\n# A model\nlicense: of the text, not of the card\n"
    )
    return {"path": str(folder)}


@pytest.mark.parametrize(
    ("words", "licence"),
    [
        ("license: Apache-2.0", "apache-2.0"),
        ("license: 'mit' # free", "mit"),
        ("license: other\nlicense_name: llama3", "llama3"),
        ("license: other", None),
        ("tags: []", None),
    ],
)
def test_the_card_says_it(tmp_path, words, licence):
    assert licence_of_artifact(card(tmp_path / "model", words)) == licence


def test_an_artifact_stands_under_the_licence_of_its_base(tmp_path):
    made = artifact(tmp_path / "weights")
    manifest = tmp_path / "weights" / "llmopt.json"
    manifest.write_text(manifest.read_text().replace('"base": "base"', f'"base": "{tmp_path}/base"'))
    card(tmp_path / "base", "license: mit")
    assert licence_of_artifact({"path": made.path}) == "mit"


def test_a_record_may_say_it_itself():
    assert licence_of_artifact({"license": "MIT"}) == "mit"


@pytest.mark.parametrize("record", [{}, {"path": None}, {"path": "/nowhere"}])
def test_nothing_says_it(record):
    assert licence_of_artifact(record) is None
