"""The page of a history in a real browser: drawn without a word of complaint, and no wider than a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Page, chromium
from unit.make import run

from llmopt.core.store import save_run
from llmopt.pipeline.history import history
from llmopt.report.page import page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]
pytest.importorskip("vl_convert", reason="no plotting library here: pip install 'llmopt[html]'")
HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror="document.title=1">'
NARROW = 360


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen sessions of a case with a hostile name; from the ninth on a tenth slower, at a commit of no better name."""
    folder = tmp_path_factory.mktemp("history")
    for n in range(16):
        throughput = (90.0 if n >= 8 else 100.0) + n * 7 % 5
        artifact = {"quantization": HOSTILE, "base_key": "base"}
        fields = {
            "run_id": f"r{n}",
            "session": f"s{n}",
            "commit": HOSTILE if n >= 8 else "a" * 40,
            "artifact": artifact,
        }
        started_at = f"2026-05-{n + 1:02}T10:00:00.000+00:00"
        save_run(folder / "results", run(throughput=throughput, case_key="key", started_at=started_at, **fields), [])
    made = folder / "history.html"
    made.write_bytes(page(history("key", ["output_tps", "e2e_p50"], folder / "results", print)))
    return made


@pytest.fixture(scope="module")
def opened(file: Path) -> Iterator[Page]:
    with chromium() as found:
        found.open(file)
        found.wait("document.documentElement.dataset.ready === 'yes'")
        yield found


def test_every_session_and_the_step_are_drawn(opened: Page) -> None:
    marks = "document.querySelectorAll('[data-chart=output-tps] .mark-symbol path').length"
    assert opened.do(marks) == 16
    assert opened.do("document.querySelectorAll('#steps tbody tr').length") == 1


def test_the_console_is_silent_and_nothing_is_asked_but_the_file(opened: Page, file: Path) -> None:
    assert opened.complaints == []
    assert opened.requests == [file.as_uri()]


def test_hostile_names_stay_names(opened: Page) -> None:
    assert opened.do("document.querySelector('h1').textContent").startswith("</script><script>")
    assert "owned" not in opened.do("document.title").removeprefix(HOSTILE)


def test_nothing_is_wider_than_a_phone(opened: Page) -> None:
    opened.size(NARROW, 800)
    opened.wait(f"document.documentElement.clientWidth === {NARROW}")
    assert opened.do("document.documentElement.scrollWidth") <= NARROW
