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
from togi.core.errors import InputError, Interrupted, StageError
from togi.core.records import Completion, Message, Prompt, Sample, SamplingParams
from togi.core.settings import NamedModelRef, PromptsRef
from togi.core.sources import ModelSource
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.cost import Known
from togi.stages.data import respond_work
from togi.stages.data.respond import STAGE, Respond, estimate
from togi.stages.data.respond_work import run
from togi.text.template import TEMPLATES

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
        self.template = "chatml"
        self.write([Prompt(id=f"p{i}", messages=(Message("user", f"Why {i}?"),)) for i in range(count)])
        monkeypatch.setattr(respond_work, "generator", self.generator)
        monkeypatch.setattr(respond_work, "reader", lambda context, ref: (None, TEMPLATES[self.template]))

    def write(self, prompts: list[Prompt]) -> None:
        write_records(self.folder / "p" / RECORDS_FILE, "prompts", prompts)

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


# --- follow-ups -------------------------------------------------------------------------------------------------------

TALK = [
    {"role": "user", "content": "And 1?"},
    {"role": "assistant", "content": "Too."},
    {"role": "user", "content": "So?"},
]


def with_follow_ups() -> list[Prompt]:
    """Prompts with a follow-up of one turn, of three turns, and without any."""
    asked = ("And 0?", TALK, None, " ")
    return [
        Prompt(id=f"p{i}", messages=(Message("user", f"Why {i}?"),), answer="42", extra={"more": more})
        for i, more in enumerate(asked)
    ]


def turns(sample: Sample) -> list[str]:
    return [message.content for message in sample.prompt.messages]


class Hearing(Speaker):
    """A model whose answer is the number of turns that it was asked, its name, and what the seed and number give."""

    def answer(self, prompt: Prompt, index: int, params: SamplingParams) -> Completion:
        said = f"{len(prompt.messages)} turns, {self.name}, {params.seed % 97}-{index} of {params.n}"
        return Completion(text=f"{said}{END}", stop="terminator")


def test_a_follow_up_is_answered_after_one_answer_to_the_prompt(tmp_path, monkeypatch):
    house = House(tmp_path, monkeypatch, kind=Hearing)
    house.write(with_follow_ups())
    samples = house.run(follow_up="more", batch_prompts=3)
    assert len(samples) == 16
    first = [each for each in samples if each.parents == ("p0",)]
    assert [(each.model, each.index) for each in first] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    for name, own in (("a", first[:2]), ("b", first[2:])):
        heard = [turns(each) for each in own]
        assert heard[0] == heard[1] and [heard[0][0], heard[0][2]] == ["Why 0?", "And 0?"]
        assert heard[0][1].startswith(f"1 turns, {name}, ") and heard[0][1].endswith("-0 of 1")
        streams = [text.split(", ")[2].partition("-")[0] for text in (heard[0][1], own[0].text)]
        assert streams[0] != streams[1], "the first answer has a random stream of its own"
        assert [each.text.partition(", ")[0] for each in own] == ["3 turns", "3 turns"]
        assert [each.text[-6:] for each in own] == ["0 of 2", "1 of 2"]
        roles = [(message.role, message.train) for message in own[0].prompt.messages]
        assert roles == [("user", True), ("assistant", False), ("user", True)]
        assert own[0].prompt.parents == ("p0",) and own[0].prompt.answer == "42"
    ids = [each.prompt.id for each in first]
    assert ids[0] == ids[1] != ids[2] == ids[3] and "p0" not in ids, "each model's answers are to its own conversation"
    assert not {each.prompt.id for each in samples} & {each.id for each in samples}
    assert len({each.id for each in samples}) == 16
    long = next(each for each in samples if each.parents == ("p1",))
    assert turns(long)[2:] == ["And 1?", "Too.", "So?"] and long.text.startswith("5 turns")
    for each in samples[8:]:
        assert each.prompt.id == each.parents[0] and len(turns(each)) == 1 and each.text.startswith("1 turns")
    assert house.heard[:2] == [("a", ["p0", "p1"]), ("a", ["p0", "p1", "p2"])]
    alone = House(tmp_path / "alone", monkeypatch, kind=Hearing)
    alone.write(with_follow_ups())
    found = alone.run(models=["$b"], follow_up="more")
    assert [each.text for each in found] == [each.text for each in samples if each.model == "b"]


def test_without_a_usable_first_answer_no_follow_up_is_asked(tmp_path, monkeypatch):
    class Odd(Hearing):
        def fits(self, prompt, params):
            return prompt.id != "p3" or len(prompt.messages) == 1

        def answer(self, prompt, index, params):
            if len(prompt.messages) > 1:
                return super().answer(prompt, index, params)
            return [
                Completion(text="", stop="error"),
                Completion(text="Because it", stop="length"),
                Completion(text=END, stop="terminator"),
                Completion(text="So.", stop="terminator"),
                Completion(text="So.", stop="terminator"),
            ][int(prompt.id[1:])]

    prompts = [
        Prompt(id=f"p{i}", messages=(Message("user", "Why?"),), extra={"more": "And?"} if i < 5 else {})
        for i in range(5)
    ]
    house = House(tmp_path, monkeypatch, kind=Odd)
    house.write(prompts)
    assert [each.parents for each in house.run(models=["$a"], follow_up="more")] == [("p4",), ("p4",)]
    dropped = [(drop.id, drop.reason) for drop in house.made.drops]
    reasons = ("failed", "truncated", "empty_answer", "too_long")
    assert dropped == [(f"p{i}", reason) for i, reason in enumerate(reasons) for _ in range(2)]
    kept = House(tmp_path / "keep", monkeypatch, kind=Odd)
    kept.write(prompts)
    found = kept.run(models=["$a"], follow_up="more", truncated="keep")
    assert [turns(each) for each in found[:2]] == [["Why?", "Because it", "And?"]] * 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"next": "And?"},
            r"stage answers: follow_up: no prompt has a column 'more'; the prompts have next",
        ),
        ({}, "the prompts have no other columns"),
        ({"more": TALK[1:]}, "prompt p4: column 'more' has turns of assistant, user, but a follow-up begins and ends"),
        ({"more": TALK[:2]}, "has turns of user, assistant"),
        ({"more": 3}, "stage answers: prompt p4: column 'more': found a number, wanted text or a list of turns"),
    ],
)
def test_follow_ups_that_cannot_be_asked_end_the_stage_before_its_first_answer(tmp_path, monkeypatch, more, message):
    house = House(tmp_path, monkeypatch)
    house.write(
        [Prompt(id=f"p{i}", messages=(Message("user", "Why?"),), extra=more if i == 4 else {}) for i in range(5)]
    )
    with pytest.raises(InputError, match=message):
        house.run(follow_up="more")
    assert not house.heard


def test_a_column_that_is_empty_everywhere_changes_no_sample(tmp_path, monkeypatch):
    """As in a trial of the first rows, when few rows have a follow-up."""
    plain = House(tmp_path / "plain", monkeypatch).run()
    house = House(tmp_path, monkeypatch)
    house.write([Prompt(id=f"p{i}", messages=(Message("user", f"Why {i}?"),), extra={"more": None}) for i in range(5)])
    found = house.run(follow_up="more")
    assert [(each.id, each.text, each.prompt.id) for each in found] == [
        (each.id, each.text, each.prompt.id) for each in plain
    ]


def test_a_plan_counts_first_answers_and_what_the_other_requests_read_more():
    given: dict[str, Any] = {"prompts": "$p", "models": ["$a", "$b"], "samples": 3, "max_tokens": 10}
    settings = Respond.model_validate({**given, "follow_up": "more"})
    inputs: Any = {settings.prompts: Known(records=4, samples=with_follow_ups())}
    plain, cost = estimate(Respond.model_validate(given), inputs), estimate(settings, inputs)
    assert (plain.asked["a"].calls, cost.asked["a"].calls, cost.calls) == (4, 6, 12)
    assert (cost.asked["b"].written, cost.sampled) == (4 * 3 * 10 + 2 * 10, 2 * (4 * 3 * 10 + 2 * 10))
    longest = sum(len(turn["content"]) for turn in TALK)
    before, after = plain.asked["a"].read, cost.asked["a"].read
    assert before and after and after > before + 2 * 10 + longest + len("And 0?") + 2 * len("Why 0?")
    assert (plain.outputs["main"].added, plain.outputs["main"].group) == (10, 6)
    assert cost.outputs["main"].added > 10 + 10 + longest and cost.outputs["main"].group is None
    one = estimate(Respond.model_validate({**given, "models": ["$a"], "follow_up": "more"}), inputs)
    assert one.outputs["main"].group == 3
    told = estimate(settings, {settings.prompts: Known(records=4, tokens=50.0, longest=90)})  # type: ignore[arg-type]
    assert (told.asked["a"].calls, told.asked["a"].read) == (8, None)
    assert (told.outputs["main"].tokens, told.outputs["main"].longest) == (None, None), "they are those of the prompts"


# --- system turns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("template", "count"), [("llm-jp", 4), ("llm-jp-system", 0), ("chatml", 0)])
def test_system_turns_that_a_local_model_does_not_see_are_told(tmp_path, monkeypatch, template, count):
    house = House(tmp_path, monkeypatch)
    house.template = template
    own = (Message("system", "Be a pirate."), Message("user", "Why?"))
    fixed = Message("system", TEMPLATES["llm-jp"].fixed_system or "")
    house.write([Prompt(id=f"p{i}", messages=own if i else (fixed, own[1])) for i in range(5)])
    house.run()
    told = [event["message"] for event in house.events if event["event"] == "alarm"]
    assert len(told) == (2 if count else 0), "one for each model"
    for name, message in zip(("a", "b"), told, strict=False):
        seen = f"but its own text or none, so ${name} does not see it; to show it, choose template: llm-jp-system"
        assert message == f"template 'llm-jp' does not write the system turn of {count} records, {seen}"


def test_the_template_of_a_server_is_its_own(tmp_path, monkeypatch):
    house = House(tmp_path, monkeypatch)
    house.template, house.endpoint = "llm-jp", Endpoint(name="a", urls=("http://localhost/v1",), model="a")
    house.run(system="Be a pirate.")
    assert not [event for event in house.events if event["event"] == "alarm"]


# --- units ------------------------------------------------------------------------------------------------------------


class Halting(Hearing):
    """Stops the stage after three requests."""

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[Completion]]:
        if len(self.heard) == 3:
            raise Interrupted("stopped")
        return super().generate(prompts, params)


@pytest.mark.parametrize(("given", "left"), [({}, 3), ({"follow_up": "more"}, 2)])
def test_finished_units_are_never_asked_again_and_the_bytes_are_the_same(tmp_path, monkeypatch, given, left):
    """Without follow-ups a unit is one request; with them two, of which the first is lost with the second."""
    quiet = House(tmp_path / "quiet", monkeypatch, kind=Hearing)
    quiet.write(with_follow_ups())
    quiet.run(**given)
    house = House(tmp_path / "killed", monkeypatch, kind=Halting)
    house.write(with_follow_ups())
    with pytest.raises(Interrupted):
        house.run(**given)
    assert not (house.folder / "respond-0" / RECORDS_FILE).exists()
    house.kind = Hearing
    house.run(**given)
    assert house.heard == quiet.heard[:3] + quiet.heard[left:]
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


def test_a_server_is_asked_a_follow_up_after_its_own_first_answer(tmp_path):
    rows = [{"question": q, "next": [{"role": "user", "content": "Are you sure?"}]} for q in QUESTIONS]
    rows[-1]["next"] = None
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with stub_server() as server:
        recipe, home = tmp_path / "remote.yaml", tmp_path / "home"
        recipe.write_text(RECIPE.replace("URL", server.url).replace("samples: 3", "samples: 3, follow_up: next"))
        told = togi(home, "plan", str(recipe)).stdout
        assert "30 calls" in told, told
        ended = togi(home, "run", str(recipe), STUB_KEY=KEY)
        assert ended.returncode == 0, ended.stderr
        asked = [body for body in server.asked if body["messages"][0]["content"] in QUESTIONS]
        again = togi(home, "run", str(recipe), "--redo", "answers", STUB_KEY=KEY)
        assert again.returncode == 0, again.stderr
        assert len([body for body in server.asked if body["messages"][0]["content"] in QUESTIONS]) == len(asked) == 30
    sizes = sorted((len(body["messages"]), body.get("n", 1)) for body in asked)
    assert sizes == [(1, 1)] * 14 + [(1, 3)] * 2 + [(3, 3)] * 14
    found: Any = read_records(home / "runs" / "remote" / "answers" / RECORDS_FILE)[1]
    assert len(found) == 48 and len({each.prompt.id for each in found}) == 15
    first = found[0].prompt.messages
    assert [(turn.role, turn.content) for turn in first[::2]] == [("user", QUESTIONS[0]), ("user", "Are you sure?")]
    assert first[1].role == "assistant" and first[1].content.startswith("It is ")
