"""`hardware:` of a recipe: the devices that `plan` and `check` assume instead of this machine's."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from togi.core.settings import Settings

PROCESSOR = "cpu"
UNITS = {"MB": 1e-3, "GB": 1.0, "TB": 1e3, "MiB": 2**20 / 1e9, "GiB": 2**30 / 1e9, "TiB": 2**40 / 1e9}
SIZE = re.compile(rf"\s*([0-9]+(?:\.[0-9]+)?)\s*({'|'.join(UNITS)})\s*")


def _in_gigabytes(value: Any) -> Any:
    """Converts a size with a unit to a number of GB; the field itself validates values that are not text."""
    if not isinstance(value, str):
        return value
    found = SIZE.fullmatch(value)
    if found is None:
        units = ", ".join(UNITS)
        raise ValueError(f"a size is a number of GB, or a number with one of {units}, found {value!r}; for example 32")
    return float(found[1]) * UNITS[found[2]]


Gigabytes = Annotated[float, BeforeValidator(_in_gigabytes, json_schema_input_type=float | str)]


class Device(Settings):
    """A device that a recipe is planned for. The one called `cpu` is the processor with its memory; the others are
    cuda:0, cuda:1 and so on, in their order."""

    name: str = Field(min_length=1, description="its name; cpu is the processor, any other name is a card")
    memory: Gigabytes = Field(gt=0, description="its memory: a number of GB (10^9 bytes), or with a unit, as in 24 GiB")
    tflops: float | None = Field(
        default=None, gt=0, description="10^12 operations a second in matrix products; togi needs it to estimate times"
    )
    bandwidth: float | None = Field(
        default=None, gt=0, description="memory bandwidth in GB a second; togi needs it to estimate sampling times"
    )

    @property
    def is_card(self) -> bool:
        """Whether it is an accelerator."""
        return self.name != PROCESSOR

    @property
    def size(self) -> float:
        """Its memory in bytes."""
        return self.memory * 1e9


def _one_processor(value: tuple[Device, ...]) -> tuple[Device, ...]:
    if sum(not device.is_card for device in value) > 1:
        raise ValueError(f"only one device may be called {PROCESSOR}: the processor with all its memory; merge them")
    return value


Hardware = Annotated[tuple[Device, ...], AfterValidator(_one_processor)]


def placed(devices: Sequence[Device]) -> dict[str, Device]:
    """The devices by the names that `device` of a model gives them: cuda:0, cuda:1, cpu."""
    cards = [device for device in devices if device.is_card]
    found = {f"cuda:{number}": card for number, card in enumerate(cards)}
    return found | {device.name: device for device in devices if not device.is_card}
