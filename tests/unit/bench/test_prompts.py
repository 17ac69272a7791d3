import re

import pytest

from llmopt import demo
from llmopt.bench.prompts import TOKENS_PER_WORD, Prompt, load_tokenizer, make_prompts, with_salts
from llmopt.core.errors import UsageError

SOURCE = demo.CALIBRATION_TEXT.read_text()


def texts(lengths, salt="salt", tokenizer=None, source=SOURCE, seed="seed"):
    return [p.text for p in make_prompts(source, lengths, seed, salt, tokenizer)]


def test_prompts_have_exactly_the_asked_lengths(demo_tokenizer):
    lengths = [1, 7, 64, 300, 7, 65] * 3
    prompts = make_prompts(SOURCE, lengths, "seed", "salt", demo_tokenizer)
    assert [len(demo_tokenizer.encode(p.text).ids) for p in prompts] == lengths
    assert [p.tokens for p in prompts] == lengths


def test_a_prompt_longer_than_its_source_is_filled_up(demo_tokenizer):
    (text,) = texts([100], tokenizer=demo_tokenizer, source="only a few words")
    assert len(demo_tokenizer.encode(text).ids) == 100


@pytest.mark.parametrize("exact", [True, False])
def test_no_two_prompts_begin_alike(demo_tokenizer, exact):
    found = texts([32] * 100, tokenizer=demo_tokenizer if exact else None)
    assert len({text[:8] for text in found}) == 100


def test_the_same_seed_and_salt_give_the_same_prompts(demo_tokenizer):
    assert texts([32] * 3, "s", demo_tokenizer) == texts([32] * 3, "s", demo_tokenizer)


def test_another_salt_gives_other_prompts(demo_tokenizer):
    assert not set(texts([32] * 20, "a", demo_tokenizer)) & set(texts([32] * 20, "b", demo_tokenizer))


@pytest.mark.parametrize("exact", [True, False])
def test_a_salt_changes_only_the_beginning(demo_tokenizer, exact):
    """Its own length in tokens varies, and moves the end of the cut."""
    tokenizer = demo_tokenizer if exact else None
    one, two = ([text[12:42] for text in texts([64] * 20, salt, tokenizer)] for salt in ("a", "b"))
    assert sum(a == b for a, b in zip(one, two, strict=True)) >= 18  # a cut that does not encode back is made anew


def test_another_seed_cuts_elsewhere(demo_tokenizer):
    one, two = ({text[12:42] for text in texts([64] * 20, "s", demo_tokenizer, seed=seed)} for seed in ("0", "1"))
    assert not one & two


@pytest.mark.parametrize("exact", [True, False])
def test_prompts_of_a_data_set_get_a_salt_in_front(demo_tokenizer, exact):
    tokenizer = demo_tokenizer if exact else None
    (found,) = with_salts([Prompt(text="Q1", tokens=1, answer_tokens=7)], "salt", tokenizer)
    assert re.fullmatch("[0-9a-f]{12} Q1", found.text)
    assert found.tokens == (len(demo_tokenizer.encode(found.text).ids) if exact else None)
    assert found.answer_tokens == 7


def test_without_a_tokenizer_the_length_is_an_estimate_and_not_told():
    prompts = make_prompts(SOURCE, [64, 640], "seed", "salt", None)
    assert [p.tokens for p in prompts] == [None, None]
    assert [len(p.text.split(" ")) for p in prompts] == [round(64 / TOKENS_PER_WORD), round(640 / TOKENS_PER_WORD)]


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
