"""Answers of samples as text: what stages that read samples make of what stages wrote.

`respond` keeps answers without their terminator. What a policy sampled while it was trained (`$policy.samples`) is kept
as it was trained on, terminator included.
"""

from dataclasses import replace

from togi.core.files import read_object
from togi.core.records import Sample
from togi.core.settings import MAIN, SamplesRef
from togi.model.card import CARD
from togi.stages.base import MODEL_FOLDER
from togi.stages.context import Context


class PlainAnswers:
    """Makes samples of `ref` end where their answers end."""

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
