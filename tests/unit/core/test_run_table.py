"""The table of runs: the quality that lies beside an artifact, filled in for the runs that it holds for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.core.run_row import NUMBERS, PACKED, packed, served_as
from llmopt.core.run_table import table_of
from unit.make import run

PROOF = {"kl_mean": 0.01, "kl_p99": 0.2, "top1_agreement": 0.9, "perplexity": 12.0}


def test_quality_is_filled_in_for_the_type_of_cache_that_it_was_measured_with():
    runs = [
        run(quality=None, serve={"backend": "hf"}),
        run(quality=None, serve={"backend": "hf", "kv_cache_dtype": "fp8"}),
        run(quality=None, serve={"backend": "hf", "max_num_seqs": 2}),
    ]
    table, asked = table_of(runs), []

    def known(artifact, cache):
        asked.append(cache)
        return PROOF if cache == "auto" else None

    table.fill_quality(known)
    assert sorted(asked) == ["auto", "fp8"]
    assert [math.isnan(kl) for kl in table.column("kl")] == [False, True, False]
    assert [table.record(row).quality for row in range(3)] == [PROOF, None, PROOF]


def test_a_base_that_is_served_with_a_smaller_cache_is_not_its_own_reference():
    base = {"quantization": "bf16", "method": "none", "base_key": "b", "key": "k"}
    served = (
        {},
        {"extra_args": ["--no-mmap"]},
        {"kv_cache_dtype": "fp8"},
        {"extra_args": ["--quantization", "fp8"]},
        {"lora_modules": ["style=adapter"]},
    )
    runs = [run(quality=None, artifact=base, serve={"backend": "hf", **more}) for more in served]
    asked: list[str] = []
    table = table_of(runs)
    table.fill_quality(lambda artifact, cache: asked.append(cache))
    assert asked == ["fp8"]  # of what else is served there is no proof to ask for
    kl = table.column("kl")
    assert [math.isnan(one) for one in kl] == [False, False, True, True, True]


@pytest.mark.parametrize(
    "words",
    [
        ["--quantization", "fp8"], ["--quantization=fp8"], ["-q", "fp8"], ["--quant-policy", "4"], ["-ctk", "q4_0"],
        ["--cache-type-v", "q4_0"], ["--kv_cache_dtype", "fp8"], ["--load_in_4bit"], ["--load-format", "bitsandbytes"],
        ["--torchao-config", "int4wo-128"], ["--hf-overrides", "{}"], ["--lora", "/adapters/a.gguf"],
    ],
)  # fmt: skip
def test_an_engine_s_own_option_that_changes_what_it_says_is_seen_in_every_spelling(words):
    assert served_as({"extra_args": words}) is None


@pytest.mark.parametrize(
    "words", [["--no-mmap"], ["--threads", "4"], ["--max-log-len", "10"], ["-fa", "on"], ["--seed", "1"]]
)
def test_an_engine_s_own_option_of_speed_alone_changes_nothing(words):
    assert served_as({"extra_args": words, "kv_cache_dtype": "fp8"}) == "fp8"


@given(st.lists(st.sets(st.integers(0, len(NUMBERS) - 1)), min_size=1, max_size=5))
def test_what_a_record_lacks_is_nan_whatever_those_before_it_lacked(records):
    for lacked in records:
        numbers = [None if place in lacked else float(place) for place in range(len(NUMBERS))]
        found = PACKED.unpack(packed(numbers))
        assert {place for place, number in enumerate(found) if math.isnan(number)} == lacked
        assert all(number == place for place, number in enumerate(found) if place not in lacked)
