"""Tables in the terminal."""

import io

from report_fake_run import ANSWERS, write_run
from rich.console import Console

from togi.report.collect import collect
from togi.report.terminal import answer_table, run_summary
from togi.report.view import AnswerView


def _shown(renderable, width=120):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_a_run_is_summed_up(tmp_path):
    text = _shown(run_summary(collect(write_run(tmp_path))))
    for part in (
        "questions",
        "cached",
        "412",
        "ALARM length in policy",
        "+0.829 to +0.934",
        "better",
        "All 11 stages are done",
    ):
        assert part in text, part


def test_a_failed_run_says_why(tmp_path):
    text = _shown(run_summary(collect(write_run(tmp_path, state="failed", stop_at="policy"))))
    assert "the loss is not finite at step 17" in text
    assert "waiting" in text


def test_answers_are_text_and_not_markup():
    answer = AnswerView(question="[bold]?[/bold]", base="[/x]", policy=ANSWERS[1][2], policy_score=1.5)
    text = _shown(answer_table([answer]))
    assert "[bold]?[/bold]" in text
    assert "[/x]" in text
    assert "score 1.50" in text
