import pytest
import yaml

from llmopt.deploy.documents import yaml_text


@pytest.mark.parametrize("text", ["1e3", "0123456789e12", "0o17", "12_000", "+.5", "1.", "-1E-3"])
def test_text_that_go_would_read_as_a_number_is_quoted(text: str) -> None:
    assert yaml_text({"key": text}) == f"key: '{text}'\n"


def test_words_and_addresses_stay_bare() -> None:
    assert yaml_text({"a": "engine-1", "b": "vllm/vllm-openai:v0.32.0"}) == "a: engine-1\nb: vllm/vllm-openai:v0.32.0\n"


@pytest.mark.parametrize("text", ["a\x85b", "\x85", "a\u2028\nb"])
def test_what_is_a_break_for_some_is_escaped(text: str) -> None:
    written = yaml_text({"key": text})
    assert written.startswith('key: "')
    assert written.isascii()
    assert yaml.safe_load(written) == {"key": text}
