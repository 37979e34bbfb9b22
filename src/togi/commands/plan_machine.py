"""The machine that a plan assumes: the devices that the recipe names, or this machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from togi.recipe.hardware import PROCESSOR, Device
from togi.stages.training.resources import USABLE, USABLE_CPU
from togi.train.machine import available, has_accelerator

FIRST = "cuda:0"


@dataclass(frozen=True, slots=True)
class Machine:
    """`devices` are those of the recipe, by the names that `device` of a model uses; without any it is this machine.
    `where` is the position in the recipe."""

    devices: Mapping[str, Device] = field(default_factory=dict)
    where: str = ""

    @property
    def trains_on(self) -> str:
        """The device that stages train on."""
        card = FIRST in self.devices if self.devices else has_accelerator()
        return FIRST if card else PROCESSOR

    @property
    def on_card(self) -> bool:
        """Whether stages train on an accelerator."""
        return self.trains_on == FIRST

    @property
    def known(self) -> bool:
        """Whether the memory of the training device is known: that of this machine's accelerator is known only to its
        library."""
        return bool(self.devices) or not self.on_card

    @property
    def trainer(self) -> Device | None:
        """The declared device that stages train on."""
        return self.devices.get(self.trains_on)

    def place(self, device: str) -> str:
        """The device that a model's `device` refers to."""
        return {"": self.trains_on, "cuda": FIRST}.get(device, device)

    def room(self, processes: int) -> float:
        """The bytes that each of `processes` may use on its training device."""
        if not self.on_card:
            size = self.devices[PROCESSOR].size if self.devices else available()
            return USABLE_CPU * size / processes
        cards = [self.devices.get(f"cuda:{number}") for number in range(processes)]
        return USABLE * min(0.0 if card is None else card.size for card in cards)

    def usable(self, device: str) -> float | None:
        """The usable bytes of a declared device; None for one that is not declared."""
        found = self.devices.get(device)
        return None if found is None else found.size * (USABLE if found.is_card else USABLE_CPU)

    def describe(self, device: str) -> str:
        """The name of a device in messages."""
        found = self.devices[device]
        return found.name if device == PROCESSOR else f"{found.name} ({device})"
