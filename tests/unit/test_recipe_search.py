"""Recipes that name a space to search: the options of ``llmopt tune MODEL`` in a file."""

import pytest

from llmopt.cli import tuning
from llmopt.core.errors import UsageError
from llmopt.recommend.proposals import Range


def job(tmp_path, text, **given):
    (tmp_path / "s.yaml").write_text(f"name: s\nmodel: builtin\nsearch:\n{text}")
    model, written = tuning.search_of(tmp_path / "s.yaml")
    return tuning.job_of(model, tuning.with_file(written, given))


def test_a_search_is_the_job_of_the_same_options(tmp_path):
    found = job(
        tmp_path, "  budget: 2min\n  knobs: {threads: [1, 2], enable_chunked_prefill: [true]}\n  concurrency: [1, 4]\n"
    )
    options = {"--budget": "2min", "--knob": ["threads=1,2", "enable_chunked_prefill=true"], "--concurrency": "1,4"}
    assert found == tuning.job_of("builtin", options)


def test_the_command_line_goes_before_the_file(tmp_path):
    assert job(tmp_path, "  budget: 2min\n", **{"--budget": "5s"}).budget_s == 5


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("  budgt: 2min\n", "budgt"),
        ("  concurrency: many\n", r"\$\.search\.concurrency"),
        ("  requests: [1]\n", "requests"),
    ],
)
def test_what_a_search_does_not_know_names_its_place(tmp_path, text, word):
    with pytest.raises(UsageError, match=word):
        job(tmp_path, text)


def test_a_range_is_no_number_of_base_60(tmp_path):
    assert job(tmp_path, "  knobs: {max_num_seqs: 1:32}\n").ranges == {
        "max_num_seqs": Range(low=1, high=32, whole=True)
    }


@pytest.mark.parametrize(("value", "read"), [("true", True), ("0.9", 0.9), ("4", 4)])
def test_a_knob_may_have_one_value(tmp_path, value, read):
    name = {"true": "enable_prefix_caching", "0.9": "gpu_memory_utilization", "4": "threads"}[value]
    assert job(tmp_path, f"  knobs: {{{name}: {value}}}\n").knobs == {name: (read,)}


def test_a_loop_of_the_command_line_replaces_the_files(tmp_path):
    found = job(tmp_path, "  concurrency: [1, 2]\n", **{"--rates": "1,2"})
    assert [load.rate for load in found.loads] == [1, 2]


def test_what_the_file_switches_on_can_be_switched_off(tmp_path):
    assert job(tmp_path, "  exhaustive: true\n").exhaustive
    assert not job(tmp_path, "  exhaustive: true\n", **{"--exhaustive": False}).exhaustive


def test_a_budget_needs_a_unit(tmp_path):
    with pytest.raises(UsageError, match="budget: 600 has no unit") as caught:
        job(tmp_path, "  budget: 600\n")
    assert caught.value.hint == "budget: 10min"


def test_the_hint_names_a_recipe_of_a_search(tmp_path):
    with pytest.raises(UsageError) as caught:
        job(tmp_path, "  budgt: 2min\n")
    assert "recipes/search.yaml" in caught.value.hint
