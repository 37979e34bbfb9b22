"""The keys of a `models:` entry for the licence and terms of the weights."""

from typing import Self

from pydantic import Field, model_validator

from togi.core.settings import Settings


class Licensed(Settings):
    """Licence and terms of a model, and whether they also bind what is made with it."""

    licence: str = Field(default="", description="licence of the weights; kept with their outputs and derived models")
    terms: str | None = Field(default=None, min_length=1, description="terms of the weights in addition to the licence")
    inherit: bool | None = Field(
        default=None,
        description="licence and terms bind everything that the model writes and what is trained from it; when absent, "
        "true if there are terms",
    )

    @property
    def says(self) -> tuple[str, str | None, bool]:
        """Licence, terms, and whether they bind."""
        return self.licence, self.terms, self.terms is not None if self.inherit is None else self.inherit

    @model_validator(mode="after")
    def _says_what_binds(self) -> Self:
        if self.inherit and not (self.licence or self.terms):
            raise ValueError("inherit: true needs `licence` or `terms` that bind everything made from it; add one")
        return self
