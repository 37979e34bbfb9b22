"""The benchmarks that an evaluation can name. A new one is a settings file, a work file and one line here."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from togi.stages.evaluation.benchmarks import (
    answers,
    arena,
    chat_health,
    diversity,
    graded,
    mt_bench,
    rag,
    reward_accuracy,
    reward_kl,
    safety,
)
from togi.stages.evaluation.benchmarks.base import BenchmarkSettings

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        answers.BENCHMARK,
        chat_health.BENCHMARK,
        diversity.BENCHMARK,
        reward_accuracy.BENCHMARK,
        mt_bench.BENCHMARK,
        graded.BENCHMARK,
        safety.BENCHMARK,
        reward_kl.BENCHMARK,
        arena.BENCHMARK,
        rag.BENCHMARK,
    )
}
REASONS = tuple(dict.fromkeys(reason for benchmark in BENCHMARKS.values() for reason in benchmark.reasons))
"""Every reason for which benchmarks drop rows."""

if TYPE_CHECKING:
    AnyBenchmark = BenchmarkSettings
else:
    AnyBenchmark = Annotated[reduce(or_, [each.settings for each in BENCHMARKS.values()]), Field(discriminator="type")]
