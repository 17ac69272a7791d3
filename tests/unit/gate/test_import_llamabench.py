import json

import pytest

from llmopt.core.errors import UsageError
from llmopt.pipeline.importing import record_of, told_machine
from unit.gate.imported import RECORDINGS, read, recording, runs_in


def keys(name):
    from llmopt.gate.imports import reader

    tool = reader("llama-bench")
    return [record_of(RECORDINGS / name, tool, run, told_machine(run)).case_key for run in runs_in(name)]


@pytest.fixture
def made():
    """The test that makes tokens."""
    return json.loads((RECORDINGS / "llama-bench.json").read_text())[1]


def test_every_test_is_a_case_of_its_own():
    assert len(set(keys("llama-bench.json"))) == 3


def test_the_three_outputs_tell_the_same_cases():
    assert keys("llama-bench.json") == keys("llama-bench.jsonl") == keys("llama-bench.csv")


def test_tokens_made_in_all_the_time_that_it_took(made):
    rate = read(made).metrics["output_tps_whole"]
    assert rate == pytest.approx(16 * 3 / (sum(made["samples_ns"]) / 1e9))
    assert rate <= made["avg_ts"]  # a mean of rates is never below it


def test_reading_a_prompt_makes_no_token():
    (run, *_) = runs_in("llama-bench.json")
    assert run.workload.output_tokens == 0
    assert run.metrics["output_tps_whole"] is None
    assert run.metrics["total_tps_whole"] > 0


def test_there_is_no_latency_in_it(made):
    assert read(made).metrics.keys() == {"output_tps_whole", "total_tps_whole", "weights_bytes"}


def test_the_weights_are_counted_by_the_engine(made):
    assert read(made).metrics["weights_bytes"] == made["model_size"]


def test_its_own_words_are_the_machine(made):
    machine = told_machine(read(made))
    assert machine.cpu == "AMD EPYC"
    assert machine.fingerprint.startswith("imported-")
    assert machine.memory_bytes is None


def test_other_threads_are_another_case(made):
    one, other = read(made), read(made | {"n_threads": 2})
    assert one.options != other.options


def test_tests_are_called_as_its_table_calls_them():
    labels = [run.artifact["label"] for run in runs_in("llama-bench.csv")]
    assert labels == ["model.gguf pp32", "model.gguf tg16", "model.gguf pp16+tg8"]


def test_a_depth_is_named(made):
    assert read(made | {"n_depth": 512}).artifact["label"] == "model.gguf tg16 @ d512"


def test_every_run_is_a_start_of_its_own(made):
    assert read(made).own_process


def test_the_path_of_the_model_is_not_kept(made):
    run = read(made | {"model_filename": "C:\\Users\\ann\\models\\m.gguf"})
    assert run.model == "m.gguf"


@pytest.mark.parametrize(
    "change", [{"n_gen": 0}, {"samples_ns": []}, {"samples_ns": [0]}, {"n_gen": "many"}, {"model_size": -1}]
)
def test_a_test_that_is_not_whole_is_refused(made, change):
    with pytest.raises(UsageError):
        read(made | change)


def test_a_csv_has_numbers_as_text():
    assert recording("llama-bench.csv")["n_prompt"] == "32"
    assert runs_in("llama-bench.csv")[0].workload.input_tokens == 32
