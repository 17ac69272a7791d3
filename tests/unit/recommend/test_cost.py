import pytest

from llmopt.core.domain import Goal
from llmopt.core.errors import UsageError
from llmopt.core.limits import parse_limit
from llmopt.recommend.candidates import comparable
from llmopt.recommend.cost import Api, make_api, monthly
from llmopt.recommend.rank import recommend
from unit.make import WORKLOAD, curve, metrics, run

API = Api(price_input=1.0, price_output=3.0, monthly_tokens=1e9, utilisation=0.5)


def priced(runs, *limits, price=3.6, **options):
    goal = Goal(limits=tuple(map(parse_limit, limits)), price_per_hour=price)
    return recommend(comparable(runs, price_per_hour=price).candidates, goal, **options).ranked[0]


def test_a_token_is_priced_at_the_load_that_keeps_the_slo_and_not_at_the_peak():
    runs = curve(u1=(50, 0.1), u4=(100, 0.1), u16=(400, 5.0))
    found = priced(runs, "ttft_p95<1s").cost
    assert found["at"] == "4 users"
    assert found["per_1m_output_tokens"] == pytest.approx(3.6 / 3600 / 100 * 1e6)
    assert priced(runs).cost["per_1m_output_tokens"] == pytest.approx(3.6 / 3600 / 400 * 1e6)


def test_the_same_bill_on_output_on_input_and_on_both():
    found = priced([run(metrics=metrics(100) | {"total_tps": 300.0})]).cost
    assert found["per_1m_output_tokens"] == pytest.approx(10)
    assert found["per_1m_input_tokens"] == pytest.approx(5)
    assert found["per_1m_tokens_blended"] == pytest.approx(10 / 3)


def test_the_interval_of_a_cost_is_that_of_its_throughput():
    bounds = {"output_tps": {"low": 80.0, "high": 125.0, "over": "blocks"}}
    assert priced([run(throughput=100, intervals=bounds)]).cost["interval_output"] == {
        "low": pytest.approx(8), "high": pytest.approx(12.5), "over": "blocks",
    }  # fmt: skip


def test_without_a_steady_throughput_there_is_no_cost():
    assert priced([run(metrics=metrics() | {"output_tps": None})]).cost["per_1m_output_tokens"] is None


def test_without_a_price_there_is_no_cost():
    assert priced([run()], price=None).cost is None


def test_cost_can_be_a_limit():
    runs = [*curve("dear", u4=(50, 0.1)), *curve("cheap", u4=(200, 0.1))]
    goal = Goal(limits=(parse_limit("cost<=10"),), price_per_hour=3.6)
    found = recommend(comparable(runs, price_per_hour=3.6).candidates, goal)
    assert [r.label for r in found.ranked] == ["cheap on hf"]
    assert found.rejected[0].because[0] == "cost<=10: measured 20"


def test_a_month_here_and_there():
    found = monthly(100.0, 400.0, 2.0, API)
    capacity = 400 * 3600 * 730 * 0.5
    assert found["machines"] == 2
    assert found["tokens_of_a_machine"] == pytest.approx(capacity)
    assert found["self_hosted"] == pytest.approx(2 * 2 * 730)
    assert found["api"] == pytest.approx(1000 * (0.75 * 1 + 0.25 * 3))
    assert found["cheaper"] == "api"


def test_at_the_break_even_volume_both_cost_the_same():
    even = monthly(1000.0, 4000.0, 0.5, API)["break_even_tokens"]
    found = monthly(1000.0, 4000.0, 0.5, Api(price_input=1.0, price_output=3.0, monthly_tokens=even, utilisation=0.5))
    assert found["machines"] == 1
    assert found["self_hosted"] == pytest.approx(found["api"])


def test_a_machine_that_never_pays_has_no_break_even():
    assert monthly(10.0, 40.0, 5.0, API)["break_even_tokens"] is None


def test_what_the_rates_do_not_tell_is_not_known():
    assert monthly(None, 40.0, 5.0, API) is None


@pytest.mark.parametrize(
    "options",
    [
        {"price_input": 1.0, "price_output": None, "monthly_tokens": 1.0, "utilisation": 0.5, "price_per_hour": 1.0},
        {"price_input": 1.0, "price_output": 1.0, "monthly_tokens": 1.0, "utilisation": 0.5, "price_per_hour": None},
        {"price_input": 1.0, "price_output": 1.0, "monthly_tokens": 0.0, "utilisation": 0.5, "price_per_hour": 1.0},
        {"price_input": -1.0, "price_output": 1.0, "monthly_tokens": 1.0, "utilisation": 0.5, "price_per_hour": 1.0},
        {"price_input": 1.0, "price_output": 1.0, "monthly_tokens": 1.0, "utilisation": 1.5, "price_per_hour": 1.0},
    ],
)
def test_prices_that_make_no_comparison_are_refused(options):
    with pytest.raises(UsageError):
        make_api(**options)


def test_a_month_is_in_the_row():
    workload = WORKLOAD | {"concurrency": 2}
    found = priced([run(metrics=metrics(100) | {"total_tps": 300.0}, workload=workload)], api=API)
    assert found.cost["monthly"]["monthly_tokens"] == 1e9
