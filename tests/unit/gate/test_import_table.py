"""What holds for every tool of the table, and every recording."""

import json
import math
from dataclasses import asdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmopt.core.errors import LlmoptError, UsageError
from llmopt.core.metric_table import METRICS
from llmopt.gate.imports import OTHER_NAMES, READERS, reader, recognise
from llmopt.pipeline.importing import documents_in, read_file, record_of, require_usable, told_machine
from unit.gate.imported import RECORDINGS, runs_in, write

FILES = sorted(p.name for p in RECORDINGS.iterdir() if p.suffix in (".json", ".jsonl", ".csv"))
KEYS = {metric.key: metric for metric in METRICS.values()}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_is_named_as_in_the_table(name):
    assert reader(name).name == name


def test_the_predecessor_is_read_by_its_successor():
    assert OTHER_NAMES["genai-perf"] == reader("genai-perf").name == "aiperf"


def test_an_unknown_tool_names_those_that_are_known():
    with pytest.raises(UsageError) as error:
        reader("guidelm")
    assert "guidellm" in str(error.value.hint)


@pytest.mark.parametrize("file", FILES)
def test_one_tool_alone_takes_a_recording_for_its_own(file):
    documents = documents_in(RECORDINGS / file)
    takers = [name for name in READERS if all(reader(name).recognises(d) for d in documents)]
    assert len(takers) == 1
    assert recognise(documents).name == takers[0]


@pytest.mark.parametrize("file", FILES)
def test_metrics_are_of_our_table_and_of_their_kind(file):
    for run in runs_in(file):
        for key, value in run.metrics.items():
            assert (KEYS[key].kind == "distribution") == isinstance(value, dict) or value is None


@pytest.mark.parametrize("file", FILES)
def test_no_run_has_a_latency_from_the_plan_nor_a_steady_window(file):
    for run in runs_in(file):
        assert not {"ttft_s", "e2e_s", "output_tps", "icl_s", "itl_s"} & run.metrics.keys()


@pytest.mark.parametrize("file", FILES)
def test_figures_of_the_tool_are_kept_as_numbers(file):
    for run in runs_in(file):
        assert run.figures
        assert all(isinstance(v, int | float) for v in run.figures.values())


@pytest.mark.parametrize("file", FILES)
def test_what_is_read_can_be_written(file):
    for run in runs_in(file):
        json.dumps([asdict(run.workload), run.metrics, run.figures, run.options, run.artifact], allow_nan=False)


def places(value, path=()):
    """Every place in a document; of a list only the first."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, part in inside:
        yield from places(part, (*path, name))


def replaced(document, path, value):
    if not path:
        return value
    copy = list(document) if isinstance(document, list) else dict(document)
    copy[path[0]] = replaced(document[path[0]], path[1:], value)
    return copy


@pytest.mark.parametrize("file", [name for name in FILES if name.endswith(".json")])
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_may_be_wrong_and_it_is_a_record_or_one_error(file, tmp_path, data):
    document = json.loads((RECORDINGS / file).read_text())
    path = data.draw(st.sampled_from(list(places(document))))
    wrong = data.draw(st.sampled_from([None, "x", "9" * 400, [], {}, [None], -1, 0, 1e308, math.nan, True]))
    changed = write(tmp_path, "r.json", replaced(document, path, wrong))
    try:
        tool, runs = read_file(changed, None)
        require_usable(changed, [record_of(changed, tool, run, told_machine(run)) for run in runs])
        hint: str | None = "none is needed"
    except LlmoptError as error:
        hint = error.hint
    assert hint


def test_nobody_takes_a_document_of_ours():
    assert recognise([{"run_id": "x", "metrics": {}, "started_at": "2026-01-01"}]) is None
