"""A gate inside anybody's tests: the fixture ``assert_no_regression``.

::

    def test_my_engine_is_as_fast_as_before(assert_no_regression):
        assert_no_regression(
            "http://127.0.0.1:8000/v1", "http://127.0.0.1:8001/v1", model="m", metrics=["ttft_p95:5%"], rounds=10
        )

It is ``llmopt gate`` with the same words.  pytest imports this module in every session of an interpreter that has
llmopt, whether it is used or not: nothing but pytest is imported before the fixture is called.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from llmopt.pipeline.gate_question import Question
    from llmopt.pipeline.sides import Ways

UNSURE = ("skip", "fail")
WIDTH = 130  # of the table in a failure


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("llmopt", "speed, memory and quality of language model servers")
    group.addoption(
        "--llmopt-on-inconclusive", choices=UNSURE, default="skip",
        help="What assert_no_regression does where a gate cannot tell: skip the test (default), or fail it.",
    )  # fmt: skip
    group.addoption(
        "--llmopt-results", default="results", metavar="DIR",
        help="Where its runs are kept, and baselines are looked for; default: results.",
    )  # fmt: skip


@pytest.fixture
def assert_no_regression(request: pytest.FixtureRequest) -> Gate:
    """Call it with a base and a candidate: it fails the test where the candidate became worse."""
    return Gate(request)


class Gate:
    """``llmopt gate`` as a call; see there what the arguments mean. Its document is returned where the gate passes."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.request = request

    def __call__(
        self,
        base: str,
        candidate: str,
        *,
        metrics: Sequence[str] = (),
        quality: Sequence[str] = (),
        allow: Sequence[str] = (),
        rounds: int | None = None,
        budget: str | None = None,
        confidence: float = 0.99,
        seed: int | None = None,
        results: str | Path | None = None,
        on_inconclusive: str | None = None,
        **load: Any,
    ) -> dict[str, Any]:
        """``load``: model, tokenizer, header, backend, python, concurrency, rate, requests, input_tokens, output_tokens,
        endpoint, and options of the engine (``max_num_seqs=8``), as on the command line.
        """
        __tracebackhide__ = True
        from llmopt.core.errors import Inconclusive, Interrupted, LlmoptError
        from llmopt.pipeline.gate_document import document
        from llmopt.pipeline.gating import gate

        option = self.request.config.getoption
        unsure = option("--llmopt-on-inconclusive") if on_inconclusive is None else on_inconclusive
        try:
            require_word(unsure)
            question = question_of(metrics, quality, allow, rounds, budget, confidence, seed)
            ways = ways_of(Path(results or option("--llmopt-results")), load)
            found = document(gate(base, candidate, ways, question), question, inconclusive_passes=False)
        except Interrupted as error:
            raise KeyboardInterrupt(error.message) from error
        except Inconclusive as error:
            undecided(with_hint(error), unsure)
        except LlmoptError as error:
            pytest.fail(with_hint(error), pytrace=False)
        self.request.node.user_properties.append(("llmopt_gate", found["words"]))
        if found["status"] == "regression":
            pytest.fail(text(found), pytrace=False)
        if found["status"] == "inconclusive":
            undecided(text(found), unsure)
        return found


def require_word(on_inconclusive: str) -> None:
    """Raise UsageError for a word that is none: nothing that cannot be told passes."""
    from llmopt.core.errors import UsageError

    if on_inconclusive not in UNSURE:
        raise UsageError(f"on_inconclusive={on_inconclusive!r} is neither skip nor fail", hint="skip or fail")


def undecided(words: str, unsure: str) -> NoReturn:
    """Never a pass."""
    __tracebackhide__ = True
    if unsure == "skip":
        pytest.skip(words.splitlines()[0])
    pytest.fail(words, pytrace=False)


def text(document: dict[str, Any]) -> str:
    """The verdict and the table, as the command prints them to a pipe."""
    from rich.console import Console

    from llmopt.report.gate import print_gate

    stream = io.StringIO()
    print_gate(document, Console(file=stream, width=WIDTH, highlight=False, force_terminal=False))
    return stream.getvalue().rstrip()


def with_hint(error: Any) -> str:
    return f"{error.message}\nhint: {error.hint}" if error.hint else str(error.message)


def question_of(
    metrics: Sequence[str], quality: Sequence[str], allow: Sequence[str], rounds: int | None, budget: str | None,
    confidence: float, seed: int | None,
) -> Question:  # fmt: skip
    """Raises UsageError, also for a single string where several are taken: its letters are no metrics."""
    from llmopt.cli.gating import question_of as of_words
    from llmopt.core.errors import UsageError

    for name, given in (("metrics", metrics), ("quality", quality), ("allow", allow)):
        if isinstance(given, str):
            raise UsageError(f"{name}={given!r} is one string", hint=f"{name}=[{given!r}]")
    return of_words(list(metrics), list(quality), list(allow), rounds, budget, confidence, seed)


DEFAULTS: dict[str, Any] = {
    "model": None, "tokenizer": None, "header": None, "python": None, "backend": None, "concurrency": None, "rate": None,
    "requests": None, "input_tokens": "64", "output_tokens": "32", "endpoint": "completions",
}  # fmt: skip


def ways_of(results: Path, load: dict[str, Any]) -> Ways:
    """Raises UsageError for a word that is neither one of the command's nor an option of engines."""
    from dataclasses import fields

    from llmopt.cli.gating import ways_of as of_words
    from llmopt.core.domain import ServeOptions
    from llmopt.core.errors import UsageError, nearest

    engine = {field.name for field in fields(ServeOptions)} - {"backend"}
    for name in load:
        if name not in DEFAULTS and name not in engine:
            raise UsageError(f"{name!r} is no argument of a gate", hint=nearest(name, [*DEFAULTS, *sorted(engine)]))
    chosen = {name: load.get(name, default) for name, default in DEFAULTS.items()}
    chosen |= {name: str(chosen[name]) for name in ("input_tokens", "output_tokens")}  # 32 says the same as "32"
    given = {name: value for name, value in load.items() if name in engine}
    return of_words(results, False, given=given, **chosen)
