from llmopt.report.racing import RaceReporter, race_markdown, standing_lines

SURVIVOR = {"arm": "gguf-q8_0 on llamacpp", "value": 900.0, "low": 850.0, "high": 950.0, "runs": 2, "load": "4 users"}
RACE = {
    "metric": "output_tps", "round": 2, "configurations": 3, "visits": 5, "noise": 0.03, "survivors": [SURVIVOR],
    "noise_before": {"share": 0.03, "freedom": 12.0, "usual": False}, "tolerance": 0.02, "sure": 0.974,
    "unmeasured": ["fp8 | on vllm"], "dropped": [{"configuration": "bf16 on hf", "reason": "50% behind"}], "settled": None,
}  # fmt: skip
DOCUMENT = {
    "race": RACE, "budget_s": 60.0, "spent_s": 59.0, "ended": "the budget ended", "reference": "bf16",
    "not_measured": [{"label": "nf4 on vllm", "reason": "vllm does not load nf4", "hint": None}],
}  # fmt: skip


def test_standing_names_survivors_with_intervals_and_the_time_left():
    head, sure, line = standing_lines(RACE | {"left_s": 12.3})
    assert head == "after round 2: 1 of 3 may be the best by output_tps, 1 not measured yet, 12 s left"
    assert sure == "  gguf-q8_0 on llamacpp is within 2% of the best with a chance of 97%"
    assert line == "  gguf-q8_0 on llamacpp: 900 tok/s [850 tok/s – 950 tok/s] over 2 round(s)"


def test_a_pipe_gets_lines_when_a_round_has_ended(capsys):
    reporter = RaceReporter()
    reporter.live = False
    with reporter:
        reporter.stands(RACE | {"doing": "bf16 on hf", "left_s": 12.0})
        reporter.stands(RACE | {"doing": None, "left_s": 12.0})
    told = capsys.readouterr().err
    assert told.count("after round 2") == 1


def test_a_terminal_shows_the_table_and_what_is_done_now():
    reporter = RaceReporter()
    reporter.live = True
    with reporter:
        reporter.stands(RACE | {"doing": "bf16 on hf", "left_s": 12.0})
        with reporter.task("starting hf", 4) as work:
            work.at(3, 4)
            assert reporter.work.startswith("starting hf   3/4")
        assert reporter.work == ""


def test_the_report_has_every_reason():
    text = race_markdown(DOCUMENT)
    assert "| gguf-q8_0 on llamacpp | 900 tok/s | 850 tok/s – 950 tok/s | 2 | 4 users |" in text
    assert "- dropped: bf16 on hf: 50% behind" in text
    assert "- never measured: fp8 | on vllm: the budget ended" in text
    assert "- not measured: nf4 on vllm: vllm does not load nf4" in text
