"""``llmopt gate`` as it is typed: what it refuses, what it calls inconclusive, and that nothing passes by accident."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from llmopt.cli import app
from llmopt.cli.shell import reporter
from llmopt.core.domain import Doubt, Measurement, ServeOptions, Verdict, Workload
from llmopt.core.errors import NothingAnswered
from llmopt.core.machine import this_machine
from llmopt.core.store import save_run
from llmopt.pipeline import experiment, sides
from llmopt.serve.scripted import running
from unit.make import closed_loop, distribution, failed, metrics, run

TPOT = ("--metric", "tpot_p50:2%:3%")
SMALL = ("--model", "truth", "--requests", "8", "--concurrency", "4", "--input-tokens", "16", "--output-tokens", "8")


@pytest.fixture(scope="module")
def server():
    with running() as url:
        yield url.removesuffix("/v1")


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """The command, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: Any):
        return CliRunner().invoke(app, ["gate", *map(str, arguments)])

    return call


@pytest.fixture
def refused(gate):
    """The words of a call that ends with one error and one hint."""

    def call(*arguments: Any, status: int) -> str:
        done = gate(*arguments)
        lines = done.stderr.splitlines()
        assert (done.exit_code, done.stdout) == (status, ""), done.output
        assert sum(line.startswith("error: ") for line in lines) == 1, done.stderr
        assert sum(line.startswith("hint: ") for line in lines) == 1, done.stderr
        assert "defect" not in done.stderr
        return done.stderr

    return call


def measured(number: int, tpot_s: float = 0.01, **fields: Any) -> Measurement:
    """One run of a session of its own, each on a day of its own."""
    figures = metrics(throughput=4 / tpot_s + number / 1000, latency_s=1 + number / 1000)
    figures |= {"tpot_s": distribution(tpot_s * (1 + number / 10_000)), "output_tps_whole": 4 / tpot_s}
    known = {"run_id": f"run-{tpot_s}-{number}", "session": f"{tpot_s}-{number}", "metrics": figures,
             "machine": this_machine(), "quality": None, "intervals": {},
             "started_at": f"2025-01-{number + 1:02}T00:00:00.000+00:00"}  # fmt: skip
    return run(**known | fields)


def folder(name: str, count: int = 8, tpot_s: float = 0.01, traces: Any = None, **fields: Any) -> Path:
    """A folder of so many stored runs."""
    place = Path(name)
    for number in range(count):
        save_run(place, measured(number, tpot_s, **fields), closed_loop() if traces is None else traces)
    return place


# --- stored runs ----------------------------------------------------------------------------------------------------


def test_an_absolute_path_is_a_folder_of_runs_and_no_baseline(gate):
    base, same = folder("base").resolve(), folder("same", tpot_s=0.010001).resolve()
    assert gate(base, same, *TPOT).exit_code == 0


def test_a_case_that_the_candidate_lacks_lets_nothing_pass(gate):
    base, same = folder("base"), folder("same", tpot_s=0.010001)
    for number in range(8):
        lost = measured(number, 0.012, run_id=f"lost-{number}", case_key="another-case")
        save_run(base, lost, closed_loop())
    done = gate(base, same, *TPOT)
    assert done.exit_code == 4
    assert "only the base has" in done.stdout
    assert gate(base, same, *TPOT, "--allow", "cases").exit_code == 0


def test_stored_sides_are_not_told_how_long_to_measure(refused):
    assert "--rounds" in refused(folder("base"), folder("same", tpot_s=0.010001), *TPOT, "--rounds", "5", status=2)


def test_a_difference_that_is_none_is_said_before_anything_is_measured(refused):
    assert "no difference" in refused("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1", "--allow", "versoin", status=2)


def test_many_sessions_tell_a_loss_and_no_loss(gate):
    base, same, slow = folder("base"), folder("same", tpot_s=0.010001), folder("slow", tpot_s=0.011)
    assert gate(base, same, *TPOT).exit_code == 0
    assert gate(base, slow, *TPOT).exit_code == 3


def test_json_is_one_document_and_nothing_else(gate):
    done = gate(folder("base"), folder("slow", tpot_s=0.011), *TPOT, "--json")
    document = json.loads(done.stdout)
    assert (document["status"], document["exit_status"], done.exit_code) == ("regression", 3, 3)
    assert document["cases"][0]["paired"] is False


def test_sides_without_a_case_in_common_are_refused(refused):
    for name, keys in (("base", "ab"), ("candidate", "cd")):
        for key in keys:
            folder(name, 2, tpot_s=0.01 + ord(key) / 1e5, case_key=key)
    assert "no case in common" in refused("base", "candidate", status=2)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"workload": {"input_tokens": 4096, "output_tokens": 32, "concurrency": 4, "requests": 64}}, "another workload"),
        ({"measuring_revision": 99}, "another definitions"),
        ({"machine": replace(this_machine(), fingerprint="other")}, "another machine"),
    ],
)  # fmt: skip
def test_sides_that_are_not_alike_are_refused(refused, fields, words):
    assert words in refused(folder("base"), folder("candidate", tpot_s=0.0101, **fields), *TPOT, status=2)


def test_another_version_is_no_pass_until_it_is_allowed(gate):
    newer = {"name": "hf", "version": "2.0", "argv": ["serve"]}
    sides = (folder("base"), folder("candidate", tpot_s=0.010001, backend=newer))
    assert gate(*sides, *TPOT).exit_code == 4
    assert gate(*sides, *TPOT, "--allow", "version").exit_code == 0


def test_of_another_machine_only_what_needs_no_clock_is_compared(gate, refused):
    other = replace(this_machine(), fingerprint="other")
    sides = (folder("base"), folder("candidate", tpot_s=0.02, machine=other))
    assert "needs no clock" in refused(*sides, *TPOT, "--allow", "machine", status=2)
    done = gate(*sides, "--allow", "machine", "--json")
    (case,) = json.loads(done.stdout)["cases"]
    assert [row["name"] for row in case["metrics"]] == ["peak_rss_bytes"]
    assert "left out: output_tps, tpot_p50, ttft_p50" in case["notes"][0]


def test_one_run_says_nothing(refused):
    assert "one alone" in refused(folder("base", 1), folder("candidate", 8, 0.011), *TPOT, status=4)


def test_an_inconclusive_error_passes_for_nobody(refused):
    refused(folder("base", 1), folder("candidate", 8, 0.011), *TPOT, "--on-inconclusive", "pass", status=4)


def test_an_empty_folder_is_no_comparison(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no run in" in refused(folder("base"), "empty", *TPOT, "--on-inconclusive", "pass", status=1)


def test_a_copied_file_is_refused(refused):
    base = folder("base", 1)
    (record,) = base.glob("*/run-*.json")
    for number in range(4):
        shutil.copy(record, record.with_name(f"run-copy-{number}.json"))
    assert "4 of the files there are copies" in refused(base, folder("candidate", 5, 0.011), *TPOT, status=2)


def test_a_copy_under_another_name_is_refused(refused):
    base = folder("base", 1)
    for number in range(4):
        save_run(base, measured(0, run_id=f"again-{number}"), closed_loop())
    assert "is a copy of" in refused(base, folder("candidate", 5, 0.011), *TPOT, status=2)


def test_the_same_runs_on_both_sides_are_refused(refused):
    base = folder("base")
    assert "that is no comparison" in refused(base, base, *TPOT, status=2)


def test_what_is_nothing_is_refused(refused):
    assert "baseline" in refused(folder("base"), "main", *TPOT, status=2)


def test_a_baseline_of_another_schema_is_refused(gate, refused):
    assert CliRunner().invoke(app, ["baseline", "set", "main", str(folder("base"))]).exit_code == 0
    candidate = folder("candidate", tpot_s=0.010001)
    assert gate("main", candidate, *TPOT).exit_code == 0
    (file,) = Path("results/baselines/main").glob("*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 7}))
    assert "schema 7" in refused("main", candidate, *TPOT, status=1)


def test_a_metric_that_does_not_exist_is_refused_with_the_nearest(refused):
    assert "tpot" in refused(folder("base"), folder("candidate", tpot_s=0.011), "--metric", "tpto_p50:5%", status=2)


@pytest.mark.parametrize("value", [None, 0.0])
def test_a_metric_that_is_null_or_zero_has_no_ratio(refused, value):
    base = folder("base", metrics=metrics() | {"tpot_s": {"p50": value}})
    assert "no ratio" in refused(one_by_one(base, value), folder("candidate", tpot_s=0.011), *TPOT, status=2)


def one_by_one(place: Path, value: float | None) -> Path:
    """The same runs with figures of their own, so that none is a copy."""
    shutil.rmtree(place)
    for number in range(8):
        figures = metrics(throughput=100 + number) | {"tpot_s": {"p50": value}}
        save_run(place, measured(number, metrics=figures), closed_loop())
    return place


def test_all_failed_on_both_sides_is_an_error(refused):
    lost = [failed(index=n) for n in range(64)]
    sides = [folder(name, tpot_s=tpot_s, traces=lost) for name, tpot_s in (("base", 0.01), ("candidate", 0.011))]
    assert "every request failed on both sides" in refused(*sides, *TPOT, status=1)


def test_only_the_candidate_fails_is_a_regression(gate):
    half = closed_loop()[:32] + [failed(index=n) for n in range(32, 64)]
    done = gate(folder("base"), folder("candidate", tpot_s=0.010001, traces=half), *TPOT)
    assert (done.exit_code, "failed requests" in done.stdout.splitlines()[0]) == (3, True)


def test_four_times_the_input_tokens_are_a_regression(gate):
    long = [replace(t, prompt_tokens=4 * (t.prompt_tokens or 0)) for t in closed_loop()]
    done = gate(folder("base"), folder("candidate", tpot_s=0.010001, traces=long), *TPOT)
    assert (done.exit_code, "prompt tokens" in done.stdout.splitlines()[0]) == (3, True)


def test_runs_too_short_for_a_steady_window_are_compared_by_their_whole(gate):
    sides = []
    for name, tps in (("base", 400.0), ("candidate", 350.0)):
        for number in range(8):
            figures = metrics(throughput=100 + number / 1000) | {
                "output_tps": None,
                "output_tps_whole": tps + number / 100,
            }
            save_run(Path(name), measured(number, 4 / tps, metrics=figures), closed_loop())
        sides.append(name)
    done = gate(*sides, "--json")
    assert done.exit_code == 3, done.stderr
    assert "output_tps_whole" in json.loads(done.stdout)["cases"][0]["reasons"]


def test_half_the_requests_missing_are_no_pass(refused):
    half = folder("candidate", tpot_s=0.010001, traces=closed_loop(32))
    words = refused(folder("base"), half, *TPOT, status=4)
    assert "32 of its 64 requests are missing" in words


def test_a_figure_that_only_the_base_has_is_no_pass(gate):
    base = folder("base")
    for number in range(8):
        figures = dict(measured(number, 0.010001).metrics) | {"tpot_s": None}
        save_run(Path("candidate"), measured(number, 0.010001, metrics=figures), closed_loop())
    done = gate(base, "candidate")
    assert (done.exit_code, "tpot_p50 is known of the base alone" in done.stdout) == (4, True)


def test_failures_of_runs_that_do_not_count_are_a_regression(gate):
    """Their figures say nothing, their failures do."""
    doubt = Doubt(code="errors", severity="invalid", message="half of the requests failed", remedy="look at the log")
    half = closed_loop()[:32] + [failed(index=n) for n in range(32, 64)]
    broken = folder("candidate", traces=half, tpot_s=0.0101, verdict=Verdict(status="invalid", reasons=(doubt,)))
    assert gate(folder("base"), broken, *TPOT).exit_code == 3


def test_an_unknown_difference_to_allow_is_refused(refused):
    assert "versoin" in refused(folder("base"), folder("candidate", tpot_s=0.0101), "--allow", "versoin", status=2)


def test_markdown_and_junit_say_what_failed(gate):
    done = gate(folder("base"), folder("slow", tpot_s=0.011), *TPOT, "--markdown", "gate.md", "--junit", "gate.xml")
    assert done.exit_code == 3
    assert "REGRESSION: tpot" in Path("gate.md").read_text()
    suite = ElementTree.parse("gate.xml").getroot()[0]
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["verdict", "tpot_p50"]
    assert int(suite.get("tests")) == len(suite) == 6


# --- measured now ---------------------------------------------------------------------------------------------------


def test_a_url_without_a_model_is_refused(refused, server):
    assert "--model" in refused(server + "/v1", server + "/v1", status=2)


@pytest.mark.parametrize(
    "options",
    [("--rounds", "1"), ("--rounds", "0"), ("--confidence", "99"), ("--rounds", "5", "--budget", "1min"),
     ("--budget", "0s"), ("--metric", "tpot_p50:5%:2%"), ("--quality", "mmlu:1"), ("--on-inconclusive", "maybe")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused_before_anything_is_measured(refused, server, options):
    refused(server + "/v1", server + "/v1", *SMALL, *options, status=2)
    assert not Path("results").exists()


def test_a_budget_that_holds_one_block_is_inconclusive(refused, server):
    words = refused(server + "/v1", server + "/v1", *SMALL, "--budget", "1s", status=4)
    assert "holds only one" in words
    assert "--budget" in words


def test_a_server_that_answers_nobody_on_both_sides_is_an_error(refused, server):
    broken = f"{server}/x/trap=server-error/v1"
    refused(broken, broken, *SMALL, "--rounds", "2", status=1)


def test_nobody_there_is_an_error(refused):
    nobody = "http://127.0.0.1:9/v1"
    refused(nobody, nobody, *SMALL, "--rounds", "2", status=1)


def test_a_candidate_that_answers_with_errors_alone_is_a_regression(gate, server):
    done = gate(f"{server}/x/ttft=5,itl=1/v1", f"{server}/x/trap=server-error/v1", *SMALL, "--rounds", "2", "--json")
    assert (done.exit_code, json.loads(done.stdout)["cases"][0]["reasons"]) == (3, ["failed requests"])


def test_a_metric_that_no_run_knows_is_refused_after_one_block(refused, server):
    fast = f"{server}/x/ttft=5,itl=1/v1"
    words = refused(fast, fast, *SMALL, "--rounds", "20", "--metric", "ttft_p99:5%", status=2)
    assert "ttft_p99 is unknown" in words
    (state,) = Path("results/gates").glob("*.json")
    assert len(json.loads(state.read_text())["blocks"]) == 1


def test_two_recipes_of_other_workloads_are_refused(refused):
    for name, tokens in (("one", 16), ("other", 32)):
        Path(f"{name}.yaml").write_text(
            f"name: {name}\nmodel: builtin\ncases:\n  - backend: scripted\n    quantizations: [bf16]\n"
            f"workload:\n  input_tokens: {tokens}\n  output_tokens: 8\n  concurrency: 2\n  requests: 8\n"
        )
    assert "another workload: input_tokens 16 against 32" in refused("one.yaml", "other.yaml", status=2)


def test_a_state_that_lay_there_for_a_day_is_not_taken_up(gate, server):
    fast = f"{server}/x/ttft=5,itl=1/v1"
    gate(fast, fast, *SMALL, "--rounds", "2", "--seed", "1")
    (state,) = Path("results/gates").glob("*.json")
    cut = json.loads(state.read_text())
    state.write_text(json.dumps(cut | {"finished": False, "blocks": cut["blocks"][:1], "seconds": cut["seconds"][:1]}))
    os.utime(state, (0, time.time() - 86_400))
    assert "begins anew" in gate(fast, fast, *SMALL, "--rounds", "2", "--seed", "1").stderr


def test_a_damaged_state_is_said_and_begun_anew(gate, server):
    fast = f"{server}/x/ttft=5,itl=1/v1"
    gate(fast, fast, *SMALL, "--rounds", "2", "--confidence", "0.999999")
    (state,) = Path("results/gates").glob("*.json")
    state.write_text("{")
    done = gate(fast, fast, *SMALL, "--rounds", "2", "--confidence", "0.999999")
    assert "the gate begins anew" in done.stderr
    assert done.exit_code in (0, 4)


def test_bounds_that_no_float_holds_are_cut_at_a_thousandfold(gate, server):
    """Two blocks have one degree of freedom, and at such a confidence intervals of hundreds of orders of magnitude."""
    fast = f"{server}/x/ttft=5,itl=1/v1"
    done = gate(fast, fast, *SMALL, "--rounds", "2", "--confidence", "0.99999999", "--json")
    assert done.exit_code == 4, done.stderr
    ends = [m[end] for m in json.loads(done.stdout)["cases"][0]["metrics"] for end in ("low", "high")]
    assert min(ends) == pytest.approx(1 / 1000 - 1)
    assert max(ends) == pytest.approx(999)


def test_a_stored_side_of_another_workload_is_refused_before_the_other_is_measured(refused, server):
    fast = f"{server}/x/ttft=5,itl=1/v1"
    base = folder("base")
    assert "requests 64 against 8" in refused(base, fast, *SMALL, status=2)
    assert not list(Path("results").glob("*/*.traces.json.gz"))


@pytest.mark.parametrize("options", [("--only-model", "other"), ("--api-key", "k")])
def test_a_candidate_that_was_asked_wrongly_is_an_error_and_no_regression(refused, server, options):
    with running(*options) as url:
        refused(f"{server}/x/ttft=5,itl=1/v1", url, *SMALL, "--rounds", "2", status=1)


class KeyWanted(BaseHTTPRequestHandler):
    """Wants a key, and says so to every third request half a second later."""

    numbers = itertools.count()

    def do_POST(self):
        if next(self.numbers) % 3 == 0:
            time.sleep(0.5)
        with contextlib.suppress(OSError):
            self.send_error(401)

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def locked():
    with ThreadingHTTPServer(("127.0.0.1", 0), KeyWanted) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/v1"
        http.shutdown()


def test_a_missing_key_is_no_regression_where_requests_were_in_flight_when_the_client_gave_up(refused, server, locked):
    many = (*SMALL, "--requests", "48", "--concurrency", "24", "--rounds", "2")
    assert "LLMOPT_API_KEY" in refused(f"{server}/x/ttft=5,itl=1/v1", locked, *many, status=1)


@pytest.mark.parametrize(
    ("errors", "failed", "there"),
    [
        ({"http_401": 16, "stopped": 2}, {"http_401": 16}, True),
        ({"timeout": 16, "stopped": 8, "dropped": 3}, {"timeout": 16}, False),
        ({"stopped": 8}, {}, False),
    ],
)
def test_what_the_client_stopped_itself_says_nothing_of_the_server(errors, failed, there):
    assert experiment.what_failed(NothingAnswered("all failed", errors=errors)) == (failed, there)


def test_a_candidate_that_breaks_every_answer_off_is_a_regression(gate, server):
    done = gate(f"{server}/x/ttft=5,itl=1/v1", f"{server}/x/trap=reset/v1", *SMALL, "--rounds", "2", "--json")
    assert (done.exit_code, json.loads(done.stdout)["cases"][0]["reasons"]) == (3, ["failed requests"])


def test_after_an_error_out_of_measured_blocks_the_same_command_measures_anew(refused, server):
    fast, options = f"{server}/x/ttft=5,itl=1/v1", (*SMALL, "--rounds", "2", "--metric", "ttft_p99:5%")
    refused(fast, fast, *options, status=2)
    (state,) = Path("results/gates").glob("*.json")
    before = json.loads(state.read_text())
    assert before["finished"]
    refused(fast, fast, *options, status=2)
    assert json.loads(state.read_text())["blocks"] != before["blocks"]


def test_a_slow_first_block_does_not_end_every_later_gate_of_the_budget(refused, server):
    fast = f"{server}/x/ttft=5,itl=1/v1"
    refused(fast, fast, *SMALL, "--budget", "1s", status=4)
    (state,) = Path("results/gates").glob("*.json")
    assert json.loads(state.read_text())["finished"]


def test_a_named_quality_of_what_was_never_proven_is_refused_before_anything_is_measured(refused, server):
    fast = f"{server}/x/ttft=5,itl=1/v1"
    assert "the base has no kl" in refused(fast, fast, *SMALL, "--quality", "kl:0.01", status=2)
    assert not list(Path("results").glob("*/*.traces.json.gz"))


def test_with_another_header_it_is_another_gate(gate, server):
    fast = f"{server}/x/ttft=5,itl=1/v1"
    for value in "ab":
        gate(fast, fast, *SMALL, "--rounds", "2", "--header", f"X-Some: {value}")
    assert len(list(Path("results/gates").glob("*.json"))) == 2


def test_after_a_change_of_measuring_or_of_the_engine_it_is_another_gate(monkeypatch):
    one, other = (contestant(version) for version in "12")
    key = experiment.gate_key(one, one, [])
    assert experiment.gate_key(one, one, []) == key != experiment.gate_key(one, other, [])
    monkeypatch.setattr(experiment, "MEASURING_REVISION", 99)
    assert experiment.gate_key(one, one, []) != key


def contestant(version):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sides, "engine_version", lambda backend, python: version)
        quiet = reporter(quiet=True)
        ways = sides.Ways(results=Path("results"), work=Path("work"), workload=Workload(), report=quiet,
                          options=ServeOptions(backend="scripted"))  # fmt: skip
        (found,) = sides.side_of("demo", ways)
    return found


# --- stored against measured now ------------------------------------------------------------------------------------


@pytest.fixture
def measured_before(gate, server):
    """A folder of two runs of a good server, in the load of ``SMALL``."""
    for _ in range(2):
        argv = ["bench", "--url", f"{server}/x/ttft=5,itl=1/v1", *SMALL, "--results", "before"]
        assert CliRunner().invoke(app, argv).exit_code == 0
    return "before"


def test_a_server_that_answers_with_errors_alone_loses_against_stored_runs(gate, server, measured_before):
    done = gate(measured_before, f"{server}/x/trap=server-error/v1", *SMALL, "--rounds", "2", "--junit", "gate.xml")
    assert (done.exit_code, "failed requests" in done.stdout.splitlines()[0]) == (3, True), done.stderr
    assert Path("gate.xml").exists()


def test_a_server_that_was_asked_wrongly_is_an_error_against_stored_runs_too(refused, server, measured_before):
    with running("--api-key", "k") as url:
        assert "LLMOPT_API_KEY" in refused(measured_before, url, *SMALL, "--rounds", "2", status=1)


def test_a_seed_that_would_draw_nothing_is_refused(refused, server):
    fast = f"{server}/x/ttft=5,itl=1/v1"
    assert "--seed would change nothing" in refused(folder("base"), fast, *SMALL, "--seed", "4", status=2)


def test_copies_of_the_base_under_other_names_are_no_candidate(refused):
    base = folder("base")
    for number in range(8):
        save_run(Path("copies"), measured(number, run_id=f"copy-{number}"), closed_loop())
    assert "as run-0.01-0 and as copy-0: that is no comparison" in refused(base, "copies", *TPOT, status=2)


def test_an_accepted_run_that_is_named_twice_is_refused(gate):
    base = str(folder("base"))
    done = CliRunner().invoke(app, ["baseline", "set", "main", base, base])
    assert (done.exit_code, "run-0.01-0 is there twice\nhint: name it once" in done.stderr) == (2, True)


def test_the_noise_is_said_to_be_that_of_the_days_where_it_is(gate):
    sides = (folder("base"), folder("same", tpot_s=0.010001))
    assert "the noise of each side is what its own days are apart" in gate(*sides, *TPOT).stdout
    words = gate(sides[0], folder("few", 2, tpot_s=0.010002), *TPOT).stdout
    assert "the noise is what its own days are apart (base), assumed to be 5 %" in words


def test_days_of_runs_without_the_figure_are_no_source_of_its_noise(gate):
    for number in range(8):
        there = measured(number, 0.010003)
        figures = there.metrics | ({} if number < 3 else {"tpot_s": None})
        save_run(Path("gappy"), replace(there, metrics=figures), closed_loop())
    words = gate("gappy", folder("candidate"), *TPOT).stdout
    assert (
        "the noise is assumed to be 5 % (llmopt gate calibrate measures it) (base), what its own days are apart"
        in words
    )


def test_lengths_that_only_the_base_tells_are_no_pass(gate):
    silent = [replace(t, output_tokens=None) for t in closed_loop()]
    done = gate(folder("base"), folder("candidate", tpot_s=0.010001, traces=silent), *TPOT)
    assert (done.exit_code, "output tokens of a request: known of the base alone" in done.stdout) == (4, True)


def test_a_run_that_is_invalid_without_a_reason_does_not_count(refused):
    broken = folder("candidate", tpot_s=0.010001, verdict=Verdict(status="invalid"))
    assert "0 run(s) that count" in refused(folder("base"), broken, *TPOT, status=4)


def test_another_tokenizer_is_no_pass_through_a_baseline_either(gate):
    base = folder("base", tokens={"tokenizer": "x"})
    assert CliRunner().invoke(app, ["baseline", "set", "main", str(base)]).exit_code == 0
    done = gate("main", folder("candidate", tpot_s=0.010001, tokens={"tokenizer": "y"}), *TPOT)
    assert (done.exit_code, "tokenizer differs" in done.stdout) == (4, True)
