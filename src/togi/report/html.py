"""Renders a run as one self-contained HTML file, without scripts, fonts or requests."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from togi.report import formatting
from togi.report.curves import Panel, panels
from togi.report.plot import whisker
from togi.report.stage_graph import rail
from togi.report.view import AnswerView, RunView, StageView

MOST_ANSWERS = 48
OPEN_ANSWERS = 6
OPEN_SAMPLES = 2
ORDER = ("train.grpo", "train.smpo", "train.dpo", "train.sft", "train.pretrain")
ANSWER_CHARACTERS = 4000
TOKEN = re.compile(r"(<\|[^<>|\s]{1,40}\|>|<(?:start|end)_of_turn>|</?s>)")
# Characters that HTML cannot hold, or that change the direction of text, are shown by their codes.
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}
CONTROLS |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fall:
    """One bar of the waterfall; shares are per cent of the widest bar."""

    stage: StageView
    out_share: float
    held_out_share: float
    parts: Sequence[tuple[int, str, int, float]]  # (colour, reason, count, share)
    unaccounted: int
    unaccounted_share: float


def render_report(run: RunView) -> str:
    """The report of `run` as an HTML document."""
    curves = [(stage, panels(stage)) for stage in sorted(run.stages, key=_place) if stage.metrics]
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            rail=rail(run.stages),
            longest=max((stage.seconds or 0.0 for stage in run.stages), default=0.0) or 1.0,
            falls=_waterfall(run.stages),
            curves=[(stage, *_split(made)) for stage, made in curves if made],
            tables=sorted((stage for stage in run.stages if stage.rows), key=lambda stage: not _compares(stage)),
            compares=any(_compares(stage) for stage in run.stages),
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


def _place(stage: StageView) -> int:
    """Where a stage's curves stand: the policy's first, those of what prepared it later, others last."""
    return ORDER.index(stage.type) if stage.type in ORDER else len(ORDER)


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
        whisker=whisker,
    )
    environment.globals.update(outcome=formatting.outcome, better=_better)
    return environment


def answer_html(text: str) -> Markup:
    """An answer, fully escaped, with text that looks like template tokens marked."""
    left_out = len(text) - ANSWER_CHARACTERS
    parts = [
        Markup("<b class=tok>{}</b>").format(part) if i % 2 else escape(part)
        for i, part in enumerate(TOKEN.split(text[:ANSWER_CHARACTERS]))
    ]
    if left_out > 0:
        parts.append(Markup("<i class=cut>… {} more characters</i>").format(f"{left_out:,}"))
    return Markup("").join(parts)


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


def _waterfall(stages: Sequence[StageView]) -> list[Fall]:
    counted = [stage for stage in stages if stage.counts_out is not None or stage.drops]
    widest = max((max(stage.counts_in or 0, _width(stage)) for stage in counted), default=0) or 1
    falls = []
    for stage in counted:
        ordered = sorted(stage.drops.items(), key=lambda item: -item[1])
        lost = formatting.unaccounted(stage)
        falls.append(
            Fall(
                stage=stage,
                out_share=100 * (stage.counts_out or 0) / widest,
                held_out_share=100 * stage.held_out / widest,
                parts=[(i % 5, reason, count, 100 * count / widest) for i, (reason, count) in enumerate(ordered)],
                unaccounted=lost,
                unaccounted_share=100 * lost / widest,
            )
        )
    return falls


def _width(stage: StageView) -> int:
    return (stage.counts_out or 0) + stage.held_out + sum(stage.drops.values())


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
