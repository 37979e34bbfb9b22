"""Runs stages that ask local models, with tiny random models in a folder; any executor can do their shards."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_tokenizer
from tiny_run import tiny_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from togi.core.codec import write_records
from togi.core.records import Completion, Document, Message, Prompt, Sample
from togi.core.settings import references
from togi.core.sources import ModelSource
from togi.stages.base import RECORDS_FILE, StageType
from togi.stages.context import Context, Control, Resolved
from togi.stages.shards import ShardExecutor
from togi.stages.table import STAGES

TURN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<eos>{% endfor %}"
PROMPTS, ANSWERS = 7, 11
JUDGED = {"samples": "$t", "judge": "$j", "batch_prompts": 3}
DRAFTS = {"input": "$q", "batch_prompts": 2, "max_tokens": 3}
WRITTEN = {"model": "$w", "batch_prompts": 2, "max_tokens": 6, "min_chars": 1, "max_repeated_ngrams": 1}
GIVEN: dict[str, dict[str, Any]] = {  # by the type of the stage, and what it does
    "respond": {
        **{"prompts": "$p", "models": ["$a", "$b"], "samples": 2, "batch_prompts": 2, "temperature": 1.0},
        **{"max_tokens": 9, "truncated": "keep", "system": "Be brief."},
    },
    "respond-follow_up": {
        **{"prompts": "$q", "models": ["$a", "$b"], "samples": 2, "batch_prompts": 4, "temperature": 1.0},
        **{"max_tokens": 9, "truncated": "keep", "follow_up": "text"},
    },
    "score": {"samples": "$s", "scorer": "$rm", "batch_samples": 3},
    "score-reference": {"samples": "$k", "scorer": "$rm", "batch_samples": 3, "system": "drop", "reference": True},
    "label": {**JUDGED, "temperature": 1.0, "max_tokens": 2, "retries": 2},
    "label-graded": {**JUDGED, "method": "graded", "temperature": 1.0, "max_tokens": 2, "rounds": 2},
    "label-logprobs": {**JUDGED, "by": "logprobs", "orders": "random"},
    "curate": {**DRAFTS, "model": "$j", "rewrite": True, "keep_share": 0.5},
    "curate-json": {**DRAFTS, "model": "$c", "method": "json", "rewrite": True},
    "curate-reward": {**DRAFTS, "scorer": "$rm", "method": "reward"},
    "synthesize-few_shot": {**WRITTEN, "method": "few_shot", "examples": "$e", "samples_per_prompt": 3, "count": 14},
    "synthesize-magpie": {**WRITTEN, "method": "magpie", "samples_per_prompt": 3, "count": 14},
    "synthesize-answers": {**WRITTEN, "method": "magpie", "kind": "chats", "answer_tokens": 5, "count": 9},
    "synthesize-rewrite": {**WRITTEN, "method": "rewrite", "input": "$q", "count": 9},
    "synthesize-qa": {**WRITTEN, "method": "qa", "documents": "$d", "examples": "$e", "shots": 2},
    "synthesize-grounded": {**WRITTEN, "method": "grounded", "documents": "$d", "examples": "$e", "distractors": 1},
}
RECORDS = {
    **{"$p": "prompts", "$q": "prompts", "$e": "prompts", "$d": "documents"},
    **{"$s": "samples", "$t": "samples", "$k": "samples"},
}
MODELS = {"$a": "model", "$b": "model", "$j": "judge", "$c": "critic", "$w": "writer", "$rm": "rm"}
WHAT = ("sky", "sea", "car", "hat", "bird", "door", "lake", "ink", "moon")
SAID = {  # by the folder of a model: its seed, and what it mostly says
    "judge": (5, ("[[A]]", "[[B]]", "[[7]]", "[[3]]")),
    "critic": (17, ('{"keep": true}', "Keep it.", '{"keep": false}')),
    "writer": (
        5,
        (" Why is it?\nAnswer: So.", " How so?\nAnswer: By a trick.", "Question: Where is it?\nAnswer: There."),
    ),
}


def write_scorer(folder: Path) -> None:
    """Writes a random reward model whose pad token ends conversations, so that the library would read another token."""
    torch.manual_seed(5)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TURN + "{% if add_generation_prompt %}[assistant]{% endif %}"
    shape: dict[str, Any] = {
        "num_labels": 1,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    shape |= {"pad_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **shape)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)


def write_speaker(folder: Path, said: tuple[str, ...], seed: int) -> None:
    """Writes a random model that mostly says one of `said` and ends."""
    tiny_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([*said, "<|im_end|>"])
    net: Any = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(seed)
    net.config.max_position_embeddings = 1024
    net.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    words, head, new = net.get_input_embeddings().weight, net.lm_head.weight, slice(-len(said) - 1, -1)
    for weight in net.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, 0, 0.3 if weight is words else 0.15)
    with torch.no_grad():
        head[new] *= 3
        words[:, :2], head[:, :2] = torch.tensor([0.0, 2.0]), 0  # two directions: something was said, and all tokens
        words[new, 0] = 3
        head[new, :2], head[-1, :2] = torch.tensor([-1.0, 2.5]), torch.tensor([4.0, 0.0])
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_inputs(folder: Path) -> None:
    """Writes records and models into `folder`, for any number of contexts."""
    drafts = [_draft(number, what) for number, what in enumerate(WHAT)]
    long = replace(drafts[0], id="long", messages=(Message("user", "Why is it so" + " very" * 999 + " blue?"),))
    prompts = [Prompt(id=f"p{i}", messages=(Message("user", f"Why is {i}{' so' * i}?"),)) for i in range(PROMPTS)]
    given: dict[str, list[Any]] = {
        "$p": prompts,
        "$s": [_answer(prompts[i % PROMPTS], i, "Because" + " it is" * i) for i in range(ANSWERS)],
        "$t": [_answer(prompts[i % 4], i, " so" * i) for i in range(ANSWERS + 4)],
        "$k": [_answer(drafts[i % 4], i, "Because" + " it is" * i) for i in range(ANSWERS)],
        "$q": [*drafts, long],
        "$e": [draft for draft in drafts if draft.answer],
        "$d": [Document(id=f"d{i}", text=f"The number {i} is a number{' and so on' * i}.") for i in range(PROMPTS)],
    }
    for ref, records in given.items():
        write_records(folder / ref[1:] / RECORDS_FILE, RECORDS[ref], records)
    tiny_model(folder / "model")
    for name, (seed, said) in SAID.items():
        write_speaker(folder / name, said, seed)
    write_scorer(folder / "rm")


def _draft(number: int, what: str) -> Prompt:
    asked = Message("user", f"Why is the {what} so {'very ' * (number % 3)}blue today?")
    answer = None if number % 4 == 3 else f"Because of the {what}."
    return Prompt(id=f"q{number}", messages=(asked,), answer=answer, extra={"text": f"The {what} is blue."})


def _answer(prompt: Prompt, number: int, text: str) -> Sample:
    completion = Completion(text=text, stop="terminator")
    return Sample(id=f"s{number}", prompt=prompt, completion=completion, model="m", index=number)


def stage_type(kind: str) -> StageType:
    """The type of the stage that does `kind`."""
    return STAGES[kind.partition("-")[0]]


def resolved(folder: Path, ref: str, device: str = "") -> Resolved:
    """What a reference in GIVEN means, with its model on `device`."""
    if ref in RECORDS:
        return Resolved(RECORDS[ref], folder=folder / ref[1:])
    kind, template = ("scorer", None) if ref == "$rm" else ("model", "chatml")
    source = ModelSource(kind="path", name=str(folder / MODELS[ref]), template=template, device=device)
    return Resolved(kind, source=source)


def context(folder: Path, kind: str, name: str, executor: ShardExecutor, device: str = "") -> Context:
    """A new or begun stage `name` in `folder` that does `kind`."""
    stage = stage_type(kind)
    refs = [ref for _, ref in references(stage.settings.model_validate(GIVEN[kind]))]
    inputs: dict[str, Resolved] = {ref: resolved(folder, ref, device) for ref in refs}
    made = Context("made", folder / name / f"{kind}-0", folder, 1, inputs, Control(send=lambda event: None))
    made.compute, made.reasons, made.shards = "float32", stage.reasons, executor
    made.folder.mkdir(parents=True, exist_ok=True)
    return made


def run(made: Context, kind: str, **given: Any) -> dict[str, bytes]:
    """Does the stage with its usual settings; returns its results, with the record of what their bits depend on."""
    stage = stage_type(kind)
    settings = stage.settings.model_validate({**GIVEN[kind], **given})
    importlib.import_module(stage.work).run(settings, made)
    made.finish()
    found = {name: (made.folder / name).read_bytes() for name in (RECORDS_FILE, "summary.json", "numerics.json")}
    return found | {path.name: path.read_bytes() for path in sorted((made.folder / "units").iterdir())}
