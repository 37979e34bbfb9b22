"""The work of `train.smpo`, which needs no reference model."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from togi.model.forest import Forest
from togi.model.forest import Sequence as TokenSequence
from togi.model.load import LoadedModel
from togi.objectives.base import Batch
from togi.objectives.smpo import SMPO, Clipping, margin_at
from togi.stages.context import Context
from togi.stages.models import load_trainable
from togi.stages.rehearsal_work import Rehearsed, weightless
from togi.stages.training.examples_work import Data, Example
from togi.stages.training.pairs_work import PairTask, PairToExample, pair_rows, read_pairs, train_and_save
from togi.stages.training.smpo import TrainSmpo
from togi.text.render import check_template


def run(settings: TrainSmpo, context: Context) -> None:
    model = load_trainable(context, settings.init, settings, in_parts=True)
    data = read_pairs(settings, context, border(settings, context, model))
    train_and_save(settings, context, model, SmpoTask(settings, context, model, data))


def rehearse(settings: TrainSmpo, context: Context) -> list[Rehearsed]:
    return pair_rows(settings, context, border(settings, context, weightless(context, settings.init)))


def border(settings: TrainSmpo, context: Context, model: LoadedModel) -> PairToExample:
    """The converter from pairs to examples."""
    header, second_bos = settings.score_header, settings.second_bos
    return PairToExample(settings=settings, context=context, model=model, header=header, second_bos=second_bos)


class SmpoTask(PairTask):
    """Training on pairs with a margin that may depend on the step."""

    settings: TrainSmpo

    def __init__(self, settings: TrainSmpo, context: Context, model: LoadedModel, data: Data) -> None:
        super().__init__(settings, context, model, data)
        self.total_steps = self.source(settings, context.seed).total_steps
        self.terminator = check_template(model.template, model.tokenizer).terminator
        self.base = SMPO(
            loss_type=settings.loss,
            beta=settings.beta,
            target_margin=settings.target_margin,
            margin_delta=settings.margin_delta,
            chosen_sft_ratio=settings.chosen_sft_ratio,
            sft_weight=settings.sft_weight,
            clipping=Clipping(**settings.clipping.model_dump()),
        )

    def objective(self, step: int) -> SMPO:
        if self.settings.margin_schedule == "constant":
            return self.base
        return replace(self.base, target_margin=margin_at(step, self.total_steps, self.settings.target_margin))

    def validated(self, step: int) -> SMPO:
        """Uses the full margin at every step, so that the losses of different steps are comparable."""
        return self.base

    def batch(self, examples: Sequence[Example], inputs: Forest) -> Batch:
        batch = super().batch(examples, inputs)
        if not self.settings.clipping.flip_terminator:
            return batch
        marks = [
            mark for example in examples for side in example.group for mark in terminator_marks(side, self.terminator)
        ]
        return replace(batch, terminator_N=torch.tensor(marks, dtype=torch.bool, device=self.device))


def terminator_marks(sequence: TokenSequence, terminator: tuple[int, ...]) -> list[bool]:
    """Which of the scored tokens belong to a terminator: one flag per scored token, in order."""
    size = len(terminator)
    marked = [False] * len(sequence.ids)
    for place in range(len(sequence.ids) - size + 1):
        if sequence.ids[place : place + size] == terminator:
            marked[place : place + size] = [True] * size
    return [mark for mark, scored in zip(marked, sequence.scored, strict=True) if scored]
