"""``llmopt deploy`` as it is typed: what is refused, what is said, what is written, what never is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmopt import demo
from llmopt.cli import app
from llmopt.core.artifacts import open_artifact
from llmopt.core.domain import Measurement
from llmopt.core.escaping import markdown_text
from llmopt.core.store import save_run
from llmopt.deploy import checks
from llmopt.pipeline.measuring import artifact_record
from unit.make import WORKLOAD, closed_loop, distribution, metrics, run

DEMO = artifact_record(open_artifact(demo.MODEL))


def measured(name: str = "run", **changes: Any) -> Measurement:
    """A run of the bundled model on transformers, as bench would keep it."""
    figures = metrics(300.0) | {
        "ttft_s": distribution(0.1),
        "peak_rss_bytes": 2**30,
        "requests_per_s": 10.0,
        "load_s": 5.0,
    }
    backend = {"name": "hf", "version": "5.17.0", "argv": ["python3", "hf_server.py", "--threads", "1"],
               "freeze": {"torch": "2.13.0+cpu", "transformers": "5.17.0", "starlette": "1.0.0", "MarkupSafe": "3.0.0"}}  # fmt: skip
    serve = {"backend": "hf", "max_model_len": 256, "max_num_seqs": 4, "threads": None, "extra_args": []}
    known = {"artifact": DEMO, "backend": backend, "serve": serve, "metrics": figures, "workload": WORKLOAD}
    return run(run_id=name, **known | changes)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    save_run(tmp_path / "results", measured(), closed_loop())
    return tmp_path / "results"


def deploy(*arguments: Any) -> Any:
    done = CliRunner().invoke(app, ["deploy", *map(str, arguments)])
    assert "Traceback" not in done.stderr
    return done


def written(results: Path, *options: Any, target: str = "shell") -> Any:
    return deploy(results, "-o", results.parent / "out", "--target", target, "--no-boot", *options)


def document(results: Path) -> dict[str, Any]:
    return dict(json.loads((results.parent / "out" / "deployment.json").read_text()))


def test_a_folder_is_written_and_named(results):
    done = written(results)
    assert done.exit_code == 0, done.stderr
    assert {"run.sh", "nginx.conf", "README.md", "verify.sh", "rollback.sh"} <= set(document(results)["files"])


def test_the_same_again_is_unchanged_to_the_byte(results):
    written(results)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (results.parent / "out").rglob("*") if p.is_file()}
    assert "unchanged" in written(results).stdout
    assert {
        p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (results.parent / "out").rglob("*") if p.is_file()
    } == before


@pytest.mark.parametrize("target", ["shell", "kubernetes", "compose", "systemd"])
def test_the_same_again_is_unchanged_where_programs_are_missing_and_others_files_lie_beside(
    results, monkeypatch, target
):
    monkeypatch.setattr(checks, "BESIDE_PATH", "/nowhere")
    monkeypatch.setenv("PATH", "/bin")
    assert written(results, "--monitoring", target=target).exit_code == 0
    (results.parent / "out" / "mine.sh").write_text("if true\n")
    assert "unchanged" in written(results, "--monitoring", target=target).stdout


def test_what_was_edited_is_shown_and_not_overwritten(results):
    written(results)
    script = results.parent / "out" / "run.sh"
    script.write_text(script.read_text() + "# mine\n")
    done = written(results, "--replicas", "3")
    assert done.exit_code == 1
    assert "-# mine" in done.stderr
    assert "error: " in done.stderr.splitlines()[-2]
    assert script.read_text().endswith("# mine\n")


def test_json_is_one_document_and_nothing_else(results):
    found = json.loads(written(results, "--json").stdout)
    assert (found["status"], found["targets"], found["schema"]) == ("written", ["shell"], 1)


def page(results: Path) -> str:
    return (results.parent / "out" / "README.md").read_text()


def test_the_page_tells_of_no_limit_and_no_alert_that_nobody_keeps(results):
    written(results)
    assert "memory limit" not in page(results)
    assert "SLOs, which `verify` judges by:" in page(results)


def test_a_limit_below_the_measured_load_is_told_by_the_command_and_on_the_page(results):
    words = "--rate-limit 2 is less than the 20 requests/s that 2 replicas may take (one was measured with up to 10)"
    assert f"doubt: {words}" in " ".join(written(results, "--rate-limit", "2").stdout.split())
    assert markdown_text(words) in page(results).partition("## Doubts")[2]


def test_the_page_tells_the_limit_of_a_container_and_what_alerts_burn_against(results):
    deploy(results, "-o", results.parent / "out", "--target", "compose", "--monitoring", "--no-boot")
    assert "| memory limit of a replica |" in page(results)
    assert "alerts burn against" in page(results)


def test_a_dry_run_writes_nothing(results):
    done = deploy(results, "-o", results.parent / "out", "--target", "shell", "--dry-run")
    assert done.exit_code == 0
    assert not (results.parent / "out").exists()
    assert "run.sh (" in done.stdout


def test_the_measured_threads_are_pinned(results):
    written(results)
    argv = document(results)["engine"]["argv"]
    assert argv[argv.index("--threads") + 1] == "1"


@pytest.mark.parametrize(("options", "words"), [
    (("--target", "swarm"), "unknown target 'swarm'"),
    (("--gateway", "envoy"), "--gateway is nginx or litellm"),
    (("--cache", "redis"), "belongs to the LiteLLM gateway"),
    (("--replicas", "2", "--load", "5"), "two ways to say one thing"),
    (("--load", "-1"), "--load must be more than 0"),
    (("--name", "Not A Label"), "is no name of a service"),
    (("--rank", "7"), "--rank 7"),
    (("--slo", "ttft_p95<500"), "needs a unit"),
    (("--slo", "requests_per_s>3"), "on a percentile of what a request takes"),
    (("--target", "kubernetes", "--domain", "x y"), "'x y' is no host name"),
    (("--target", "rayserve", "--domain", "http://foo/;"), "is no host name"),
    (("--target", "compose", "--monitoring", "--port", "9090"), "--port 9090 is that of a program of --monitoring"),
    (("--target", "compose", "--load", "1e6"), "replicas are more than llmopt writes down"),
    (("--load", "1e9"), "replicas are more than"),
    (("--replicas", "500"), "more than one machine is given"),
    (("--rate-limit", "0.001"), "--rate-limit 0.001 is out of range"),
    (("--rate-limit", "1e30"), "--rate-limit 1e+30 is out of range"),
    (("--autoscaler", "keda"), "--autoscaler keda scales nothing by shell"),
])  # fmt: skip
def test_what_makes_no_sense_is_one_line_with_a_hint(results, options, words):
    done = written(results, *options)
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stderr.splitlines()[-1].startswith("hint: ")
    assert not (results.parent / "out").exists()


def ranking(results: Path, **changes: Any) -> Path:
    found = json.loads(CliRunner().invoke(app, ["recommend", str(results), "--json"]).stdout)
    found["ranked"][0] |= changes
    file = results.parent / "ranking.json"
    file.write_text(json.dumps(found))
    return file


def test_an_estimate_is_refused(results):
    done = deploy(
        ranking(results, evidence="estimated"), "-o", results.parent / "out", "--no-boot", "--results", results
    )
    assert done.exit_code == 1
    assert "estimated" in done.stderr
    assert "--force" in done.stderr


def test_what_is_forced_says_so_in_its_page(results):
    file = ranking(results, evidence="estimated")
    done = deploy(file, "-o", results.parent / "out", "--target", "shell", "--no-boot", "--results", results, "--force")
    assert done.exit_code == 0, done.stderr
    assert "Deployed with --force" in (results.parent / "out" / "README.md").read_text()
    assert "estimated" in document(results)["forced"][0]


def test_weights_that_are_gone_are_named(results, tmp_path):
    save_run(tmp_path / "gone", measured(artifact=DEMO | {"path": str(tmp_path / "no model")}), closed_loop())
    done = deploy(tmp_path / "gone", "-o", tmp_path / "out", "--no-boot")
    assert done.exit_code == 1
    assert "no model" in done.stderr
    assert "--artifact" in done.stderr


def test_weights_that_have_become_others_are_refused(results, tmp_path):
    save_run(tmp_path / "others", measured(artifact=DEMO | {"key": "0" * 16}), closed_loop())
    done = deploy(tmp_path / "others", "-o", tmp_path / "out", "--no-boot")
    assert done.exit_code == 1
    assert "holds other weights than were measured" in done.stderr


def test_weights_may_lie_elsewhere_now(results, tmp_path):
    save_run(tmp_path / "moved", measured(artifact=DEMO | {"path": str(tmp_path / "no model")}), closed_loop())
    done = deploy(
        tmp_path / "moved", "-o", tmp_path / "out", "--no-boot", "--target", "shell", "--artifact", demo.MODEL
    )
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "words"), [("scripted", "scripted fake"), ("url", "did not start"), ("abc", "does not know")]
)
def test_what_llmopt_cannot_start_is_not_deployed(tmp_path, name, words):
    save_run(tmp_path / "results", measured(serve={"backend": name}), closed_loop())
    done = deploy(tmp_path / "results", "-o", tmp_path / "out", "--no-boot")
    assert done.exit_code == 2
    assert words in done.stderr


def test_a_secret_that_was_blotted_out_is_missed(tmp_path):
    serve = {"backend": "hf", "max_num_seqs": 4, "extra_args": ["--api-key", "***"]}
    save_run(tmp_path / "results", measured(serve=serve), closed_loop())
    done = deploy(tmp_path / "results", "-o", tmp_path / "out", "--no-boot")
    assert done.exit_code == 2
    assert "secret" in done.stderr


def test_the_image_of_transformers_has_the_measured_packages(results):
    assert written(results, target="compose").exit_code == 0
    made = {p.name: p.read_text() for p in (results.parent / "out").rglob("*") if p.is_file()}
    assert made["requirements.txt"].splitlines()[:2] == ["torch==2.13.0", "transformers==5.17.0"]
    assert "markupsafe==3.0.0" in made["constraints.txt"].splitlines()
    assert "hf_server.py" in made
    assert "the measured versions of tokenizers" in made["README.md"]


def test_a_service_has_the_model_s_own_name_in_its_container(results):
    written(results, target="compose")
    assert "--served-model-name" in (results.parent / "out" / "compose.yaml").read_text()


def test_prices_become_a_month(results):
    written(results, "--replicas", "2", "--price-per-hour", "1.5", "--spot-price", "0.5")
    assert (document(results)["capacity"]["per_month"], document(results)["capacity"]["per_month_spot"]) == (
        2190.0,
        730.0,
    )


def test_a_load_becomes_replicas(results):
    written(results, "--load", "25")
    assert document(results)["capacity"]["replicas"] == 4


def test_without_a_number_there_are_two(results):
    written(results)
    assert document(results)["capacity"]["replicas"] == 2


def test_every_figure_of_the_page_has_its_evidence(results):
    written(results)
    rows = [line for line in (results.parent / "out" / "README.md").read_text().splitlines() if line.startswith("| ")]
    assert all("measured" in row for row in rows if not row.startswith("| figure"))
    assert len(rows) > 5


def test_a_folder_of_something_else_is_refused(results):
    (results.parent / "out").mkdir()
    (results.parent / "out" / "thesis.tex").write_text("years")
    done = written(results)
    assert done.exit_code == 2
    assert "holds something else" in done.stderr


def nginx_that(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "nginx").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nginx").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def nginx_check(results: Path) -> str:
    [found] = [c["status"] for c in document(results)["checks"] if c["name"].startswith("nginx -t")]
    return found


def test_what_failed_and_was_forced_does_not_pass_the_next_time(results, tmp_path, monkeypatch):
    nginx_that(monkeypatch, tmp_path / "bin", "echo emerg; exit 1")
    assert written(results).exit_code == 1
    assert written(results, "--force").exit_code == 0
    assert written(results).exit_code == 1
    assert nginx_check(results) == "failed"


def test_a_program_that_is_mended_judges_an_unchanged_folder_anew(results, tmp_path, monkeypatch):
    nginx_that(monkeypatch, tmp_path / "bin", "echo emerg; exit 1")
    written(results, "--force")
    nginx_that(monkeypatch, tmp_path / "bin", "echo syntax is ok")
    assert written(results).exit_code == 0
    assert nginx_check(results) == "passed"
    assert "FAILED" not in page(results)
    assert not (results.parent / "out" / "previous").exists()


def test_an_engine_that_does_not_boot_writes_nothing(results, monkeypatch):
    from llmopt.core.errors import ServerError
    from llmopt.pipeline import deploy_proof

    def hosted(*arguments: Any) -> Any:
        raise ServerError("hf died while loading: memory ran out", hint="a smaller quantization")

    monkeypatch.setattr(deploy_proof, "hosted", hosted)
    done = deploy(results, "-o", results.parent / "out", "--target", "shell")
    assert done.exit_code == 1
    assert "memory ran out" in done.stderr
    assert "--no-boot" in done.stderr
    assert not (results.parent / "out").exists()


def test_an_engine_that_is_not_here_is_not_booted_and_said(results, monkeypatch):
    from llmopt.pipeline import deploy_engine

    monkeypatch.setattr(deploy_engine, "environment_of", lambda backend: None)
    done = deploy(results, "-o", results.parent / "out", "--target", "shell")
    assert done.exit_code == 0, done.stderr
    assert document(results)["boot"] == {"status": "skipped", "why": "hf is not installed here"}


@pytest.mark.parametrize("target", ["shell", "systemd", "compose", "kubernetes", "rayserve"])
@pytest.mark.parametrize("name", ['it\'s "a" $HOME `id` %i', "{{ .Values.x }} #: - &a", "-rf", "a\nb", "模型 é"])
def test_a_model_may_have_any_name(tmp_path, target, name):
    shutil.copytree(demo.MODEL, tmp_path / name)
    save_run(tmp_path / "results", measured(artifact=DEMO | {"path": str(tmp_path / name)}), closed_loop())
    done = deploy(tmp_path / "results", "-o", tmp_path / "out", "--target", target, "--no-boot", "--monitoring")
    if done.exit_code == 2:  # said in one line, before anything is written
        assert done.stderr.startswith("error: ")
        assert not (tmp_path / "out").exists()
        return
    assert done.exit_code == 0, done.stderr
    found = json.loads((tmp_path / "out" / "deployment.json").read_text())
    assert found["engine"]["model"] == name
    assert not [check for check in found["checks"] if check["status"] == "failed"]


def test_another_configuration_keeps_the_name_of_the_one_that_is_there(results):
    written(results, "--name", "mine", target="compose")
    save_run(
        results, measured("later", serve={"backend": "hf", "max_model_len": 256, "max_num_seqs": 8}), closed_loop()
    )
    done = written(results, target="compose")
    assert done.exit_code == 0, done.stderr
    assert (document(results)["name"], document(results)["replaces"]) == ("mine", None)


def test_another_name_says_how_the_former_one_is_stopped(results):
    stop = "docker compose --project-name one down"
    written(results, "--name", "one", target="compose")
    done = written(results, "--name", "two", target="compose")
    assert stop in done.stdout
    page = (results.parent / "out" / "README.md").read_text()
    assert stop in page
    assert "unchanged" in written(results, target="compose").stdout
    assert (results.parent / "out" / "README.md").read_text() == page


def test_another_target_is_another_stack(results):
    written(results, "--name", "one", target="shell")
    written(results, "--name", "one", target="compose")
    assert document(results)["replaces"]["target"] == "shell"


def test_the_wider_of_two_slos_on_one_percentile_is_named(results):
    done = written(results, "--slo", "ttft_p50<500ms", "--slo", "ttft_p50<400ms", "--monitoring")
    words = "ttft_p50<500ms asked for as well, and kept with it"
    assert words in " ".join(done.stdout.split())
    assert "500ms asked for as well" in (results.parent / "out" / "README.md").read_text()
    made = [
        rule["record"]
        for rule in rules_of(results)
        if rule.get("labels", {}).get("slo") == "ttft_p50" and "record" in rule
    ]
    assert len(made) == len(set(made)) > 0


def test_a_limit_of_the_goal_that_nothing_keeps_here_is_said(results):
    ranked = CliRunner().invoke(
        app, ["recommend", str(results), "--json", "--slo", "ttft_mean<9s", "--slo", "ttft_p50<9s"]
    )
    (results.parent / "ranking.json").write_text(ranked.stdout)
    done = deploy(results.parent / "ranking.json", "-o", results.parent / "out", "--target", "shell", "--no-boot")
    words = "it was judged by ttft_mean<9s as well, which no SLO and no alert here keeps"
    assert f"doubt: {words}" in " ".join(done.stdout.split())
    assert f"- {markdown_text(words)}" in page(results)


def rules_of(results: Path) -> list[dict[str, Any]]:
    import yaml

    file = next((results.parent / "out").rglob("rules.yml"))
    return [rule for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.parametrize(
    "changes",
    [
        {"boot": {"status": "skipped", "why": "\ud800"}},
        {"boot": 5},
        {"checks": "x"},
        {"boot": {"status": "booted"}},
        {"capacity": None},
    ],
)
def test_what_is_damaged_in_the_folder_s_document_is_made_anew(results, changes):
    written(results)
    file = results.parent / "out" / "deployment.json"
    file.write_text(json.dumps(document(results) | changes))
    done = written(results)
    assert done.exit_code == 0, done.stderr
    assert "not booted here: --no-boot" in " ".join(done.stdout.split())


def test_a_file_s_purpose_is_that_of_its_folder(results):
    written(results, "--monitoring", target="compose")
    page = (results.parent / "out" / "README.md").read_text()
    assert "`canary/Dockerfile`: what the canary's image is built from" in page
    assert "`engine/Dockerfile`: what the engine's image is built from" in page
