"""Prompts that begin alike, pictures and adapters: what a request carries besides its own text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import takewhile

import pytest

from llmopt import demo
from llmopt.bench.prompts import load_tokenizer, make_prompts
from llmopt.bench.schedule import make_schedule
from llmopt.bench.verdict import Evidence, prefix_cache
from llmopt.bench.workload import make_workload
from llmopt.core.domain import RequestTrace, Workload, workload_identity
from llmopt.core.errors import UsageError

SOURCE = demo.CALIBRATION_TEXT.read_text()
TOKENIZER = load_tokenizer(demo.MODEL)


def beginning(texts: Sequence[str]) -> str:
    """What all of them begin with."""
    return "".join(
        letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    )


def bodies(**options: object) -> list[dict[str, object]]:
    workload = make_workload(requests=6, **options)  # type: ignore[arg-type]
    schedule = make_schedule(workload, "m", salt="a", source=SOURCE, tokenizer=TOKENIZER, usage_per_chunk=False)
    return [json.loads(request.body) for request in schedule.requests]


def test_prompts_share_their_beginning_and_nothing_more() -> None:
    prompts = make_prompts(SOURCE, [96] * 20, "0", "a", TOKENIZER, shared=64)
    common = beginning([p.text for p in prompts])
    assert {p.tokens for p in prompts} == {96}
    assert 60 <= len(TOKENIZER.encode(common).ids) <= 66


def test_another_run_shares_another_beginning() -> None:
    first, second = (make_prompts(SOURCE, [96], "0", salt, TOKENIZER, shared=64)[0].text for salt in "ab")
    assert beginning([first, second]) == ""


def test_without_a_tokenizer_they_share_words() -> None:
    texts = [p.text for p in make_prompts(SOURCE, [96] * 5, "0", "a", None, shared=64)]
    assert len(beginning(texts).split()) >= 10


def test_the_body_carries_the_shared_beginning() -> None:
    texts = [str(body["prompt"]) for body in bodies(input_tokens="96", prefix_tokens=64)]
    assert len(beginning(texts)) > 100


def test_prompts_too_short_for_what_they_share() -> None:
    with pytest.raises(UsageError, match="no room for 64") as caught:
        make_workload(input_tokens="uniform:70:200", prefix_tokens=64)
    assert "--input-tokens 128" in (caught.value.hint or "")


def test_pictures_go_before_the_text() -> None:
    parts = [body["messages"][0]["content"] for body in bodies(endpoint="chat", images=2)]  # type: ignore[index]
    assert [[part["type"] for part in content] for content in parts] == [["image_url", "image_url", "text"]] * 6
    assert len({part["image_url"]["url"] for content in parts for part in content[:2]}) == 12


def test_pictures_need_messages() -> None:
    with pytest.raises(UsageError, match="images go with chat"):
        make_workload(images=1)


def test_adapters_are_asked_in_turn() -> None:
    assert [body["model"] for body in bodies(adapters=("a", "b"))] == ["a", "b"] * 3


def test_an_adapter_is_named_as_the_engine_wants_it() -> None:
    workload = make_workload(input_tokens="8", requests=1, adapters=("a",))
    schedule = make_schedule(
        workload,
        "m",
        salt="s",
        source="x " * 64,
        tokenizer=None,
        usage_per_chunk=False,
        adapter_form="{model}:{adapter}",
    )
    assert b'"m:a"' in schedule.requests[0].body


def test_a_conversation_stays_with_its_adapter() -> None:
    found = bodies(adapters=("a", "b"), endpoint="chat", turns=2)
    assert [body["model"] for body in found] == ["a", "a", "b", "b", "a", "a"]


def test_the_length_of_a_prompt_with_pictures_is_not_known_before() -> None:
    workload = make_workload(requests=1, endpoint="chat", images=1)
    schedule = make_schedule(workload, "m", salt="a", source=SOURCE, tokenizer=TOKENIZER, usage_per_chunk=False)
    assert schedule.requests[0].prompt_tokens is None


def trace(cached: int) -> RequestTrace:
    return RequestTrace(
        index=0,
        planned_ns=0,
        requested_output_tokens=1,
        prompt_tokens_asked=100,
        prompt_tokens=100,
        cached_tokens=cached,
    )


@pytest.mark.parametrize(("cached", "doubted"), [(64, False), (90, True)])
def test_hits_beyond_the_shared_beginning_are_doubted(cached: int, doubted: bool) -> None:
    workload = Workload(input_tokens=100, prefix_tokens=64)
    assert (prefix_cache(Evidence(traces=[trace(cached)], workload=workload)) is not None) is doubted


def test_a_doubt_about_hits_says_how_much_the_workload_shares() -> None:
    def message(prefix: int) -> str:
        found = prefix_cache(Evidence(traces=[trace(90)], workload=Workload(input_tokens=100, prefix_tokens=prefix)))
        assert found is not None
        return found.message

    assert message(64) == "90% of the prompt tokens came from a prefix cache although prompts share 64% of theirs"
    assert message(0).endswith("although every prompt is different")


def test_what_is_shared_opens_a_conversation_and_is_not_said_again() -> None:
    found = bodies(input_tokens="96", prefix_tokens=64, endpoint="chat", turns=3)
    said = [[m["content"] for m in body["messages"] if m["role"] == "user"] for body in (found[2], found[5])]  # type: ignore[index,attr-defined]
    shared = beginning([turns[0] for turns in said])
    assert 60 <= len(TOKENIZER.encode(shared).ids) <= 66
    assert [[len(TOKENIZER.encode(text).ids) for text in turns] for turns in said] == [[96, 32, 32]] * 2
    assert shared[:40] not in "".join(text for turns in said for text in turns[1:])
    assert len({text[:12] for turns in said for text in turns}) == 5, "every other turn has a salt of its own"


def test_what_is_not_used_is_no_part_of_a_workloads_identity() -> None:
    from dataclasses import asdict

    old = {
        name: value
        for name, value in asdict(Workload()).items()
        if name not in ("prefix_tokens", "images", "image_size", "adapters")
    }
    assert workload_identity(asdict(Workload())) == old
    assert workload_identity(asdict(Workload(prefix_tokens=5))) != old
    assert workload_identity(asdict(Workload(image_size="9x9"))) == old
