"""Renders a run as one self-contained HTML file, without scripts, fonts or requests."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from togi.report import cells, formatting
from togi.report.curves import Panel, panels
from togi.report.pictures import pictures
from togi.report.plot import reach, whisker
from togi.report.stage_graph import rail
from togi.report.view import AnswerView, RunView, StageView
from togi.report.waterfall import Step, in_words, licences, waterfall

MOST_ANSWERS = 48
OPEN_ANSWERS = 6
OPEN_SAMPLES = 2
ANSWER_CHARACTERS = 4000
QUOTED = re.compile(r"`([^`\n]+)`")
TOKEN = re.compile(r"(<\|[^<>|\s]{1,40}\|>|<(?:start|end)_of_turn>|</?s>)")
# Characters that are invalid in HTML, or change the direction of text, are shown as codes.
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}
CONTROLS |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fall:
    """One bar of the waterfall; shares are per cent of the widest bar."""

    step: Step
    out_share: float
    held_out_share: float
    parts: Sequence[tuple[int, str, int, float]]  # (colour, reason, count, share)
    lost_share: float
    licences: str


def render_report(run: RunView) -> str:
    """The report of `run` as an HTML document."""
    last_first = reversed(run.stages)  # the policy's curves come before those of earlier stages
    curves = [(stage, panels(stage)) for stage in last_first if stage.metrics]
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            rail=rail(run.stages),
            longest=max((stage.seconds or 0.0 for stage in run.stages), default=0.0) or 1.0,
            falls=_falls(waterfall(run)),
            bound=_bound(run),
            curves=[(stage, *_split(made)) for stage, made in curves if made],
            tables=sorted((stage for stage in run.stages if stage.rows), key=lambda stage: not _compares(stage)),
            compares=any(_compares(stage) for stage in run.stages),
            measured=[stage for stage in run.stages if stage.benchmarks],
            talks=[(stage, stage.answers[:MOST_ANSWERS]) for stage in run.stages if stage.answers],
            samples=[stage for stage in run.stages if stage.examples],
            open_samples=OPEN_SAMPLES,
            tiles=formatting.highlights(run),
            findings=formatting.findings(run),
            numerics=_numerics(run),
            open_answers=OPEN_ANSWERS,
        )
    )
    return page.translate(CONTROLS).encode("utf-8", "backslashreplace").decode("utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("togi", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=formatting.number,
        signed=lambda value: formatting.number(value, signed=True),
        bounds=lambda interval: formatting.bounds(interval, signed=True),
        duration=formatting.duration,
        moment=formatting.moment,
        percent=formatting.percent,
        plural=formatting.plural,
        flat=formatting.flat,
        answer=answer_html,
        marked=marked,
        whisker=whisker,
        pictures=pictures,
        reach=reach,
    )
    environment.filters.update(cell=cells.words, bounds_of=cells.bounds, change=cells.change, verdict=cells.verdict)
    environment.filters.update(printed=cells.printed)
    environment.globals.update(outcome=formatting.outcome, better=_better, turned=cells.turned)
    return environment


def answer_html(text: str) -> Markup:
    """An answer, fully escaped; text that looks like template tokens is highlighted."""
    left_out = len(text) - ANSWER_CHARACTERS
    parts = [
        Markup("<b class=tok>{}</b>").format(part) if i % 2 else escape(part)
        for i, part in enumerate(TOKEN.split(text[:ANSWER_CHARACTERS]))
    ]
    if left_out > 0:
        parts.append(Markup("<i class=cut>… {} more characters</i>").format(f"{left_out:,}"))
    return Markup("").join(parts)


def marked(text: str) -> Markup:
    """A message of togi, fully escaped; what stands between backticks is shown as code."""
    parts = QUOTED.split(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(parts)
    )


def _better(answer: AnswerView) -> str:
    """Which side scored higher: base, policy or neither."""
    if answer.base_score is None or answer.policy_score is None or answer.base_score == answer.policy_score:
        return "neither"
    return "policy" if answer.policy_score > answer.base_score else "base"


def _compares(stage: StageView) -> bool:
    """Whether a stage has a before/after comparison."""
    return any(row.base is not None for row in stage.rows)


def _split(made: Sequence[Panel]) -> tuple[list[Panel], list[Panel]]:
    """Panels that are always visible, and folded ones. If none is known, all are visible."""
    known = [panel for panel in made if panel.known]
    return (known, [panel for panel in made if not panel.known]) if known else (list(made), [])


def _falls(steps: Sequence[Step]) -> list[Fall]:
    """The bars of the stages that output or dropped records."""
    shown = [step for step in steps if step.went is not None or step.drops]
    widest = max((max(step.came or 0, (step.went or 0) + step.held_out + step.dropped) for step in shown), default=0)
    share = 100 / (widest or 1)
    return [
        Fall(
            step=step,
            out_share=share * (step.went or 0),
            held_out_share=share * step.held_out,
            parts=[(i % 5, reason, count, share * count) for i, (reason, count) in enumerate(step.drops)],
            lost_share=share * max(0, step.lost),
            licences=licences(step.stage.sources),
        )
        for step in shown
    ]


def _bound(run: RunView) -> list[tuple[str, list[str]]]:
    """Sources with binding terms, as text, each with the stages that they apply to."""
    found: dict[str, list[str]] = {}
    for stage in run.stages:
        for words in dict.fromkeys(in_words(source) for source in stage.sources if source.inherit):
            found.setdefault(words, []).append(stage.name)
    return list(found.items())


def _numerics(run: RunView) -> list[tuple[Mapping[str, object], list[str]]]:
    """Each environment and the names of the stages that ran in it."""
    found: list[tuple[Mapping[str, object], list[str]]] = []
    for stage in run.stages:
        if not stage.numerics:
            continue
        for known, names in found:
            if known == stage.numerics:
                names.append(stage.name)
                break
        else:
            found.append((stage.numerics, [stage.name]))
    return found
