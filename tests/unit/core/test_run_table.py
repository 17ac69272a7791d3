"""The table of runs: the quality that lies beside an artifact, filled in for the runs that it holds for."""

from __future__ import annotations

import math

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
    kl = table_of(runs).column("kl")
    assert [math.isnan(one) for one in kl] == [False, False, True, True, True]
