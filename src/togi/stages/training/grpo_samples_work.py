"""Samples of `train.grpo` on disk: stored with their scores before they are used, and replayed on resume.

A unit is one call of the sampler: the first groups of a batch, one round of refilling, or one validation. Its records
are written first and then sealed. A sealed unit is never cut back; a resumed stage reads it instead of sampling and
grading again, which may give other results.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from togi.core.codec import read_records, write_records
from togi.core.errors import DamagedFile, InputError, StageError
from togi.core.files import read_sealed, write_sealed
from togi.core.hashing import file_hash
from togi.core.record_streams import join_records
from togi.core.records import Completion, Prompt, Sample
from togi.core.seeds import make_id
from togi.rewards.combine import Graded
from togi.stages.base import output_path
from togi.stages.context import Context

SAMPLES = "samples"  # the kind of records, and the name of the output
UNITS = "checkpoints/samples"  # removed with the checkpoints when the stage is finished
TOTAL = "total"  # components of a reward cannot have this name

GradedGroup = list[tuple[Completion, Graded]]


class StoredSamples:
    """The samples of one stage. Rank 0 reads and writes, and broadcasts what it reads.

    `repeatable`: the engine would give the same answers again. Only then is a damaged unit sampled again.
    """

    def __init__(self, context: Context, repeatable: bool) -> None:
        self.context = context
        self.repeatable = repeatable
        self.folder = context.folder / UNITS

    def replay(self, unit: str, prompts: Sequence[Prompt]) -> list[GradedGroup] | None:
        """The graded answers of a unit, one group per prompt; None if they must be sampled.

        Raises StageError for a damaged unit that cannot be sampled again.
        """
        return self.context.ranks.on_first_rank(lambda: self._read(unit, prompts))

    def holds(self, unit: str) -> bool:
        """Whether a unit is stored, damaged or not."""
        return self.context.ranks.on_first_rank(lambda: _seal(self.folder / f"{unit}.parquet").exists())

    def keep(self, unit: str, prompts: Sequence[Prompt], groups: Sequence[GradedGroup]) -> None:
        """Stores a unit atomically."""
        self.context.ranks.on_first_rank(lambda: self._write(unit, prompts, groups))

    def publish(self) -> None:
        """Joins the samples of all batches, in order, as an output of the stage. Validation samples are left out,
        because they must not be trained on."""
        self.context.ranks.on_first_rank(self._publish)

    def _write(self, unit: str, prompts: Sequence[Prompt], groups: Sequence[GradedGroup]) -> None:
        path = self.folder / f"{unit}.parquet"
        write_records(path, SAMPLES, self.context.sourced(list(self._records(unit, prompts, groups))))
        write_sealed(_seal(path), {"sha256": file_hash(path)})

    def _records(self, unit: str, prompts: Sequence[Prompt], groups: Sequence[GradedGroup]) -> Iterator[Sample]:
        producer = self.context.folder.name
        for place, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
            for index, (completion, graded) in enumerate(group):
                yield Sample(
                    id=make_id(f"{producer}/{unit}/{place}", (prompt.id,), index),
                    parents=(prompt.id,),
                    extra={"unit": unit, "place": place, **_why(graded)},
                    prompt=prompt,
                    completion=completion,
                    scores={**graded.components, TOTAL: graded.total},
                    model=producer,
                    index=index,
                )

    def _read(self, unit: str, prompts: Sequence[Prompt]) -> list[GradedGroup] | None:
        path = self.folder / f"{unit}.parquet"
        if not _seal(path).exists():
            return None
        try:
            return _groups(path, prompts)
        except (InputError, OSError) as error:
            if not self.repeatable:
                raise StageError(
                    f"stage {self.context.name}: stored samples are damaged ({error}), and the engine would now give "
                    "different answers; restore the file from a copy, or start over with `togi run --redo`"
                ) from error
            self.context.log(f"stored samples are damaged ({error}): sampling them again")
            return None

    def _publish(self) -> None:
        parts = sorted(self.folder.glob("batch-*.parquet"))
        path = self.context.folder / output_path(SAMPLES, SAMPLES)
        self.context.counts[SAMPLES] = join_records(path, SAMPLES, parts)
        self.context.summary["samples_bytes"] = path.stat().st_size


def _seal(path: Path) -> Path:
    return path.with_suffix(".json")


def _groups(path: Path, prompts: Sequence[Prompt]) -> list[GradedGroup]:
    """The contents of a sealed file. Raises DamagedFile if it has changed or answers other prompts."""
    if file_hash(path) != read_sealed(_seal(path), {"sha256": str})["sha256"]:
        raise DamagedFile(f"{path}: it has changed since togi wrote it")
    groups: list[GradedGroup] = [[] for _ in prompts]
    for sample in read_records(path)[1]:
        assert isinstance(sample, Sample)
        place = sample.extra["place"]
        if place >= len(prompts) or sample.parents != (prompts[place].id,):
            raise DamagedFile(f"{path}: sample {sample.id} answers a different prompt than the current one")
        groups[place].append((sample.completion, _graded(sample)))
    return groups


def _why(graded: Graded) -> dict[str, str | bool]:
    """The parts of a grade that are not scores."""
    known = {"gate": graded.gate, "failed": graded.failed, "below_fail": graded.below_fail}
    return {name: value for name, value in known.items() if value}


def _graded(sample: Sample) -> Graded:
    components = {name: value for name, value in sample.scores.items() if name != TOTAL}
    why = {name: sample.extra[name] for name in ("gate", "failed", "below_fail") if name in sample.extra}
    return Graded(total=sample.scores[TOTAL], components=components, **why)
