import json

import pytest

from llmopt.pipeline import plans as pipeline
from llmopt.bench.runner import RunResult
from llmopt.core.artifacts import MANIFEST, open_model
from llmopt.core.domain import Case, ServeOptions, Verdict, Workload
from llmopt.core.errors import ModelError, UsageError
from llmopt.core.store import load_runs
from llmopt.pipeline import making, measuring
from llmopt.report.progress import Reporter
from unit.make import artifact, model

QUIET = Reporter(quiet=True)
SMALL = Workload(input_tokens=16, output_tokens=4, concurrency=2, requests=6, warmup_requests=1)


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    "url", ["http://user:secret@host:8000/v1", "http://host:8000/v1?key=secret", "http://host:8000/v1#secret"]
)
def test_no_secret_of_an_address_is_kept(url):
    assert measuring.without_secrets(url) == "http://host:8000/v1"


@pytest.mark.parametrize("words", [["--api-key", "secret"], ["--hf-token=secret"], ["--password", "secret", "-v"]])
def test_no_secret_of_a_command_line_is_kept(words):
    found = measuring.without_secret_arguments(["serve", *words])
    assert "secret" not in " ".join(found)
    assert len(found) == 1 + len(words)


@pytest.mark.parametrize("words", [["--max-tokens", "5"], ["--tokenizer", "x"], ["-m", "key"]])
def test_other_arguments_stay_as_they_are(words):
    assert measuring.without_secret_arguments(words) == words


def test_no_secret_of_the_engines_own_arguments_reaches_a_record(tmp_path):
    options = ServeOptions(backend="hf", extra_args=("--api-key", "sk-secret"))
    case = Case(artifact=artifact(tmp_path), serve=options, workload=SMALL)
    nothing = RunResult(traces=(), metrics={}, intervals={}, verdict=Verdict(status="valid"), telemetry={})
    assert "sk-secret" not in repr(measuring.record(case, nothing, "id", "now", {}, None))


def test_an_artifact_without_a_backend_gets_the_first_that_loads_it(tmp_path):
    artifact(tmp_path / "gguf", "gguf-q8_0", "gguf")
    case = pipeline.open_case(tmp_path / "gguf", ServeOptions(backend=""), Workload())
    assert case.serve.backend == "llamacpp"


def test_an_artifact_on_an_engine_that_does_not_load_it(tmp_path):
    artifact(tmp_path / "nf4")
    with pytest.raises(UsageError, match="llamacpp does not load nf4-dq"):
        pipeline.open_case(tmp_path / "nf4", ServeOptions(backend="llamacpp"), Workload())


def test_no_calibration_text(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        making.quantize_request(open_model(model(tmp_path)), "nf4-dq", calibration=tmp_path / "nowhere")


def test_no_calibration_samples(tmp_path):
    with pytest.raises(UsageError, match="--samples"):
        making.quantize_request(open_model(model(tmp_path)), "gptq-int4-g128", samples=0)


def request(tmp_path):
    from llmopt.core.environments import current
    from llmopt.quantize import method

    return making.QuantizeRequest(
        model=open_model(model(tmp_path / "base")), method=method("nf4-dq"), settings={}, calibration=tmp_path,
        environment=current(),
    )  # fmt: skip


def test_a_folder_with_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="something else"):
        making.quantize(request(tmp_path), tmp_path / "out", QUIET)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_an_artifact_of_another_request_is_not_overwritten(tmp_path):
    artifact(tmp_path / "out")
    with pytest.raises(UsageError, match="other settings"):
        making.quantize(request(tmp_path), tmp_path / "out", QUIET)


def test_what_is_there_already_is_taken_up(tmp_path):
    asked = request(tmp_path)
    made = artifact(tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    manifest["artifact"]["key"] = asked.key
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(manifest))
    found, there = making.quantize(asked, tmp_path / "out", QUIET)
    assert (found.size_bytes, there) == (made.size_bytes, True)


def test_a_quantizer_that_fails_leaves_nothing_behind(tmp_path):
    from dataclasses import replace

    asked = request(tmp_path)
    broken = replace(asked, method=replace(asked.method, function="llmopt.quantize:method"))
    with pytest.raises(Exception, match="unexpected keyword"):
        making.quantize(broken, tmp_path / "out", QUIET)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "logs"]


def test_a_base_that_is_gone_cannot_prove_anything(tmp_path):
    with pytest.raises(ModelError, match="the base of"):
        making.prove(artifact(tmp_path), making.QualityText(), QUIET, log_folder=tmp_path)


def test_stored_quality_is_of_its_own_key(tmp_path):
    (tmp_path / "q.json").write_text('{"key": "k", "quality": {"kl_mean": 1}}')
    assert making.read_quality(tmp_path / "q.json", "k") == {"kl_mean": 1}
    assert making.read_quality(tmp_path / "q.json", "other") is None
    assert making.read_quality(tmp_path / "nowhere.json") is None


@pytest.mark.parametrize("text", ["", "[]", "5", '{"key": "k"}'])
def test_damaged_quality_is_measured_again(tmp_path, text):
    (tmp_path / "q.json").write_text(text)
    assert making.read_quality(tmp_path / "q.json", "k") is None


def test_a_running_server_is_measured_and_recorded_without_secrets(scripted, tmp_path):
    url = scripted().base_url.replace("http://", "http://user:secret@")
    run = measuring.bench_url(url, "scripted", SMALL, QUIET, results=tmp_path / "results")
    assert load_runs(tmp_path / "results") == [run]
    assert not any(b"secret" in p.read_bytes() for p in (tmp_path / "results").rglob("*.json"))
    assert run.metrics["error_rate"] == 0
