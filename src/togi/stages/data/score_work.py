"""The work of `score`: a unit is a batch of samples in order, and only one batch is in memory."""

import importlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from togi.core.errors import InputError, StageError
from togi.core.records import Sample
from togi.stages.context import Context
from togi.stages.data.answers import PlainAnswers
from togi.stages.data.rows import shard_task
from togi.stages.data.score import BATCH_OF_ENDPOINT, STAGE, Score, no_reference
from togi.stages.data.score_rows import Scores, scores_of
from togi.stages.data.shown import Shown
from togi.stages.endpoints import scorer
from togi.stages.known_answers import has_reference
from togi.stages.model_shards import found_by, is_spread, with_model

READERS = "togi.stages.readers_work"  # these two need torch, which a stage that only asks servers does not import
ENCODERS = "togi.model.encoder_scorer"
BATCH = 64
UNIT = "batch"
QUANTILES = (3, 10, 25, 50, 75, 90, 97)  # per cent, as in published tables of rejection sampling


def run(settings: Score, context: Context) -> None:
    """Raises StageError if no sample can be scored."""
    context.count_in(context.records_count(settings.samples))
    if settings.reference_turn is not None:
        _check_told(settings, context, settings.reference_turn)
    shown = Shown(settings.score_name)
    by_model: dict[str, array[float]] = {}
    characters: dict[str, array[float]] = {}
    wrong = ""
    with context.writer("samples") as writer:
        for samples, scores in _scored(settings, context):
            kept = []
            for sample, score in zip(samples, scores, strict=True):
                if isinstance(score, str):
                    context.drop(sample, "failed")
                    wrong = wrong or f"sample {sample.id}: {score}"
                    continue
                kept.append(replace(sample, scores={**sample.scores, settings.score_name: score}))
                model = sample.model or "unknown"
                by_model.setdefault(model, array("d")).append(score)
                characters.setdefault(model, array("d")).append(len(sample.text))
            shown.take(kept)
            writer.write(kept)
        _tell_failures(context, writer.count, wrong)
    context.summary |= {f"score {settings.score_name}": _figures(by_model), "characters": _figures(characters)}
    context.summary |= shown.summary()


def _scored(settings: Score, context: Context) -> Iterator[tuple[list[Sample], Scores]]:
    """Yields the samples of each batch with their scores; a missing score is replaced by the error message."""
    total = context.records_count(settings.samples)
    remote = context.inputs[settings.scorer].endpoint is not None
    size = settings.batch_samples or (BATCH_OF_ENDPOINT if remote else BATCH)
    plain = PlainAnswers.of(context, settings.samples)
    batch: list[Sample] = []
    count = -(-total // size)
    if is_spread(context, settings.scorer):
        spread = _spread(settings, context, plain, size, count)
        units = context.stream_units(count, lambda _: next(spread), UNIT, told=False)
    else:
        judge = scorer(context, settings.scorer)
        units = context.stream_units(count, lambda _: scores_of(settings, judge, batch), UNIT, told=False)
    done = 0
    for found in context.batches(settings.samples, size):
        batch[:] = map(plain, found)
        _refuse_taken(settings, context, batch)
        scores = next(units)
        done += len(batch)
        context.progress(done, total, "samples")
        yield list(batch), scores


def _spread(settings: Score, context: Context, plain: PlainAnswers, size: int, count: int) -> Iterator[Scores]:
    """The scores of the batches that are left to do, from other processes."""
    task = shard_task(STAGE, settings, context, settings.samples, 0, {"ends": plain.ends})
    task = with_model(task, context, settings.scorer, "scorer")
    left = context.missing_units(count, UNIT)
    return found_by(context, [replace(task, number=unit, first=unit * size, count=size) for unit in left])


def _check_told(settings: Score, context: Context, told: str) -> None:
    """Raises InputError if no prompt has a reference answer, or if the scorer would not see it in a system turn. A
    scorer on a server is believed."""
    samples = chain.from_iterable(context.batches(settings.samples, noted=False))
    if not any(has_reference(sample.prompt) for sample in samples):
        raise InputError(f"stage {context.name}: {no_reference(settings)}")
    source = context.model(settings.scorer)
    if source.kind == "endpoint" or importlib.import_module(ENCODERS).check_encoder(source, context.cache):
        return
    template = importlib.import_module(READERS).read_words(source, context.cache, "scorer")[1]
    if not template.writes_system(told):
        raise InputError(
            f"stage {context.name}: reference: template {template.name!r} of {settings.scorer} does not write the "
            "system turn that tells the answer; choose another template for the model, or remove reference"
        )


def _refuse_taken(settings: Score, context: Context, batch: Sequence[Sample]) -> None:
    """Raises InputError for samples that already have a score of this name."""
    if any(settings.score_name in sample.scores for sample in batch):
        raise InputError(
            f"stage {context.name}: {settings.samples} already has a score {settings.score_name!r}, which would be "
            "overwritten; choose another name with `as`"
        )


def _tell_failures(context: Context, kept: int, wrong: str) -> None:
    failed = len(context.drops)
    if not kept:
        raise StageError(f"stage {context.name}: none of {failed} samples could be scored; the first: {wrong}")
    if failed:
        context.alarm("failed", f"{failed} of {failed + kept} samples could not be scored; the first: {wrong}")


def _figures(by_model: "dict[str, array[float]]") -> dict[str, dict[str, float]]:
    """The figures of each model's answers."""
    return {name: _figures_of(np.asarray(values)) for name, values in by_model.items()}


def _figures_of(values: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation, extremes and percentiles."""
    found = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    found |= {f"p{q}": value for q, value in zip(QUANTILES, np.percentile(values, QUANTILES), strict=True)}
    return {name: round(float(value), 4) for name, value in found.items()}
