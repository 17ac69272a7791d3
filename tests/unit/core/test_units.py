import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.core.errors import UsageError
from llmopt.core.metrics import METRICS
from llmopt.core.units import BYTES, SHARE_TOLD, TIME, bound_that_holds, parse_quantity, show, show_beside


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("500ms", "s", 0.5),
        ("250us", "s", 0.00025),
        ("1.5 s", "s", 1.5),
        ("2min", "s", 120),
        ("2GiB", "bytes", 2**31),
        ("2GB", "bytes", 2 * 10**9),
        ("95%", "share", 0.95),
        ("0.95", "share", 0.95),
        ("20", "tps", 20),
        (".5", "nats", 0.5),
        ("1e-3", "nats", 0.001),
        ("0", "s", 0),
    ],
)
def test_quantities_as_people_write_them(text, unit, value):
    assert parse_quantity(text, unit) == pytest.approx(value)


@given(st.floats(1e-6, 1e6), st.sampled_from(sorted(TIME)))
def test_a_time_is_its_number_in_its_unit(number, suffix):
    assert parse_quantity(f"{number!r}{suffix}", "s") == pytest.approx(number * TIME[suffix])


@given(st.integers(0, 10**9), st.sampled_from(sorted(BYTES)))
def test_a_size_is_its_number_in_its_unit(number, suffix):
    assert parse_quantity(f"{number} {suffix}", "bytes") == float(number) * BYTES[suffix]


@pytest.mark.parametrize(("text", "unit"), [("500", "s"), ("2", "bytes")])
def test_a_bare_time_or_size_is_refused(text, unit):
    with pytest.raises(UsageError, match="needs a unit") as caught:
        parse_quantity(text, unit)
    assert "for example" in caught.value.hint


@pytest.mark.parametrize(("text", "unit"), [("5h", "s"), ("5gb", "bytes"), ("5ms", "bytes"), ("20tps", "tps")])
def test_an_unknown_unit_lists_the_known(text, unit):
    with pytest.raises(UsageError, match="unknown unit") as caught:
        parse_quantity(text, unit)
    assert "units here" in caught.value.hint


@pytest.mark.parametrize("text", ["", "ms", "-5ms", "fast", "5 m s", "1,5s", "nan", "inf", "0x10"])
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(UsageError, match="not a quantity"):
        parse_quantity(text, "s")


@pytest.mark.parametrize("text", ["1e999", "1e99999999999999999999"])
def test_a_number_beyond_all_measure_is_refused(text):
    with pytest.raises(UsageError):
        parse_quantity(text, "tps")


@pytest.mark.parametrize("unit", ["s", "bytes", "share", "tps", "rps", "nats", "count"])
def test_unknown_is_shown_as_a_dash(unit):
    assert show(None, unit) == "–"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"),
        (12.0, "s", "12.0 s"),
        (3 * 2**30, "bytes", "3.00 GiB"),
        (5 * 2**20, "bytes", "5 MiB"),
        (0.5, "share", "50.0%"),
        (250.4, "tps", "250 tok/s"),
        (0.0123, "nats", "0.0123"),
        (2560, "count", "2560"),
    ],
)
def test_values_for_people(value, unit, text):
    assert show(value, unit) == text


@given(st.floats(1e-3, 1e5))
def test_a_shown_time_reads_back(seconds):
    assert parse_quantity(show(seconds, "s"), "s") == pytest.approx(seconds, rel=0.06)


@given(st.floats(2**25, 2**45))
def test_a_shown_size_reads_back(size):
    assert parse_quantity(show(size, "bytes"), "bytes") == pytest.approx(size, rel=0.02)


@given(st.floats(0, 1))
def test_a_shown_share_reads_back(share):
    found = parse_quantity(show(share, "share"), "share")
    assert math.isclose(found, share, abs_tol=0.0006)


SIZES = st.floats(1e-9, 1e12)


@given(
    st.one_of(
        st.tuples(SIZES, st.sampled_from(sorted({m.unit for m in METRICS.values()} - {"share"}))),
        st.tuples(st.floats(1e-9, SHARE_TOLD), st.just("share")),
    ),
    st.booleans(),
)
def test_a_bound_that_holds_is_never_on_the_wrong_side(pair, at_most):
    value, unit = pair
    found = parse_quantity(bound_that_holds(value, unit, at_most=at_most), unit)
    assert found >= value if at_most else found <= value
    assert found == pytest.approx(value, rel=2e-3)


@given(st.floats(-1e3, 1e3), st.booleans())
def test_a_score_may_be_below_nothing(value, at_most):
    """As the correlation that ranks CoLA may: the option of a score takes any number."""
    found = float(bound_that_holds(value, "count", at_most=at_most))
    assert found >= value if at_most else found <= value


def test_a_bound_is_written_as_an_option_takes_it():
    assert bound_that_holds(0.512345, "s", at_most=True) == "512.4ms"
    assert bound_that_holds(0.99985, "share", at_most=False) == "99.98%"
    assert bound_that_holds(0.0321, "rps", at_most=False) == "0.0321"


def test_a_figure_beside_the_bound_that_it_misses_is_told_from_it():
    assert show_beside(0.99985, 0.9999, "share") == "99.98%"
    assert show_beside(0.50004, 0.5, "s") == "500.04 ms"
    assert show_beside(0.7, 0.5, "s") == "700.0 ms"


def test_small_rates_and_shares_keep_their_digits():
    assert show(0.0321, "rps") == "0.0321 req/s"
    assert show(0.0004, "share") == "0.04%"
    assert show(2e-6, "s") == "0.002 ms"


@given(st.integers(1, 999))
def test_a_decimal_is_read_as_the_nearest_number_that_there_is(thousandths):
    assert parse_quantity(f"{thousandths}ms", "s") == thousandths / 1000
    assert parse_quantity(f"{thousandths / 10}%", "share") == thousandths / 1000


def test_a_share_that_is_kept_exactly_is_written_as_it_is():
    assert bound_that_holds(0.95, "share", at_most=False) == "95%"
