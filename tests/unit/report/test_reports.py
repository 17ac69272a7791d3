import io
import json
import math

import pytest
from rich.console import Console

from llmopt.core.domain import Doubt, Verdict
from llmopt.core.store import pretty
from llmopt.recommend.candidates import comparable
from llmopt.recommend.constraints import make_goal
from llmopt.recommend.rank import recommend
from llmopt.report.document import ranking_document
from llmopt.report.markdown import ranking_markdown
from llmopt.report.progress import Reporter
from llmopt.report.table import columns
from llmopt.report.terminal import conclusion, print_points, print_ranking, print_run
from unit.make import MACHINE, WORKLOAD, candidate, curve, metrics, run

FAST = candidate("fast", throughput=200, latency_s=2.0)
QUICK = candidate("quick", throughput=100, latency_s=0.5)
FAR = candidate("far", kl=0.9)


def document(*candidates, left_out=None, **goal):
    goal = make_goal(**{"slos": []} | goal)
    found = recommend(candidates, goal)
    machine = {"gpus": [], "cpu": MACHINE.cpu, "logical_cores": 4}
    return ranking_document(
        goal,
        found.ranked,
        found.rejected,
        machine=machine,
        workload=WORKLOAD,
        base="some model",
        left_out=left_out or {},
    )


def numbers(value):
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers(v)]
    if isinstance(value, (list, tuple)):
        return [n for v in value for n in numbers(v)]
    return [value] if isinstance(value, float) else []


def printed(document):
    out = io.StringIO()
    print_ranking(document, Console(file=out, width=150))
    return out.getvalue()


def table_rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_document_holds_the_ranked_and_the_rejected():
    found = document(FAST, QUICK, FAR)
    assert [(r["rank"], r["case"]["artifact"]["quantization"]) for r in found["ranked"]] == [(1, "fast"), (2, "quick")]
    assert [r["because"] for r in found["rejected"]] == [["kl<=0.1: measured 0.9000"]]


def test_the_document_carries_its_evidence():
    row = document(FAST)["ranked"][0]
    assert row["evidence"] == "measured"
    assert row["runs"] == 3
    assert row["verdict"] == {"status": "valid", "reasons": ()}


def test_the_document_is_json_of_finite_numbers():
    found = document(candidate("unknown", memory=None), FAST, FAR, slos=["output_tps>5"])
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(pretty(found))
    assert all(math.isfinite(n) for n in numbers(found))


def test_markdown_has_a_row_per_configuration_in_order():
    head, line, *rows = table_rows(ranking_markdown(document(FAST, QUICK)))
    assert {len(r) for r in (head, line, *rows)} == {len(head)}
    assert [row[:4] for row in rows] == [["1", "fast", "hf", "200 [195–205] tok/s"], ["2", "quick", "hf", "100 [97.5–102] tok/s"]]  # fmt: skip


def test_markdown_names_why_and_what_was_rejected():
    text = ranking_markdown(document(FAST, FAR))
    assert "1. **fast on hf**\n   - throughput 200 tok/s" in text
    assert "## Rejected" in text
    assert "- **far on hf**\n  - kl<=0.1: measured 0.9000" in text


def test_markdown_without_a_winner_has_no_table():
    text = ranking_markdown(document(FAR))
    assert table_rows(text) == []
    assert "## Rejected" in text


def test_a_dominated_row_is_marked_and_explained():
    text = ranking_markdown(document(FAST, candidate("worse", throughput=100, latency_s=3.0)))
    assert table_rows(text)[-1][0] == "2 ·"
    assert "behind the Pareto front" in text


def test_the_goal_is_named():
    assert "Goal: best latency with tps_p50>5, kl<=0.1." in ranking_markdown(document(FAST, slos=["tps_p50>5"], optimize="latency"))  # fmt: skip


def test_runs_that_were_left_out_are_told():
    text = ranking_markdown(document(FAST, left_out={"another loop": 2, "another machine": 1}))
    assert "3 run(s) are left out: 2 of another loop, 1 of another machine" in text
    assert "left out" not in ranking_markdown(document(FAST))


def test_the_memory_column_says_what_it_is():
    assert "RAM (no GPU)" in [c.title for c in columns(document(FAST)["ranked"])]
    gpu = candidate(figures={"peak_vram_bytes": 2**30})
    assert "VRAM" in [c.title for c in columns(document(gpu)["ranked"])]


def test_unknown_figures_are_dashes():
    row = table_rows(ranking_markdown(document(candidate(memory=None))))[-1]
    assert "–" in row
    assert "None" not in " ".join(row)


def of_runs(runs, *, price=None, **goal):
    goal = make_goal(**{"slos": [], "price_per_hour": price} | goal)
    group = comparable(runs, price_per_hour=price)
    found = recommend(group.candidates, goal)
    return ranking_document(
        goal, found.ranked, found.rejected, machine={"gpus": [], "cpu": MACHINE.cpu, "logical_cores": 4},
        workload=group.workload, base="some model", left_out=group.left_out, rejected_by=found.rejected_by,
        relaxation=found.relaxation,
    )  # fmt: skip


CURVES = [*curve("nf4", u1=(50, 0.05), u4=(150, 0.1), u8=(200, 0.6)), *curve("bf16", u1=(40, 0.05), u4=(100, 0.2))]


def test_a_load_curve_marks_the_point_that_all_limits_are_judged_at():
    text = ranking_markdown(of_runs(CURVES, slos=["ttft_p95<500ms"]))
    assert "## Load curve of nf4 on hf" in text
    (marked, *_) = (row for row in table_rows(text) if row[-1] == "◀")
    assert marked[:2] == ["4 users", "150 tok/s"]
    assert "closed loop, 1 user to 8 users" in text


def test_every_load_of_a_curve_is_in_the_document():
    row = next(r for r in of_runs(CURVES)["ranked"] if r["label"] == "nf4 on hf")
    assert [(p["level"], p["metrics"]["output_tps"]) for p in row["curve"]] == [(1, 50), (4, 150), (8, 200)]
    assert [p["chosen"] for p in row["curve"]] == [False, False, True]


def test_every_number_says_its_interval_its_evidence_and_its_load():
    found = of_runs(CURVES, slos=["ttft_p95<500ms"])["ranked"][0]["numbers"]
    assert found["ttft_p95"] == {
        "value": 0.1, "unit": "s", "low": None, "high": None, "over": None, "evidence": "measured", "at": "4 users",
    }  # fmt: skip
    assert found["kl"]["at"] is None


def test_what_must_give_is_told():
    text = printed(of_runs(CURVES, slos=["ttft_p95<10ms"]))
    assert "rejects, of all: ttft_p95<10ms 2 of 2" in text
    assert "ttft_p95<10ms relaxed to ttft_p95<=50ms (400% more) alone would let nf4 on hf at 1 user through" in text
    assert "## What must give" in ranking_markdown(of_runs(CURVES, slos=["ttft_p95<10ms"]))


def test_cost_and_the_baseline_are_told():
    text = printed(of_runs(CURVES, price=3.6, slos=["ttft_p95<500ms"]))
    assert "cost at 4 users: 6.667 per 1M output tokens" in text
    assert "against bf16 on hf: throughput ×1.50" in text


def test_ties_show_the_places_that_they_leave_open():
    rows = table_rows(ranking_markdown(document(candidate("a", 100), candidate("b", 99), candidate("c", 50))))
    place = rows[0].index("ties")
    assert [row[place] for row in rows[2:]] == ["1–2", "1–2", ""]


def test_names_with_bars_and_line_breaks_stay_in_their_cell():
    text = ranking_markdown(document(candidate("od|d\n# heading")))
    assert "od\\|d # heading" in text
    assert "\n# heading" not in text


def test_the_terminal_shows_ranked_and_rejected():
    text = printed(document(FAST, QUICK, FAR))
    assert text.index("1. fast on hf") < text.index("2. quick on hf") < text.index("✗ far on hf")
    assert "\x1b" not in text


def test_the_terminal_takes_brackets_as_they_are():
    assert "[bold]odd[/bold] on hf" in printed(document(candidate("[bold]odd[/bold]")))


def test_one_run_shows_its_figures_and_doubts():
    doubt = Doubt(code="x", severity="suspect", message="p95 is not printed", remedy="more requests")
    record = json.loads(pretty(run(metrics=metrics(123.0), verdict=Verdict.of((doubt,)))))
    out = io.StringIO()
    print_run(record, Console(file=out, width=150))
    assert "123 tok/s" in out.getvalue()
    assert "verdict: suspect\n  p95 is not printed; more requests" in out.getvalue()


SEARCH = {
    "kind": "search",
    "best": 4.0,
    "not_shown_above": 4.2,
    "slos": ["ttft_p99<1s"],
    "shares": {"ttft_p99<1s": 0.99},
}


def test_the_end_of_a_search_names_the_share_of_each_slo():
    assert conclusion(SEARCH) == (
        "4 requests/s keep ttft_p99<1s for 99% of requests (95 % confidence); not shown at 4.2"
    )
    assert conclusion(SEARCH | {"best": None}) == "no rate was shown to keep ttft_p99<1s for 99% of requests"


def test_a_point_at_which_nothing_succeeded_is_a_row():
    console = Console(file=io.StringIO(), width=120)
    print_points(SEARCH | {"points": [{"rate": 8.0, "run_id": ""}]}, [], console)
    assert "nothing succeeded" in console.file.getvalue()


def test_progress_goes_to_stderr(capsys):
    with Reporter().task("measuring [x]", 2) as work:
        work.advance()
        work.at(2, 2)
    seen = capsys.readouterr()
    assert seen.out == ""
    assert "measuring [x]" in seen.err


def test_quiet_progress_says_nothing(capsys):
    with Reporter(quiet=True).task("measuring"):
        pass
    assert capsys.readouterr() == ("", "")


def test_an_error_inside_a_task_passes_through():
    with pytest.raises(RuntimeError), Reporter(quiet=True).task("measuring"):
        raise RuntimeError
