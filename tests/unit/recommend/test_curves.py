"""Medians over runs: of one column of all points, and of all columns of one."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.core.run_table import table_of
from llmopt.recommend.curves import Curves, blocks, medians
from unit.make import WORKLOAD, distribution, metrics, run

numbers = st.one_of(st.floats(0, 100), st.just(math.nan))


@given(st.lists(numbers, min_size=1, max_size=9), st.integers(1, 9))
def test_a_median_is_of_the_known_and_unknown_where_too_few_are(values, needed):
    import numpy as np

    known = [v for v in values if v == v]
    (found,) = medians(np.array([values]), needed).tolist()
    assert found == statistics.median(known) if len(known) >= needed else math.isnan(found)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_every_run_is_in_the_block_of_its_point(counts):
    import numpy as np

    sizes, seen = np.array(counts), dict[int, list[int]]()
    starts = np.cumsum(sizes) - sizes
    for points, places in blocks(starts, sizes):
        assert places.size < 2 * sizes[points].sum()
        seen |= {point: [p for p in row if p >= 0] for point, row in zip(points.tolist(), places.tolist(), strict=True)}
    assert [seen[point] for point in range(len(counts))] == [
        list(range(start, start + count)) for start, count in zip(starts.tolist(), counts, strict=True)
    ]


@pytest.mark.parametrize("together", [[], [1, 0], [1]])
def test_the_figures_of_a_point_are_those_of_its_columns(together):
    import numpy as np

    unknown = [{"output_tps": None}, {"ttft_s": None}]
    runs = [
        run(
            run_id=f"r{n:02}",
            workload=WORKLOAD | {"concurrency": 1 if n < 7 else 2},
            metrics=metrics(100.0 + n) | {"ttft_s": distribution(0.1 * n)} | (unknown[n] if n < 2 else {}),
        )
        for n in range(12)
    ]
    table = table_of(runs)
    curves = Curves(table, np.arange(len(table)))
    assert curves.counts.tolist() == [7, 5]
    if together:
        curves.cut(together)
    for point in range(len(curves)):
        figures = curves.figures(point)
        assert {name: figures[name] for name in table.numbers} == {n: curves.known(n, point) for n in table.numbers}
    assert curves.figures(0)["ttft_s.p50"] is None  # one of its runs does not tell
    assert curves.figures(0)["output_tps"] == 103.5  # of those that were steady
