from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.core.domain import Case, Doubt, ServeOptions, Verdict, Workload, stable_hash
from llmopt.core.errors import nearest
from unit.make import artifact

values = st.none() | st.integers() | st.dictionaries(st.sampled_from("abc"), st.integers(), max_size=3)


def doubt(severity):
    return Doubt(code=severity, severity=severity, message="m", remedy="r")


@given(st.dictionaries(st.sampled_from("xyz"), values))
def test_a_stable_hash_does_not_depend_on_key_order(value):
    assert stable_hash(dict(reversed(value.items()))) == stable_hash(value)


def test_a_stable_hash_is_the_same_in_every_process():
    assert stable_hash([1, {"b": None, "a": "é"}]) == "18e35068a0370867"


@pytest.fixture
def case(tmp_path):
    return Case(artifact=artifact(tmp_path), serve=ServeOptions(backend="hf"), workload=Workload())


@pytest.mark.parametrize(
    "change",
    [
        lambda c: replace(c, serve=replace(c.serve, backend="llamacpp")),
        lambda c: replace(c, serve=replace(c.serve, extra_args=("-x",))),
        lambda c: replace(c, workload=replace(c.workload, seed=1)),
        lambda c: replace(c, artifact=replace(c.artifact, key="other")),
    ],
    ids=["backend", "arguments", "seed", "artifact"],
)
def test_whatever_decides_a_run_changes_its_key(case, change):
    assert change(case).key != case.key


def test_the_place_of_an_artifact_does_not_change_the_key(case):
    assert replace(case, artifact=replace(case.artifact, path="/elsewhere")).key == case.key


@pytest.mark.parametrize(
    ("severities", "status"),
    [((), "valid"), (("suspect",), "suspect"), (("suspect", "invalid"), "invalid"), (("invalid",), "invalid")],
)
def test_a_verdict_is_as_bad_as_its_worst_reason(severities, status):
    assert Verdict.of(tuple(doubt(s) for s in severities)).status == status


def test_nearest_names_the_close_ones_or_all():
    assert nearest("GPTQ-int4", ["gptq-int4-g128", "bf16"]) == "did you mean gptq-int4-g128?"
    assert nearest("zzz", ["gptq-int4-g128", "bf16"]) == "known: gptq-int4-g128, bf16"
