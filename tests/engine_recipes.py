"""Recipes of a policy that samples on a server."""

from collections.abc import Sequence

HEAD = """\
name: NAME
seed: 3
models:
MODELS
data:
  questions: {path: questions.jsonl}
stages:
  policy:
    type: train.grpo
    init: $base
    prompts: $questions
    prompts_per_step: 2
    group_size: 4
"""


def engine_recipe(name: str, models: Sequence[str], *settings: str) -> str:
    """A recipe of one training with GRPO from `$base`, two groups of four answers per step. `models` are the entries
    under `models:`, `settings` the other lines of the stage."""
    head = HEAD.replace("NAME", name).replace("MODELS", "\n".join(f"  {line}" for line in models))
    return head + "".join(f"    {line}\n" for line in settings if line)
