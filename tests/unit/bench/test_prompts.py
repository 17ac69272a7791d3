import pytest

from llmopt import demo
from llmopt.bench.prompts import load_tokenizer, make_prompts
from llmopt.core.errors import UsageError

SOURCE = demo.CALIBRATION_TEXT.read_text()


@pytest.mark.parametrize("length", [1, 7, 64, 300])
def test_prompts_have_exactly_the_asked_length(demo_tokenizer, length):
    prompts = make_prompts(SOURCE, 5, length, "salt", demo_tokenizer)
    assert [len(demo_tokenizer.encode(text).ids) for text in prompts.texts] == [length] * 5
    assert prompts.tokens == length


def test_a_prompt_longer_than_its_source_is_filled_up(demo_tokenizer):
    (text,) = make_prompts("only a few words", 1, 100, "salt", demo_tokenizer).texts
    assert len(demo_tokenizer.encode(text).ids) == 100


def test_no_two_prompts_begin_alike(demo_tokenizer):
    texts = make_prompts(SOURCE, 100, 32, "salt", demo_tokenizer).texts
    assert len({text[:8] for text in texts}) == 100


def test_the_same_salt_gives_the_same_prompts(demo_tokenizer):
    assert make_prompts(SOURCE, 3, 32, "s", demo_tokenizer) == make_prompts(SOURCE, 3, 32, "s", demo_tokenizer)


def test_another_salt_gives_other_prompts(demo_tokenizer):
    one, two = (make_prompts(SOURCE, 20, 32, salt, demo_tokenizer).texts for salt in ("a", "b"))
    assert not set(one) & set(two)


def test_without_a_tokenizer_the_length_is_an_estimate():
    prompts = make_prompts(SOURCE, 10, 64, "salt", None)
    assert prompts.tokens is None
    assert len(set(prompts.texts)) == 10


def test_a_tokenizer_is_named_by_its_file_or_its_folder(demo_tokenizer):
    by_file = load_tokenizer(demo.MODEL / "tokenizer.json")
    assert by_file.encode("some text").ids == demo_tokenizer.encode("some text").ids


def test_no_tokenizer_there(tmp_path):
    with pytest.raises(UsageError, match="no tokenizer at") as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in caught.value.hint


def test_a_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="no tokenizer at"):
        load_tokenizer(tmp_path)
