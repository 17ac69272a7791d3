import pytest

from llmopt.core.domain import Goal
from llmopt.core.errors import UsageError
from llmopt.quality.tasks import rows
from llmopt.recommend.constraints import make_goal
from llmopt.recommend.rank import recommend
from llmopt.recommend.scores import scores_of
from unit.make import QUALITY, candidate


def lambada(name, accuracy, perplexity, error=0.001):
    results = {
        "lambada": {
            "acc,none": accuracy,
            "acc_stderr,none": error,
            "perplexity,none": perplexity,
            "perplexity_stderr,none": error,
        }
    }
    told = rows(results, {}, {"lambada": {"acc": True, "perplexity": False}})
    return candidate(name, quality=QUALITY | {"tasks": told})


GOOD, BAD = lambada("good", 0.7, 5.0), lambada("bad", 0.1, 900.0)


def labels(goal):
    return [r.label for r in recommend([BAD, GOOD], goal).ranked]


def test_the_accuracy_of_a_task_ranks_and_not_whatever_came_last():
    assert labels(Goal(optimize="quality")) == ["good on hf", "bad on hf"]


def test_a_score_that_is_better_when_lower_ranks_so():
    assert labels(Goal(optimize="task_score_lambada/perplexity")) == ["good on hf", "bad on hf"]


def test_a_limit_names_one_score_of_a_task():
    assert labels(make_goal([], min_scores=["lambada/acc>=0.5"])) == ["good on hf"]


@pytest.mark.parametrize("goal", [make_goal([], min_scores=["lambada>=0.5"]), Goal(optimize="task_score_lambada")])
def test_a_task_with_several_scores_is_not_guessed_at(goal):
    with pytest.raises(UsageError, match="'lambada' has 2 scores") as caught:
        labels(goal)
    assert caught.value.hint == "say which: lambada/acc, lambada/perplexity"


def test_a_score_that_nobody_has_is_mistyped():
    with pytest.raises(UsageError, match="no run here has a score of 'lambda/acc'") as caught:
        labels(Goal(optimize="task_score_lambda/acc"))
    assert "lambada/acc" in caught.value.hint


def test_a_least_perplexity_is_refused():
    with pytest.raises(UsageError, match="better when lower"):
        labels(make_goal([], min_scores=["lambada/perplexity>=5"]))


def test_filters_tell_scores_of_one_metric_apart_and_the_first_ranks():
    told = [{"task": "gsm8k", "metric": "exact_match", "filter": f, "value": 0.5} for f in ("strict", "flexible")]
    assert {n: s.primary for n, s in scores_of(told).items()} == {
        "gsm8k/exact_match/strict": True,
        "gsm8k/exact_match/flexible": False,
    }


def test_a_score_over_questions_says_that_it_is_not_paired():
    first = recommend([BAD, GOOD], Goal(optimize="quality")).ranked[0]
    assert first.beats_next["over"] == "questions, not paired"
