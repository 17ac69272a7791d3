import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt import demo
from llmopt.core.errors import ModelError, UsageError
from llmopt.quantize.calibration import packed, prepare, read_rows, row_of, token_distance, windows_of

IDS = st.lists(st.integers(0, 50), min_size=1, max_size=40)


def ready(source="builtin", count=8, length=64, seed=0, **more):
    return prepare(str(source), demo.MODEL, count=count, length=length, seed=seed, **more)


def with_template(folder, template):
    """A folder with the bundled tokenizer and this chat template, or none."""
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((demo.MODEL / "tokenizer.json").read_bytes())
    (folder / "config.json").write_text('{"max_position_embeddings": 1024}')
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def test_samples_have_the_wanted_count_and_length():
    found = ready()
    assert [len(ids) for ids in found.input_ids] == [64] * 8
    assert found.tokens == 512


def test_a_seed_draws_the_same_samples_and_another_seed_others():
    assert ready(seed=3).input_ids == ready(seed=3).input_ids
    assert ready(seed=3).input_ids != ready(seed=4).input_ids


def test_the_validation_text_was_not_calibrated_on():
    found = ready(count=16)
    assert found.validation
    assert found.validation[:200] not in found.text


def test_short_samples_leave_as_much_text_to_choose_by():
    assert len(ready(count=4, length=16).validation) > 4000


def test_a_choice_keeps_a_fifth_back_where_the_text_is_used_up(tmp_path):
    (tmp_path / "t.txt").write_text(demo.CALIBRATION_TEXT.read_text()[:6000])
    whole, split = ready(tmp_path / "t.txt", count=1000), ready(tmp_path / "t.txt", count=1000, validate=True)
    assert whole.validation == ""
    assert len(split.input_ids) == len(whole.input_ids) - len(whole.input_ids) // 5
    assert split.validation


def test_a_text_that_is_short_is_a_doubt(tmp_path):
    (tmp_path / "t.txt").write_text("def f(x):\n    return x\n" * 20)
    doubts = ready(tmp_path / "t.txt", count=64).doubts
    assert "samples of 64 tokens, 64 were asked for" in doubts[0]
    assert "tokens only" in doubts[1]


def test_rows_that_are_cut_are_a_doubt(tmp_path):
    rows = [json.dumps({"text": demo.CALIBRATION_TEXT.read_text()[n : n + 3000]}) for n in range(0, 30000, 3000)]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    found = ready(tmp_path / "t.jsonl", count=10)
    assert found.cut_tokens > 5 * found.tokens
    assert any("cut off: raise --sample-tokens above 64" in d for d in found.doubts)


def test_prose_is_far_from_code_and_other_code_is_not(tmp_path):
    words = "the harbour was quiet before the storm and nobody spoke of the long winter that had gone by . "
    words = words.split(" ")
    generator = random.Random(0)
    (tmp_path / "prose.txt").write_text(" ".join(generator.choice(words) for _ in range(20000)))
    near = ready(count=64, length=256, evaluation=demo.HELD_OUT_TEXT)
    far = ready(tmp_path / "prose.txt", count=64, length=256, evaluation=demo.HELD_OUT_TEXT)
    assert near.doubts == []
    assert "far from the evaluation text" in far.doubts[0]


@pytest.mark.parametrize("content", [b"", b"   \n"])
def test_an_empty_text(tmp_path, content):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(UsageError, match="is empty"):
        ready(tmp_path / "t.txt")


@pytest.mark.parametrize("content", [b"\x00\x01\x02" * 50, b"\xff\xfe\x80" * 50])
def test_a_binary_file(tmp_path, content):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(UsageError, match=r"binary|not UTF-8") as caught:
        ready(tmp_path / "t.txt")
    assert caught.value.hint


@pytest.mark.parametrize("content", ["{}", "[1, 2]", '{"other": 1}'])
def test_rows_without_text(tmp_path, content):
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(UsageError, match="no text in"):
        ready(tmp_path / "t.jsonl")


def test_a_name_that_is_nothing():
    with pytest.raises(UsageError, match=r"no (file|data set)"):
        ready("no-such-set")


def test_conversations_go_through_the_models_own_chat_template(tmp_path):
    talk = {"messages": [{"role": "user", "content": "write f"}, {"role": "assistant", "content": "def f(): pass"}]}
    (tmp_path / "t.jsonl").write_text("\n".join([json.dumps(talk)] * 30))
    found = ready(tmp_path / "t.jsonl", count=4)
    assert found.templated
    assert "<|im_start|>user\nwrite f<|im_end|>\n<|im_start|>assistant" in found.text


def test_without_a_template_conversations_are_joined_and_said_so(tmp_path):
    model = with_template(tmp_path / "model", None)
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": "write f", "completion": "def f(): pass"}))
    found = prepare(str(tmp_path / "t.jsonl"), model, count=1, length=64, seed=0)
    assert not found.templated
    assert any("no chat template" in d for d in found.doubts)


def test_a_template_that_refuses_a_row_is_the_users_business(tmp_path):
    model = with_template(tmp_path / "model", "{{ raise_exception('roles must alternate') }}")
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "a"}]}))
    with pytest.raises(UsageError, match="roles must alternate"):
        prepare(str(tmp_path / "t.jsonl"), model, count=1, length=64, seed=0)


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer.json").write_bytes((demo.MODEL / "tokenizer.json").read_bytes())
    (model / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "a"}]}))
    with pytest.raises(UsageError, match="unsafe"):
        prepare(str(tmp_path / "t.jsonl"), model, count=1, length=64, seed=0)


@pytest.mark.parametrize(
    ("raw", "row"),
    [
        ("a", "a"),
        ({"text": "a"}, "a"),
        ({"prompt": "a", "completion": "b"}, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
        ({"conversations": [{"from": "human", "value": "a"}]}, [{"role": "user", "content": "a"}]),
        ({"messages": "a"}, None),
        (5, None),
    ],
)
def test_rows_of_every_form(raw, row):
    assert row_of(raw) == row


def test_the_hash_follows_the_content(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("one")
    assert read_rows(str(tmp_path / "a.txt"))[1] == read_rows(str(tmp_path / "b.txt"))[1]
    (tmp_path / "b.txt").write_text("two")
    assert read_rows(str(tmp_path / "a.txt"))[1] != read_rows(str(tmp_path / "b.txt"))[1]


@given(rows=st.lists(IDS, min_size=1, max_size=20), length=st.integers(1, 30), seed=st.integers(0, 5))
def test_packing_loses_nothing_that_it_does_not_count(rows, length, seed):
    samples, cut = packed(rows, length, random.Random(seed))
    assert all(0 < len(s) <= length for s in samples)
    assert sum(map(len, samples)) + cut == sum(map(len, rows))


@given(ids=IDS, length=st.integers(1, 10))
def test_windows_are_disjoint_pieces_of_the_text(ids, length):
    windows, _ = windows_of(ids, length, random.Random(0))
    assert len(windows) == len(ids) // length
    assert Counter(token for w in windows for token in w) <= Counter(ids)


@given(a=IDS, b=IDS)
def test_distance_of_distributions_is_one_of_metrics(a, b):
    one, other = Counter(a), Counter(b)
    assert token_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert token_distance(one, other) == pytest.approx(token_distance(other, one))
    assert 0 <= token_distance(one, other) <= 1 + 1e-9


def test_a_template_whose_own_words_fail_is_one_line(tmp_path):
    model = with_template(tmp_path / "model", "{{ messages[0].content + 1 }}")
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    with pytest.raises(UsageError, match="refuses a row"):
        prepare(str(tmp_path / "t.jsonl"), model, count=1, length=64, seed=0)


def test_a_template_that_cannot_be_read(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        prepare("builtin", with_template(tmp_path / "model", "{% for %}"), count=1, length=64, seed=0)


def test_special_tokens_come_from_the_template_or_the_tokenizer_and_not_from_both(tmp_path):
    """As transformers' apply_chat_template: a second start token is in no text that the model was trained on."""
    model = with_template(tmp_path / "model", "<|endoftext|>{{ messages[0].content }}")
    kept = json.loads((model / "tokenizer.json").read_text())
    kept["post_processor"] = {
        "type": "TemplateProcessing", "pair": [],
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [4093], "tokens": ["<|endoftext|>"]}},
    }  # fmt: skip
    (model / "tokenizer.json").write_text(json.dumps(kept))
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": "def f", "completion": "x"}))
    (ids,) = prepare(str(tmp_path / "t.jsonl"), model, count=1, length=64, seed=0).input_ids
    assert ids.count(4093) == 1
    (tmp_path / "t.txt").write_text("def f")
    (ids,) = prepare(str(tmp_path / "t.txt"), model, count=1, length=64, seed=0).input_ids
    assert ids.count(4093) == 1


def test_rows_without_text_are_counted_and_said(tmp_path):
    rows = [{"text": "def f(): pass " * 99}, {"label": 3}, {"messages": [{"role": "user"}]}, None]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert any(d.startswith("3 rows of") for d in ready(tmp_path / "t.jsonl").doubts)


def test_content_in_parts_is_its_text():
    parts = [
        {"type": "text", "text": "what "},
        {"type": "image_url", "image_url": "x"},
        {"type": "text", "text": "now"},
    ]
    raw = {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": parts}]}
    assert row_of(raw) == [{"role": "system", "content": ""}, {"role": "user", "content": "what now"}]


def test_samples_beyond_the_models_context_are_a_doubt():
    assert any("longer than the model's context of 1024" in d for d in ready(length=2048).doubts)
