import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt.core.errors import ModelError
from llmopt.quality import comparison
from llmopt.quality.comparison import summary, window_figures

torch = pytest.importorskip("torch")
WINDOW = [1, 4, 2, 0, 3, 2]


def logits(seed, rows=6, vocabulary=5):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_nothing_is_farther_from_itself_than_nothing(seed):
    found = window_figures(logits(seed), logits(seed), WINDOW)
    assert found["kl"] == [0] * 5
    assert found["same"] == [1] * 5
    assert found["nll"] == found["base_nll"]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_kl_is_never_negative_and_does_not_see_a_shift_of_all_logits(one, other):
    found = window_figures(logits(one), logits(other), WINDOW)["kl"]
    shifted = window_figures(logits(one), logits(other) + 3, WINDOW)["kl"]
    assert min(found) >= 0
    assert found == pytest.approx(shifted, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40))
def test_pieces_of_a_window_give_what_the_whole_gives(numbers_at_once):
    whole = window_figures(logits(1), logits(2), WINDOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "NUMBERS_AT_ONCE", numbers_at_once)
        pieces = window_figures(logits(1), logits(2), WINDOW)
    assert {name: pytest.approx(values) for name, values in whole.items()} == pieces


def test_the_row_of_the_last_token_may_be_absent():
    assert window_figures(logits(1)[:-1], logits(2), WINDOW) == window_figures(logits(1), logits(2), WINDOW)


def test_figures_by_hand():
    base, other = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[math.log(3), 0.0]])
    found = window_figures(base, other, [0, 1])
    assert found["base_nll"] == pytest.approx([math.log(4 / 3)])
    assert found["nll"] == pytest.approx([math.log(4)])
    assert found["kl"] == pytest.approx([0.5 * math.log(3)])
    assert found["same"] == [0]


def test_a_token_that_both_rule_out_is_no_difference():
    base = torch.tensor([[0.0, 1.0, -math.inf]])
    assert window_figures(base, base, [0, 1])["kl"] == [0]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(broken):
    candidate = logits(2)
    candidate[3, 1] = broken
    with pytest.raises(ModelError, match="not finite"):
        window_figures(logits(1), candidate, WINDOW)


def test_another_vocabulary_is_no_quantization_of_this_base():
    with pytest.raises(ModelError, match="shape"):
        window_figures(logits(1), logits(2, vocabulary=6), WINDOW)


def test_a_perplexity_beyond_all_numbers_is_still_a_number(tmp_path):
    (tmp_path / "text").write_text("x")
    rows = [{"nll": [1000.0], "base_nll": [1.0], "kl": [999.0], "same": [0.0]}] * 3
    assert math.isfinite(summary(rows, 3, tmp_path / "text").perplexity)
