"""The keys of a `models:` entry that say under which licence and terms the weights stand."""

from typing import Self

from pydantic import Field, model_validator

from togi.core.settings import Settings


class Licensed(Settings):
    """What a model asks of whoever uses it, and whether it asks that of what is made with it too."""

    licence: str = Field(default="", description="licence of the weights, kept with all that they write or become")
    terms: str | None = Field(default=None, min_length=1, description="what the weights ask beside their licence")
    inherit: bool | None = Field(
        default=None,
        description="licence and terms bind everything that the model writes and what is trained from it; they do "
        "where there are terms, when absent",
    )

    @property
    def says(self) -> tuple[str, str | None, bool]:
        """Licence and terms, and whether they bind."""
        return self.licence, self.terms, self.terms is not None if self.inherit is None else self.inherit

    @model_validator(mode="after")
    def _says_what_binds(self) -> Self:
        if self.inherit and not (self.licence or self.terms):
            raise ValueError("inherit: true needs `licence` or `terms`: what binds everything that is made from it?")
        return self
