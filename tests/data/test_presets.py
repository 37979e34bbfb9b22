"""Presets of public data sets, on made-up rows of the same shape."""

import json
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from togi.core.errors import InputError, RecipeError
from togi.core.records import Chat, Pair, Prompt
from togi.data import importing
from togi.data.importing import DataSpec, Imported, load_records
from togi.data.presets import PRESETS, READ, REASONS
from togi.data.shapes import SPOKEN
from togi.recipe.graph import build
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.stages.data.importing import Import
from togi.stages.data.importing_work import read
from togi.stages.table import STAGES
from togi.text.grounded import Shown, asked, asked_again, documents_text
from togi.text.template import TEMPLATES

ASK = {"role": "user", "content": "Why?"}
SAY = {"role": "assistant", "content": "So."}
NO = {"role": "assistant", "content": "No."}
ARENA = {"id": "1", "model_a": "m", "model_b": "n", "language": "Japanese", "turn": 1, "judge": "j"}
ARENA |= {"conversation_a": [ASK, SAY], "conversation_b": [ASK, NO], "winner": "model_b"}
HELP = {"domain": "general", "language": "japanese", "context": [ASK], "response1": "So.", "response2": "No."}
HELP |= {"overall_preference": -2, "individual_preference": [{"score": -2, "reasoning": "r"}]}
DOCUMENTS = {"role": "documents", "content": "[]"}
FOUND = {"role": "assistant", "content": '{"relevant_doc_ids": []}'}
NVIDIA = [{"from": "User", "value": "Why?"}, {"from": "Assistant", "value": "So."}]
SIDES = {"chosen": "So.", "rejected": "No."}


def message(text: str, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A message of an OpenAssistant tree."""
    role = "assistant" if "rank" in more else "prompter"
    return {"message_id": text, "text": text, "role": role, "lang": "en", "replies": list(replies), **more}


TREE = message("Why?", message("No.", rank=1), message("So.", rank=0))
PANDALM = {"idx": 0, "cmp_key": "a_b", "instruction": "Why?", "input": "", "response1": "No.", "response2": "So."}
PANDALM |= {"annotator1": 2, "annotator2": 2, "annotator3": 1}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "nvidia/HelpSteer3": ("pairs", HELP),
    "llm-jp/llm-jp-chatbot-arena-conversations": ("pairs", ARENA | {"annoy": True, "winner": "model_a"}),
    "lmsys/chatbot_arena_conversations": ("pairs", ARENA | {"question_id": "q", "anony": True, "winner": "model_a"}),
    "llm-jp/AnswerCarefully": ("chats", {"ID": "a", "text": "Why?", "output": "So."}),
    "llm-jp/ac-self-inst": ("pairs", {"prompt": "Why?", "chosen": "So.", "rejected": "No."}),
    "Vikhrmodels/GrandMaster-PRO-MAX": ("chats", {"conversation": [ASK, SAY], "cluster": 1, "prompt_lang": "ru"}),
    "Vikhrmodels/Grounded-RAG-RU-v2": ("chats", {"conversation": [DOCUMENTS, ASK, FOUND, SAY], "type": "ood"}),
    "TeamDelta/bare-ja-v0.1": ("prompts", {"id": 1, "input": "Why?", "output": "So.", "messages": [ASK, NO]}),
    "llm-jp/magpie-sft-v1.0": ("chats", {"id": "1", "conversations": [ASK, SAY]}),
    "kanhatakeyama/AutoMultiTurnByCalm3-22B": ("chats", {"q1": "Why?", "a1": "So.", "q2": "And?", "a2": "Well."}),
    "kanhatakeyama/ramdom-to-fixed-multiturn-Calm3": ("chats", {"messages": [ASK, SAY]}),
    "llm-jp/wizardlm8x22b-logical-math-coding-sft-ja": ("chats", {"messages": [ASK, SAY]}),
    "llm-jp/Synthetic-JP-EN-Coding-Dataset": ("chats", {"messages": [ASK, SAY]}),
    "llm-jp/extraction-wiki-ja": ("chats", {"messages": [ASK, SAY]}),
    "nvidia/Daring-Anteater": ("chats", {"system": "", "mask": "User", "conversations": NVIDIA}),
    "ichikara-instruction": ("chats", {"ID": "1", "text": "Why?", "output": "So."}),
    "allenai/reward-bench": (
        "pairs",
        {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "subset": "hep-go", "id": 1},
    ),
    "allenai/reward-bench-2": (
        "pairs",
        {"id": "1", "prompt": "Why?", "chosen": ["So."], "rejected": ["No."], "subset": "Math", "num_correct": 1},
    ),
    "Anthropic/hh-rlhf": ("pairs", {side: f"\n\nHuman: Why?\n\nAssistant: {text}" for side, text in SIDES.items()}),
    "OpenAssistant/oasst1": ("pairs", {"message_tree_id": "t", "prompt": TREE}),
    "WeOpenML/PandaLM": ("pairs", PANDALM),
    "jaster": ("chats", {"ID": "1", "instruction": "Why?", "input": "", "output": "So."}),
}


def load(folder: Path, kind: str, *rows: dict[str, Any], **spec: Any) -> Imported:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return load_records(DataSpec(path=folder / "rows.jsonl", **spec), kind)


@pytest.mark.parametrize("name", PRESETS)
def test_rows_of_every_preset_become_records(tmp_path: Path, name: str) -> None:
    kind, row = ROWS[name]
    (record,) = load(tmp_path, kind, row, preset=name).records
    if isinstance(record, Pair):
        assert [m.content for m in record.prompt] == ["Why?"]
        assert (record.chosen[-1].content, record.rejected[-1].content) == ("So.", "No.")
    elif isinstance(record, Chat):
        assert [m.content for m in record.messages if m.role == "user"] == ["Why?"]
        assert record.text == "So."
    (prompt,) = load(tmp_path, "prompts", row, preset=name).records
    assert isinstance(prompt, Prompt) and prompt.text == "Why?"


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.needs])
def test_another_file_is_told_with_the_columns_that_it_has(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"rows.jsonl:1: preset {name} reads the columns .*; the row has this, that"):
        load(tmp_path, "chats", {"this": 1, "that": 2}, preset=name)


def test_preferences_of_helpsteer_by_their_sign(tmp_path: Path) -> None:
    other = HELP | {"overall_preference": 3, "language": "english"}
    found = load(tmp_path, "pairs", HELP, other, HELP | {"overall_preference": 0}, preset="nvidia/HelpSteer3")
    pairs = [(p.chosen[0].content, p.margin) for p in found.records if isinstance(p, Pair)]
    assert pairs == [("So.", 2.0), ("No.", 3.0)]
    assert [drop.reason for drop in found.drops] == ["tie"]
    assert found.records[0].extra == {
        "domain": "general",
        "language": "japanese",
        "turns": 1,
        "individual_preference": HELP["individual_preference"],
    }


def test_the_rows_of_a_card_are_chosen_by_where(tmp_path: Path) -> None:
    long = HELP | {"context": [ASK, SAY, ASK]}
    where = {"language": ["japanese", "korean"], "turns": 1}
    found = load(tmp_path, "pairs", HELP, long, HELP | {"language": "english"}, preset="nvidia/HelpSteer3", where=where)
    assert len(found.records) == 1 and [drop.reason for drop in found.drops] == ["filtered", "filtered"]
    assert len(load(tmp_path, "prompts", {"question": "Why?", "n": 1}, where={"n": 1}).records) == 1
    with pytest.raises(InputError, match=r"no column 'turns' \(where: turns\); the row has question"):
        load(tmp_path, "prompts", {"question": "Why?"}, where={"turns": 1})


# --- human preferences ------------------------------------------------------------------------------------------------


def flat(tree: dict[str, Any], name: str, parent: str | None = None) -> list[dict[str, Any]]:
    """The messages of a tree, one row each, as the Hub stores them."""
    own = {key: value for key, value in tree.items() if key != "replies"}
    below = [row for reply in tree["replies"] for row in flat(reply, name, tree["message_id"])]
    return [{"rank": None, **own, "message_tree_id": name, "parent_id": parent}, *below]


def test_messages_a_row_are_the_trees_that_they_came_from(tmp_path: Path) -> None:
    later = message("And?", message("Then.", rank=1), message("Well.", rank=0))
    trees = [message("Why?", message("Good.", later, rank=0), message("Bad.", rank=2)), TREE | {"message_id": "u"}]
    nested = [{"message_tree_id": str(place), "prompt": tree} for place, tree in enumerate(trees)]
    rows = [row for place, tree in enumerate(trees) for row in flat(tree, str(place))]
    rows[1]["rank"] = 0.0  # a float, as pandas writes a column with nulls
    for kind in ("pairs", "chats", "prompts"):
        (tmp_path / kind).mkdir()
        wanted = load(tmp_path, kind, *nested, preset="OpenAssistant/oasst1").records
        assert load(tmp_path / kind, kind, *rows, preset="OpenAssistant/oasst1").records == wanted


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 1, 3, 2], r"rows.jsonl:4: tree a: its rows are not adjacent; sort them by message_tree_id"),
        ([1, 2], r"rows.jsonl:1: tree a: found 0 messages without parent_id; a tree has one"),
        ([0, 4], r"rows.jsonl:1: tree a: message gone, which lost answers, is missing"),
    ],
)
def test_messages_of_which_no_tree_can_be_made_are_told(tmp_path: Path, order: list[int], message: str) -> None:
    rows = [*flat(TREE, "a"), *flat(TREE, "b")[:1]]
    rows.append({**rows[1], "message_id": "lost", "parent_id": "gone"})
    with pytest.raises(InputError, match=message):
        load(tmp_path, "pairs", *[rows[place] for place in order], preset="OpenAssistant/oasst1")


def test_a_conversation_that_is_too_long_to_read_is_a_bad_row(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for place in range(1500):
        own = message(f"m{place}", rank=0) if place % 2 else message(f"m{place}")
        del own["replies"]
        rows.append({**own, "message_tree_id": "t", "parent_id": f"m{place - 1}" if place else None})
    for kind in ("pairs", "chats"):
        (tmp_path / kind).mkdir()
        with pytest.raises(InputError, match=r"rows.jsonl:1: a conversation of the tree has more than 500 messages"):
            load(tmp_path / kind, kind, *rows, preset="OpenAssistant/oasst1")
    (chat,) = load(tmp_path, "chats", *rows[:500], preset="OpenAssistant/oasst1").records
    assert isinstance(chat, Chat) and len(chat.messages) == 500


def test_any_two_answers_of_a_tree_with_different_ranks_are_a_pair(tmp_path: Path) -> None:
    later = message("And?", message("Then.", rank=1), message("Well.", rank=0), message("Gone.", rank=2, deleted=True))
    answers = [
        message("Good.", later, rank=0),
        message("Bad.", rank=2),
        message("Fair.", rank=1),
        message("Odd.", rank=1),
    ]
    tree = {"message_tree_id": "t", "prompt": message("Why?", *answers, message("New.", rank=None))}
    alone = {"message_tree_id": "u", "prompt": message("What?", message("It.", rank=0))}
    found = load(tmp_path, "pairs", tree, alone, preset="OpenAssistant/oasst1")
    pairs = [
        (each.chosen[0].content, each.rejected[0].content, each.margin)
        for each in found.records
        if isinstance(each, Pair)
    ]
    first = [
        ("Good.", "Fair.", 1),
        ("Good.", "Odd.", 1),
        ("Good.", "Bad.", 2),
        ("Fair.", "Bad.", 1),
        ("Odd.", "Bad.", 1),
    ]
    assert pairs == [*first, ("Well.", "Then.", 1)]
    assert [turn.content for turn in found.records[-1].prompt] == ["Why?", "Good.", "And?"]  # type: ignore[union-attr]
    assert [drop.reason for drop in found.drops] == ["not_ranked"]
    (chat, _) = load(tmp_path, "chats", tree, alone, preset="OpenAssistant/oasst1").records
    assert isinstance(chat, Chat) and [turn.content for turn in chat.messages] == ["Why?", "Good.", "And?", "Well."]
    assert len(load(tmp_path, "pairs", tree, preset="OpenAssistant/oasst1", limit=2).records) == 2


def test_a_row_that_is_no_tree_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows.jsonl:1: .*a row is a tree of messages"):
        load(tmp_path, "pairs", {"message_id": "m", "text": "Why?"}, preset="OpenAssistant/oasst1")
    flat = {"prompt": {"message_id": "m", "role": "system", "text": "Hi", "replies": []}}
    with pytest.raises(InputError, match=r"message m: wanted text, and the role prompter or assistant"):
        load(tmp_path, "pairs", flat, preset="OpenAssistant/oasst1")


@pytest.mark.parametrize(
    ("votes", "better"), [((1, 1, 2), "No."), (("2", "0", "2"), "So."), ((0, 0, 1), None), ((0, 1, 2), None)]
)
def test_the_majority_of_three_people_counts(tmp_path: Path, votes: tuple[Any, ...], better: str | None) -> None:
    row = PANDALM | dict(zip(("annotator1", "annotator2", "annotator3"), votes, strict=True))
    found = load(tmp_path, "pairs", PANDALM, row, preset="WeOpenML/PandaLM")
    chosen = [each.chosen[0].content for each in found.records[1:] if isinstance(each, Pair)]
    assert (chosen, [drop.reason for drop in found.drops]) == (([better], []) if better else ([], ["tie"]))


def test_rows_of_reward_bench_have_their_section(tmp_path: Path) -> None:
    row = ROWS["allenai/reward-bench"][1]
    found = load(tmp_path, "pairs", row, row | {"subset": "own"}, preset="allenai/reward-bench").records
    assert [(each.extra["subset"], each.extra["section"]) for each in found] == [("hep-go", "Reasoning"), ("own", "")]


def test_rows_of_reward_bench_2_become_a_pair_with_each_wrong_answer(tmp_path: Path) -> None:
    preset, row = "allenai/reward-bench-2", ROWS["allenai/reward-bench-2"][1]
    rows = [row | {"rejected": ["No.", "Never.", "Hm."]}]
    found = load(tmp_path, "pairs", *rows, preset=preset)
    assert [each.rejected[0].content for each in found.records if isinstance(each, Pair)] == ["No.", "Never.", "Hm."]
    assert all(each.extra["id"] == "1" and each.extra["subset"] == "Math" for each in found.records)
    assert len(load(tmp_path, "prompts", *rows, row | {"subset": "Ties"}, preset=preset).records) == 2
    for bad, told in (({"chosen": ["So.", "Thus."]}, "a list of 2"), ({"rejected": "No."}, "text")):
        with pytest.raises(InputError, match=f"column '{next(iter(bad))}': found {told}, wanted a list of one"):
            load(tmp_path, "pairs", row | bad, preset=preset)


@pytest.mark.parametrize(
    ("right", "wrong", "pairs"),
    [
        (["So."], ["No.", "Never."], [("So.", "No."), ("So.", "Never.")]),
        (["So.", "Thus.", "Yes."], ["No.", "Never."], [("So.", "No."), ("Thus.", "Never."), ("Yes.", "No.")]),
        (["So.", "Thus."], ["No.", "Thus."], [("So.", "No."), ("Thus.", "No.")]),
    ],
    ids=["one right", "several right", "a right one among the wrong"],
)
def test_pairs_of_the_subset_ties_show_every_answer(
    tmp_path: Path, right: list[str], wrong: list[str], pairs: list[tuple[str, str]]
) -> None:
    row = ROWS["allenai/reward-bench-2"][1] | {"id": "tied:1", "subset": "Ties", "chosen": right, "rejected": wrong}
    found = load(tmp_path, "pairs", row, preset="allenai/reward-bench-2")
    assert [(each.chosen[0].content, each.rejected[0].content) for each in found.records] == pairs
    assert not found.drops and {each.extra["id"] for each in found.records} == {"tied:1"}


DATA = ROOT.parent / "shared" / "data"


@pytest.mark.skipif(not DATA.is_dir(), reason="real preferences lie beside the project, in ../shared")
@pytest.mark.parametrize(
    ("file", "preset", "kept", "dropped"),
    [
        ("oasst_manual/en_100_tree.jsonl", "OpenAssistant/oasst1", 754, {}),
        ("oasst_manual/en_100_message.jsonl", "OpenAssistant/oasst1", 754, {}),
        ("pandalm/testset-v1.json", "WeOpenML/PandaLM", 835, {"tie": 105, "empty_text": 53, "wrong_type": 6}),
        ("hh_rlhf/test.jsonl.gz", "Anthropic/hh-rlhf", 2308, {"no_answer": 4}),
    ],
)
def test_real_preferences_are_read(file: str, preset: str, kept: int, dropped: dict[str, int]) -> None:
    found = load_records(DataSpec(path=DATA / file, preset=preset, on_bad_row="drop"), "pairs")
    assert (len(found.records), dict(found.dropped)) == (kept, dropped)


@pytest.mark.parametrize("winner", ["tie", "tie(both good)", "tie (bothbad)"])
def test_ties_and_several_turns_of_an_arena_are_left_out(tmp_path: Path, winner: str) -> None:
    two = ARENA | {"conversation_a": [ASK, SAY, ASK, SAY], "conversation_b": [ASK, NO, ASK, SAY]}
    found = load(tmp_path, "pairs", ARENA, ARENA | {"winner": winner}, two, preset="lmsys/chatbot_arena_conversations")
    (pair,) = found.records
    assert isinstance(pair, Pair) and pair.chosen[-1].content == "No."
    assert [drop.reason for drop in found.drops] == ["tie", "several_turns"]
    with pytest.raises(InputError, match="column 'winner': found 'me', wanted model_a, model_b or a tie"):
        load(tmp_path, "pairs", ARENA | {"winner": "me"}, preset="lmsys/chatbot_arena_conversations")


def test_masks_documents_and_further_columns_are_kept(tmp_path: Path) -> None:
    (chat,) = load(tmp_path, *ROWS["nvidia/Daring-Anteater"], preset="nvidia/Daring-Anteater").records
    assert isinstance(chat, Chat) and [m.train for m in chat.messages] == [False, True]
    (talk,) = load(tmp_path, *ROWS["Vikhrmodels/Grounded-RAG-RU-v2"], preset="Vikhrmodels/Grounded-RAG-RU-v2").records
    roles = ["system", "documents", "user", "assistant", "assistant"]
    assert isinstance(talk, Chat) and [m.role for m in talk.messages] == roles
    (bare,) = load(tmp_path, *ROWS["TeamDelta/bare-ja-v0.1"], preset="TeamDelta/bare-ja-v0.1").records
    assert isinstance(bare, Prompt) and bare.answer == "So." and bare.extra["file.messages"] == [ASK, NO]


def test_a_grounded_dialogue_reads_up_to_its_answers_as_a_grounded_model_is_asked(tmp_path: Path) -> None:
    documents, template = [Shown("Ледники", "Тают."), Shown(None, "c")], TEMPLATES["vikhr-nemo"]
    told = {"role": "documents", "content": documents_text(documents)}
    row = {"conversation": [told, ASK, FOUND, SAY], "type": "good"}
    (chat,) = load(tmp_path, "chats", row, preset="Vikhrmodels/Grounded-RAG-RU-v2").records
    (prompt,) = load(tmp_path, "prompts", row, preset="Vikhrmodels/Grounded-RAG-RU-v2").records
    assert isinstance(chat, Chat) and isinstance(prompt, Prompt)
    first = asked(documents, "Why?")
    assert (
        template.prompt_text(chat.messages[:-2]) == template.prompt_text(prompt.messages) == template.prompt_text(first)
    )
    assert template.prompt_text(chat.messages[:-1]) == template.prompt_text(asked_again(first, FOUND["content"]))


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "system", "content": "Be brief."}, DOCUMENTS, ASK, SAY],
        [DOCUMENTS, {"role": "system", "content": "B"}, ASK, SAY],
        [ASK, SAY],
    ],
    ids=["own system prompt", "own system prompt later", "no documents"],
)
def test_other_dialogues_get_no_grounded_system_prompt(tmp_path: Path, turns: list[dict[str, Any]]) -> None:
    (chat,) = load(tmp_path, "chats", {"conversation": turns}, preset="Vikhrmodels/Grounded-RAG-RU-v2").records
    assert isinstance(chat, Chat) and [(m.role, m.content) for m in chat.messages] == [tuple(t.values()) for t in turns]


def test_a_preset_brings_its_licence_terms_split_and_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": "Why?", "output": "So."}))
    asked = []
    monkeypatch.setattr(importing, "download", lambda name, revision: asked.append((name, revision)) or (tmp_path, "c"))
    settings = Import.model_validate({"kind": "chats", "preset": "llm-jp/AnswerCarefully", "licence": "own"})
    (record,) = read(settings, {}).records
    assert asked == [("llm-jp/AnswerCarefully/v2.0", "main")] and record.source is not None
    assert (record.source.licence, record.source.inherit) == ("own", True) and "safety" in (record.source.terms or "")
    assert settings.downloads == [("llm-jp/AnswerCarefully/v2.0", "main")]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{preset: nvidia/HelpSteer}", "no preset is called 'nvidia/HelpSteer'; did you mean 'nvidia/HelpSteer3'?"),
        ("{preset: jaster}", "the data set of preset jaster is not on a hub; set `path` to its file or folder"),
        ("{preset: jaster, path: x, columns: {prompt: q}}", "columns are not read with a preset"),
        ("{preset: nvidia/HelpSteer3, path: x, hub: a/b}", "exactly one of path, hub"),
    ],
)
def test_what_is_wrong_with_a_preset_is_told_with_its_line(tmp_path: Path, entry: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(f"name: x\ndata: {{d: {entry}}}\nstages: {{s: {{type: select, input: $d}}}}\n")
    with pytest.raises(RecipeError) as raised:
        build(validate(read_tree(tmp_path / "r.yaml")))
    assert message in str(raised.value) and "r.yaml:2: data.d" in str(raised.value)


def test_every_preset_has_its_place_in_the_documentation() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    rows = {name: line for name in PRESETS for line in page.splitlines() if line.startswith(f"| `{name}` |")}
    assert [*rows] == [*PRESETS]
    assert [name for name, line in rows.items() if ("our reading" in line) is PRESETS[name].told] == []


def test_reasons_are_declared_and_columns_that_togi_reads_are_known() -> None:
    assert [reason for reason in REASONS if reason not in STAGES["import"].reasons] == []
    assert [column for column in SPOKEN if column not in READ] == []
