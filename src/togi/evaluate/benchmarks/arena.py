"""The table of an arena: win rates against the baseline from battles, also with length and style control."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from togi.core.errors import InputError, StageError
from togi.evaluate.arena import Arena, Battle, Draw, Rows, Standing, rank, with_leaks
from togi.evaluate.arena_files import length_controlled
from togi.evaluate.arena_style import Control, StyleControl, Styles, rank_controlled
from togi.evaluate.benchmarks.orders import AGREE, agreement
from togi.evaluate.benchmarks.table import Cell, Cells, Part, Plot, Table
from togi.evaluate.markdown import Style
from togi.evaluate.statistics import Bootstrap
from togi.evaluate.table import Metric

WIN = Metric(
    name="win rate", higher_is_better=True, share=True,
    note="chance to win against the baseline (Bradley-Terry; a clear win counts three times, a tie half); intervals "
    "resample questions with all their games",
)  # fmt: skip
ELO = Metric(name="Elo", higher_is_better=True, note="1000 for the baseline")
TOKENS = Metric(
    name="mean tokens", least=0.0, note="by the model's own tokenizer; published tables count with tiktoken"
)
LENGTH = Metric(
    name="win rate, length-controlled", higher_is_better=True, share=True, note="Ru-Arena's weights: a win with a "
    "longer answer counts less, a win with a shorter one more",
)  # fmt: skip
STYLE = Metric(
    name="win rate, style-controlled", higher_is_better=True, share=True, note="arena-hard's regression on style"
)  # fmt: skip
UNLEAKED = Metric(
    name="win rate, unleaked", higher_is_better=True, share=True, note="on questions that neither side was trained on"
)  # fmt: skip
GAMES = tuple(Metric(name=name) for name in ("rows won", "rows tied", "rows lost", "questions"))
ROUNDS_PUBLISHED = 100
SEEDS = 2**32  # number of seeds of the generator that published tables use


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """The games of an arena: battles, the style of each model's answer to each question, rules and controls, and the
    questions that models were trained on, by model. `agreed` lists, for each model's questions with a winner in both
    games, whether it is the same one."""

    rows: Rows
    baseline: str
    styles: Styles
    rules: str = "v0.1"
    length_control: bool = False
    style_control: Control | None = None
    leaked: Mapping[str, Sequence[str]] = field(default_factory=dict)
    agreed: Mapping[str, Sequence[bool]] = field(default_factory=dict)


def arena_table(name: str, played: Played, questions: Sequence[str], bootstrap: Bootstrap) -> Table:
    """The table of all models and the baseline. Raises InputError if no battle is left."""
    found = _ranked(played, bootstrap)
    more = _controlled(played, bootstrap)
    columns = [WIN, ELO, TOKENS, *(column for column, _ in more), *([UNLEAKED] if played.leaked else [])]
    cells: Cells = {
        model: {
            WIN.name: _rate(one, model == played.baseline),
            ELO.name: Cell(value=one.elo, n=one.n),
            TOKENS.name: _tokens(played.styles.get(model, {}), questions),
            **{column.name: _under(arena, model, played.baseline, one.n) for column, arena in more},
            **({UNLEAKED.name: _share(one.unleaked, one.n)} if played.leaked else {}),
        }
        for model, one in found.standings.items()
    }
    return Table(
        benchmark=name,
        columns=columns,
        cells=cells,
        rows=len(played.rows.battles),
        baseline=played.baseline,
        parts=[_games(found, played, bootstrap.level), _published(played, bootstrap)],
        plots=[Plot(kind="leaderboard", columns=(WIN.name,))],
        items=questions,
        values={model: {WIN.name: _by_question(played, model, questions)} for model in found.standings},
        level=bootstrap.level,
    )


def _ranked(played: Played, bootstrap: Bootstrap) -> Arena:
    found = _plain(played.rows, played.baseline, bootstrap)
    return with_leaks(found, played.rows, played.leaked) if played.leaked else found


def _plain(rows: Rows, baseline: str, bootstrap: Bootstrap) -> Arena:
    seed = bootstrap.seed % SEEDS
    return rank(rows, baseline=baseline, rounds=bootstrap.resamples, seed=seed, level=bootstrap.level)


def _controlled(played: Played, bootstrap: Bootstrap) -> list[tuple[Metric, Arena | str]]:
    """The leaderboards under the requested controls; the reason if one cannot be computed."""
    made: list[tuple[Metric, Arena | str]] = []
    if played.length_control:
        made.append((LENGTH, _or_reason(lambda: _by_length(played, bootstrap))))
    if played.style_control is not None:
        made.append((STYLE, _or_reason(lambda: _by_style(played, bootstrap))))
    return made


def _or_reason(make: Callable[[], Arena]) -> Arena | str:
    """Returns the error as text: with few battles a control may be undetermined, but other figures remain valid."""
    try:
        return make()
    except (InputError, StageError) as error:
        return str(error)


def _by_length(played: Played, bootstrap: Bootstrap) -> Arena:
    lengths = {model: {name: style.tokens for name, style in own.items()} for model, own in played.styles.items()}
    rows = length_controlled(played.rows, lengths, played.baseline)
    return rank(
        rows, baseline=played.baseline, rounds=bootstrap.resamples, seed=bootstrap.seed % SEEDS, level=bootstrap.level
    )


def _by_style(played: Played, bootstrap: Bootstrap) -> Arena:
    assert played.style_control is not None
    rules = "v2" if played.rules == "v2" else "v0.1"
    control = StyleControl(control=played.style_control, rules=rules, styles=played.styles)
    draw = Draw(rounds=bootstrap.resamples, seed=bootstrap.seed % SEEDS, level=bootstrap.level)
    return rank_controlled(played.rows, control, draw, baseline=played.baseline)


def _under(found: Arena | str, model: str, baseline: str, n: int) -> Cell:
    """The win rate of a model under a control."""
    return Cell(n=n, note=found) if isinstance(found, str) else _rate(found.standings[model], model == baseline)


def _rate(one: Standing, baseline: bool) -> Cell:
    """The win rate of a model. The baseline's is 50 % by definition, without an interval."""
    if baseline or one.low is None or one.high is None:
        return _share(one.win_rate, one.n)
    found = _share(one.win_rate, one.n)
    return replace(found, low=one.low / 100, high=one.high / 100)


def _share(percent: float | None, n: int) -> Cell:
    return Cell(value=None if percent is None else percent / 100, n=n)


def _tokens(own: Mapping[str, Style], questions: Sequence[str]) -> Cell:
    """The mean over all questions; a missing answer counts as 0, as in Ru-Arena. Empty if a server reports no
    counts."""
    counts = [style.tokens for style in own.values()]
    if not any(counts):
        return Cell(n=len(counts))
    return Cell(value=sum(counts) / len(questions), n=len(questions))


def _games(found: Arena, played: Played, level: float) -> Part:
    cells = {
        model: {
            column.name: Cell(value=None if number is None else float(number), n=one.n)
            for column, number in zip(GAMES, (one.wins, one.ties, one.losses, one.questions), strict=True)
        }
        | {AGREE.name: agreement(played.agreed.get(model, ()), level)}
        for model, one in found.standings.items()
    }
    columns = [*GAMES, AGREE]
    return Part(title="games", columns=columns, cells=cells, note="rows of battles; a clear win is three rows")


def _published(played: Played, bootstrap: Bootstrap) -> Part:
    """Intervals computed as in published tables: rows are drawn, and plain percentiles used."""
    by, level = ("model", 0.9) if played.rules == "v2" else ("row", 0.95)
    found = rank(
        played.rows, baseline=played.baseline, by=by, rounds=ROUNDS_PUBLISHED, seed=bootstrap.seed % SEEDS, level=level
    )
    cells = {model: {WIN.name: _rate(one, model == played.baseline)} for model, one in found.standings.items()}
    note = (
        f"{ROUNDS_PUBLISHED} draws of {'the rows of each model' if by == 'model' else 'rows of all models'}, "
        f"{100 * level:.0f} % percentiles, as in published tables, for comparison with them; games of one question "
        "depend on each other, so these intervals are too narrow"
    )
    return Part(title="intervals as published", columns=[WIN], cells=cells, note=note)


def _by_question(played: Played, model: str, questions: Sequence[str]) -> list[float | None]:
    """The share of each question's rows that a model won, from 0 to 1; one half for the baseline on judged
    questions."""
    won: dict[str, list[float]] = {}
    for battle in played.rows.battles:
        if model == played.baseline:
            won[str(battle.question)] = [0.5]
        elif model in (battle.model_a, battle.model_b):
            won.setdefault(str(battle.question), []).append(_of(battle, model))
    return [sum(own) / len(own) if (own := won.get(name)) else None for name in questions]


def _of(battle: Battle, model: str) -> float:
    return battle.share if battle.model_a == model else 1 - battle.share


def need_battles(rows: Rows) -> None:
    """Raises InputError if no battle is left."""
    if not rows.battles:
        told = ", ".join(f"{count:,} {reason}" for reason, count in rows.dropped.items()) or "no game was judged"
        raise InputError(f"no battle is left: {told}; see the judge's replies in the stage's folder")
