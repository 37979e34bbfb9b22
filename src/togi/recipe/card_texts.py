"""The `card:` of a recipe: what only people know of a model, for its card."""

from pydantic import Field

from togi.core.settings import Settings


class CardTexts(Settings):
    """What stands in the card of an exported model beside what the run knows. It is in no fingerprint."""

    title: str = Field(default="", description="the model's name; the recipe's and the stage's when empty")
    language: tuple[str, ...] = Field(default=(), description="codes of its languages, as the hub has them: [ja, en]")
    licence: str = Field(default="", description="the model's own licence; what its sources say when empty")
    intended: str = Field(default="", description="what it is for, and what not")
    background: str = Field(default="", description="why and from what it was made")
    hardware: str = Field(default="", description="the machines, where the run does not know them")
    limits: str = Field(default="", description="what it cannot do, and what to beware of")
    citation: str = Field(default="", description="how to cite it")
    acknowledgements: str = Field(default="", description="whom to thank")
    authors: str = Field(default="", description="who made it")
    contact: str = Field(default="", description="where to ask")
    release: str = Field(default="", description="the version, and what changed")
