"""Grades the groups of a batch one after the other, at the same time as sampling where that is possible."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread

import torch

from togi.client.background import cancel_others
from togi.core.records import Completion, Prompt
from togi.core.settings import ModelRef, PromptsRef, ScorerRef, references
from togi.rewards.columns import Columns, columns_of
from togi.rewards.combine import Graded, Reward
from togi.stages.arithmetic import device, model_device
from togi.stages.context import Context
from togi.stages.training.grpo import TrainGrpo

Grading = Callable[[Prompt, Sequence[Completion]], Future[list[Graded]]]
"""Starts to grade the answers to one prompt."""


def is_elsewhere(context: Context, settings: TrainGrpo) -> bool:
    """Whether the reward uses models, and all of them are on servers or on other devices than the training one."""
    refs = [ref for _, ref in references(settings.reward) if isinstance(ref, ScorerRef | ModelRef)]
    return bool(refs) and all(
        context.endpoint(ref) is not None or model_device(context.model(ref)) != device() for ref in refs
    )


def graded_columns(settings: TrainGrpo, prompts: Sequence[Prompt], held_out: Sequence[Prompt]) -> list[Columns]:
    """The columns of the prompts whose answers the reward grades; of each data set alone, because a function that finds
    its column in only one of them would fail, or grade nothing, on the other."""
    if isinstance(settings.validation, PromptsRef):
        return [columns_of(prompts), columns_of(held_out, "validation rows")]
    return [columns_of([*prompts, *held_out])]


@contextmanager
def at_once(reward: Reward) -> Iterator[Grading]:
    """Grades each group before the engine continues."""

    def grade(prompt: Prompt, completions: Sequence[Completion]) -> Future[list[Graded]]:
        found: Future[list[Graded]] = Future()
        found.set_result(reward.grade(prompt, completions))
        return found

    yield grade


@contextmanager
def beside_sampling(reward: Reward) -> Iterator[Grading]:
    """Grades in a separate thread, one group after the other in order of arrival, so that graders get the same calls as
    with `at_once`. Groups still waiting when the block ends are not graded."""
    loop = asyncio.new_event_loop()
    ended: list[bool] = []

    async def grade(prompt: Prompt, completions: Sequence[Completion]) -> list[Graded]:
        if ended:
            raise asyncio.CancelledError
        return reward.grade(prompt, completions)

    Thread(target=_serve, args=(loop, torch.get_num_threads()), daemon=True).start()
    try:
        yield lambda *group: asyncio.run_coroutine_threadsafe(grade(*group), loop)
    finally:
        ended.append(True)
        loop.call_soon_threadsafe(loop.stop)


def _serve(loop: asyncio.AbstractEventLoop, threads: int) -> None:
    torch.set_num_threads(threads)  # the setting is per thread
    loop.run_forever()
    loop.run_until_complete(cancel_others())
    loop.close()
