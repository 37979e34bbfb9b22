"""Runs `respond` and `score` with tiny random models in a folder; any executor can do their shards."""

from pathlib import Path
from typing import Any

import torch
from tiny import tiny_tokenizer
from tiny_run import tiny_model
from transformers import AutoModelForSequenceClassification, LlamaConfig

from togi.core.codec import write_records
from togi.core.records import Completion, Message, Prompt, Sample
from togi.core.settings import NamedModelRef, NamedScorerRef, PromptsRef, SamplesRef
from togi.core.sources import ModelSource
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.data import respond_work, score_work
from togi.stages.shards import ShardExecutor
from togi.stages.table import STAGES

TURN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<eos>{% endfor %}"
PROMPTS, ANSWERS = 7, 11
WORK: dict[str, Any] = {"respond": respond_work, "score": score_work}
GIVEN: dict[str, dict[str, Any]] = {  # 8 units of `respond`, 4 of `score`
    "respond": {
        **{"prompts": "$p", "models": ["$a", "$b"], "samples": 2, "batch_prompts": 2, "temperature": 1.0},
        **{"max_tokens": 9, "truncated": "keep", "system": "Be brief."},
    },
    "score": {"samples": "$s", "scorer": "$rm", "batch_samples": 3},
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


def write_inputs(folder: Path) -> None:
    """Writes prompts, answers, a model and a reward model into `folder`, for any number of contexts."""
    prompts = [Prompt(id=f"p{i}", messages=(Message("user", f"Why is {i}{' so' * i}?"),)) for i in range(PROMPTS)]
    write_records(folder / "p" / RECORDS_FILE, "prompts", prompts)
    answers = [
        Sample(
            id=f"s{i}",
            prompt=prompts[i % PROMPTS],
            completion=Completion(text="Because" + " it is" * i, stop="terminator"),
            model="m",
            index=i,
        )
        for i in range(ANSWERS)
    ]
    write_records(folder / "s" / RECORDS_FILE, "samples", answers)
    tiny_model(folder / "model")
    write_scorer(folder / "rm")


def context(folder: Path, kind: str, name: str, executor: ShardExecutor, device: str = "") -> Context:
    """A new or begun stage `name` of the type `kind` in `folder`."""
    model = ModelSource(kind="path", name=str(folder / "model"), template="chatml", device=device)
    inputs: dict[str, Resolved] = {
        PromptsRef("$p"): Resolved("prompts", folder=folder / "p"),
        NamedModelRef("$a"): Resolved("model", source=model),
        NamedModelRef("$b"): Resolved("model", source=model),
    }
    if kind == "score":
        rm = ModelSource(kind="path", name=str(folder / "rm"), device=device)
        inputs = {
            SamplesRef("$s"): Resolved("samples", folder=folder / "s"),
            NamedScorerRef("$rm"): Resolved("scorer", source=rm),
        }
    made = Context("made", folder / name / f"{kind}-0", folder, 1, inputs, Control(send=lambda event: None))
    made.compute, made.reasons, made.shards = "float32", STAGES[kind].reasons, executor
    made.folder.mkdir(parents=True, exist_ok=True)
    return made


def run(made: Context, kind: str, **given: Any) -> dict[str, bytes]:
    """Does the stage with its usual settings; returns its results, with the record of what their bits depend on."""
    stage = STAGES[kind]
    settings = stage.settings.model_validate({**GIVEN[kind], **given})
    WORK[kind].run(settings, made)
    made.finish()
    found = {name: (made.folder / name).read_bytes() for name in (RECORDS_FILE, "summary.json", "numerics.json")}
    return found | {path.name: path.read_bytes() for path in sorted((made.folder / "units").iterdir())}
