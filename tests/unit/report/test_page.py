"""The page of a report without a browser: what is in the file, what is escaped, and that everything can be drawn."""

import json
import re

import pytest

from llmopt.core.errors import UsageError
from llmopt.recommend.constraints import make_goal
from llmopt.recommend.rank import recommend
from llmopt.recommend.steps import Step, steps_document
from llmopt.report.document import ranking_document
from llmopt.report.page import page
from llmopt.report.page_costs import place_names
from llmopt.report.page_speed import load_points
from llmopt.report.page_timelines import timeline
from unit.make import MACHINE, WORKLOAD, candidate, failed, metrics, run, trace

HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)>\u202e\x00\x1b[31m"\'&lt; ünïcødé 🦙'


def document(*candidates, skipped=(), **goal):
    goal = make_goal(**{"slos": []} | goal)
    found = recommend(candidates, goal)
    machine = {"gpus": [], "cpu": MACHINE.cpu, "logical_cores": 4}
    return ranking_document(
        goal, found.ranked, found.rejected, machine=machine, workload=WORKLOAD, base="some model", left_out={},
        skipped=skipped,
    )  # fmt: skip


def html(*candidates, **options):
    return page(document(*candidates, **options)).decode()


def without_library(text):
    return re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)


def charts(text):
    return json.loads(re.search(r'id="drawn">(.*?)</script>', text, re.DOTALL)[1])["charts"]


FAST = candidate("fast", throughput=200, latency_s=2.0)
QUICK = candidate("quick", throughput=100, latency_s=0.5)
FAR = candidate("far", kl=0.9)


def test_every_configuration_has_a_row_and_its_reasons():
    text = without_library(html(FAST, QUICK, FAR))
    assert text.count("<tr data-row=") == text.count('<details class="panel card"') == 3


def test_every_number_says_its_evidence():
    row = re.search(r"<tr data-row=.*?</tr>", html(FAST), re.DOTALL)[0]
    numbers = [
        cell for cell in re.findall(r'<td class="num".*?</td>', row, re.DOTALL) if "tok/s" in cell or " ms" in cell
    ]
    assert numbers
    assert all("measured" in cell for cell in numbers)


def test_nothing_is_asked_from_elsewhere():
    text = without_library(html(FAST, QUICK))
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert "default-src 'none'" in text


def test_the_library_is_embedded_once_and_ends_no_script():
    text = html(FAST)
    assert text.count("vegaEmbed=") == 1
    assert len(re.findall("</script", text)) == len(re.findall("<script", text)) == 3


def test_the_page_is_small():
    assert len(html(FAST, QUICK)) < 1_500_000


def test_hostile_names_stay_text():
    text = html(candidate(HOSTILE), QUICK)
    assert "<img src=x" not in text
    assert "alert(&#34;x&#34;)" in text
    assert "\x00" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "ünïcødé 🦙" in text


def test_what_a_server_said_of_a_failure_stays_text():
    found = document(FAST)
    line = timeline("some-run", [[trace(0.1, 0.2), failed(planned_s=1.0, error=f"http: {HOSTILE}")]])
    text = page(found, {found["ranked"][0]["key"]: line}).decode()
    (spans,) = charts(text)["timeline"].values()
    (said,) = {value["error"] for value in spans["data"]["values"] if "error" in value}
    assert said.startswith("http: </script>")
    assert "\x1b" not in said
    assert "<img src=x" not in text


def test_the_front_names_who_is_on_it():
    (first, *_) = charts(html(FAST, QUICK, candidate("slow", throughput=50, latency_s=3.0)))["front"].values()
    assert {v["rank"]: v["standing"] for v in first["data"]["values"]} == {
        1: "on the front", 2: "on the front", 3: "behind the front"}  # fmt: skip


def test_a_chart_without_figures_says_why():
    text = html(FAST, QUICK)
    assert "load" not in charts(text)
    assert "llmopt bench … --sweep measures a curve" in text


def test_a_skipped_file_is_named_with_its_reason():
    text = html(FAST, skipped=[{"file": "old.json", "reason": "it has schema 0, and this llmopt reads 1"}])
    assert "it has schema 0, and this llmopt reads 1" in text


def test_nothing_to_rank_is_drawn_too():
    empty = ranking_document(make_goal([]), [], [], machine={}, workload={}, base="", left_out={})
    assert "There is no run to rank." in page(empty).decode()


def test_when_nothing_passes_the_page_says_what_must_give():
    text = html(FAST, slos=["ttft_p50<1us"])
    assert "No configuration meets the goal." in text


def test_a_document_of_another_kind_is_refused():
    with pytest.raises(UsageError, match="sweep"):
        page({"kind": "sweep"})


def test_memory_that_the_engine_does_not_tell_is_named_so():
    found = document(FAST)
    found["ranked"][0]["memory"] = {
        "kv_cache_bytes": 2**30,
        "unexplained_bytes": 2**29,
        "total_bytes": 3 * 2**29,
        "weights_bytes": None,
    }
    values = charts(page(found).decode())["memory"]["memory"]["data"]["values"]
    assert [(v["part"], v["gib"]) for v in values] == [("KV cache", 1.0), ("not told by the engine", 0.5)]


# --- steps ------------------------------------------------------------------------------------------------------


def taken(name, throughput, **fields):
    runs = [run(metrics=metrics(throughput * by), started_at=f"2025-01-0{day}", **fields)
            for day, by in enumerate((0.99, 1.0, 1.01), 1)]  # fmt: skip
    return Step(name=name, runs=tuple(runs))


def bars(*steps):
    (variants,) = charts(page(steps_document("progressive", steps)).decode()).values()
    return variants["output throughput"]["data"]["values"]


def test_a_step_stands_on_the_one_before_it_and_the_end_on_zero():
    found = bars(taken("base", 100), taken("faster", 300), taken("slower", 200))
    assert [(b["from"], b["to"]) for b in found] == [(0, 100), (100, 300), (300, 200), (0, 200)]
    assert [b["kind"] for b in found] == ["start", "better", "worse", "end"]


def test_a_step_within_its_noise_is_not_called_better():
    assert [b["kind"] for b in bars(taken("base", 100), taken("same", 100.1))][1] == "not told apart"


def test_a_step_that_failed_is_named_and_the_next_stands_on_the_last_good_one():
    steps = (taken("base", 100), Step(name="awq", failure="AWQ needs a GPU here"), taken("faster", 300))
    assert [(b["step"], b["from"]) for b in bars(*steps)] == [("base", 0), ("faster", 100), ("all together", 0)]
    assert "AWQ needs a GPU here" in page(steps_document("progressive", steps)).decode()


def test_steps_without_any_run_are_drawn():
    text = page(steps_document("progressive", [Step(name="a", failure="no engine")])).decode()
    assert "No step has a valid run." in text


def test_names_that_would_stand_on_each_other_are_left_to_their_tooltips():
    near = [{"label": f"layout-{n}", "x": 4.5 + n / 100, "y": 0.02, "high": 0.021} for n in range(4)]
    far = {"label": "bf16", "x": 16.0, "y": 0.0, "high": None}
    place_names([*near, far], 0.1)
    assert [p.get("above") for p in (*near, far)] == [True, False, None, None, True]


def test_loads_of_two_loops_are_not_drawn_on_one_axis():
    closed = {"level": 4.0, "load": "4 users", "metrics": metrics()}
    opened = {"level": 9.0, "load": "9 requests/s", "metrics": metrics()}
    about = {"evidence": "measured", "runs": 1, "status": "valid", "chosen": False, "saturated": False}
    rows = [{"key": key, "curve": [point | about]} for key, point in (("a", closed), ("b", opened))]
    points, axis = load_points(rows, "output_tps")
    assert ([p["row"] for p in points], axis) == (["c-a"], "users at once")
