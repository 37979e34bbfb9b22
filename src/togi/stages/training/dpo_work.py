"""The work of `train.dpo`: pairs, their log-probabilities under the initial model, and the loss."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from togi.core.seeds import derive
from togi.model.forest import Forest
from togi.model.load import LoadedModel
from togi.objectives.base import Batch
from togi.objectives.dpo import DPO
from togi.stages.context import Context
from togi.stages.models import load_trainable
from togi.stages.rehearsal_work import Rehearsed, weightless
from togi.stages.training.dpo import TrainDpo
from togi.stages.training.examples_work import Data, Example, ShuffledEpochs
from togi.stages.training.pairs_work import PairTask, PairToExample, pair_rows, read_pairs, train_and_save
from togi.stages.training.reference_work import with_reference


def run(settings: TrainDpo, context: Context) -> None:
    model = load_trainable(context, settings.init, settings, in_parts=True)
    data = read_pairs(settings, context, border(settings, context, model))
    task = DpoTask(settings, context, model, data)
    if settings.reference:
        order = ShuffledEpochs(settings, data.training, derive(context.seed, "order"))
        task.data = with_reference(context, task, settings.tokens_at_once, order.used())
    train_and_save(settings, context, model, task)


def rehearse(settings: TrainDpo, context: Context) -> list[Rehearsed]:
    return pair_rows(settings, context, border(settings, context, weightless(context, settings.init)))


def border(settings: TrainDpo, context: Context, model: LoadedModel) -> PairToExample:
    """The converter from pairs to examples."""
    return PairToExample(settings=settings, context=context, model=model)


class DpoTask(PairTask):
    """With a reference, chosen answers are watched by their change from the initial model, pair by pair: 0 at the
    start."""

    settings: TrainDpo

    def __init__(self, settings: TrainDpo, context: Context, model: LoadedModel, data: Data) -> None:
        if settings.reference:
            self.watched, self.start = "chosen_change", 0.0
        super().__init__(settings, context, model, data)

    def objective(self, step: int) -> DPO:
        settings = self.settings
        return DPO(
            loss_type=settings.loss,
            beta=settings.beta,
            label_smoothing=settings.label_smoothing,
            sft_weight=settings.sft_weight,
            reference=settings.reference,
        )

    def batch(self, examples: Sequence[Example], inputs: Forest) -> Batch:
        sums = [value for example in examples for value in example.ref_logp or ()]
        ref_logp_S = torch.tensor(sums, dtype=torch.float64, device=self.device) if sums else None
        return replace(super().batch(examples, inputs), ref_logp_S=ref_logp_S)
