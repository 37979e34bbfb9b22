"""The stages that a recipe can name. A new stage needs a settings file, a work file and one line here."""

from togi.core.records import KINDS
from togi.core.settings import takes
from togi.stages.data import (
    contrast,
    curate,
    decontaminate,
    dedup,
    diversify,
    importing,
    label,
    mix,
    pairs,
    respond,
    score,
    select,
    split,
    synthesize,
)
from togi.stages.evaluation import calibrate, evaluate
from togi.stages.training import dpo, grpo, pretrain, reward, sft, smpo

DATA = (
    importing.STAGE,
    synthesize.STAGE,
    curate.STAGE,
    dedup.STAGE,
    decontaminate.STAGE,
    diversify.STAGE,
    mix.STAGE,
    select.STAGE,
    split.STAGE,
    contrast.STAGE,
    respond.STAGE,
    score.STAGE,
    pairs.STAGE,
    label.STAGE,
)
TRAINING = (pretrain.STAGE, sft.STAGE, reward.STAGE, dpo.STAGE, smpo.STAGE, grpo.STAGE)
EVALUATION = (evaluate.STAGE, calibrate.STAGE)
STAGES = {stage.name: stage for stage in (*DATA, *TRAINING, *EVALUATION)}


def kinds_taken() -> dict[str, list[str]]:
    """The stage types that accept each kind of records."""
    return {kind: takers(kind) for kind in KINDS}


def takers(kind: str) -> list[str]:
    """The stage types that accept `kind`."""
    return [name for name, stage in STAGES.items() if takes(stage.settings, kind)]
