"""Plain texts of answers, for stages that read samples of other stages.

`respond` stores answers without their terminator. Samples that a policy generated during training (`$policy.samples`)
are stored as they were trained on, terminator included.
"""

from dataclasses import replace

from togi.core.files import read_object
from togi.core.records import Sample
from togi.core.settings import MAIN, SamplesRef
from togi.model.card import CARD
from togi.stages.base import MODEL_FOLDER
from togi.stages.context import Context


class PlainAnswers:
    """Cuts the samples of `ref` at the end of their answers."""

    def __init__(self, context: Context, ref: SamplesRef) -> None:
        self.ends: tuple[str, ...] = ()
        folder = context.inputs[ref].folder
        if folder is not None and ref.output != MAIN and (card := folder / MODEL_FOLDER / CARD).exists():
            template = read_object(card)["template"]
            self.ends = tuple(filter(None, (template["terminator"], *template["turn_starts"])))

    def __call__(self, sample: Sample) -> Sample:
        text = sample.completion.text
        for end in self.ends:
            text = text.partition(end)[0]
        if text == sample.completion.text:
            return sample
        return replace(sample, completion=replace(sample.completion, text=text.strip()))
