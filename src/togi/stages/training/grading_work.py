"""Grading while the engine samples: the groups of a batch, one after the other, where sampling leaves room for it."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread

import torch

from togi.core.records import Completion, Prompt
from togi.core.settings import ModelRef, ScorerRef, references
from togi.rewards.combine import Graded, Reward
from togi.stages.arithmetic import device, model_device
from togi.stages.context import Context
from togi.stages.training.grpo import TrainGrpo

Grading = Callable[[Prompt, Sequence[Completion]], Future[list[Graded]]]
"""Begins to grade the answers to one prompt."""


def is_elsewhere(context: Context, settings: TrainGrpo) -> bool:
    """Whether models grade, and each is on a server or on another device than the one that trains."""
    refs = [ref for _, ref in references(settings.reward) if isinstance(ref, ScorerRef | ModelRef)]
    return bool(refs) and all(
        context.endpoint(ref) is not None or model_device(context.model(ref)) != device() for ref in refs
    )


@contextmanager
def at_once(reward: Reward) -> Iterator[Grading]:
    """Grades each group before the engine goes on."""

    def grade(prompt: Prompt, completions: Sequence[Completion]) -> Future[list[Graded]]:
        found: Future[list[Graded]] = Future()
        found.set_result(reward.grade(prompt, completions))
        return found

    yield grade


@contextmanager
def beside_sampling(reward: Reward) -> Iterator[Grading]:
    """Grades in a thread of its own, one group after the other in the order in which they come: graders are asked what
    they would be asked without it. Groups whose turn has not come when the block ends are not graded."""
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
    torch.set_num_threads(threads)  # each thread has a number of its own
    loop.run_forever()
    loop.run_until_complete(_cancel_others())
    loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
