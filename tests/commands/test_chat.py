"""`togi chat`: the system prompt and sampling of training, and the models that can be named."""

import json
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grpo_runs import Bench
from tiny_models import at
from tiny_pairs import rows
from tiny_texts import bare_context

from togi.commands.chat import Wanted, chat
from togi.core.codec import write_records
from togi.core.errors import InputError
from togi.core.files import read_json, write_json
from togi.core.records import Chat, Message, Pair, Prompt, SamplingParams
from togi.core.sampling import PRESETS, Recommended
from togi.model.card import About
from togi.model.load import CARD, load
from togi.model.save import recommend, save_model
from togi.stages.base import MODEL_FOLDER, RECORDS_FILE
from togi.stages.spoken import common_system
from togi.stages.training import dpo_work, sft_work
from togi.stages.training.dpo import TrainDpo
from togi.stages.training.sft import TrainSft
from togi.text.safety import SAFETY

SYSTEM = "Answer like a pirate."
SHORT = {"max_tokens": 4}


def turns(system: str | None = SYSTEM, text: str = "Hi") -> tuple[Message, ...]:
    return (*([Message("system", system)] if system else []), Message("user", text))


# --- stored settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("systems", "found"),
    [
        ([SYSTEM] * 3, SYSTEM),
        ([SYSTEM] * 9 + ["Be kind."], SYSTEM),
        ([SYSTEM] * 8 + ["Be kind."] * 2, None),
        ([SYSTEM] * 9 + [None], SYSTEM),
        ([None] * 9 + [SYSTEM], None),
        ([], None),
    ],
)
def test_the_system_turn_of_nearly_all_rows_is_that_of_the_training(systems, found):
    assert common_system(turns(system, str(i)) for i, system in enumerate(systems)) == found


def card_of(folder: Path) -> dict[str, Any]:
    card = read_json(folder / MODEL_FOLDER / CARD)
    return {key: card[key] for key in ("system", "sampling")}


def test_a_policy_keeps_the_system_turn_of_its_prompts_and_its_sampling(tmp_path):
    bench = Bench(tmp_path)
    prompts = [Prompt(id=f"q{i}", messages=turns(text=f"Question {i}?")) for i in range(4)]
    write_records(tmp_path / "prompts" / RECORDS_FILE, "prompts", prompts)
    sampling = {"max_tokens": 4, "temperature": 0.5}
    folder = bench.run("policy", bench.settings(steps=1, group_size=2, sampling=sampling))
    found = card_of(folder)
    assert found["system"] == SYSTEM
    assert found["sampling"] == {**sampling, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


@pytest.mark.parametrize("packing", ["apart", "blocks"])
def test_a_tuned_model_keeps_the_system_prompt_that_the_recipe_adds(tmp_path, packing):
    chats = [Chat(id=f"c{i}", messages=(*turns(None, f"What is {i}?"), Message("assistant", "So."))) for i in range(4)]
    settings = {"init": "$base", "chats": "$chats", "system": SYSTEM, "packing": packing, "max_length": 100}
    context = bare_context(tmp_path, chats=chats)
    sft_work.run(TrainSft.model_validate({**settings, "batch_size": 2, "epochs": 1}), context)
    assert card_of(context.folder) == {"system": SYSTEM, "sampling": None}


def test_a_model_of_preferences_keeps_the_system_turn_of_their_prompts(tmp_path):
    pairs = [
        Pair(
            id=f"p{i}",
            prompt=turns(text=row["prompt"]),
            chosen=(Message("assistant", row["chosen"]),),
            rejected=(Message("assistant", row["rejected"]),),
        )
        for i, row in enumerate(rows())
    ]
    context = bare_context(tmp_path, pairs=pairs)
    dpo_work.run(TrainDpo.model_validate({"init": "$base", "pairs": "$pairs", "batch_size": 4, "epochs": 1}), context)
    assert card_of(context.folder) == {"system": SYSTEM, "sampling": None}


# --- how chat uses them -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained with a system prompt and has its own sampling settings."""
    made = tmp_path_factory.mktemp("spoken")
    model = Bench(made).model()
    spoken = {"system": SYSTEM, "sampling": {"temperature": 0.25, "top_k": 7}}
    save_model(model, made / "saved", About(spoken=spoken))
    return made / "saved"


def said(folder: Path, capsys: pytest.CaptureFixture[str], system: str | None = None, **given: Any) -> Any:
    """The output of chat: the answer, and its settings."""
    asked = Wanted(system=system, message="Why is the sky blue?", given={"max_tokens": 8, **given}, as_json=True)
    chat(at(folder), folder, asked)
    return json.loads(capsys.readouterr().out)


class Recorder:
    """A generator that records the prompts and settings that it gets."""

    heard: list[tuple[Message, ...]]

    def __init__(self, *_: Any, **named: Any) -> None: ...

    def stream(self, prompt: Prompt, params: SamplingParams) -> Iterator[str]:
        self.heard.append(prompt.messages)
        yield "Arr"


def test_the_system_prompt_of_training_is_used_unless_another_is_given(folder, capsys, monkeypatch):
    heard: list[tuple[Message, ...]] = []
    monkeypatch.setattr("togi.commands.chat.ModelGenerator", type("Here", (Recorder,), {"heard": heard}))
    given = [None, SYSTEM, "", "Be kind to animals."]
    found = [said(folder, capsys, system) for system in given]
    used = [SYSTEM, SYSTEM, None, "Be kind to animals."]
    assert [row["system"] for row in found] == used
    assert heard == [turns(system, "Why is the sky blue?") for system in used]


def test_sampling_is_that_of_training_unless_it_is_given(folder, capsys):
    assert said(folder, capsys)["sampling"] == {
        "temperature": 0.25,
        "top_p": 0.95,
        "top_k": 7,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": 8,
    }
    assert said(folder, capsys, temperature=1.5, top_k=0)["sampling"]["temperature"] == 1.5


def test_what_is_used_of_the_training_is_told(folder, capsys):
    chat(at(folder), folder, Wanted(message="Hi", given=SHORT))
    told = capsys.readouterr().err
    assert f"system prompt of training: {SYSTEM}\n" in told
    assert "sampling of training: temperature 0.25, top_p 0.95, top_k 7\n" in told
    chat(at(folder), folder, Wanted(system="", message="Hi", given=SHORT))
    assert "system prompt" not in capsys.readouterr().err


def test_a_model_without_a_card_is_spoken_to_by_default(tmp_path, capsys):
    source = Bench(tmp_path).source()
    chat(source, tmp_path, Wanted(message="Hi", given=SHORT, as_json=True))
    found = json.loads(capsys.readouterr().out)
    assert found["system"] is None
    assert (found["sampling"]["temperature"], found["sampling"]["top_p"]) == (0.7, 0.95)


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with recommended sampling, as an export stores it."""
    made = tmp_path_factory.mktemp("exported") / "model"
    shutil.copytree(folder, made)
    recommend(made, Recommended.of("vikhr-nemo"))
    return made


def test_recommended_sampling_goes_before_that_of_training_and_after_what_is_given(exported, capsys):
    chat(at(exported), exported, Wanted(message="Hi", given=SHORT))
    told = capsys.readouterr().err
    assert (
        "recommended sampling (vikhr-nemo): temperature 0.3, top_p 1, top_k 40\n" in told
        and "of training: temp" not in told
    )
    chat(at(exported), exported, Wanted(message="Hi", given={**SHORT, "temperature": 0.4}))
    told = capsys.readouterr().err
    assert "recommended sampling (vikhr-nemo): top_p 1, top_k 40\n" in told and "warning" not in told
    chat(at(exported), exported, Wanted(message="Hi", given=SHORT, preset="none", as_json=True))
    plain = json.loads(capsys.readouterr().out)["sampling"]
    assert (plain["temperature"], plain["top_p"], plain["top_k"]) == (0.7, 0.95, 0)


def test_what_a_recipe_recommends_is_used_unless_the_folder_or_the_user_says_otherwise(folder, exported, capsys):
    wanted = Wanted(message="Hi", given=SHORT, recommended=Recommended.of("arrowideative"))
    chat(at(folder), folder, wanted)
    assert "recommended sampling (arrowideative): temperature 0.5, top_p 0.95" in capsys.readouterr().err
    chat(at(exported), folder, wanted)
    assert "recommended sampling (vikhr-nemo): temperature 0.3" in capsys.readouterr().err
    chat(at(folder), folder, replace(wanted, preset="none"))
    assert "recommended" not in capsys.readouterr().err


@pytest.mark.parametrize(("preset", "longest"), [("arrowideative", 500), ("llm-jp-3.1", 256), ("vikhr-nemo", 500)])
def test_a_preset_can_be_used_with_any_model(folder, tmp_path, capsys, monkeypatch, preset, longest):
    """Its length shortens no answer, and leaves half of the context."""
    shutil.copytree(folder, tmp_path / "m")
    config = read_json(folder / "config.json")
    write_json(tmp_path / "m" / "config.json", config | {"max_position_embeddings": 1000})
    monkeypatch.setattr("togi.commands.chat.ModelGenerator", type("Here", (Recorder,), {"heard": []}))
    chat(at(tmp_path / "m"), folder, Wanted(message="Hi", preset=preset, as_json=True))
    expected = PRESETS[preset].drawing.model_dump() | {"max_tokens": longest}
    assert json.loads(capsys.readouterr().out)["sampling"] == expected


def test_a_cards_warning_about_hot_sampling_is_told_once(folder, exported, capsys):
    hot = {**SHORT, "temperature": 1.0}
    asked = Wanted(message="Hi", given=hot, as_json=True)
    for model, wanted in ((exported, asked), (folder, replace(asked, preset="vikhr-nemo"))):
        chat(at(model), folder, wanted)
        told = capsys.readouterr().err
        assert told == (
            "warning: temperature 1: the card of vikhr-nemo warns of random defects in answers at 1, and recommends "
            "0.1 to 0.5\n"
        )
    for preset in ("none", "arrowideative"):
        chat(at(exported), folder, Wanted(message="Hi", given=hot, preset=preset, as_json=True))
        assert capsys.readouterr().err == ""


def test_the_safety_prompt_follows_that_of_training_or_stands_alone(folder, capsys, monkeypatch):
    heard: list[tuple[Message, ...]] = []
    monkeypatch.setattr("togi.commands.chat.ModelGenerator", type("Here", (Recorder,), {"heard": heard}))
    for system in (None, ""):
        chat(at(folder), folder, Wanted(system=system, message="Hi", safety=SAFETY["ja"]))
    assert heard == [turns(f"{SYSTEM}\n\n{SAFETY['ja']}"), turns(SAFETY["ja"])]
    told = capsys.readouterr().err
    assert told.count(f"system prompt of training: {SYSTEM}\n") == 1
    assert told.count(f"safety prompt: {SAFETY['ja']}\n") == 2


def test_options_of_speaking_that_do_not_fit(shell):
    ended = shell("chat", "tiny.yaml", "policy", "--safety-prompt", "en", "--system", "Be kind.", "-m", "Hi")
    assert ended.exit_code == 2 and "--safety-prompt: --system is given" in ended.output
    ended = shell("chat", "tiny.yaml", "policy", "--sampling", "vikhr", "-m", "Hi")
    assert ended.exit_code == 2 and all(name in ended.output for name in (*PRESETS, "none"))


def test_a_damaged_card_says_which_key(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "m")
    write_json(tmp_path / "m" / CARD, {**read_json(folder / CARD), "sampling": {"temperature": "hot"}})
    with pytest.raises(InputError, match=r"togi\.json: sampling\.temperature: .*number"):
        said(tmp_path / "m", capsys)


def test_an_error_of_a_later_turn_is_the_real_one_and_the_conversation_goes_on(folder, capsys, monkeypatch):
    spoken = iter(["Hi", "word " * 400, "", "Still there?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(spoken))
    chat(at(folder), folder, Wanted(given=SHORT))
    told = capsys.readouterr().err
    assert "tokens" in told and "/reset begins a new conversation" in told and next(spoken, None) is None
    assert load(at(folder), folder).name in told


@pytest.mark.parametrize("word", ["/quit", "/exit"])
def test_a_conversation_can_be_left(folder, capsys, monkeypatch, word):
    spoken = iter([word, "Still there?"])
    monkeypatch.setattr("builtins.input", lambda _: next(spoken))
    chat(at(folder), folder, Wanted(given=SHORT))
    assert "there is no command" not in capsys.readouterr().err and next(spoken) == "Still there?"


# --- names that lead to a model ---------------------------------------------------------------------------------------


def test_the_command_of_a_run_with_overrides_reaches_that_run(shell):
    ended = shell("run", "tiny.yaml", "name=other", "stages.some.count=6")
    assert ended.exit_code == 0, ended.output
    words = shlex.split(next(line for line in ended.output.splitlines() if "togi chat" in line).split("chat:")[1])
    assert words == ["togi", "chat", "tiny.yaml", "policy", "name=other", "stages.some.count=6"]
    heard = shell(*words[1:], "-m", "Hello?", "--max-tokens", "4", "--json")
    assert heard.exit_code == 0, heard.output
    overrides = words[4:]
    assert shell("status", "tiny.yaml", *overrides).output.startswith("other: done")
    assert json.loads(shell("report", "tiny.yaml", *overrides, "--json").output)["report"].endswith("other/report.html")
    assert "[" in shell("show", "tiny.yaml", "some", *overrides).output


def test_a_model_of_other_settings_is_not_the_one_that_was_asked_for(shell):
    ended = shell("chat", "tiny.yaml", "policy", "stages.policy.steps=2", "-m", "Hi")
    assert ended.exit_code == 2
    assert "run it with `togi run tiny.yaml stages.policy.steps=2 --until policy`" in ended.output


def test_an_override_leaves_the_earlier_model_within_reach(shell):
    before = json.loads(shell("status", "tiny.yaml", "--json").output)["id"]
    ended = shell("run", "tiny.yaml", "stages.policy.steps=2", "--until", "policy")
    assert ended.exit_code == 0, ended.output
    assert json.loads(shell("status", "tiny.yaml", "--json").output)["id"] != before
    heard = shell("chat", "--run", before, "policy", "-m", "Hello?", "--max-tokens", "4", "--json")
    assert heard.exit_code == 0, heard.output
    assert json.loads(shell("show", "--run", before, "policy", "--json").output)["metrics"][-1]["step"] == 6
    assert "say which model: policy" in shell("chat", "--run", before, "some").output


def test_the_name_of_a_run_alone_means_its_last_one(shell):
    other = ("tiny.yaml", "policy", "name=other", "-m", "Hi", "--max-tokens", "4")
    assert "stage policy is not finished" in shell("chat", *other).output
    ended = shell("run", "tiny.yaml", "name=other", "stages.policy.steps=2", "--until", "policy")
    assert ended.exit_code == 0, ended.output
    assert shell("chat", *other).exit_code == 0
    metrics = json.loads(shell("show", "tiny.yaml", "policy", "name=other", "--json").output)["metrics"]
    assert metrics[-1]["step"] == 2


def test_a_run_stands_for_its_recipe(shell):
    run = json.loads(shell("status", "tiny.yaml", "--json").output)["id"]
    ended = shell("chat", "tiny.yaml", "policy", "--run", run)
    assert ended.exit_code == 2 and f"--run {run} stands for the recipe; leave out tiny.yaml" in ended.output


def test_words_of_chat_that_say_nothing(shell):
    assert "one model at a time, found policy and base" in shell("chat", "tiny.yaml", "policy", "base").output
    assert "'policy' does not apply" in shell("chat", "model", "policy").output
