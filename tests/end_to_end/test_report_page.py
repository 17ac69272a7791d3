"""The page of a report in a real browser: it is clicked, sorted, filtered, switched to dark, narrowed and printed."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Page, chromium
from unit.make import QUALITY, closed_loop, curve, failed, run, trace

from llmopt.pipeline.ranking import rank_runs
from llmopt.recommend.constraints import make_goal
from llmopt.report.page import page
from llmopt.report.page_timelines import timeline

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]
pytest.importorskip("vl_convert", reason="no plotting library here: pip install 'llmopt[html]'")
HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror="document.title=1">\u202e\x1b ünïcødé 🦙'
NARROW = 360


def ranking(names: list[str]) -> dict[str, Any]:
    runs = []
    for number, name in enumerate(names):
        speed = 100 + 37 * (number * 7 % len(names))
        runs += curve(name, ("hf", "vllm")[number % 2], u1=(speed / 3, 0.05), u4=(speed, 0.1), u16=(speed * 1.1, 0.9))
    stored = [
        replace(run, run_id=f"run-{number}") for number, run in enumerate(runs)
    ]  # the id of a record names a file
    return rank_runs(stored, make_goal(["ttft_p50<500ms"], price_per_hour=2.0))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve configurations with curves and timelines; one has a hostile name, one of its requests failed."""
    document = ranking([HOSTILE, *(f"quant-{n}" for n in range(11))])
    traces = [*closed_loop(), failed(planned_s=1.0), trace(2.1, 2.2, 9.0, 9.1, planned_s=2.0, index=70)]
    timelines = {row["key"]: timeline("some-run", [traces]) for row in document["ranked"][:8]}
    made = tmp_path_factory.mktemp("page") / "report.html"
    made.write_bytes(page(document, timelines))
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser: Page, file: Path) -> Page:
    browser.events.clear()
    browser.prefer("light")
    browser.open(file)
    return browser


def column(opened: Page, title: str) -> int:
    """The place of a column, from 1."""
    script = f"[...document.querySelectorAll('#ranking thead th')].findIndex(h => h.textContent.trim() === {json.dumps(title)})"
    return int(opened.do(script)) + 1


def values(opened: Page, title: str) -> list[float]:
    place = column(opened, title)
    found: list[float] = opened.do(
        f"[...document.querySelectorAll('#ranking tbody tr td:nth-child({place})')].map(c => Number(c.dataset.sort))"
    )
    return found


def rows_shown(opened: Page) -> int:
    return int(opened.do("[...document.querySelectorAll('#ranking tbody tr')].filter(r => r.offsetHeight > 0).length"))


def marks(opened: Page, chart: str) -> int:
    return int(opened.do(f"document.querySelectorAll('.plot[data-chart={chart}] svg .mark-group path').length"))


def test_the_console_is_silent_and_nothing_is_asked_but_the_file(opened: Page, file: Path) -> None:
    assert opened.complaints == []
    assert opened.requests == [file.as_uri()]


def test_a_click_on_a_header_sorts_and_says_so(opened: Page) -> None:
    place = column(opened, "TTFT p50")
    before = values(opened, "Throughput")
    opened.click(f"#ranking thead th:nth-child({column(opened, 'Throughput')}) button")
    assert values(opened, "Throughput") == sorted(before, reverse=True)
    opened.click(f"#ranking thead th:nth-child({column(opened, 'Throughput')}) button")
    assert values(opened, "Throughput") == sorted(before)
    sorts = opened.do("[...document.querySelectorAll('#ranking thead th')].map(h => h.getAttribute('aria-sort'))")
    assert sorts[column(opened, "Throughput") - 1] == "ascending"
    assert sum(s is not None for s in sorts) == 1
    assert sorts[place - 1] is None


def test_the_keyboard_sorts_too(opened: Page) -> None:
    opened.do(f"document.querySelector('#ranking thead th:nth-child({column(opened, 'Throughput')}) button').focus()")
    opened.key("Enter")
    assert values(opened, "Throughput") == sorted(values(opened, "Throughput"), reverse=True)


def test_typing_filters_the_rows(opened: Page) -> None:
    opened.click("#filter")
    opened.type("quant-1")
    assert rows_shown(opened) == 2  # quant-1 and quant-10
    assert opened.do("document.querySelector('#count').textContent") == "2 of 12 shown"


def test_every_chart_has_marks(opened: Page) -> None:
    charts = opened.do("[...document.querySelectorAll('.plot')].map(p => p.dataset.chart)")
    assert set(charts) == {"front", "load", "spread", "quality", "cost", "timeline"}
    assert all(marks(opened, chart) for chart in charts)


def test_unticking_a_row_takes_its_line_away(opened: Page) -> None:
    lines = "document.querySelectorAll('.plot[data-chart=load] svg .mark-line path').length"
    before = opened.do(lines)
    opened.click("#ranking tbody tr:first-child .draw")
    opened.wait(f"{lines} === {before - 1}")


def test_another_variant_of_a_chart_is_drawn(opened: Page) -> None:
    axis = "document.querySelector('.plot[data-chart=spread] svg').textContent"
    assert "TTFT (ms)" in opened.do(axis)
    opened.do(
        "(() => { const s = document.querySelector('select[data-chart=spread]'); s.value = '1'; s.dispatchEvent(new Event('input')); })()"
    )
    opened.wait(f"{axis}.includes('ITL (ms)')")


def test_a_point_tells_what_it_is_as_text(opened: Page) -> None:
    place = opened.do("(() => { const p = document.querySelector('.plot[data-chart=front] .mark-symbol path');"
                      "p.scrollIntoView({block: 'center', behavior: 'instant'}); const b = p.getBoundingClientRect();"
                      "return [b.x + b.width / 2, b.y + b.height / 2]; })()")  # fmt: skip
    opened.hover(*place)
    opened.wait("!document.querySelector('#tip').hidden")
    assert "measured, 1 run, valid; on the front" in opened.do("document.querySelector('#tip').textContent")
    assert opened.do("document.querySelector('#tip').children.length") == 0


def test_the_switch_turns_text_and_marks_dark(opened: Page) -> None:
    look = ("[getComputedStyle(document.body).backgroundColor,"
            "getComputedStyle(document.querySelector('.plot[data-chart=cost] .mark-rect path')).fill]")  # fmt: skip
    light = opened.do(look)
    opened.click("#theme")
    dark = opened.do(look)
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    assert opened.do("document.querySelector('#theme').getAttribute('aria-pressed')") == "true"


def test_a_dark_system_gives_a_dark_page(opened: Page) -> None:
    light = opened.do("getComputedStyle(document.body).backgroundColor")
    opened.prefer("dark")
    assert opened.do("getComputedStyle(document.body).backgroundColor") != light


def test_a_hostile_name_stays_a_name(opened: Page) -> None:
    assert opened.do("document.title") == "some model – llmopt"
    assert opened.do("document.querySelectorAll('img').length") == 0
    assert "ünïcødé 🦙" in opened.do("document.querySelector('#ranking').textContent")


def test_nothing_is_wider_than_a_phone(opened: Page, file: Path) -> None:
    opened.open(file, width=NARROW, height=740)
    assert opened.do("document.documentElement.scrollWidth") <= NARROW
    wide = opened.do("[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg, .hidden, .skip') && "
                     f"e.getBoundingClientRect().right > {NARROW}).map(e => e.outerHTML.slice(0, 90))")  # fmt: skip
    assert wide == []


def test_paper_shows_every_row_and_reason_whatever_was_filtered(opened: Page) -> None:
    opened.click("#filter")
    opened.type("quant-10")
    opened.prefer("light", media="print")
    opened.do("dispatchEvent(new Event('beforeprint'))")
    assert rows_shown(opened) == 12
    assert opened.do("[...document.querySelectorAll('details.card')].every(c => c.open)")
    wide = "[...document.querySelectorAll('table, svg')].every(e => e.getBoundingClientRect().right <= innerWidth + 1)"
    opened.size(1032, 730)  # A4 across, within its margins
    assert opened.do(wide)


def test_the_printed_file_has_every_name(opened: Page) -> None:
    pdf = opened.pdf()
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 1
    if (reader := shutil.which("pdftotext")) is None:
        pytest.skip("no pdftotext here: apt-get install poppler-utils")
    text = subprocess.run([reader, "-", "-"], input=pdf, stdout=subprocess.PIPE, check=True).stdout.decode()
    assert [n for n in range(11) if f"quant-{n}" not in text] == []


def test_scores_and_memory_are_shown_whole_where_charts_stand_in_pairs(browser: Page, tmp_path: Path) -> None:
    tasks = [{"task": "mmlu", "metric": "acc", "filter": "none", "value": 0.625, "stderr": 0.01, "samples": 99}]
    memory = {"weights_bytes": 5e9, "kv_cache_bytes": 2e9, "rest_bytes": 1e9, "total_bytes": 8e9}
    runs = [
        run(f"a-long-name-of-a-layout-{n}", throughput=50.0 + n, memory=memory, quality=QUALITY | {"tasks": tasks})
        for n in range(6)
    ]
    file = tmp_path / "scores.html"
    file.write_bytes(page(rank_runs(runs, make_goal([], min_scores=["mmlu>=0.5"]))))
    browser.events.clear()
    browser.open(file, width=1000)
    assert values(browser, "task_score_mmlu") == [0.625] * 6
    past = browser.do("[...document.querySelectorAll('.plot svg .role-legend, .plot svg .role-mark text')].filter(e => "
                      "e.getBoundingClientRect().right > e.closest('svg').getBoundingClientRect().right + 1).length")  # fmt: skip
    assert past == 0
    assert browser.complaints == []


def test_headers_have_a_scope_and_charts_a_description(opened: Page) -> None:
    assert opened.do("[...document.querySelectorAll('th')].every(h => ['col', 'row'].includes(h.scope))")
    assert opened.do("[...document.querySelectorAll('.plot')].every(p => p.getAttribute('aria-label').length > 20)")
    assert opened.do("[...document.querySelectorAll('input, select')].every(f => f.labels.length || f.ariaLabel)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_they_stand_on(opened: Page, scheme: str) -> None:
    """4.5 : 1 for text, 3 : 1 for marks (WCAG 2.1, 1.4.3 and 1.4.11)."""
    opened.prefer(scheme)
    names = ["ink", "muted", "accent", "good", "warn", "bad", *(f"c{n}" for n in range(1, 9)), "panel", "page"]
    script = (
        f"{json.dumps(names)}.map(n => getComputedStyle(document.documentElement).getPropertyValue('--' + n).trim())"
    )
    colours = dict(zip(names, opened.do(script), strict=True))
    for name in names[:-2]:
        for ground in ("panel", "page"):
            assert contrast(colours[name], colours[ground]) >= (3 if name.startswith("c") else 4.5), (name, ground)


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * d for d in digits)
    shares = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_five_hundred_configurations_stay_quick(browser: Page, tmp_path: Path) -> None:
    random.seed(1)
    runs = [run(f"quant-{n}", throughput=50 + random.random() * 900) for n in range(500)]
    file = tmp_path / "many.html"
    file.write_bytes(page(rank_runs(runs, make_goal([], price_per_hour=2.0))))
    assert file.stat().st_size < 5e6
    browser.events.clear()
    browser.open(file)
    assert rows_shown(browser) == 500
    took = browser.do("(() => { const t = performance.now(); document.querySelectorAll('#ranking thead button')[4].click();"
                      "document.body.offsetHeight; return performance.now() - t; })()")  # fmt: skip
    assert took < 3000  # 0.5 to 1 s on two cores under a load of 6
    assert browser.complaints == []
