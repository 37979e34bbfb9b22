"""Reads from togi.json in a model folder how to talk to the model: the system prompt and sampling of its training, and
the recommended sampling.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from togi.core.errors import InputError
from togi.core.files import read_json
from togi.core.sampling import NONE, PresetName, Recommended, Sampling
from togi.core.sources import CARD, ModelSource

TRAINING = "training"
"""In place of a system prompt: that of each model's training."""


class StoredSampling(Sampling):
    """The sampling settings of a conversation, and those of a training; the file of a newer togi may have more."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)


class StoredRecommended(Recommended):
    """Recommended sampling settings, of which the file of a newer togi may have more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Stored(BaseModel):
    """The system prompt and sampling of the training, as `Spoken` stores them, and recommended sampling, as export
    does."""

    system: str | None = None
    sampling: StoredSampling | None = None
    recommended: StoredRecommended | None = None

    def chosen(self, asked: PresetName | Literal["none"] | None) -> Recommended | None:
        """The recommended sampling to use: the preset that was asked for, else what is stored; None for `none`."""
        if asked is None:
            return self.recommended
        return None if asked == NONE else Recommended.of(asked)


def read_stored(source: ModelSource, recommended: Recommended | None = None) -> Stored:
    """What a folder that togi saved says; nothing for any other model. `recommended` stands in for recommended sampling
    that is not stored. Raises InputError for a damaged file."""
    found = _read(source)
    if recommended is None or found.recommended is not None:
        return found
    return found.model_copy(update={"recommended": StoredRecommended.model_validate(recommended.model_dump())})


def _read(source: ModelSource) -> Stored:
    path = Path(source.name) / CARD
    if source.kind != "path" or not path.exists():
        return Stored()
    try:
        return Stored.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {key}: {first['msg']}; set it to null, or save the model again") from None
