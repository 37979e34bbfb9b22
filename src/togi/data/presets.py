"""Presets for reading the rows of well-known public data sets, by the set's id on the hub.

A preset names the columns that it reads, and converts a row to togi's column names. If the publisher does not show the
columns, `told` is False and they are our reading. Licences and terms are short versions of the publishers' words; read
the full texts before you use a set.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from togi.data.ranked_trees import tree_rows, trees_of
from togi.data.reward_bench import FIRST, SECOND, first_row, second_row, second_rows
from togi.data.values import BadRow, LeftOut, blank, kind_of
from togi.text.grounded import ROLE, SYSTEM

Row = Mapping[str, Any]
TURNS = "turns"  # a column that presets of conversations add: the number of user turns
REASONS = ("tie", "several_turns", "filtered", "not_ranked")
"""Reasons for which a valid row is left out: neither answer won; the sides answer different histories; `where`; a tree
without two answers of different ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A public set. `hub` is its id on the hub (empty: it is distributed elsewhere, and `path` names the file), `split`
    its name for the training rows; a `gated` set requires consent first. `read(row, kind)` returns the row under togi's
    names, from the columns `needs`. Before that, `gather(rows)` joins several rows to one if a row is only a part, and
    `spread(row, kind)` makes several rows of one."""

    needs: Sequence[str]
    read: Callable[[Row, str], Row]
    spread: Callable[[Row, str], Sequence[Row]] | None = None
    gather: Callable[[Iterable[Any]], Iterator[Any]] | None = None
    hub: str = ""
    split: str = "train"
    licence: str = ""
    terms: str | None = None
    inherit: bool = False
    told: bool = True
    gated: bool = False
    about: str = ""


def gated(hub: str) -> str:
    """Returns a hint for the user if a hub data set is known to be gated, else an empty string."""
    if any(preset.gated and preset.hub == hub for preset in PRESETS.values()):
        return ". It is gated: accept its terms on its page, and set HF_TOKEN"
    return ""


def preset_row(name: str, row: Row, kind: str) -> dict[str, Any]:
    """A row under togi's names. Columns that the preset does not read stay; they become FILE.NAME if togi would read
    them.

    Raises BadRow for a row without the preset's columns, LeftOut for one that the preset leaves out.
    """
    _check_columns(name, row)
    preset = PRESETS[name]
    named = dict(preset.read(row, kind))
    rest = {column: value for column, value in row.items() if column not in (*preset.needs, *named)}
    return named | {(f"file.{column}" if column in READ else column): value for column, value in rest.items()}


def _check_columns(name: str, row: Row) -> None:
    preset = PRESETS[name]
    missing = [column for column in preset.needs if column not in row]
    if missing:
        reading = "" if preset.told else " (the publisher does not show them; this is our reading)"
        raise BadRow(
            "missing_column",
            f"preset {name} reads the columns {', '.join(preset.needs)}{reading}; the row has {', '.join(row)}. "
            "Without the preset, map the columns with `columns: {our name: the file's name}`",
        )


def spread_row(name: str | None, row: Row, kind: str) -> Sequence[Row]:
    """The rows contained in a row of the preset, usually only the row itself. Raises BadRow like `preset_row`, and
    LeftOut if there are none."""
    spread = None if name is None else PRESETS[name].spread
    if name is None or spread is None:
        return [row]
    _check_columns(name, row)
    found = spread(row, kind)
    if not found:
        raise LeftOut("not_ranked")
    return found


def known_preset(name: str) -> str:
    """Returns `name`. Raises ValueError for an unknown preset."""
    if name not in PRESETS:
        close = get_close_matches(name, PRESETS, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"no preset is called {name!r}; {hint}(allowed: {', '.join(PRESETS)})")
    return name


READ = (
    *("messages", "conversations", "conversation", "prompt", "question", "instruction", "query", "input"),
    *("completion", "answer", "output", "response", "chosen", "rejected", "text", "system", "system_prompt"),
    *("label", "kto_tag", "mask", "margin", "tools", "model", "reference", "scores"),
)
"""Columns that togi reads if a row has them."""


# --- readers ----------------------------------------------------------------------------------------------------------


def _renaming(**columns: str) -> Callable[[Row, str], Row]:
    """Maps togi's column names to the file's."""
    return lambda row, kind: {ours: row[theirs] for ours, theirs in columns.items()}


def _as_it_is(*columns: str) -> Callable[[Row, str], Row]:
    return _renaming(**{column: column for column in columns})


def _conversation(column: str) -> Callable[[Row, str], Row]:
    """A list of turns, with the number of user turns."""

    def read(row: Row, kind: str) -> Row:
        return {column: row[column], TURNS: _users(_turns(row[column], column))}

    return read


def _turns(value: Any, column: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise BadRow("wrong_type", f"column {column!r}: found {kind_of(value)}, wanted a list of turns")
    return value


def _users(turns: Sequence[Mapping[str, Any]]) -> int:
    return sum(str(turn.get("role", turn.get("from"))).lower() in ("user", "human") for turn in turns)


def _grounded(row: Row, kind: str) -> Row:
    """A conversation that begins with documents gets the system prompt with which a grounded model is asked, unless it
    has one."""
    read = _conversation("conversation")(row, kind)
    roles = [str(turn.get("role", turn.get("from"))).strip().lower() for turn in row["conversation"]]
    return {**read, "system": SYSTEM} if roles[0] == ROLE and "system" not in roles else read


def _helpsteer(row: Row, kind: str) -> Row:
    """HelpSteer3: `overall_preference` ranges from -3 (the first is much better) to 3 (the second is much better)."""
    context = _turns(row["context"], "context")
    shared: dict[str, Any] = {TURNS: _users(context)}
    if kind != "pairs":
        return {**shared, "messages": context}
    value = row["overall_preference"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow("wrong_type", f"column 'overall_preference': found {kind_of(value)}, wanted a number from -3 to 3")
    if value == 0:
        raise LeftOut("tie")
    sides = ("response1", "response2") if value < 0 else ("response2", "response1")
    return {**shared, "prompt": context, "chosen": row[sides[0]], "rejected": row[sides[1]], "margin": abs(value)}


def _arena(row: Row, kind: str) -> Row:
    """Two models answer the same user, who votes for the better one; ties of all kinds are left out."""
    one, other = (_spoken(row[column], column) for column in ("conversation_a", "conversation_b"))
    if kind != "pairs":
        return {"messages": one[: _first_answer(one)], TURNS: _users(one)}
    winner = str(row["winner"]).strip()
    if winner.startswith("tie"):
        raise LeftOut("tie")
    if winner not in ("model_a", "model_b"):
        raise BadRow("wrong_type", f"column 'winner': found {winner!r}, wanted model_a, model_b or a tie")
    if _users(one) != 1:
        raise LeftOut("several_turns")
    good, bad = (one, other) if winner == "model_a" else (other, one)
    return {"chosen": good, "rejected": bad, TURNS: 1}


def _spoken(value: Any, column: str) -> list[dict[str, Any]]:
    """Only the turns of user and assistant."""
    turns = [turn for turn in _turns(value, column) if turn.get("role") in ("user", "assistant")]
    return [{"role": turn["role"], "content": turn.get("content")} for turn in turns]


def _first_answer(turns: Sequence[Mapping[str, Any]]) -> int:
    return next((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))


def _first_of(*columns: str) -> Callable[[Row, str], Row]:
    """The question from the first of some columns that contains text."""

    def read(row: Row, kind: str) -> Row:
        found = [column for column in columns if isinstance(row.get(column), str) and not blank(row[column])]
        if not found:
            raise BadRow("missing_column", f"none of {', '.join(columns)} holds text; the row has {', '.join(row)}")
        answer = row.get("output")
        return {"prompt": row[found[0]]} | ({"completion": answer} if isinstance(answer, str) else {})

    return read


def _pandalm(row: Row, kind: str) -> Row:
    """PandaLM's test set: three annotators vote for the better response (1, 2, or 0 for neither); the majority
    counts."""
    asked = {"instruction": row["instruction"], "input": row["input"]}
    if kind != "pairs":
        return asked
    votes = [str(row[name]).strip() for name in ANNOTATORS]
    if any(vote not in ("0", "1", "2") for vote in votes):
        raise BadRow("wrong_type", f"columns {', '.join(ANNOTATORS)}: found {', '.join(votes)}, wanted 0, 1 or 2")
    majority = max(votes, key=votes.count)
    if majority == "0" or votes.count(majority) < 2:
        raise LeftOut("tie")
    sides = ("response1", "response2") if majority == "1" else ("response2", "response1")
    return {**asked, "chosen": row[sides[0]], "rejected": row[sides[1]]}


# --- the sets ---------------------------------------------------------------------------------------------------------

SAFETY = "for the safety of language models only; not to be redistributed; derived data names it and keeps these terms"

ANNOTATORS = ("annotator1", "annotator2", "annotator3")

PRESETS: dict[str, Preset] = {
    "nvidia/HelpSteer3": Preset(
        hub="nvidia/HelpSteer3/preference",
        needs=("context", "response1", "response2", "overall_preference"),
        read=_helpsteer,
        licence="CC-BY-4.0",
        about="pairs by the sign of overall_preference, whose size is the margin; 0 is a tie",
    ),
    "llm-jp/llm-jp-chatbot-arena-conversations": Preset(
        hub="llm-jp/llm-jp-chatbot-arena-conversations",
        needs=("winner", "conversation_a", "conversation_b"),
        read=_arena,
        licence="CC-BY-4.0 (prompts)",
        terms="answers are under the licences of the models that wrote them",
        about="pairs of one turn; ties of all kinds are left out",
    ),
    "lmsys/chatbot_arena_conversations": Preset(
        hub="lmsys/chatbot_arena_conversations",
        needs=("winner", "conversation_a", "conversation_b"),
        read=_arena,
        licence="CC-BY-4.0 (prompts), CC-BY-NC-4.0 (answers)",
        gated=True,
        about="pairs of one turn; ties of all kinds are left out",
    ),
    "llm-jp/AnswerCarefully": Preset(
        hub="llm-jp/AnswerCarefully/v2.0",
        needs=("text", "output"),
        read=_renaming(prompt="text", completion="output"),
        split="validation",
        terms=SAFETY,
        inherit=True,
        gated=True,
        about="its training rows are the split validation",
    ),
    "llm-jp/ac-self-inst": Preset(
        hub="llm-jp/ac-self-inst",
        needs=("prompt", "chosen", "rejected"),
        read=_as_it_is("prompt", "chosen", "rejected"),
        terms=SAFETY,
        inherit=True,
        about="preference pairs",
    ),
    "Vikhrmodels/GrandMaster-PRO-MAX": Preset(
        hub="Vikhrmodels/GrandMaster-PRO-MAX",
        needs=("conversation",),
        read=_conversation("conversation"),
        licence="Apache-2.0",
    ),
    "Vikhrmodels/Grounded-RAG-RU-v2": Preset(
        hub="Vikhrmodels/Grounded-RAG-RU-v2",
        needs=("conversation",),
        read=_grounded,
        licence="Apache-2.0",
        about="turns of the role documents before the question, and two of the assistant after it; the system prompt "
        "of the card is put first, as in training and inference",
    ),
    "TeamDelta/bare-ja-v0.1": Preset(
        hub="TeamDelta/bare-ja-v0.1",
        needs=(),
        read=_first_of("prompt", "instruction", "input", "question", "text"),
        told=False,
        about="the question in the first of prompt, instruction, input, question and text that holds one",
    ),
    "llm-jp/magpie-sft-v1.0": Preset(
        hub="llm-jp/magpie-sft-v1.0",
        needs=("conversations",),
        read=_conversation("conversations"),
        licence="Apache-2.0",
    ),
    "kanhatakeyama/AutoMultiTurnByCalm3-22B": Preset(
        hub="kanhatakeyama/AutoMultiTurnByCalm3-22B",
        needs=("q1", "a1"),
        read=_renaming(prompt="q1", completion="a1"),
        about="the first question and answer, as is common for this set; the second stays in extra",
    ),
    "kanhatakeyama/ramdom-to-fixed-multiturn-Calm3": Preset(
        hub="kanhatakeyama/ramdom-to-fixed-multiturn-Calm3",
        needs=("messages",),
        read=_conversation("messages"),
        split="20240806filtered",
        about="its training rows are the split 20240806filtered",
    ),
    "llm-jp/wizardlm8x22b-logical-math-coding-sft-ja": Preset(
        hub="llm-jp/wizardlm8x22b-logical-math-coding-sft-ja",
        needs=("messages",),
        read=_conversation("messages"),
    ),
    "llm-jp/Synthetic-JP-EN-Coding-Dataset": Preset(
        hub="llm-jp/Synthetic-JP-EN-Coding-Dataset",
        needs=("messages",),
        read=_conversation("messages"),
        licence="Apache-2.0",
    ),
    "llm-jp/extraction-wiki-ja": Preset(
        hub="llm-jp/extraction-wiki-ja/v0.3",
        needs=("messages",),
        read=_conversation("messages"),
        licence="Apache-2.0",
        told=False,
    ),
    "nvidia/Daring-Anteater": Preset(
        hub="nvidia/Daring-Anteater",
        needs=("system", "mask", "conversations"),
        read=_as_it_is("system", "mask", "conversations"),
        licence="CC-BY-4.0",
        about="turns of the role in mask carry no loss",
    ),
    "ichikara-instruction": Preset(
        needs=("text", "output"),
        read=_renaming(prompt="text", completion="output"),
        licence="CC-BY-NC-SA",
        told=False,
        about="distributed by its makers: set path to the file; ichikara-instruction-format has the same columns",
    ),
    "jaster": Preset(
        needs=("instruction", "input", "output"),
        read=_as_it_is("instruction", "input", "output"),
        told=False,
        about="written by llm-jp-eval from many sets, each under its own licence: set path to the files",
    ),
    "allenai/reward-bench": Preset(
        hub="allenai/reward-bench",
        needs=FIRST,
        read=first_row,
        split="filtered",
        licence="ODC-BY",
        about="pairs; section is the section of the subset: `by: section` gives accuracies by section. RewardBench's "
        "own table gives math-prm as much weight as the rest of Reasoning; a mean over rows does not",
    ),
    "allenai/reward-bench-2": Preset(
        hub="allenai/reward-bench-2",
        needs=SECOND,
        read=second_row,
        spread=second_rows,
        split="test",
        licence="ODC-BY",
        about="pairs of the right answer with each wrong one; `best_of: id, by: subset` of reward_accuracy joins them "
        "to the published scores of all six subsets. A row of Ties becomes the fewest pairs that show each answer",
    ),
    "Anthropic/hh-rlhf": Preset(
        hub="Anthropic/hh-rlhf/helpful-base",
        needs=("chosen", "rejected"),
        read=_as_it_is("chosen", "rejected"),
        licence="MIT",
        about="transcripts of both sides; other folders with hub, such as `hub: Anthropic/hh-rlhf/harmless-base`",
    ),
    "OpenAssistant/oasst1": Preset(
        needs=(),
        read=lambda row, kind: row,
        gather=trees_of,
        spread=tree_rows,
        hub="OpenAssistant/oasst1",
        licence="Apache-2.0",
        about="its rows are messages; path also accepts files of trees (...trees.jsonl.gz): pairs of any two "
        "answers to one message with different ranks; the margin is the difference of the ranks",
    ),
    "WeOpenML/PandaLM": Preset(
        needs=("instruction", "input", "response1", "response2", *ANNOTATORS),
        read=_pandalm,
        licence="Apache-2.0",
        about="its test set (testset-v1.json), read with path: pairs by the majority of three annotators; ties and "
        "three different votes are left out. 59 of its 999 rows have an empty or non-text response: set on_bad_row: "
        "drop",
    ),
}
"""Presets by the id of the set."""
