import json

import pytest

from llmopt.bench.dataset import draw, load_arrivals, load_prompts
from llmopt.bench.prompts import Prompt
from llmopt.core.errors import UsageError


@pytest.fixture
def write(tmp_path):
    def lines(*rows, name="data.jsonl"):
        text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return lines


SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "Q1"},
        {"from": "gpt", "value": "A1"},
        {"from": "human", "value": "Q2"},
    ]
}
MESSAGES = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "Q1"},
        {"role": "assistant", "content": "A1"},
    ]
}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q1"},
        {"text": "Q1"},
        {"instruction": "Q1", "output": "A1"},
        {"question": "Q1"},
        SHAREGPT,
        MESSAGES,
        '"Q1"',
    ],
)
def test_the_first_question_of_every_form(write, row):
    assert load_prompts(str(write(row)), None) == [Prompt(text="Q1", tokens=None)]


def test_a_json_array_is_taken_too(write):
    assert [p.text for p in load_prompts(str(write(json.dumps([SHAREGPT, {"prompt": "b"}]))), None)] == ["Q1", "b"]


def test_rows_without_a_question_are_passed_over(write):
    file = write({"id": 1}, SHAREGPT, "", {"conversations": []}, 5, {"prompt": 7}, {"messages": [3]})
    assert [p.text for p in load_prompts(str(file), None)] == ["Q1"]


def test_the_length_of_the_answer_is_the_wanted_one_else_that_of_the_text(write, demo_tokenizer):
    told, counted, none = load_prompts(
        str(write({"prompt": "Q", "output_tokens": 7}, {"prompt": "Q", "completion": "some words"}, {"prompt": "Q"})),
        demo_tokenizer,
    )
    assert told.answer_tokens == 7
    assert counted.answer_tokens == len(demo_tokenizer.encode("some words", add_special_tokens=False).ids)
    assert none.answer_tokens is None
    assert told.tokens == len(demo_tokenizer.encode("Q").ids)


@pytest.mark.parametrize(
    ("rows", "words"),
    [(['{"prompt": "a"}', "nonsense"], "line 2: no JSON"), (["[1,"], "no JSON"), ([{"id": 1}], "no prompt in"), ([], "no prompt in")],
)  # fmt: skip
def test_a_bad_data_set_says_what_and_where(write, rows, words):
    with pytest.raises(UsageError, match=words) as caught:
        load_prompts(str(write(*rows)), None)
    assert "conversations" in caught.value.hint


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        load_prompts(str(tmp_path / "x.jsonl"), None)


@pytest.mark.parametrize("name", ["nowhere.jsonl", "/nowhere/at/all", "data/nowhere.json"])
def test_a_file_that_is_not_there_is_looked_for_nowhere_else(name):
    with pytest.raises(UsageError, match="no file"):
        load_prompts(name, None)


def test_all_prompts_are_used_before_one_is_used_again():
    prompts = [Prompt(text=str(n), tokens=None) for n in range(5)]
    found = [p.text for p in draw(prompts, 12, "seed")]
    assert sorted(found[:5]) == sorted(found[5:10]) == list("01234")
    assert found == [p.text for p in draw(prompts, 12, "seed")]
    assert found != [p.text for p in draw(prompts, 12, "other")]


# --- recorded traffic -----------------------------------------------------------------------------------------------


def test_arrivals_are_in_order_and_begin_at_nought(write):
    rows = {"arrival_s": 7.5, "prompt": "b"}, {"arrival_s": 5, "input_tokens": 9, "output_tokens": 3}
    found = load_arrivals(write(*rows))
    assert [(a.offset_s, a.prompt, a.input_tokens, a.output_tokens) for a in found] == [
        (0, None, 9, 3),
        (2.5, "b", None, None),
    ]


def test_arrivals_in_mooncakes_form(write):
    (one, two) = load_arrivals(write(*({"timestamp": t, "input_length": 6, "output_length": 5} for t in (0, 250))))
    assert (two.offset_s, one.input_tokens, one.output_tokens) == (0.25, 6, 5)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("nonsense", "line 2: no JSON"),
        ({"input_tokens": 4}, "line 2: no arrival time"),
        ({"arrival_s": "soon", "input_tokens": 4}, "line 2: no arrival time"),
        ([1, 2], "line 2: no arrival time"),
        ({"arrival_s": 1}, "line 2: neither a prompt"),
        ({"arrival_s": -1, "prompt": "x"}, "line 2: .*out of range"),
        ({"arrival_s": float("nan"), "prompt": "x"}, "line 2: .*out of range"),
    ],
)
def test_a_bad_line_of_a_trace_is_named(write, row, words):
    with pytest.raises(UsageError, match=words) as caught:
        load_arrivals(write({"arrival_s": 0, "prompt": "x"}, row))
    assert caught.value.hint


def test_no_trace_and_an_empty_one(write, tmp_path):
    with pytest.raises(UsageError, match="no trace at"):
        load_arrivals(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is empty"):
        load_arrivals(write())


def test_a_data_set_on_disk_is_read_by_its_library(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"prompt": ["hello there", "what is it"], "completion": ["a b", "c"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "set"))
    assert [p.text for p in load_prompts(str(tmp_path / "set"), None)] == rows["prompt"]
