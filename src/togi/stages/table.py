"""The stages that a recipe can name. A new one is a settings file, a work file and one line here."""

from togi.core.settings import takes
from togi.stages import (
    contrast,
    curate,
    diversify,
    evaluate,
    imported,
    select,
    synthesize,
    train_dpo,
    train_grpo,
    train_pretrain,
    train_reward,
    train_sft,
    train_smpo,
)

STAGES = {
    stage.name: stage
    for stage in (
        imported.STAGE,
        synthesize.STAGE,
        curate.STAGE,
        diversify.STAGE,
        select.STAGE,
        contrast.STAGE,
        train_pretrain.STAGE,
        train_sft.STAGE,
        train_reward.STAGE,
        train_dpo.STAGE,
        train_smpo.STAGE,
        train_grpo.STAGE,
        evaluate.STAGE,
    )
}


def takers(kind: str) -> list[str]:
    """The stage types that take `kind`."""
    return [name for name, stage in STAGES.items() if takes(stage.settings, kind)]
