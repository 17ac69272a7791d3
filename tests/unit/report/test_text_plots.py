from llmopt.report.text_plots import front_lines
from unit.report.test_page import FAST, QUICK, candidate, document


def test_the_fastest_stands_on_top_and_the_quickest_to_the_left():
    lines = front_lines(document(FAST, QUICK))
    assert lines[0].endswith("1")
    (row,) = [line for line in lines[1:-3] if "2" in line]
    assert row.index("2") < lines[0].index("1", 12)


def test_a_rejected_configuration_is_crossed_out():
    assert any("×" in line for line in front_lines(document(FAST, candidate("far", kl=0.9, latency_s=0.3)))[:-1])


def test_one_point_is_no_plot():
    assert front_lines(document(FAST)) == []
