"""What ``llmopt tune`` makes of its options, and what it refuses."""

import pytest
from typer.testing import CliRunner

from llmopt import demo
from llmopt.cli import app
from llmopt.cli.tuning import job_of

NUMBERS = ",".join(map(str, range(1, 40)))
MANY = [
    "--backends",
    "llamacpp",
    "--quants",
    "gguf-q8_0",
    "--knob",
    f"threads={NUMBERS}",
    "--knob",
    f"max_num_seqs={NUMBERS}",
]


def refused(*arguments):
    found = CliRunner().invoke(app, ["tune", *arguments])
    return found.exit_code, found.stderr


def test_the_options_make_a_job():
    job = job_of(
        "builtin", {"--budget": "2h", "--quants": "bf16, gguf-q8_0", "--concurrency": "4,1", "--slo": ["ttft_p99<1s"]}
    )
    assert (job.model, job.budget_s, job.quantizations) == (demo.MODEL, 7200.0, ("bf16", "gguf-q8_0"))
    assert [(load.concurrency, load.requests) for load in job.loads] == [(1, 304), (4, 304)]
    assert job.workload.slos == ("ttft_p99<1s",)


def test_rates_make_an_open_loop():
    job = job_of("builtin", {"--rates": "2,1.5"})
    assert [(load.load, load.rate) for load in job.loads] == [("open", 1.5), ("open", 2.0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name either a model or a recipe"),
        (["builtin", "--budget", "10"], "'10' needs a unit"),
        (["builtin", "--budget", "0min"], "--budget must be more than 0"),
        (["builtin", "--rates", "1", "--concurrency", "1"], "different loops"),
        (["builtin", "--concurrency", "few"], "no list of numbers"),
        (["builtin", "--rates", "0,1"], "--rates must be more than 0"),
        (["builtin", "--quants", "q9", "--dry-run"], "unknown quantization 'q9'"),
        (["builtin", "--backends", "vlm", "--dry-run"], "unknown backend 'vlm'"),
        (["builtin", "--knob", "thread=1"], "no knob 'thread'"),
        (["builtin", "--dry-run", *MANY], "configurations are too many"),
        (["builtin", "--slo", "tfft_p95<1s"], "unknown metric"),
        (["builtin", "--optimize", "speed"], "unknown objective"),
        (["builtin", "--optimize", "throughput,task_score_mmlu"], "tune runs no tasks"),
        (["recipes/demo.yaml", "--budget", "1min", "-o", "x"], "--budget would not be heard"),
        (["recipes/demo.yaml"], "a recipe needs a folder"),
        (["nowhere"], "no model at nowhere"),
        (["nowhere.gguf"], "no model at nowhere.gguf"),
    ],
)
def test_nonsense_is_refused_in_one_line(options, message):
    status, told = refused(*options)
    assert status != 0
    assert message in told
    assert "hint: " in told
