"""Stored samples of `train.grpo`: what was sampled is never requested again, and is an output of the stage."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from grpo_runs import Bench, lines, prompts, weights

from togi.core.codec import read_records, write_records
from togi.core.errors import StageError
from togi.core.files import read_json
from togi.core.protocols import Event, Request
from togi.core.records import Completion, Message, Prompt, Sample
from togi.core.seeds import derive
from togi.stages.training.grpo import STORED_SAMPLE, STORED_TOKEN
from togi.stages.training.grpo_samples_work import UNITS
from togi.stages.training.grpo_work import run

SAMPLES_FILE = "output/samples.parquet"
SETTINGS: dict[str, Any] = {
    "refill_rounds": 2,
    "epochs_per_batch": 2,
    "steps": 8,
    "save_every": 4,
    "validation": 0.3,
    "evaluate_every": 4,
}


class Killed(BaseException):
    """In place of a SIGKILL: no code of the stage runs after it."""


class Forgetful:
    """An engine that gives a different answer each time the same request is repeated under the same weights."""

    repeatable = False

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.letters = [tokenizer(letter, add_special_tokens=False)["input_ids"][-1] for letter in "abcdefghij"]
        self.requests: list[Request] = []
        self.asked: Counter[tuple[tuple[int, ...], str]] = Counter()
        self.published = 0
        self.weights = ""

    def add(self, request: Request) -> int:
        self.requests.append(request)
        self.asked[request.seeds, self.weights] += 1
        return len(self.requests) - 1

    def events(self, request: int) -> Iterator[Event]:
        asked = self.requests[request]
        for index, seed in enumerate(asked.seeds):
            yield Event(request, index, completion=self._answer(seed, self.asked[asked.seeds, self.weights]))

    def _answer(self, seed: int, times: int) -> Completion:
        ids = tuple(self.letters[derive(seed, times, at) % 10] for at in range(6))
        logprobs = (-1.0,) * len(ids)
        return Completion(
            text=self.tokenizer.decode(ids), stop="length", token_ids=ids, logprobs=logprobs, sampled_logprobs=logprobs
        )

    def cancel(self, request: int) -> None:
        pass

    def publish(self, weights: Iterable[tuple[str, Any]]) -> None:
        found = hashlib.sha256()
        for _, value in weights:
            found.update(value.detach().numpy().tobytes())
        self.weights = found.hexdigest()
        self.published += 1

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def tokenizer(bench) -> Any:
    return bench.model().tokenizer


@pytest.fixture(scope="module")
def undisturbed(bench, tokenizer) -> Path:
    run(bench.settings("sometimes", **SETTINGS), bench.context("undisturbed"), Forgetful(tokenizer))
    return bench.folder / "undisturbed"


def killed_at(bench: Bench, name: str, step: int, engine: Any = None) -> None:
    """Resumes a run in the folder `name` and kills it after `step`, before that step can be saved."""
    context = bench.context(name)

    def send(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["done"] == step:
            raise Killed

    context.control.send = send
    with pytest.raises(Killed):
        run(bench.settings("sometimes", **SETTINGS), context, engine)


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [(1,), (4, 6), (5, 7, 8)])
def test_a_killed_run_asks_nothing_twice_and_ends_with_the_same_bits(bench, tokenizer, undisturbed, kills):
    engine, name = Forgetful(tokenizer), f"killed-{len(kills)}"
    for step in kills:
        killed_at(bench, name, step, engine)
    run(bench.settings("sometimes", **SETTINGS), bench.context(name), engine)
    folder = bench.folder / name
    assert set(engine.asked.values()) == {1}
    assert weights(folder) == weights(undisturbed)
    assert lines(folder) == lines(undisturbed)
    assert lines(folder, "samples.jsonl") == lines(undisturbed, "samples.jsonl")
    assert (folder / SAMPLES_FILE).read_bytes() != b"" and samples(folder) == samples(undisturbed)
    assert any(row.get("groups/refilled") for row in lines(folder))
    assert sum("validation/reward" in row for row in lines(folder)) == 2
    assert max(row["grad_norm"] for row in lines(folder)) > 0


def test_a_kill_before_a_round_is_stored_asks_for_that_round_alone(bench, tokenizer):
    engine, settings = Forgetful(tokenizer), bench.settings("sometimes", **SETTINGS)
    killed_at(bench, "half", 5, engine)
    units = sorted((bench.folder / "half" / UNITS).glob("batch-*.json"))
    units[-1].unlink()  # as if the kill had come just before the unit was sealed
    asked = Counter(engine.asked)
    run(settings, bench.context("half"), engine)
    again = [key for key, times in engine.asked.items() if times > asked.get(key, 0) > 0]
    assert 0 < len(again) <= settings.prompts_per_step
    assert len(units) > 1 and set(engine.asked.values()) == {1, 2}


# --- damage -----------------------------------------------------------------------------------------------------------


def spoil(folder: Path) -> Path:
    path = sorted((folder / UNITS).glob("batch-*.parquet"))[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def test_a_damaged_unit_is_sampled_again_by_the_embedded_engine(bench):
    whole = bench.run("embedded", bench.settings("sometimes", **SETTINGS))
    killed_at(bench, "embedded-damaged", 3)
    path, context, told = spoil(bench.folder / "embedded-damaged"), bench.context("embedded-damaged"), []
    context.control.send = told.append
    run(bench.settings("sometimes", **SETTINGS), context)
    assert any(f"{path}: it has changed since togi wrote it" in event.get("message", "") for event in told)
    assert weights(bench.folder / "embedded-damaged") == weights(whole)


def test_a_damaged_unit_stops_the_stage_where_the_engine_would_answer_otherwise(bench, tokenizer):
    engine = Forgetful(tokenizer)
    killed_at(bench, "damaged", 3, engine)
    spoil(bench.folder / "damaged")
    with pytest.raises(StageError, match=r"stored samples are damaged .* the engine would now give different answers"):
        run(bench.settings("sometimes", **SETTINGS), bench.context("damaged"), engine)


# --- what is stored ---------------------------------------------------------------------------------------------------


def samples(folder: Path) -> list[Any]:
    """Returns the samples without the stage's folder, which differs between tests."""
    kind, records = read_records(folder / SAMPLES_FILE)
    assert kind == "samples"
    return [(s.prompt, s.completion, s.scores, s.index, s.extra) for s in records]  # type: ignore[attr-defined]


def test_every_sample_of_training_is_an_output_with_its_scores(bench, undisturbed):
    stored = samples(undisturbed)
    rows = lines(undisturbed)
    drawn = [row for row in rows if "groups/refilled" in row]
    assert len(stored) == sum(4 * (2 + row["groups/refilled"]) for row in drawn)
    first = [scores["total"] for _, _, scores, _, extra in stored if extra["unit"].startswith("batch-000000")]
    assert sum(first) / len(first) == pytest.approx(rows[0]["reward/total/mean"])
    assert all(scores["total"] == scores["sometimes"] for _, _, scores, _, _ in stored)
    assert [index for _, _, _, index, _ in stored] == [0, 1, 2, 3] * (len(stored) // 4)
    assert len({record.id for record in read_records(undisturbed / SAMPLES_FILE)[1]}) == len(stored)
    assert not any("validation" in extra["unit"] for *_, extra in stored)
    assert all(prompt in prompts() for prompt, *_ in stored)


def test_the_summary_states_how_many_samples_are_kept_and_their_bytes(bench, tokenizer):
    context = bench.context("stated")
    run(bench.settings("sometimes", **SETTINGS), context, Forgetful(tokenizer))
    context.finish()
    stated = read_json(context.folder / "summary.json")
    assert stated["counts"]["samples"] == len(samples(context.folder))
    assert stated["samples_bytes"] == (context.folder / SAMPLES_FILE).stat().st_size


def long_samples(count: int, tokens: int) -> list[Sample]:
    draw = random.Random(0)
    return [
        Sample(
            id=f"sample-{number}",
            parents=(f"prompt-{number // 8}",),
            prompt=Prompt(id=f"prompt-{number // 8}", messages=(Message("user", f"question {number // 8}"),)),
            completion=Completion(
                text="".join(draw.choices("etaoin shrdlu", k=4 * tokens)),
                stop="length",
                token_ids=tuple(draw.choices(range(49_152), k=tokens)),
                logprobs=tuple(-draw.expovariate(1) for _ in range(tokens)),
                sampled_logprobs=tuple(-draw.expovariate(1) for _ in range(tokens)),
            ),
            scores={"total": draw.random()},
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("tokens", [64, 1024])
def test_plan_foresees_the_bytes_of_the_samples_that_are_kept(tmp_path, tokens):
    write_records(tmp_path / "samples.parquet", "samples", long_samples(64, tokens))
    foreseen = 64 * (STORED_SAMPLE + tokens * STORED_TOKEN)
    assert 0.7 < foreseen / (tmp_path / "samples.parquet").stat().st_size < 1.4


def test_what_graders_failed_on_too_often_is_not_stored(bench, tokenizer):
    source = bench.at_work(bench.settings())
    source.rollouts.engine = Forgetful(tokenizer)
    failing = SimpleNamespace(grade=source.rollouts.reward.grade, check_failures=too_often)
    source.rollouts.reward = failing
    with pytest.raises(StageError, match="too often"):
        source.rollouts.draw(0)
    assert not list(source.context.folder.rglob("*.parquet"))


def too_often(graded: Sequence[Any]) -> None:
    raise StageError("too often")


def test_a_group_is_graded_while_the_engine_goes_on_with_the_next(bench, tokenizer):
    class Noting(Forgetful):
        def events(self, request: int) -> Iterator[Event]:
            told.append(f"group {request}")
            yield from super().events(request)

    told: list[str] = []
    source = bench.at_work(bench.settings(prompts_per_step=3))
    source.rollouts.engine = Noting(tokenizer)
    grade = source.rollouts.reward.grade

    def noted(prompt, completions):
        told.append(f"{len(completions)} graded")
        return grade(prompt, completions)

    source.rollouts.reward = SimpleNamespace(grade=noted, check_failures=lambda graded: None)
    source.rollouts.draw(0)
    assert told == ["group 0", "4 graded", "group 1", "4 graded", "group 2", "4 graded"]


def test_the_engine_gets_the_weights_before_every_batch_and_validation_that_has_others(bench, tokenizer):
    engine = Forgetful(tokenizer)
    run(bench.settings(validation=0.3, evaluate_every=2), bench.context("published"), engine)
    assert engine.published == 4 + 1  # the third batch uses the weights of the validation before it
