"""What `togi plan` says that a stage will ask of servers is an upper bound of what it asks, and not far above it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from counting_server import Counting, counting_server
from tiny_run import togi, write_recipe

MODELS = {  # the models that each stage asks
    "answers": ["answers", "second"],
    "followed": ["followed"],
    "scored": ["scored"],
    "told": ["told"],
    "judged": ["judged"],
    "first": ["first"],
    "graded": ["graded"],
    "curated": ["curated"],
    "rewarded": ["rewarded"],
    "evolved": ["evolved"],
    "reasoned": ["reasoned"],
    "drafts": ["drafts"],
    "asked": ["asked"],
    "contrasted": ["contrasted"],
    "compared": ["base", "policy", "held_out"],
    "measured": ["one", "two", "judge", "reward"],
    "accuracy": ["pair_judge", "pair_scorer"],
    "trained": ["grader", "grading_scorer"],
}
FAR = {"curated": 6, "evolved": 7}
"""How far above what is asked a bound may be, if more than 5 times: a text has some three bytes to a token, and all
branches of a prompt count."""
SCORERS = ("scored", "told", "rewarded", "held_out", "reward", "pair_scorer", "grading_scorer")

STAGES = """\
  answers:
    {type: respond, prompts: $questions, models: [$to_answers, $to_second], samples: 2, max_tokens: 40,
     system: Be kind.}
  followed:
    {type: respond, prompts: $questions, models: [$to_followed], samples: 2, max_tokens: 40, follow_up: next}
  scored: {type: score, samples: $answers, scorer: $to_scored}
  told: {type: score, samples: $followed, scorer: $to_told, reference: true}
  judged: {type: label, samples: $answers, judge: $to_judged, max_tokens: 8}
  first: {type: label, samples: $answers, judge: $to_first, max_tokens: 8, compare: first, orders: random}
  graded: {type: label, samples: $answers, judge: $to_graded, method: graded, max_tokens: 8}
  curated: {type: curate, input: $questions, model: $to_curated, method: json, rewrite: true, max_tokens: 70}
  rewarded: {type: curate, input: $questions, scorer: $to_rewarded, method: reward, keep_share: 1.0}
  evolved:
    {type: synthesize, method: evolve, input: $questions, model: $to_evolved, count: 8, max_candidates: 8,
     max_tokens: 30}
  reasoned: {type: synthesize, method: cot, input: $questions, model: $to_reasoned, max_tokens: 40, system: Think.}
  drafts: {type: synthesize, examples: $questions, model: $to_drafts, count: 16, max_tokens: 20, shots: 3}
  asked:
    {type: synthesize, method: qa, documents: $texts, model: $to_asked, count: 6, max_candidates: 6,
     chunk_chars: 200, max_tokens: 40}
  contrasted: {type: contrast, input: $questions, model: $to_contrasted, max_tokens: 40, min_tokens: 1}
  compared:
    {type: evaluate, base: $to_base, policy: $to_policy, prompts: $questions, held_out: $to_held_out, samples: 2,
     max_tokens: 40, bootstrap: 100}
  measured:
    type: evaluate
    models: [$to_two]
    baseline: $to_one
    judge: $to_judge
    bootstrap: 100
    benchmarks:
      - {type: answers, prompts: $questions, reward: $to_reward, samples: 2, max_tokens: 40}
      - {type: graded, questions: $questions, max_tokens: 40, judge_max_tokens: 8}
      - {type: mt_bench, questions: $talks, rounds: 2, max_tokens: 40, judge_max_tokens: 8, reference_categories: []}
      - {type: safety, questions: $questions, rounds: 1, safety_prompt: Refuse what harms., max_tokens: 40,
         judge_max_tokens: 8}
      - {type: arena, questions: $talks, max_tokens: 40, judge_max_tokens: 8}
      - {type: rag, questions: $squad, shown: 2, out_of_domain: 0, max_tokens: 40, judge_max_tokens: 8}
  accuracy:
    type: evaluate
    models: [$to_pair_judge, $to_pair_scorer]
    bootstrap: 100
    benchmarks: [{type: reward_accuracy, pairs: $preferences, max_tokens: 8}]
  trained:
    type: train.grpo
    init: $tiny
    prompts: $plain
    steps: 2
    prompts_per_step: 2
    group_size: 4
    sampling: {max_tokens: 12}
    reward:
      terms: [{type: judge, judge: $to_grader, max_tokens: 8}, {type: model, scorer: $to_grading_scorer}]
"""
LONG = "Please explain it with an example that somebody who has never been at sea would understand at once?"
SAID = "The reason is known: warm air rises over land by day, and cool air from the sea takes its place"


def says(model: str, shown: str, index: int) -> str:
    """A text that the stage of a model can use."""
    if model in ("judged", "first", "pair_judge"):
        return "I say [[A]]"
    if model in ("graded", "grader"):
        return "Rating: [[7]]"
    if model == "judge":
        return "[[A>B]]" if "A>B" in shown else "[[correct]]" if "[[correct]]" in shown else "Rating: [[3]]"
    if model == "curated" and "JSON" in shown:
        question = f"Why does wave {shown.partition('wave ')[2][:1]} turn? {LONG}"
        return json.dumps({"keep": True, "reason": "", "question": question, "answer": ""})
    if model in ("curated", "evolved", "drafts"):
        return f"Why does the wind turn at night near hill {index}?"
    if model == "asked":
        return "Question: What does the text describe?\nAnswer: It describes the wind."
    return f"{SAID} ({model} {index}).\nAnswer: {index}"


def lines(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_data(folder: Path) -> None:
    asked = [f"Why is wave {n} higher than the one before it? {LONG}" for n in range(6)]
    rows: list[dict[str, Any]] = [{"prompt": text, "answer": f"{SAID}."} for text in asked]
    turns = [("system", "You know the sea."), ("user", asked[0]), ("assistant", SAID), ("user", asked[1])]
    rows.append({"prompt": [{"role": role, "content": text} for role, text in turns], "answer": "It is wind."})
    for row in rows[:5]:
        row["next"] = f"And why is it lower after that? {LONG}"
    lines(folder, "questions", rows)
    lines(folder, "plain", [{"prompt": f"What is {n}?"} for n in range(4)])
    lines(folder, "texts", [{"text": f"{SAID}. {LONG} " * (n + 1), "title": f"Wind {n}"} for n in range(3)])
    talks = [{"question_id": n, "category": "sea", "turns": [asked[n], LONG, "And then?"][: n + 1]} for n in range(3)]
    lines(folder, "talks", talks)
    squad = [{"question": asked[n], "context": f"{SAID} {n}.", "title": f"T{n}", "id": n} for n in range(4)]
    lines(folder, "squad", squad)
    sides = [{"prompt": text, "chosen": SAID, "rejected": f"No, {n}."} for n, text in enumerate(asked)]
    lines(folder, "preferences", sides)


def write_all(folder: Path, url: str) -> Path:
    def entry(name: str) -> str:
        kind = "kind: reward, protocol: togi, " if name in SCORERS else "tokenizer: model, template: chatml, "
        return f'  to_{name}: {{url: "{url}", model: {name}, {kind}price: {{input: 1, output: 2}}}}\n'

    names = ("questions", "plain", "texts", "talks", "squad", "preferences")
    models = "  tiny: {path: model, template: chatml}\n" + "".join(entry(n) for own in MODELS.values() for n in own)
    data = "".join(f"  {name}: {{path: {name}.jsonl}}\n" for name in names)
    path = write_recipe(folder, f"name: requests\nmodels:\n{models}data:\n{data}stages:\n{STAGES}")
    write_data(folder)
    return path


@pytest.fixture(scope="module")
def spent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], dict[str, Any], Counting]]:
    """What was planned by stage before a run, and what is planned for a repetition; and what the run asked."""
    folder = tmp_path_factory.mktemp("requests")
    with counting_server(says) as server:
        recipe, home = write_all(folder, server.url), folder / "home"
        before = plan(home, recipe)
        ended = togi(home, "run", str(recipe), "--threads", "1")
        assert ended.returncode == 0, ended.stderr
        once_more = [f"stages.{name}.batch_prompts=9" for name in ("judged", "first", "graded")]
        yield before, plan(home, recipe, *once_more, "stages.scored.batch_samples=9"), server


def plan(home: Path, recipe: Path, *words: str) -> dict[str, Any]:
    ended = togi(home, "plan", str(recipe), *words, "--json")
    assert ended.returncode == 0, ended.stderr
    return {row["stage"]: row["estimate"] for row in json.loads(ended.stdout)}


@pytest.mark.parametrize("stage", MODELS)
def test_a_plan_bounds_what_a_stage_asks(spent, stage):
    planned, _, server = spent
    held(planned[stage], server, MODELS[stage], FAR.get(stage, 5))


@pytest.mark.parametrize("stage", ["scored", "judged", "first", "graded"])
def test_a_plan_bounds_what_is_asked_about_answers_that_are_there(spent, stage):
    _, planned, server = spent
    held(planned[stage], server, MODELS[stage], 5)


def held(planned: dict[str, Any], server: Counting, models: list[str], far: float) -> None:
    """Holds a plan against what the models were asked."""
    read, written = (sum(counts[name] for name in models) for counts in (server.read, server.written))
    assert 0 < sum(server.calls[name] for name in models) <= planned["calls"]
    assert read <= planned["read"] <= far * read
    assert written <= (planned["sampled"] or 0)
    assert planned["money"] >= (read + 2 * written) / 1e6
