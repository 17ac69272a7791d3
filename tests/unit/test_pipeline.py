import contextlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from llmopt import demo
from llmopt.core.artifacts import MANIFEST, open_model
from llmopt.core.domain import Case, Measurement, ServeOptions, Workload
from llmopt.core.errors import Interrupted, ModelError, UsageError
from llmopt.core.run_index import load_runs
from llmopt.core.store import load_series
from llmopt.core.worker import JobResult
from llmopt.pipeline import loads, making, measuring, plans, proving, requesting
from llmopt.quantize import method
from llmopt.report.progress import Reporter
from llmopt.serve import backend
from llmopt.serve.adapters import require_adapters
from unit.make import artifact, decoder, safetensors

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


@pytest.mark.parametrize(
    "words",
    [
        ["--api-key", "secret"],
        ["--api-key", "-secret"],
        ["--hf-token=secret"],
        ["--password", "secret", "-v"],
        ["--header", "Authorization: Bearer secret"],
    ],
)
def test_no_secret_of_a_command_line_is_kept(words):
    found = measuring.without_secret_arguments(["serve", *words])
    assert "secret" not in " ".join(found)
    assert len(found) == 1 + len(words)


@pytest.mark.parametrize(
    "words", [["--max-tokens", "5"], ["--tokenizer", "x"], ["-m", "key"], ["--max-prefill-token-num", "600"]]
)
def test_other_arguments_stay_as_they_are(words):
    assert measuring.without_secret_arguments(words) == words


def test_no_secret_of_the_engines_own_arguments_reaches_a_record(tmp_path):
    options = ServeOptions(backend="scripted", extra_args=("--text", "sk-secret"))
    case = Case(artifact=artifact(tmp_path / "a"), serve=options, workload=SMALL)
    (tmp_path / "a" / "tokenizer.json").write_bytes((demo.MODEL / "tokenizer.json").read_bytes())
    with measuring.serving_case(case, QUIET, results=tmp_path / "results", ready_timeout_s=20) as subject:
        assert "sk-secret" not in repr((subject.backend, subject.serve, subject.artifact))
        assert subject.serve["extra_args"] == ["--text", "***"]


def test_an_artifact_without_a_backend_gets_the_first_that_loads_it(tmp_path):
    artifact(tmp_path / "gguf", "gguf-q8_0", "gguf")
    case = plans.open_case(tmp_path / "gguf", ServeOptions(backend=""), Workload())
    assert case.serve.backend == "llamacpp"


def test_an_artifact_on_an_engine_that_does_not_load_it(tmp_path):
    artifact(tmp_path / "nf4")
    with pytest.raises(UsageError, match="llamacpp does not load nf4-dq"):
        plans.open_case(tmp_path / "nf4", ServeOptions(backend="llamacpp"), Workload())


def test_no_calibration_text(tmp_path):
    with pytest.raises(UsageError, match="no file"):
        requesting.quantize_request(
            open_model(decoder(tmp_path)), "nf4-dq", requesting.Options(calibration=str(tmp_path / "nowhere.txt"))
        )


def test_no_calibration_samples(tmp_path):
    with pytest.raises(UsageError, match="--samples"):
        requesting.quantize_request(open_model(decoder(tmp_path)), "gptq-int4-g128", requesting.Options(samples=0))


def request(tmp_path):
    from llmopt.core.environments import current
    from llmopt.quantize import method

    nf4 = method("nf4-dq")
    return requesting.QuantizeRequest(
        model=open_model(decoder(tmp_path / "base", vocabulary=4096)), method=nf4, route=nf4.routes[0], settings=nf4.routes[0].settings,
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
    asked = request(tmp_path)
    broken = replace(asked, route=replace(asked.route, function="llmopt.quantize:method"))
    with pytest.raises(Exception, match="unexpected keyword"):
        making.quantize(broken, tmp_path / "out", QUIET)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "logs"]


class Quantizer:
    """Stands for the worker: ``making`` calls it in place of a process, and it leaves weights."""

    def __init__(self, monkeypatch, *, leaves=True, before=lambda: None):
        self.calls, self.leaves, self.before = 0, leaves, before
        monkeypatch.setattr(making, "Worker", lambda *_, **__: contextlib.nullcontext(self))
        monkeypatch.setattr(making, "require_finite", lambda files, progress: None)

    def run(self, function, arguments, *, progress):
        self.calls += 1
        self.before()
        if self.leaves:
            safetensors(Path(arguments["out"]) / "model.safetensors")
        return JobResult(value={}, seconds=1.0, peak_memory_bytes=1)


def test_weights_whose_engine_does_not_start_are_kept_and_only_proven_again(tmp_path, monkeypatch):
    """vLLM that finds no memory says that it does not load a model: hours of work must not go for that."""
    quantizer, asked, proof = Quantizer(monkeypatch), request(tmp_path), proving.QualityText()
    monkeypatch.setattr(requesting, "require_provable", lambda *_, **__: None)

    def fail(*_, **__):
        raise ModelError("the engine does not load it", hint="try another")

    monkeypatch.setattr(making, "prove", fail)
    with pytest.raises(ModelError) as caught:
        making.quantize(asked, tmp_path / "out", QUIET, proof=proof)
    assert "the weights are kept in" in caught.value.hint
    monkeypatch.setattr(making, "prove", lambda *_, **__: None)
    artifact, there = making.quantize(asked, tmp_path / "out", QUIET, proof=proof)
    assert (quantizer.calls, there) == (1, False)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith((".", "out"))) == ["out"]
    assert artifact.path == str(tmp_path / "out")


def test_whole_weights_need_no_room(tmp_path, monkeypatch):
    """They lie there already: a disk that they filled is no reason not to prove them."""
    Quantizer(monkeypatch)
    asked = request(tmp_path)
    monkeypatch.setattr(making, "command_line", interrupt)
    with pytest.raises(KeyboardInterrupt):
        making.quantize(asked, tmp_path / "out", QUIET)
    monkeypatch.setattr(making, "command_line", lambda *_: "llmopt")
    monkeypatch.setattr(requesting, "require_room", interrupt)
    assert making.quantize(asked, tmp_path / "out", QUIET)[1] is False


def interrupt(*_):
    raise KeyboardInterrupt


def test_what_another_process_made_meanwhile_is_not_made_again(tmp_path, monkeypatch):
    asked, out = request(tmp_path), tmp_path / "out"
    quantizer = Quantizer(monkeypatch)

    @contextlib.contextmanager
    def after_another(place, wait):
        wait()
        with monkeypatch.context() as alone:
            alone.setattr(making, "one_at_a_time", lambda place, wait: contextlib.nullcontext())
            making.quantize(asked, out, QUIET)
        yield

    monkeypatch.setattr(making, "one_at_a_time", after_another)
    assert making.quantize(asked, out, QUIET)[1] is True
    assert quantizer.calls == 1


def test_the_cards_command_names_no_place_of_this_machine(tmp_path):
    asked = replace(request(tmp_path), settings={"method": "nf4", "shard_bytes": 10**9}, engine="hf")
    assert requesting.command_line(asked, tmp_path / "out") == (
        "llmopt quantize base --quant nf4-dq --format bitsandbytes --for hf --shard-size 1000000000B -o out"
    )


def test_a_key_holds_although_the_text_changes_meanwhile(tmp_path):
    (tmp_path / "t.txt").write_text("def f(): pass")
    asked = replace(request(tmp_path), settings={"samples": 1}, calibration=str(tmp_path / "t.txt"))
    before = asked.key
    (tmp_path / "t.txt").write_text("something else")
    assert (asked.key, replace(asked).key != before) == (before, True)


def test_a_format_that_the_engine_does_not_prove_is_proven_where_it_is_read():
    assert proving.engine_of_proof(method("nf4").quantization, "vllm", "auto").name == "hf"
    assert proving.engine_of_proof(method("w4a16").quantization, "vllm", "auto").name == "vllm"


def test_figures_that_are_no_numbers_are_not_whole():
    figures = dict.fromkeys(("kl_mean", "kl_p99", "top1_agreement", "perplexity"), 0.1)
    figures |= dict.fromkeys(("kl_mean_interval", "top1_interval", "perplexity_interval"), (0, 1))
    assert proving.is_whole(figures)
    assert not proving.is_whole(figures | {"kl_mean": float("nan")})


def test_a_base_that_is_gone_cannot_prove_anything(tmp_path):
    with pytest.raises(ModelError, match="the base of"):
        proving.prove(artifact(tmp_path), proving.QualityText(), QUIET, log_folder=tmp_path)


def test_stored_quality_is_of_its_own_key(tmp_path):
    (tmp_path / "q.json").write_text('{"key": "k", "quality": {"kl_mean": 1}}')
    assert proving.read_quality(tmp_path / "q.json", "k") == {"kl_mean": 1}
    assert proving.read_quality(tmp_path / "q.json", "other") is None
    assert proving.read_quality(tmp_path / "nowhere.json") is None


@pytest.mark.parametrize("text", ["", "[]", "5", '{"key": "k"}'])
def test_damaged_quality_is_measured_again(tmp_path, text):
    (tmp_path / "q.json").write_text(text)
    assert proving.read_quality(tmp_path / "q.json", "k") is None


def test_a_running_server_is_measured_and_recorded_without_secrets(scripted, tmp_path):
    url = scripted().base_url.replace("http://", "http://user:secret@")
    results = tmp_path / "results"
    subject = measuring.url_subject(url, "scripted", results=results, headers={"X-Key": "secret"})
    run = measuring.measure_and_save(subject, SMALL, measuring.RunOptions(results=results), QUIET)
    assert load_runs(results) == [msgspec.json.decode(msgspec.json.encode(run), type=Measurement)]
    assert not any(b"secret" in p.read_bytes() for p in (tmp_path / "results").rglob("*.json"))
    assert run.metrics["error_rate"] == 0
    assert run.backend["headers"] == ["X-Key"]
    assert (run.client["stamps"], run.tokens["source"]) == ("kernel", "server")


# --- a run, a sweep, a search ---------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path):
    """Measures a scripted server; returns the runs and the document of a sweep or search."""

    def run(base_url, workload, definitions=(), **how):
        options = measuring.RunOptions(results=tmp_path / "results", definitions=definitions)
        subject = measuring.url_subject(base_url, "scripted", results=tmp_path / "results")
        return loads.run(subject, workload, options, QUIET, **how)

    return run


def test_the_definitions_of_other_tools_stand_beside_ours(scripted, bench):
    (run,), found = bench(scripted().base_url, SMALL, definitions=("vllm", "aiperf"))
    assert found is None
    assert run.definitions["vllm"]["mean_ttft_ms"] > 0
    assert set(run.definitions) == {"vllm", "aiperf"}


def test_unknown_definitions():
    with pytest.raises(UsageError, match="nope") as caught:
        measuring.check_definitions(["vllm", "nope"])
    assert "guidellm" in caught.value.hint


class Impatient(Reporter):
    """Presses Ctrl-C after ten requests."""

    @contextlib.contextmanager
    def task(self, text, total=None):
        yield self

    def at(self, done, total, what=""):
        if done > 10:
            raise KeyboardInterrupt


def test_an_interrupted_run_is_kept_and_named(scripted, tmp_path):
    results = tmp_path / "results"
    subject = measuring.url_subject(scripted("--tpot-ms", "5").base_url, "scripted", results=results)
    long = replace(SMALL, requests=5000)
    with pytest.raises(Interrupted, match="kept in") as caught:
        measuring.measure_and_save(subject, long, measuring.RunOptions(results=results), Impatient(quiet=True))
    (run,) = load_runs(results)
    assert run.metrics["requests_ok"] > 10
    assert run.run_id in str(caught.value)


def test_an_interruption_while_the_record_is_made_loses_no_finished_run(scripted, tmp_path, monkeypatch):
    results = tmp_path / "results"
    subject = measuring.url_subject(scripted().base_url, "scripted", results=results)

    def interrupted_symptoms(*_):
        os.kill(os.getpid(), signal.SIGINT)
        return []

    monkeypatch.setattr(measuring, "symptoms", interrupted_symptoms)
    with pytest.raises(Interrupted, match="the 12 requests"):
        measuring.measure_and_save(
            subject, replace(SMALL, requests=12), measuring.RunOptions(results=results), Reporter(quiet=True)
        )
    (run,) = load_runs(results)
    assert run.metrics["requests_ok"] == 12
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_sweep_finds_where_the_server_falls_behind(scripted, bench):
    """One slot and 20 ms a request: 50 a second."""
    base_url = scripted("--ttft-ms", "17", "--tpot-ms", "1", slots=1).base_url
    runs, found = bench(base_url, replace(SMALL, load="open", rate=40.0), sweep=True, requests=40)
    assert found["kind"] == "sweep"
    assert 40 <= found["keeps_up_to"] <= 60
    assert 45 <= found["saturated_from"] <= 80.1
    assert {p["run_id"] for p in found["points"]} == {r.run_id for r in runs}


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ({"sweep": True, "search": True}, "different questions"),
        ({"sweep": True, "others": (4,)}, "--concurrency"),
        ({"search": True}, "--slo"),
        ({"search": True, "slos": ("ttft_mean<1s",)}, "mean is none of them"),
        ({"sweep": True, "turns": 2}, "--turns"),
    ],
)
def test_options_that_do_not_go_with_a_sweep_or_search(how, word):
    with pytest.raises(UsageError) as caught:
        loads.check_rates(**{"sweep": False, "search": False, "slos": (), "turns": 1, "others": (None,)} | how)
    assert word in caught.value.message + caught.value.hint


@pytest.fixture
def points(scripted, tmp_path):
    subject = measuring.url_subject(scripted().base_url, "scripted", results=tmp_path)
    return loads.Points(subject, SMALL, measuring.RunOptions(results=tmp_path), QUIET, 4)


def test_a_rate_at_which_nothing_succeeds_is_a_saturated_point_without_a_run(points):
    broken = replace(points.subject.target, model="scripted?trap=server-error")
    points.subject = replace(points.subject, target=broken)
    point = points.measure(50.0, 4)
    assert (point.saturated, point.completed_rps, point.run_id, points.runs) == (True, 0.0, "", [])


def test_a_rate_that_the_client_cannot_send_ends_the_search_and_is_an_error_only_at_its_beginning(points):
    points.workload = replace(points.workload, load="open")
    with pytest.raises(UsageError, match="more than"):
        points.measure(1e6, 4)
    assert points.measure(50.0, 4) is not None
    assert points.measure(1e6, 4) is None


# --- what an engine tells ------------------------------------------------------------------------------------------


def test_a_record_has_what_the_server_said_and_its_samples_lie_beside(tmp_path):
    case = Case(
        artifact=artifact(tmp_path / "artifact"), serve=ServeOptions(backend="scripted", max_num_seqs=4), workload=SMALL
    )
    (tmp_path / "artifact" / "tokenizer.json").write_bytes((demo.MODEL / "tokenizer.json").read_bytes())
    results = tmp_path / "results"
    for run in measuring.bench_artifact(case, QUIET, results=results, repeats=2):
        assert run.server["requests"] == 6, "the warm-up and the other run are not in it"
        assert run.server["agreement"]["ttft"]["n"] == 6
        assert run.memory["total_bytes"] == run.metrics["peak_rss_bytes"]
        (record,) = results.rglob(run.run_id + ".json")
        assert load_series(record)["pss_bytes"][0] > 0


@pytest.mark.parametrize(
    ("engine", "modules", "told"),
    [
        ("vllm", ("a=x",), "--adapter c: --lora-modules loads a"),
        ("vllm", (), "--adapter a, c: --lora-modules loads none"),
        ("llamacpp", ("a=x.gguf", "c=y.gguf"), "llamacpp applies its adapters to every request"),
        ("scripted", (), "scripted has no adapters"),
    ],
)
def test_an_adapter_that_the_server_would_not_know_is_refused(engine, modules, told, tmp_path):
    case = Case(
        artifact=artifact(tmp_path / "artifact"),
        serve=ServeOptions(backend=engine, lora_modules=modules),
        workload=replace(SMALL, adapters=("a", "c")),
    )
    with pytest.raises(UsageError, match=told):
        require_adapters(backend(engine), case.serve, case.workload.adapters)


def test_adapters_that_are_loaded_may_be_asked_for(tmp_path):
    options = ServeOptions(backend="vllm", lora_modules=("a=x", "c=y"))
    case = Case(artifact=artifact(tmp_path / "a"), serve=options, workload=replace(SMALL, adapters=("a", "c")))
    require_adapters(backend("vllm"), case.serve, case.workload.adapters)


def test_adapters_are_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "started", None)
    case = Case(
        artifact=artifact(tmp_path / "artifact"),
        serve=ServeOptions(backend="scripted"),
        workload=replace(SMALL, adapters=("a",)),
    )
    with pytest.raises(UsageError, match="has no adapters"):
        measuring.bench_artifact(case, QUIET, results=tmp_path / "results")


def test_an_engine_that_counts_nothing_is_not_asked():
    assert measuring.metrics_url("http://a:1/v1", replace(backend("scripted"), metrics={})) is None
    triton = replace(backend("scripted"), metrics_path="/prometheus/metrics")
    assert measuring.metrics_url("http://a:1/v1", triton) == "http://a:1/prometheus/metrics"
