"""The fixture as other people's tests use it: a pytest of its own, gates on the scripted server."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import llmopt
from llmopt.serve.scripted import running

pytest_plugins = ["pytester"]
ROOT = Path(llmopt.__file__).parents[1]
SMALL = 'model="truth", requests=12, concurrency=4, input_tokens=16, output_tokens=16, metrics=["tpot_p50:5%"]'


@pytest.fixture(scope="module")
def server():
    with running() as url:
        yield url.removesuffix("/v1")


@pytest.fixture
def tests(pytester, monkeypatch):
    """Runs one test with this body in a pytest that has the plugin and no other."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def call(body, *options):
        pytester.makepyfile(
            f"def test_speed(assert_no_regression):\n    found = assert_no_regression({body})\n    print(found['words'])"
        )
        return pytester.runpytest_subprocess("-p", "llmopt.pytest_plugin", "-rs", *options, timeout=120)

    return call


def test_a_slower_candidate_fails_with_the_first_line_and_the_table(tests, server):
    found = tests(f'"{server}/x/ttft=5,itl=3/v1", "{server}/x/ttft=5,itl=6/v1", rounds=5, {SMALL}')
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["REGRESSION: tpot_p50 * worse*", "metric*base*candidate*", "tpot_p50*regression*"])
    assert "Traceback" not in found.stdout.str()


def test_the_same_passes_and_its_document_is_returned(tests, server):
    found = tests(
        f'"{server}/x/ttft=5,itl=3/v1", "{server}/x/ttft=5,itl=3/v1", rounds=8, {SMALL.replace("5%", "20%:40%")}', "-s"
    )
    found.assert_outcomes(passed=1)
    found.stdout.fnmatch_lines(["*PASS: nothing is worse*"])


@pytest.mark.parametrize(("option", "outcome"), [([], "skipped"), (["--llmopt-on-inconclusive", "fail"], "failed")])
def test_what_cannot_be_told_is_never_a_pass(tests, server, option, outcome):
    found = tests(f'"{server}/v1", "{server}/v1", budget="1ms", {SMALL}', *option)
    found.assert_outcomes(**{outcome: 1})
    found.stdout.fnmatch_lines(["*a block takes *"])


def test_a_usage_error_fails_with_its_hint(tests, server):
    found = tests(f'"{server}/v1", "{server}/v1", rounds=5')
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["a URL needs the name of the model", "hint: --model NAME*"])


def test_a_word_that_is_no_argument_is_answered_with_the_nearest(tests):
    tests('"a", "b", request=3').stdout.fnmatch_lines(
        ["'request' is no argument of a gate", "hint: did you mean requests*"]
    )


def test_a_word_that_would_let_pass_what_cannot_be_told_is_refused(tests):
    found = tests('"a", "b", on_inconclusive="pass"')
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["on_inconclusive='pass' is neither skip nor fail"])


def test_a_string_is_not_taken_for_a_list(tests):
    tests('"a", "b", metrics="tpot_p50:5%"').stdout.fnmatch_lines(["hint: metrics=['tpot_p50:5%']"])


def test_runs_are_kept_where_the_option_says(tests, server, pytester):
    tests(f'"{server}/v1", "{server}/v1", budget="1ms", {SMALL}', "--llmopt-results", "kept")
    assert list((pytester.path / "kept").glob("*/*.traces.json.gz"))


def test_pytest_finds_the_plugin_by_its_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"llmopt": "llmopt.pytest_plugin"}


def test_importing_it_costs_others_nothing():
    script = "import sys, pytest; before = set(sys.modules); import llmopt.pytest_plugin; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "['llmopt', 'llmopt.pytest_plugin']"
