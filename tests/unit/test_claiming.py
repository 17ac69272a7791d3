"""Who works on a folder, what is taken up of what others left, and what is never thrown away."""

import json
from pathlib import Path

import pytest

from llmopt.core.artifacts import MANIFEST
from llmopt.core.errors import ModelError, UsageError
from llmopt.core.files import partial_folder
from llmopt.pipeline.claiming import already_there, claimed, keep_refused, one_at_a_time, whole_weights
from unit.make import artifact

KEY, OTHER = "k" * 16, "o" * 16


def weights(folder: Path, key: str = KEY) -> Path:
    """A folder with whole weights of this key."""
    artifact(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["artifact"]["key"] = key
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def beside(out):
    return sorted(p for p in out.parent.iterdir() if p != out)


def test_whole_weights_of_a_killed_run_are_taken_up_whoever_made_them(out):
    weights(partial_folder(out))
    with claimed(out, KEY) as (aside, whole):
        assert whole
        assert (aside / "model.safetensors").exists()
        assert beside(out) == [aside]


def failing(out, key, work):
    """Works in the claimed folder, then fails."""
    with claimed(out, key) as (aside, _):
        work(aside)
        raise ModelError("failed")


def test_what_is_half_made_goes_and_so_does_ours_when_it_fails(out):
    (partial_folder(out) / "half").write_bytes(b"")
    seen = []
    with pytest.raises(ModelError, match="failed"):
        failing(out, KEY, lambda aside: seen.append(beside(out) == [aside]))
    assert (seen, beside(out)) == ([True], [])


def test_whole_weights_survive_an_error(out):
    with pytest.raises(ModelError, match="failed"):
        failing(out, KEY, weights)
    assert whole_weights(out, KEY) is not None


def test_whole_weights_of_other_settings_wait_for_their_own_run(out):
    left = weights(partial_folder(out), OTHER)
    with claimed(out, KEY) as (_, whole):
        assert not whole
    assert beside(out) == [left]


def test_weights_that_cannot_be_read_are_none(out, monkeypatch):
    weights(partial_folder(out))
    monkeypatch.setattr(
        "llmopt.pipeline.claiming.read_manifest", lambda folder: (_ for _ in ()).throw(PermissionError())
    )
    assert whole_weights(out, KEY) is None


def refused(out, key=KEY):
    failure = ModelError("it is garbage", hint="try another")
    with pytest.raises(ModelError, match="failed"):
        failing(out, key, lambda aside: keep_refused(weights(aside, key), out, key, failure, {"kl_mean": 3.5}))
    return failure


def test_what_is_refused_is_kept_with_the_reason_and_taken_up_again(out):
    failure = refused(out)
    (kept,) = beside(out)
    assert json.loads((kept / "refused.json").read_text()) == {"reason": "it is garbage", "quality": {"kl_mean": 3.5}}
    assert str(kept) in failure.hint
    with claimed(out, KEY) as (aside, whole):
        assert whole
        assert not (aside / "refused.json").exists()


def test_a_second_refusal_does_not_throw_the_first_away(out):
    refused(out)
    refused(out, OTHER)
    assert [p.name for p in beside(out)] == ["out.refused", "out.refused-oooooooo"]


def test_an_artifact_whose_name_looks_like_a_refused_one_is_left_alone(out):
    weights(out.with_name("out.refused"))
    assert whole_weights(out, KEY) is None


def test_one_process_at_a_time(out):
    waited = []

    def refuse():
        waited.append(1)
        raise UsageError("somebody is at it")

    with one_at_a_time(out, refuse), pytest.raises(UsageError), one_at_a_time(out, refuse):
        pass
    assert waited == [1]
    assert beside(out) == []


def test_what_is_there_is_known_by_its_key(out):
    assert already_there(out, KEY) is None
    weights(out)
    assert already_there(out, KEY).key == KEY
    with pytest.raises(UsageError, match="other settings"):
        already_there(out, OTHER)
