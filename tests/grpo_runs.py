"""`train.grpo` on a random model in this process, without a runner, to test the stage itself."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from tiny_run import QUESTIONS, tiny_model

from togi.core.codec import write_records
from togi.core.ranks import ALONE, Ranks
from togi.core.records import Message, Prompt
from togi.core.sources import ModelSource
from togi.model.load import LoadedModel, load
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.training.grpo import TrainGrpo
from togi.stages.training.grpo_work import GrpoBatches, run

REWARDS = '''
def vowels(prompt, completion):
    return sum(character in "aeiou" for character in completion.text) / max(len(completion.text), 1)

def same(prompt, completion):
    return 1.0

def sometimes(prompt, completion):
    """The same for every answer to some prompts."""
    return 1.0 if len(prompt.text) % 3 == 0 else vowels(prompt, completion)
'''


@lru_cache(maxsize=1)
def prompts() -> list[Prompt]:
    return [Prompt(id=f"q{i}", messages=(Message("user", text),)) for i, text in enumerate(QUESTIONS)]


class Bench:
    """A folder with a model, prompts and reward functions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.template = "chatml"
        self._folders = 0
        tiny_model(folder / "model")
        write_records(folder / "prompts" / RECORDS_FILE, "prompts", prompts())
        (folder / "rewards.py").write_text(REWARDS)

    def settings(self, function: str = "vowels", **more: Any) -> TrainGrpo:
        term = {"type": "function", "file": str(self.folder / "rewards.py"), "name": function}
        plain: dict[str, Any] = {
            "init": "$base",
            "prompts": "$prompts",
            "reward": {"terms": [term]},
            "steps": 4,
            "prompts_per_step": 2,
            "group_size": 4,
            "learning_rate": 1e-3,
            "save_every": 2,
            "sampling": {"max_tokens": 12},
        }
        return TrainGrpo.model_validate({**plain, **more})

    def context(self, name: str, ranks: Ranks = ALONE) -> Context:
        """The context of a stage folder of that name; its events are discarded."""
        (self.folder / name).mkdir(exist_ok=True)
        return Context(
            name="policy",
            folder=self.folder / name,
            cache=self.folder / "cache",
            seed=3,
            inputs={
                "$base": Resolved("model", source=self.source()),
                "$prompts": Resolved("prompts", folder=self.folder / "prompts"),
            },
            control=Control(send=lambda event: None),
            compute="float32",
            ranks=ranks,
        )

    def source(self) -> ModelSource:
        return ModelSource(kind="path", name=str(self.folder / "model"), template=self.template)

    def model(self) -> LoadedModel:
        return load(self.source(), self.folder / "cache")

    def run(self, name: str, settings: TrainGrpo, ranks: Ranks = ALONE) -> Path:
        """Runs a whole stage and returns its folder."""
        run(settings, self.context(name, ranks))
        return self.folder / name

    def at_work(self, settings: TrainGrpo, model: LoadedModel | None = None) -> GrpoBatches:
        """The batch source of a stage before its first step, in its own folder."""
        self._folders += 1
        return GrpoBatches(settings, self.context(f"work-{self._folders}"), model or self.model(), prompts())


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines of one of the stage's files, without the values that depend on the clock."""
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "tokens_per", "memory/"))} for row in rows]


def weights(folder: Path) -> bytes:
    return (folder / "output" / "model" / "model.safetensors").read_bytes()
