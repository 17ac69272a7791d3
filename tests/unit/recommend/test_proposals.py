import pytest

from llmopt.recommend.proposals import AT_FIRST, OF_EACH, Proposal, Proposals, Range

pytest.importorskip("optuna")
RANGES = {"tokens": Range(low=256, high=8192, whole=True), "share": Range(low=0.5, high=0.9, whole=False)}
KNOBS = {"a": ("tokens", "share"), "b": ("tokens",)}


def made(seed=0):
    return Proposals(KNOBS, RANGES, "higher", seed)


def worth(proposal):
    """Best near 2048 tokens, whatever the rest."""
    tokens = dict(proposal.values)["tokens"]
    return 1000 - abs(tokens - 2048) / 10


def test_first_proposals_are_unlike_and_within_their_ranges():
    first = made().ask()
    assert len(set(first)) == AT_FIRST
    for proposal in first:
        assert tuple(name for name, _ in proposal.values) == KNOBS[proposal.base]
        assert all(RANGES[name].low <= value <= RANGES[name].high for name, value in proposal.values)


def test_later_ones_come_nearer_to_the_best():
    proposals, gaps = made(1), []
    while asked := proposals.ask():
        gaps.append(min(abs(dict(p.values)["tokens"] - 2048) for p in asked))
        for proposal in asked:
            proposals.tell(proposal, worth(proposal))
    assert min(gaps[1:]) < gaps[0]
    assert len(proposals.asked) == OF_EACH * len(RANGES)


def test_what_an_earlier_start_proposed_is_not_proposed_again():
    earlier = made().ask()
    proposals = made()
    for proposal in earlier:
        proposals.take_up(proposal)
        proposals.tell(proposal, worth(proposal))
    assert not set(earlier) & set(proposals.ask())


def test_a_failure_and_what_was_never_proposed_can_be_told():
    proposals = made()
    first = proposals.ask()[0]
    proposals.tell(first, None)
    proposals.tell(first, 5.0)
    proposals.tell(Proposal(base="a", values=(("tokens", 1), ("share", 0.5))), 5.0)
    assert [trial.state.name for trial in proposals.study.trials].count("FAIL") == 1


def test_engines_without_the_knobs_are_not_searched():
    assert Proposals({"a": ()}, RANGES, "higher", 0).ask() == []
