"""`respond`: which model gave which answer, what is dropped, and what a second run does not ask again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from stub_server import KEY, stub_server
from tiny_run import QUESTIONS, togi

from togi.client.endpoint import Endpoint
from togi.core.codec import read_records, write_records
from togi.core.errors import Interrupted, StageError
from togi.core.records import Completion, Message, Prompt, Sample, SamplingParams
from togi.core.settings import NamedModelRef, PromptsRef
from togi.core.sources import ModelSource
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.data import respond_work
from togi.stages.data.respond import STAGE, Respond
from togi.stages.data.respond_work import run

END = "<|im_end|>"


class Speaker:
    """A model whose answer contains its name, the prompt's id and the number of the answer."""

    terminator = END
    turn_starts = ("<|im_start|>",)

    def __init__(self, name: str, heard: list[tuple[str, list[str]]]) -> None:
        self.name = name
        self.heard = heard

    def fits(self, prompt: Prompt, params: SamplingParams) -> bool:
        return len(prompt.text) < 50

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[Completion]]:
        self.heard.append((self.name, [prompt.id for prompt in prompts]))
        return [[self.answer(prompt, i, params) for i in range(params.n)] for prompt in prompts]

    def answer(self, prompt: Prompt, index: int, params: SamplingParams) -> Completion:
        return Completion(text=f" {self.name} on {prompt.id}, {index}. {END}", stop="terminator", token_ids=(1, 2))


class House:
    """Prompts on disk, and fake models that answer them."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, count: int = 5, kind: type[Speaker] = Speaker
    ) -> None:
        self.folder = folder
        self.heard: list[tuple[str, list[str]]] = []
        self.events: list[dict[str, Any]] = []
        self.stop_after: int | None = None
        self.kind = kind
        self.endpoint: Endpoint | None = None
        prompts = [Prompt(id=f"p{i}", messages=(Message("user", f"Why {i}?"),)) for i in range(count)]
        write_records(folder / "p" / RECORDS_FILE, "prompts", prompts)
        monkeypatch.setattr(respond_work, "generator", self.generator)

    def generator(self, context: Context, ref: NamedModelRef, batch_rows: int) -> Speaker:
        return self.kind(ref.name, self.heard)

    def context(self) -> Context:
        inputs: dict[str, Resolved] = {PromptsRef("$p"): Resolved("prompts", folder=self.folder / "p")}
        for name in ("a", "b"):
            source = ModelSource(kind="path", name=name)
            inputs[NamedModelRef(f"${name}")] = Resolved("model", source=source, endpoint=self.endpoint)
        control = Control(send=self.events.append)
        made = Context("answers", self.folder / "respond-0", self.folder, 1, inputs, control)
        made.folder.mkdir(exist_ok=True)
        made.reasons = STAGE.reasons
        return made

    def run(self, context: Context | None = None, **given: Any) -> list[Sample]:
        made = context or self.context()
        settings = {"prompts": "$p", "models": ["$a", "$b"], "samples": 2, "batch_prompts": 2, **given}
        run(Respond.model_validate(settings), made)
        made.finish()
        self.made = made
        return read_records(made.folder / RECORDS_FILE)[1]  # type: ignore[return-value]


def test_samples_are_ordered_by_prompt_model_and_index_and_say_so(tmp_path, monkeypatch):
    house = House(tmp_path, monkeypatch)
    samples = house.run()
    named = [(each.prompt.id, each.model, each.index) for each in samples]
    assert named == [(f"p{i}", model, index) for i in range(5) for model in ("a", "b") for index in (0, 1)]
    assert samples[3].text == "b on p0, 1." and samples[3].completion.stop == "terminator"
    assert samples[3].parents == ("p0",) and not samples[3].completion.token_ids
    assert len({each.id for each in samples}) == 20
    assert house.heard[:3] == [("a", ["p0", "p1"]), ("b", ["p0", "p1"]), ("a", ["p2", "p3"])]
    assert house.made.counts == {"in": 5, "out": 20}
    told = [event for event in house.events if event["event"] == "progress"]
    assert (told[0]["done"], told[-1]["done"], told[-1]["total"], told[-1]["what"]) == (4, 20, 20, "answers")


def test_who_else_answers_and_in_what_batches_changes_no_answer(tmp_path, monkeypatch):
    class Seeded(Speaker):
        def answer(self, prompt, index, params):
            return Completion(text=f"{params.seed} {prompt.id} {index}", stop="terminator")

    alone = House(tmp_path / "x", monkeypatch, kind=Seeded).run(models=["$b"], batch_prompts=None)
    both = House(tmp_path / "y", monkeypatch, kind=Seeded).run()
    assert [each.text for each in both if each.model == "b"] == [each.text for each in alone]
    assert {each.text for each in both if each.model == "a"}.isdisjoint(each.text for each in alone)


def test_an_answer_ends_where_another_turn_begins_and_bad_ones_are_dropped(tmp_path, monkeypatch):
    class Odd(Speaker):
        def answer(self, prompt, index, params):
            return [
                Completion(text="So.<|im_start|>user\nAnd", stop="length"),
                Completion(text="Because it", stop="length"),
                Completion(text=f"  {END}", stop="terminator"),
                Completion(text="", stop="error"),
                Completion(text="Done", stop="stop_string"),
            ][int(prompt.id[1:])]

    house = House(tmp_path, monkeypatch, kind=Odd)
    samples = house.run(models=["$a"], samples=1)
    assert [(s.prompt.id, s.text, s.completion.stop) for s in samples] == [
        ("p0", "So.", "terminator"),
        ("p4", "Done", "stop_string"),
    ]
    dropped = [(drop.id, drop.reason) for drop in house.made.drops]
    assert dropped == [("p1", "truncated"), ("p2", "empty_answer"), ("p3", "failed")]
    again = House(tmp_path / "keep", monkeypatch, kind=Odd).run(models=["$a"], samples=1, truncated="keep")
    assert [s.text for s in again] == ["So.", "Because it", "Done"]


def test_a_prompt_that_leaves_no_room_is_dropped_and_ends_no_run(tmp_path, monkeypatch):
    class Small(Speaker):
        def fits(self, prompt, params):
            return prompt.id not in ("p1", "p2", "p3")

    house = House(tmp_path, monkeypatch, kind=Small)
    samples = house.run(models=["$a"], samples=2)
    assert [each.prompt.id for each in samples] == ["p0", "p0", "p4", "p4"]
    assert [(drop.id, drop.reason) for drop in house.made.drops] == [(f"p{i}", "too_long") for i in (1, 1, 2, 2, 3, 3)]
    assert house.heard == [("a", ["p0"]), ("a", ["p4"])]


def test_no_answer_at_all_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    class Endless(Speaker):
        def answer(self, prompt, index, params):
            return Completion(text="and so on", stop="length")

    with pytest.raises(StageError, match=r"no answer was kept; reasons: truncated 20; raise max_tokens \(9 now\)"):
        House(tmp_path, monkeypatch, kind=Endless).run(max_tokens=9)


def test_a_system_turn_is_part_of_the_samples(tmp_path, monkeypatch):
    samples = House(tmp_path, monkeypatch).run(system="Be brief.")
    assert samples[0].prompt.messages == (Message("system", "Be brief."), Message("user", "Why 0?"))
    assert samples[0].prompt.id == "p0"


def test_finished_units_are_never_asked_again_and_the_bytes_are_the_same(tmp_path, monkeypatch):
    class Halting(Speaker):
        def generate(self, prompts, params):
            if len(self.heard) == 3:
                raise Interrupted("stopped")
            return super().generate(prompts, params)

    quiet = House(tmp_path / "quiet", monkeypatch)
    quiet.run()
    house = House(tmp_path / "killed", monkeypatch, kind=Halting)
    with pytest.raises(Interrupted):
        house.run()
    assert not (house.folder / "respond-0" / RECORDS_FILE).exists()
    house.kind = Speaker
    house.run()
    assert house.heard == quiet.heard  # three before the stop, the other three after it
    made = [each.folder / "respond-0" / RECORDS_FILE for each in (house, quiet)]
    assert made[0].read_bytes() == made[1].read_bytes()


def test_models_on_servers_are_kept_busy_by_larger_units(tmp_path, monkeypatch):
    house = House(tmp_path, monkeypatch, count=40)
    house.endpoint = Endpoint(name="a", urls=("http://localhost/v1",), model="a")
    house.run(batch_prompts=None)
    assert [len(ids) for _, ids in house.heard] == [40, 40]
    other = House(tmp_path / "here", monkeypatch, count=40)
    other.run(batch_prompts=None)
    assert [len(ids) for _, ids in other.heard] == [16, 16, 16, 16, 8, 8]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": ["$a", "$a"]}, r"\$a is listed twice"),
        ({"models": []}, "at least 1 item"),
        ({"samples": 2, "temperature": 0}, "2 samples at temperature 0 would be identical"),
        ({"stop": [""]}, "empty text"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Respond.model_validate({"prompts": "$p", "models": ["$a"], **given})


# --- as a user runs it, with models on a server -----------------------------------------------------------------------

RECIPE = """\
name: remote
models:
  a: {url: 'URL', model: small, key_env: STUB_KEY}
  b: {url: 'URL', model: large, key_env: STUB_KEY}
data: {questions: {path: questions.jsonl}}
stages:
  answers: {type: respond, prompts: $questions, models: [$a, $b], samples: 3, temperature: 0.8, max_tokens: 12}
"""


def test_servers_answer_and_what_they_refuse_is_dropped_as_failed(tmp_path):
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    with stub_server() as server:
        recipe, home = tmp_path / "remote.yaml", tmp_path / "home"
        recipe.write_text(RECIPE.replace("URL", server.url))
        assert "16 calls" in togi(home, "plan", str(recipe)).stdout
        server.failing = "Why do we dream?"
        ended = togi(home, "run", str(recipe), STUB_KEY=KEY)
        assert ended.returncode == 0, ended.stderr
        assert (
            "ALARM failed: 6 answers are missing because their requests failed (the log has the reasons); 42 are kept"
            in ended.stderr
        )
        server.failing = ""
        server.asked.clear()
        again = togi(home, "run", str(recipe), "--redo", "answers", STUB_KEY=KEY)
        assert again.returncode == 0, again.stderr
        asked = [body["messages"][0]["content"] for body in server.asked]
        assert [text for text in asked if text in QUESTIONS] == ["Why do we dream?"] * 2  # the rest was stored
    found: Any = read_records(home / "runs" / "remote" / "answers" / RECORDS_FILE)[1]
    assert [(each.model, each.index) for each in found[:6]] == [(m, i) for m in ("a", "b") for i in range(3)]
    assert len(found) == 48 and len({each.text for each in found}) == 48
    assert all(each.text.startswith("It is ") and each.text.endswith(".") for each in found)
