import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from llmopt.core.errors import ServerError, UsageError
from llmopt.pipeline.proving import ProofLimits
from llmopt.quality import ENGINES, engine_for, needs
from llmopt.quality.tasks import gives_prompt_logprobs, rows, task_names
from unit.make import artifact


@pytest.mark.parametrize(
    ("format", "engine"), [("gguf", "llamacpp"), ("gptq", "hf"), ("plain", "hf"), ("in-memory", "hf")]
)
def test_each_format_has_an_engine_by_default(tmp_path, format, engine):
    made = artifact(tmp_path, format=format).quantization
    assert engine_for(made).name == engine
    assert set(ENGINES[engine].modules) <= set(needs(made).modules)


@pytest.mark.parametrize(
    ("format", "engine", "kv", "match"),
    [
        ("gptq", "vlm", "auto", "no proof runs in 'vlm'"),
        ("gguf", "vllm", "auto", "reads no gguf"),
        ("gguf", "llamacpp", "fp8", "no KV cache of type 'fp8'"),
        ("gptq", "hf", "q8_0", "no KV cache of type 'q8_0'"),
    ],
)
def test_what_no_engine_does_is_said_before_anything_starts(tmp_path, format, engine, kv, match):
    with pytest.raises(UsageError, match=match) as caught:
        engine_for(artifact(tmp_path, format=format).quantization, engine, kv)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("kl", "top1", "broken"), [(0.27, 0.72, 0), (3.47, 0.002, 2), (2.0, 0.2, 0), (2.01, 0.5, 1), (0.1, 0.19, 1)]
)
def test_default_limits_tell_garbage_from_two_honest_bits(kl, top1, broken):
    assert len(ProofLimits().for_bits(2).broken({"kl_mean": kl, "top1_agreement": top1})) == broken


@pytest.mark.parametrize(("kl", "top1", "broken"), [(0.05, 0.88, 0), (0.87, 0.56, 1), (0.1, 0.49, 1), (3.47, 0.002, 2)])
def test_more_bits_must_stay_closer(kl, top1, broken):
    assert len(ProofLimits().for_bits(4).broken({"kl_mean": kl, "top1_agreement": top1})) == broken


def test_a_limit_that_was_given_holds_for_every_width():
    given = ProofLimits(max_kl=0.01, min_top1=None)
    assert given.for_bits(2) == given.for_bits(8) == given


def test_a_trial_has_no_limits():
    assert ProofLimits.none().broken({"kl_mean": 99, "top1_agreement": 0}) == []


def test_tasks_by_name_and_by_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("# a comment\ntask: my_task\nprocess_docs: !function utils.f\n")
    assert task_names(f"gsm8k, {tmp_path}/mine.yaml,") == (["gsm8k", "my_task"], [str(tmp_path)])


@pytest.mark.parametrize("asked", ["", ",", "nowhere.yaml"])
def test_tasks_that_are_none(asked):
    with pytest.raises(UsageError):
        task_names(asked)


def test_a_task_file_without_a_name(tmp_path):
    (tmp_path / "mine.yaml").write_text("dataset_path: json\n")
    with pytest.raises(UsageError, match="names no task"):
        task_names(str(tmp_path / "mine.yaml"))


def test_scores_with_and_without_a_standard_error():
    results = {"t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,strict": 1, "f1_stderr,strict": "N/A"}}
    found = rows(results, {"t": {"original": 40, "effective": 24}}, {"t": {"acc": True}})
    assert [(r["metric"], r["filter"], r["value"], r["stderr"], r["samples"]) for r in found] == [
        ("acc", "none", 0.5, 0.1, 24),
        ("f1", "strict", 1.0, None, 24),
    ]
    assert [r["higher_is_better"] for r in found] == [True, None]


@pytest.fixture
def answering():
    """A server that answers every completion with this status and body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = self.server.answer
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def start(status, choice):
        server.answer = (status, json.dumps({"choices": [choice]}).encode())
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "choice", "gives"),
    [
        (200, {"text": "def main(", "logprobs": {"token_logprobs": [None, -1.0, -2.0]}}, True),
        (200, {"text": "(", "logprobs": {"token_logprobs": [-1.0, -2.0]}}, False),
        (200, {"text": "(", "logprobs": None}, False),
        (400, {}, False),
    ],
)
def test_whether_a_server_gives_log_probabilities_of_a_prompt(answering, status, choice, gives):
    assert gives_prompt_logprobs(answering(status, choice), "m") is gives


def test_a_server_that_does_not_know_the_model(answering):
    with pytest.raises(ServerError, match="status 404"):
        gives_prompt_logprobs(answering(404, {}), "m")


def test_no_server():
    with pytest.raises(ServerError, match="no completion"):
        gives_prompt_logprobs("http://127.0.0.1:9/v1", "m")
