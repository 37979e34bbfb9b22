"""The work of `train.reward`: a scalar head (and as many layers as asked for) learns which answer was preferred."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from togi.core.errors import InputError
from togi.core.records import Message, Pair
from togi.core.seeds import derive
from togi.core.settings import PairsRef
from togi.data.pairs import shuffle_labels
from togi.evaluate.accuracy import pair_accuracy
from togi.evaluate.statistics import Bootstrap
from togi.evaluate.table import Metric, Row, rows_to_json, single
from togi.model.forest import Forest, move, num_tokens, plant, split_by_tokens
from togi.model.forest import Sequence as TokenSequence
from togi.model.load import LoadedModel, save_model
from togi.model.logprobs import hidden_states, use_tree_attention
from togi.model.scalar import ModelScorer, RewardModel, add_scalar_head, keep_layers
from togi.objectives.base import Batch, Output
from togi.objectives.reward import BradleyTerry
from togi.stages.arithmetic import in_machine_type
from togi.stages.base import MODEL_FOLDER, Context
from togi.stages.models import load_trainable
from togi.stages.train_reward import TrainReward
from togi.stages.training import Trainer
from togi.text.render import render_chat
from togi.train.loop import MicroBatch, train_steps
from togi.train.optimizer import AdamWSettings, Schedule, Update, build_adamw, trained

RESAMPLES = 2000
Sides = tuple[TokenSequence, TokenSequence]


def run(settings: TrainReward, context: Context) -> None:
    refs = (settings.pairs,) if isinstance(settings.pairs, PairsRef) else settings.pairs
    pairs: list[Pair] = [pair for ref in refs for pair in context.records(ref)]
    model = _scorer(settings, context)
    pairs = _fitting(settings, context, model, pairs)
    training, held_out = _split(settings, context, pairs)
    rows: list[Row] = []
    if held_out and settings.shuffled_control:
        scores = context.units(1, lambda _: _control(settings, context, training, held_out), "control")[0]
        note = "trained on shuffled labels: should be near one half"
        rows.append(_accuracy(context, scores, "accuracy of the control", note))
    _train(settings, context, model, training)
    if held_out:
        scores = _scores(model, held_out)
        rows.insert(0, _accuracy(context, scores, "accuracy on held-out pairs", _lengths(model, held_out)))
    context.counts["out"] = len(training)
    context.counts["held_out"] = len(held_out)
    context.summary["table"] = rows_to_json(rows)
    save_model(model, context.folder / MODEL_FOLDER)


def _scorer(settings: TrainReward, context: Context) -> LoadedModel:
    """The initial model with a new head; only the layers that are to learn want a gradient."""
    initial = load_trainable(context, settings.init)
    if settings.keep_layers is not None:
        keep_layers(initial, settings.keep_layers)
    model = add_scalar_head(initial, seed=derive(context.seed, "head"))
    if settings.train_layers is None:
        return model
    layers = model.net.base_model.layers
    if settings.train_layers > len(layers):
        raise InputError(
            f"stage {context.name}: train_layers is {settings.train_layers}, but the model has {len(layers)} layers"
        )
    model.net.requires_grad_(False)
    model.net.score.requires_grad_(True)
    for layer in layers[len(layers) - settings.train_layers :]:
        layer.requires_grad_(True)
    return model


def _fitting(settings: TrainReward, context: Context, model: LoadedModel, pairs: list[Pair]) -> list[Pair]:
    kept = []
    for pair in pairs:
        if max(len(sequence.ids) for sequence in _sequences(model, pair)) > settings.max_length:
            context.drop(pair, "too_long")
        else:
            kept.append(pair)
    if len(kept) < 2:
        raise InputError(f"stage {context.name}: {len(kept)} pairs fit max_length {settings.max_length}; 2 are needed")
    return kept


def _sequences(model: LoadedModel, pair: Pair) -> Sides:
    """Chosen and rejected as whole conversations; a scorer scores no token, it reads the last row."""
    prompt = tuple(Message(m.role, m.content, train=False) for m in pair.prompt)
    sides = [
        render_chat(model.template, model.tokenizer, (*prompt, *side)).ids for side in (pair.chosen, pair.rejected)
    ]
    chosen, rejected = (TokenSequence(ids, (False,) * len(ids)) for ids in sides)
    return chosen, rejected


def _split(settings: TrainReward, context: Context, pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs; pairs of one prompt stand on one side, and an accuracy needs two prompts."""
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    random.Random(derive(context.seed, "held_out")).shuffle(prompts)
    count = max(2, round(settings.held_out * len(prompts))) if settings.held_out else 0
    if count > len(prompts) - 2:
        raise InputError(
            f"stage {context.name}: pairs of {len(prompts)} prompts cannot be split into training and held-out ones; "
            "make at least 4, or set held_out: 0"
        )
    held = dict.fromkeys(prompts[:count])
    return [p for p in pairs if p.prompt not in held], [p for p in pairs if p.prompt in held]


@torch.no_grad()
def _features(settings: TrainReward, model: LoadedModel, sides: Sequence[Sides]) -> Tensor:
    """Last hidden states (2P, H) of both sides of each pair: all that a head alone ever sees, computed once."""
    use_tree_attention(model.net)
    groups = [list(pair) for pair in sides]
    parts = [
        hidden_states(model.net, move(forest, model.net.device))[forest.last_S]
        for forest in (plant(cut.groups) for cut in split_by_tokens(groups, settings.micro_batch_tokens))
    ]
    return torch.cat(parts)


class PairBatches:
    """Shuffled epochs of pairs; what comes next follows from the step alone.

    What a micro-batch holds for the forward is a forest, or rows of `features` where only the head learns.
    """

    def __init__(self, settings: TrainReward, model: LoadedModel, pairs: Sequence[Pair], seed: int) -> None:
        self.settings = settings
        self.pairs = pairs
        self.sides = [_sequences(model, pair) for pair in pairs]
        self.features = _features(settings, model, self.sides) if settings.train_layers == 0 else None
        self.seed = seed
        self.per_epoch = -(-len(pairs) // settings.batch_pairs)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to take up."""

    def steps(self, first: int) -> Iterator[list[MicroBatch[Forest | Tensor]]]:
        for step in range(first, self.settings.epochs * self.per_epoch):
            epoch, place = divmod(step, self.per_epoch)
            order = list(range(len(self.pairs)))
            random.Random(derive(self.seed, "epoch", epoch)).shuffle(order)
            size = self.settings.batch_pairs
            yield [self._micro_batch(part) for part in self._cut(order[place * size : (place + 1) * size])]

    def _cut(self, chosen: Sequence[int]) -> list[list[int]]:
        """Whole pairs up to the token budget; a pair is a tree with two branches and is never cut."""
        parts: list[list[int]] = [[]]
        tokens = 0
        for i in chosen:
            size = num_tokens(self.sides[i])
            if parts[-1] and self.features is None and tokens + size > self.settings.micro_batch_tokens:
                parts.append([])
                tokens = 0
            parts[-1].append(i)
            tokens += size
        return parts

    def _micro_batch(self, part: Sequence[int]) -> MicroBatch[Forest | Tensor]:
        rows = tuple(self.pairs[i].id for i in part)
        batch = Batch(num_sequences=2 * len(part))
        if self.features is not None:
            inputs: Forest | Tensor = self.features[[row for i in part for row in (2 * i, 2 * i + 1)]]
        else:
            inputs = plant([self.sides[i] for i in part])
        return MicroBatch(
            inputs=inputs, batch=batch, rows=rows, num_tokens=sum(num_tokens(self.sides[i]) for i in part)
        )


@dataclass(frozen=True, slots=True)
class Fit:
    """Everything that a training of this stage needs besides somebody who logs it."""

    forward: Callable[[Forest | Tensor], Output]
    params: Mapping[str, Parameter]
    update: Update
    objective: BradleyTerry
    batches: PairBatches
    total: int

    @classmethod
    def of(cls, settings: TrainReward, context: Context, model: LoadedModel, pairs: Sequence[Pair]) -> "Fit":
        params = trained(model.net.named_parameters())
        batches = PairBatches(settings, model, pairs, derive(context.seed, "order"))
        total = settings.epochs * batches.per_epoch
        rates = {} if settings.head_learning_rate is None else {"score": settings.head_learning_rate}
        adamw = AdamWSettings(learning_rate=settings.learning_rate, weight_decay=settings.weight_decay)
        update = Update(
            optimizer=build_adamw(params, adamw, rates),
            schedule=Schedule(kind=settings.schedule, total_steps=total, warmup_steps=settings.warmup_steps),
            max_grad_norm=settings.max_grad_norm,
        )
        objective = BradleyTerry(centring=settings.centring)
        return cls(in_machine_type(_forward(model), context), params, update, objective, batches, total)


def _forward(model: LoadedModel) -> Callable[[Forest | Tensor], Output]:
    reward = RewardModel(model.net)

    def forward(inputs: Forest | Tensor) -> Output:
        if isinstance(inputs, Tensor):
            return Output(score_S=model.net.score(inputs)[:, 0])
        return Output(score_S=reward(move(inputs, model.net.device)))

    return forward


def _train(settings: TrainReward, context: Context, model: LoadedModel, pairs: Sequence[Pair]) -> None:
    fit = Fit.of(settings, context, model, pairs)
    trainer = Trainer(
        context=context,
        params=fit.params,
        update=fit.update,
        total_steps=fit.total,
        save_every=settings.save_every,
        keep=1,
        progress=fit.batches,
    )
    trainer.resume()
    for info in trainer.run(fit.forward, fit.objective, fit.batches.steps(trainer.step)):
        trainer.log(info, {}, {}, f"accuracy {info.metrics['accuracy']:.0%}")


def _control(settings: TrainReward, context: Context, training: list[Pair], held_out: list[Pair]) -> list[list[float]]:
    """Scores of a model that was trained the same way on labels that mean nothing."""
    model = _scorer(settings, context)
    fit = Fit.of(settings, context, model, shuffle_labels(training, derive(context.seed, "control")))
    for info in train_steps(fit.forward, fit.update, fit.objective, fit.batches.steps(0)):
        context.progress(info.step + 1, fit.total, "control steps")
        context.check_stop()
    return _scores(model, held_out)


def _scores(model: LoadedModel, pairs: Sequence[Pair]) -> list[list[float]]:
    """Scores of the chosen and of the rejected sides."""
    scorer = ModelScorer(model)
    sides = list(zip(*(_sequences(model, pair) for pair in pairs), strict=True))
    prompts = [pair.prompt for pair in pairs]
    found = scorer.score_sequences([*sides[0], *sides[1]], prompts * 2)
    return [found[: len(pairs)], found[len(pairs) :]]


def _accuracy(context: Context, scores: Sequence[Sequence[float]], name: str, note: str) -> Row:
    bootstrap = Bootstrap(seed=derive(context.seed, "accuracy"), resamples=RESAMPLES)
    found = pair_accuracy(scores[0], scores[1], bootstrap)
    note += f"; {found.ties} ties count as wrong" if found.ties else ""
    context.log(f"{name}: {found.interval.mean:.1%} of {found.interval.n} pairs")
    return single(Metric(name=name, higher_is_better=True, note=note), found.interval)


def _lengths(model: LoadedModel, pairs: Sequence[Pair]) -> str:
    """Mean lengths of both sides: whether length alone could tell them apart."""
    means = []
    for side in (0, 1):
        lengths = [len(_sequences(model, pair)[side].ids) for pair in pairs]
        means.append(sum(lengths) / len(lengths))
    return f"mean length {means[0]:.1f} tokens chosen, {means[1]:.1f} rejected, prompt included"
