import itertools
import random

from llmopt.recommend.racing import Race
from llmopt.recommend.structure import borrowed

ARMS = {
    f"{a}{b}{c}": (f"quantization {a}", f"engine {b}", f"setting {c}")
    for a, b, c in itertools.product("abcd", "xy", "123")
}
OF_TRAIT = {"a": 0.3, "b": 0.1, "c": -0.2, "d": 0.0, "x": 0.2, "y": -0.2, "1": 0.0, "2": 0.1, "3": -0.1}
TRUTH = {arm: sum(OF_TRAIT[letter] for letter in arm) for arm in ARMS}
NOISE = 0.05


def noisy(truth, seed):
    draw = random.Random(seed)
    return {arm: value + draw.gauss(0, NOISE) for arm, value in truth.items()}


def error(levels, truth):
    """Root mean square, without a shift that all have in common."""
    gaps = [levels[arm] - truth[arm] for arm in truth]
    middle = sum(gaps) / len(gaps)
    return (sum((gap - middle) ** 2 for gap in gaps) / len(gaps)) ** 0.5


def test_what_is_shared_makes_single_runs_better():
    levels = noisy(TRUTH, 1)
    better, _ = borrowed(levels, dict.fromkeys(TRUTH, NOISE), ARMS)
    assert error(better, TRUTH) < 0.8 * error(levels, TRUTH)


def test_traits_that_mean_nothing_spoil_nothing():
    draw = random.Random(2)
    truth = {arm: draw.gauss(0, 0.3) for arm in ARMS}
    levels = noisy(truth, 3)
    same, _ = borrowed(levels, dict.fromkeys(truth, NOISE), ARMS)
    assert error(same, truth) < 1.1 * error(levels, truth)


def test_those_that_share_more_are_compared_with_less_doubt():
    _, pairs = borrowed(noisy(TRUTH, 1), dict.fromkeys(TRUTH, NOISE), ARMS)

    def variance(one, other):
        return pairs[one, one] + pairs[other, other] - 2 * pairs[one, other]

    assert variance("ax1", "ax2") < variance("ax1", "dy3")
    assert all(pairs[a, b] == pairs[b, a] or abs(pairs[a, b] - pairs[b, a]) < 1e-9 for a, b in pairs)


def test_a_race_with_traits_keeps_its_word():
    race = Race(list(ARMS), traits=ARMS, seed=1)
    draw = random.Random(4)
    while arms := race.next_round():
        for arm in arms:
            race.record(race.round, arm, 2.718 ** (TRUTH[arm] + draw.gauss(0, NOISE)))
    assert race.standing().leader == "ax2"
