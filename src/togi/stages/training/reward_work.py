"""The work of `train.reward`: trains a scalar head, and the requested layers, to predict the preferred answer."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from togi.core.errors import InputError
from togi.core.files import write_text
from togi.core.records import Message, Pair
from togi.core.seeds import derive
from togi.core.settings import refs_of
from togi.evaluate.accuracy import Accuracy, pair_accuracy, shuffled_labels
from togi.evaluate.statistics import Bootstrap
from togi.evaluate.table import Metric, Row, rows_to_json, single
from togi.model.forest import Forest, move, num_tokens, plant, split_by_tokens
from togi.model.forest import Sequence as TokenSequence
from togi.model.load import LoadedModel
from togi.model.policy import hidden_states, use_tree_attention
from togi.model.reward_model import RewardModel, add_scalar_head, keep_layers, read_head
from togi.objectives.base import Batch, Output
from togi.objectives.reward import BradleyTerry
from togi.stages.arithmetic import device
from togi.stages.base import MODEL_FOLDER
from togi.stages.context import Context
from togi.stages.models import adapted, keep_model, load_bare
from togi.stages.refused import refused
from togi.stages.rehearsal_work import Rehearsed, data_rows, weightless
from togi.stages.training.dropped_work import dropped_warning, tell_dropped
from togi.stages.training.examples_work import Data, Example, inner, read
from togi.stages.training.fit_work import Task, fit, outputs
from togi.stages.training.pairs_work import PairReader
from togi.stages.training.reward import TrainReward
from togi.stages.training.token_files_work import Changed
from togi.text.render import render_text
from togi.text.turns import Unrendered
from togi.train import usage

RESAMPLES = 2000
Features = dict[tuple[int, ...], Tensor]
Scores = list[list[float]]  # of the chosen sides, of the rejected sides


def run(settings: TrainReward, context: Context) -> None:
    model = load_trunk(settings, context)
    data = read_pairs(settings, context, model)
    work = RewardTrainings(settings, context, data, SharedBody(settings, context, model, data))
    del model  # the first training takes it, and the next one must find its memory free
    control = work.control() if settings.shuffled_control else []
    rows = work.sweep() if settings.sweep else work.once()
    context.counts["out"] = len(data.training)
    context.counts["held_out"] = len(data.validation)
    context.summary["table"] = rows_to_json([*rows, *control])
    tell_dropped(context)


def rehearse(settings: TrainReward, context: Context) -> list[Rehearsed]:
    model = weightless(context, settings.init)
    return data_rows(context, model, read_pairs(settings, context, model))


def load_trunk(settings: TrainReward, context: Context) -> LoadedModel:
    """The initial model, or its lower layers."""
    model = load_bare(context, settings.init, settings)
    if settings.keep_layers is not None:
        keep_layers(model, settings.keep_layers)
    return model


# --- data -------------------------------------------------------------------------------------------------------------


@dataclass
class PairToTexts(PairReader):
    """Pairs as trees of two branches. No token carries loss: a scorer reads the last row."""

    settings: TrainReward

    @property
    def key(self) -> dict[str, Any]:
        return {**super().key, "margin": self.settings.margin}

    def __call__(self, pair: Pair, /) -> Example | str:
        """The example of a pair, or the reason for dropping it. Raises InputError if `margin` is set and the pair has
        none."""
        if isinstance(found := super().__call__(pair), str):
            return found
        if self.settings.margin and pair.margin is None:
            raise InputError(f"stage {self.context.name}: pair {pair.id} has no margin, which `margin: true` subtracts")
        return found

    def sequence(self, pair: Pair, side: Sequence[Message]) -> TokenSequence:
        try:
            ids = render_text(self.model.template, self.model.tokenizer, (*pair.prompt, *side))
        except Unrendered:
            raise
        except InputError as error:
            raise refused(self.context.name, "pair", pair.id, self.model.name, error) from None
        return TokenSequence(tuple(ids), (False,) * len(ids))


def read_pairs(settings: TrainReward, context: Context, model: LoadedModel) -> Data:
    """The examples of a stage's pairs, and of its validation."""
    data = read(settings, context, refs_of(settings.pairs), border(settings, context, model))
    data.warnings += dropped_warning(settings, context, data.warnings)
    return data


def border(settings: TrainReward, context: Context, model: LoadedModel) -> PairToTexts:
    """The converter from pairs to examples."""
    return PairToTexts(settings=settings, context=context, model=model)


# --- the model --------------------------------------------------------------------------------------------------------


class SharedBody:
    """Makes scorers with the same start, the initial model with the same new head, one per training of the stage.

    If only the head is trained, all of them share one trunk. The features of `texts` are then computed once and in
    order, so that they are bit-identical whichever training comes first after a kill.
    """

    def __init__(self, settings: TrainReward, context: Context, model: LoadedModel, texts: Data) -> None:
        self.settings = settings
        self.context = context
        self.unused: LoadedModel | None = model
        self.frozen = settings.train_layers == 0
        self.texts = texts
        self.features: Features = {}

    def scorer(self, data: Data) -> tuple[LoadedModel, "RewardTask"]:
        """A fresh scorer and its task."""
        base = self.unused or self._loaded_again()
        self.unused = base if self.frozen else None
        model = add_scalar_head(base, seed=derive(self.context.seed, "head"))
        if self.settings.lora is not None:
            model = adapted(model, self.settings.lora, seed=derive(self.context.seed, "lora"), full=("score",))
        elif self.settings.train_layers is not None:
            self._freeze(model, self.settings.train_layers)
        if self.frozen and not self.features:
            texts = [*self.texts.training, *self.texts.validation]
            self.features = _features(model, texts, self.settings.tokens_at_once)
        return model, RewardTask(self.settings, data, model, self.features)

    def _loaded_again(self) -> LoadedModel:
        """The initial model, after the memory of the training before is free."""
        usage.give_back(device())
        return load_trunk(self.settings, self.context)

    def _freeze(self, model: LoadedModel, train_layers: int) -> None:
        """Enables gradients for the head and the upper layers only."""
        layers = model.net.base_model.layers
        if train_layers > len(layers):
            raise InputError(
                f"stage {self.context.name}: train_layers is {train_layers}, but the model has {len(layers)} layers"
            )
        model.net.requires_grad_(False)
        model.net.score.requires_grad_(True)
        for layer in layers[len(layers) - train_layers :]:
            layer.requires_grad_(True)


@torch.no_grad()
def _features(model: LoadedModel, examples: Sequence[Example], budget: int) -> Features:
    """The last hidden state (H,) of each text, the only input of the head."""
    use_tree_attention(model.net)
    found: Features = {}
    for cut in split_by_tokens([example.group for example in examples], budget):
        forest = move(plant(cut.groups), model.net.device)
        hidden_SH = hidden_states(model.net, forest)[forest.last_S]
        texts = [sequence.ids for group in cut.groups for sequence in group]
        found.update(zip(texts, hidden_SH, strict=True))
    return found


class RewardTask(Task[Forest | Tensor]):
    """Scores both sides of pairs. A micro-batch holds a forest, or rows of features if only the head is trained."""

    def __init__(self, settings: TrainReward, data: Data, model: LoadedModel, features: Features) -> None:
        # a head alone is small, so every rank holds all of it
        super().__init__(data, model.net.device, None if features else RewardModel(model.net))
        self.settings = settings
        self.net = model.net
        self.features = features

    def objective(self, step: int) -> BradleyTerry:
        return BradleyTerry(centring=self.settings.centring, margin=self.settings.margin)

    def forward(self, module: RewardModel | None, inputs: Forest | Tensor) -> Output:
        if isinstance(inputs, Tensor):
            return Output(score_S=read_head(self.net.score, inputs))
        assert module is not None, "forests are read through the whole model"
        return Output(score_S=module(move(inputs, self.device)))

    def plant(self, examples: Sequence[Example]) -> Forest | Tensor:
        if self.features:
            return torch.stack([self.features[side.ids] for example in examples for side in example.group])
        return plant([example.group for example in examples])

    def batch(self, examples: Sequence[Example], inputs: Forest | Tensor) -> Batch:
        margins = [example.margin for example in examples] if self.settings.margin else None
        return Batch(
            num_sequences=2 * len(examples),
            margin_P=None if margins is None else torch.tensor(margins, dtype=torch.float32, device=self.device),
        )

    def size(self, example: Example) -> int:
        return 0 if self.features else num_tokens(example.group)

    def longest(self) -> int:
        return 0 if self.features else super().longest()

    def rates(self) -> dict[str, float]:
        rate = self.settings.head_learning_rate
        # with an adapter, the parameters also include the original head, which is frozen
        names = [name for name, p in self.net.named_parameters() if p.requires_grad and ".score." in f".{name}"]
        return {} if rate is None else dict.fromkeys(names, rate)


# --- trainings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RewardTrainings:
    """The trainings of the stage: one, or one per learning rate, and a control."""

    settings: TrainReward
    context: Context
    data: Data
    trunk: SharedBody

    def once(self) -> list[Row]:
        """Trains and saves a model. Returns the row of its accuracy, if there is validation."""
        model, task = self.trunk.scorer(self.data)
        fit(self.settings, self.context, model, task, everywhere=True)
        rows = []
        if self.data.validation:
            accuracy = self._accuracy(self._scores(task))
            rows.append(self._row("accuracy on held-out pairs", accuracy, _lengths(self.data.validation)))
        keep_model(self.context, model, self.context.folder / MODEL_FOLDER, self.settings)
        return rows

    def control(self) -> list[Row]:
        """Trains a control on shuffled labels. Returns the row of its accuracy."""
        rate = self.settings.sweep[0] if self.settings.sweep else self.settings.learning_rate
        settings = self._with_rate(rate)
        flips = shuffled_labels(len(self.data.training), derive(self.context.seed, "control"))
        mixed = Changed(self.data.training, lambda number, example: swap(example) if flips[number] else example)
        data = Data(mixed, self.data.validation)

        def train(_: int) -> Scores:
            model, task = self.trunk.scorer(data)
            fit(settings, inner(self.context, "control"), model, task, everywhere=True)
            return self._scores(task)

        scores = self.context.units(1, train, "control")[0]
        checkpoints = self.context.folder / "runs" / "control" / "checkpoints"
        self.context.ranks.on_first_rank(lambda: shutil.rmtree(checkpoints, ignore_errors=True))
        note = "trained on shuffled labels: should be near one half"
        return [self._row("accuracy of the control", self._accuracy(scores), note)]

    def sweep(self) -> list[Row]:
        """Trains at each learning rate and keeps the model that is most accurate on the held-out pairs (the first of
        equals). Returns one row per rate."""
        rates = self.settings.sweep

        def train(number: int) -> Scores:
            model, task = self.trunk.scorer(self.data)
            context = inner(self.context, f"rate-{number}")
            fit(self._with_rate(rates[number]), context, model, task, everywhere=True)
            scores = self._scores(task)
            keep_model(context, model, context.folder / "model", self.settings)
            context.ranks.on_first_rank(lambda: shutil.rmtree(context.folder / "checkpoints", ignore_errors=True))
            return scores

        found = [self._accuracy(scores) for scores in self.context.units(len(rates), train, "rate")]
        best = max(range(len(rates)), key=lambda i: found[i].interval.mean)
        self.context.ranks.on_first_rank(lambda: self._keep(best))
        self.context.summary["learning_rate"] = rates[best]
        names = [f"accuracy at learning rate {rate:g}" for rate in rates]
        notes = [f"kept; {_lengths(self.data.validation)}" if i == best else "" for i in range(len(rates))]
        return [self._row(*row) for row in zip(names, found, notes, strict=True)]

    def _keep(self, best: int) -> None:
        """Makes the model, metrics and alarms of one rate those of the stage. Safe to repeat after a kill at any
        point."""
        runs, target = self.context.folder / "runs", self.context.folder / MODEL_FOLDER
        if not target.exists():
            chosen = runs / f"rate-{best}"
            for name in ("metrics.jsonl", "alarms.jsonl"):
                if (chosen / name).exists():
                    write_text(self.context.folder / name, (chosen / name).read_text(encoding="utf-8"))
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(chosen / "model", target)
        for number in range(len(self.settings.sweep)):
            shutil.rmtree(runs / f"rate-{number}" / "model", ignore_errors=True)

    def _with_rate(self, rate: float) -> TrainReward:
        return self.settings.model_copy(update={"learning_rate": rate, "sweep": ()})

    def _scores(self, task: RewardTask) -> Scores:
        """Scores of the chosen sides and of the rejected sides of the held-out pairs."""
        budget = self.settings.tokens_at_once
        parts = [found.score_S for _, found in outputs(task, self.context, task.data.validation, budget)]
        scores = torch.cat([part for part in parts if part is not None]).tolist()
        return [scores[0::2], scores[1::2]]

    def _accuracy(self, scores: Scores) -> Accuracy:
        bootstrap = Bootstrap(seed=derive(self.context.seed, "accuracy"), resamples=RESAMPLES)
        return pair_accuracy(scores[0], scores[1], bootstrap, [pair.prompt for pair in self.data.validation])

    def _row(self, name: str, found: Accuracy, note: str) -> Row:
        notes = [f"of {found.pairs} pairs", note, f"{found.ties} ties count as wrong" if found.ties else ""]
        note = "; ".join(part for part in notes if part)
        self.context.log(f"{name}: {found.interval.mean:.1%} (pairs: {found.pairs}, prompts: {found.interval.n})")
        return single(Metric(name=name, higher_is_better=True, note=note), found.interval)


def swap(example: Example) -> Example:
    """The pair with its sides swapped and its margin, if it has one, negated."""
    margin = None if example.margin is None else -example.margin
    return replace(example, group=example.group[::-1], margin=margin)


def _lengths(pairs: Sequence[Example]) -> str:
    """Mean lengths of both sides, which show whether length alone could tell them apart."""
    chosen, rejected = (sum(len(pair.group[side].ids) for pair in pairs) / len(pairs) for side in (0, 1))
    return f"mean length {chosen:.1f} tokens chosen, {rejected:.1f} rejected, prompt included"
