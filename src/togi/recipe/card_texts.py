"""The `card:` of a recipe: texts for the model card that only people can write, and recommended sampling settings."""

from pydantic import Field

from togi.core.sampling import Drawing, PresetName
from togi.core.settings import Settings


class CardTexts(Settings):
    """What the card of an exported model says in addition to the facts of the run. It is in no fingerprint."""

    title: str = Field(default="", description="the model's name; empty: those of the recipe and the stage")
    language: tuple[str, ...] = Field(default=(), description="language codes, as on the hub: [ja, en]")
    licence: str = Field(default="", description="the model's own licence; empty: the licences of its sources")
    intended: str = Field(default="", description="what the model is for, and what it is not for")
    background: str = Field(default="", description="why it was made, and from what")
    hardware: str = Field(default="", description="the machines, if the run does not know them")
    limits: str = Field(default="", description="its limitations and risks")
    citation: str = Field(default="", description="how to cite it")
    acknowledgements: str = Field(default="", description="whom to thank")
    authors: str = Field(default="", description="who made it")
    contact: str = Field(default="", description="where to ask")
    release: str = Field(default="", description="the version, and what changed")
    sampling: PresetName | Drawing | None = Field(
        default=None,
        description="recommended sampling of answers: a preset of a published card, or values; export stores it",
    )
