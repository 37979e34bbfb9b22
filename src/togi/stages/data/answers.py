"""Plain texts of answers, for stages that read samples of other stages.

`respond` stores answers without their terminator. Samples that a policy generated during training (`$policy.samples`)
are stored as they were trained on, terminator included.
"""

from dataclasses import dataclass, replace
from typing import Self

from togi.core.files import read_object
from togi.core.records import Sample
from togi.core.settings import MAIN, SamplesRef
from togi.model.card import CARD
from togi.stages.base import MODEL_FOLDER
from togi.stages.context import Context


@dataclass(frozen=True, slots=True)
class PlainAnswers:
    """Cuts samples at the end of their answers, before the first of `ends`."""

    ends: tuple[str, ...] = ()

    @classmethod
    def of(cls, context: Context, ref: SamplesRef) -> Self:
        """Those for the samples of `ref`."""
        folder = context.inputs[ref].folder
        if folder is None or ref.output == MAIN or not (card := folder / MODEL_FOLDER / CARD).exists():
            return cls()
        template = read_object(card)["template"]
        return cls(tuple(filter(None, (template["terminator"], *template["turn_starts"]))))

    def __call__(self, sample: Sample) -> Sample:
        text = sample.completion.text
        for end in self.ends:
            text = text.partition(end)[0]
        if text == sample.completion.text:
            return sample
        return replace(sample, completion=replace(sample.completion, text=text.strip()))
