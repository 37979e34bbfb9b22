"""arena-hard's other file layouts: judgments (v0.1, shared by Ru-Arena, and v2) and model answers."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import expit

from togi.core.errors import InputError
from togi.core.files import write_text
from togi.evaluate.arena import SELF, Battle, Rows
from togi.evaluate.markdown import PARTS, Style, markup_counts, style_of
from togi.evaluate.rows import Read, rows_of, shown

Rules = Literal["v0.1", "v2"]
NO_VERDICT, UNKNOWN_LABEL, OTHER_BASELINE = "no_verdict", "unknown_label", "other_baseline"
CLEAR = 3  # rows of a clear win
LABELS = {"A>>B": (1.0, CLEAR), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, CLEAR)}
"""The share that answer A won, and the number of rows that it counts for."""
TURNED = {"B<<A": "A>>B", "B<A": "A>B", "B=A": "A=B", "A<B": "B>A", "A<<B": "B>>A"}
"""Labels that only v2 reads, and what they mean."""


def files_in(path: Path) -> list[Path]:
    """The file itself, or the .jsonl and .jsonl.gz files of a folder, sorted by name. InputError if there are none."""
    found = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")]) if path.is_dir() else [path]
    if not found:
        raise InputError(f"{path}: the folder has no .jsonl file")
    return found


def read_judgments(path: Path, rules: Rules, baseline: str | None) -> Rows:
    """Battles from judgments: two games per question, first with the baseline as A, then with the model as A; a clear
    win gives three rows.

    `v0.1` (and Ru-Arena) drops a game without one of the five labels; `v2` drops the question, and also reads labels
    such as A<B. Layouts: question_id, model, games (v0.1, which needs `baseline`); uid, model, baseline, games (v2). In
    v2 each question names its baseline: those with another one than `baseline` are dropped as `other_baseline`.
    InputError if there are several baselines and none is chosen, or none of them is the chosen one.
    """
    if rules == "v0.1" and baseline is None:
        raise InputError(f"{path}: judgments in the v0.1 layout do not name the baseline; set --baseline MODEL")
    found, met = Rows(), Counter[str]()
    columns = ("question_id", "model", "games") if rules == "v0.1" else ("uid", "model", "baseline", "games")
    for file in files_in(path):
        for row in rows_of(file, columns):
            own = row.text("baseline") if rules == "v2" else baseline or ""
            met[own] += 1
            if baseline in (None, own):
                _judged(found, row, rules, own, row.text(columns[0]))
            else:
                found.dropped[OTHER_BASELINE] += 2
    _check_baselines(path, met, baseline)
    return found


def _check_baselines(path: Path, met: Counter[str], chosen: str | None) -> None:
    """Raises InputError unless the judgments leave one baseline: win rates against different ones are different
    figures."""
    told = ", ".join(f"{name} ({count:,} judgments)" for name, count in met.most_common(8))
    if chosen is None and len(met) > 1:
        raise InputError(
            f"{path}: the judgments name {len(met)} baselines: {told}; each has a leaderboard of its own: set "
            "--baseline to one of them"
        )
    if chosen is not None and met and chosen not in met:
        raise InputError(f"{path}: --baseline {chosen}: no judgment names it as baseline; found {told}")


def _judged(found: Rows, row: Read, rules: Rules, baseline: str, question: str) -> None:
    model, scores = row.text("model"), _scores(row)
    if model == baseline:
        found.dropped[SELF] += 2
        found.alone[model] += 2
        return
    if row.values.get("judge") in (model, baseline):
        found.self_judged[str(row.values["judge"])] += 2
    labels = [meant(score, rules) for score in scores]
    if rules == "v2" and not all(labels):
        found.dropped[NO_VERDICT] += 2
        return
    for game, label in enumerate(labels):
        if not label:
            found.dropped[NO_VERDICT] += 1
        elif label not in LABELS:
            found.dropped[UNKNOWN_LABEL] += 1
        else:
            share, times = LABELS[label]
            battle = Battle(model_a=baseline, model_b=model, share=share if game == 0 else 1 - share, question=question)
            found.battles += [battle] * times


def meant(label: str | None, rules: Rules) -> str | None:
    """What a judge's label means by these rules: v2 turns reversed ones, such as A<B, around."""
    return TURNED.get(label, label) if rules == "v2" and label else label


def share_of(label: str | None, rules: Rules) -> float:
    """The share of a game that answer A won by its label; one half for a tie, and for a label that the rules drop."""
    return LABELS.get(meant(label, rules) or "", (0.5, 1))[0]


def _scores(row: Read) -> list[str | None]:
    games = row.values["games"]
    if not isinstance(games, list) or len(games) != 2:
        raise InputError(f"{row.where}: games: found {shown(games)}; expected two games, each with a score")
    scores = [game.get("score") if isinstance(game, dict) else None for game in games]
    for score in scores:
        if score is not None and not isinstance(score, str):
            raise InputError(f"{row.where}: games: score: found {shown(score)}; expected a label such as A>B, or null")
    return scores


def write_battles(path: Path, rows: Rows) -> None:
    """Writes battles in the public layout, one row each. The write is atomic."""
    winners = {1.0: "model_a", 0.0: "model_b", 0.5: "tie"}
    weighted = any(battle.weight != 1.0 for battle in rows.battles)
    lines = []
    for battle in rows.battles:
        value: dict[str, Any] = {"question_id": battle.question, "model_a": battle.model_a, "model_b": battle.model_b}
        value["winner"] = winners[battle.share]
        if weighted:
            value["answer_len_delta"] = battle.weight / 2
        lines.append(json.dumps(value, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


# --- lengths ----------------------------------------------------------------------------------------------------------

Lengths = Mapping[str, Mapping[str, float]]
"""Tokens of each model's answer to each question."""


def read_lengths(path: Path) -> Lengths:
    """The stored token counts of answers: `token_len` of the first choice's last turn (v0.1), or of `metadata` (v2)."""
    found: dict[str, dict[str, float]] = {}
    for model, question, row in answers_in(path):
        found.setdefault(model, {})[question] = _tokens(row)
    return found


def read_styles(path: Path) -> dict[str, dict[str, Style]]:
    """The length and markup of answers, by model and question: the counts stored in a row (`conv_metadata` of v0.1,
    `metadata` of v2), else counted in its text. InputError for a row without tokens, or without both counts and
    text."""
    found: dict[str, dict[str, Style]] = {}
    for model, question, row in answers_in(path):
        found.setdefault(model, {})[question] = _style(row)
    return found


def answers_in(path: Path) -> Iterator[tuple[str, str, Read]]:
    """(model, question, row) of a file or folder of answers, in either layout."""
    for file in files_in(path):
        for row in rows_of(file, ()):
            question = "question_id" if "question_id" in row.values else "uid"
            model = "model_id" if "model_id" in row.values else "model"
            for column in (question, model):
                if column not in row.values:
                    names = ", ".join(list(row.values)[:8])
                    raise InputError(
                        f"{row.where}: no column {column!r}; found {names}; a row of answers names question and model"
                    )
            yield row.text(model), row.text(question), row


def answer_text(row: Read) -> str:
    """The last answer of a row. InputError if there is none."""
    try:
        if "messages" in row.values:
            content = row.values["messages"][-1]["content"]
            found = content["answer"] if isinstance(content, dict) else content
        else:
            found = row.values["choices"][0]["turns"][-1]["content"]
    except (KeyError, IndexError, TypeError):
        found = None
    if not isinstance(found, str):
        raise InputError(
            f"{row.where}: no answer; expected choices[0].turns[-1].content or messages[-1].content.answer"
        )
    return found


def _style(row: Read) -> Style:
    stored = row.values.get("conv_metadata") or row.values.get("metadata")
    tokens = _tokens(row)
    if not isinstance(stored, dict) or not all(part in stored for part in PARTS):
        return style_of(tokens, markup_counts(answer_text(row)))
    parts = {part: stored[part] if isinstance(stored[part], dict) else {"all": stored[part]} for part in PARTS}
    counts = {part: {name: row.checked(part, count, 0.0) for name, count in own.items()} for part, own in parts.items()}
    return style_of(tokens, counts)


def _tokens(row: Read) -> float:
    stored = [row.values[name] for name in ("metadata", "conv_metadata") if name in row.values]
    try:
        found = (stored[0] if stored else row.values["choices"][0]["turns"][-1])["token_len"]
    except (KeyError, IndexError, TypeError):
        found = None
    if found is None:
        raise InputError(f"{row.where}: no token count; expected choices[0].turns[-1].token_len or metadata.token_len")
    return row.checked("token_len", found, 0.0)


def mean_tokens(lengths: Lengths) -> dict[str, float]:
    """The mean over all questions that any model answered; a missing answer counts as 0, as in Ru-Arena."""
    questions = dict.fromkeys(question for own in lengths.values() for question in own)
    return {model: sum(own.values()) / len(questions) for model, own in lengths.items()}


def length_controlled(rows: Rows, lengths: Lengths, baseline: str) -> Rows:
    """Ru-Arena's length control: a game that the model won weighs 2 sigmoid((baseline's tokens - model's) / s), where s
    is the standard deviation (n - 1) of that difference over questions. Others weigh 1.

    InputError if a battle's model or question has no answer, or the length difference never varies.
    """
    base = _of(lengths, baseline)
    models = dict.fromkeys(name for b in rows.battles for name in (b.model_a, b.model_b) if name != baseline)
    weights = {model: _weights(base, _of(lengths, model), model) for model in models}
    return replace(rows, battles=[_weighed(battle, weights, baseline) for battle in rows.battles])


def _of(lengths: Lengths, model: str) -> Mapping[str, float]:
    if model not in lengths:
        raise InputError(f"answers: no answers by {model}; found {', '.join(list(lengths)[:12])}")
    return lengths[model]


def _weights(base: Mapping[str, float], own: Mapping[str, float], model: str) -> dict[str, float]:
    shared = [question for question in base if question in own]
    difference = np.array([base[question] - own[question] for question in shared])
    spread = float(difference.std(ddof=1)) if len(shared) > 1 else 0.0
    if spread == 0:
        raise InputError(
            f"length control: {model} and the baseline differ in length by the same number on all questions"
        )
    return dict(zip(shared, (2 * expit(difference / spread)).tolist(), strict=True))


def _weighed(battle: Battle, weights: Mapping[str, Mapping[str, float]], baseline: str) -> Battle:
    won = battle.share == (1.0 if battle.model_a != baseline else 0.0)
    model = battle.model_b if battle.model_a == baseline else battle.model_a
    if not won:
        return replace(battle, weight=1.0)
    if battle.question not in weights[model]:
        raise InputError(f"answers: question {battle.question}: no answer by {model} or by {baseline}")
    return replace(battle, weight=weights[model][str(battle.question)])


# --- leaks ------------------------------------------------------------------------------------------------------------


def read_leaked(path: Path) -> dict[str, list[str]]:
    """The questions that models were trained on: rows of model and question_id (or uid). InputError for other rows."""
    found: dict[str, list[str]] = {}
    for row in rows_of(path, ("model",)):
        question = "question_id" if "question_id" in row.values else "uid"
        if question not in row.values:
            raise InputError(f"{row.where}: no column 'question_id'; a row names model and question_id")
        found.setdefault(row.text("model"), []).append(row.text(question))
    return found
