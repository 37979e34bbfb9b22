"""Memory of the models that a stage reads to answer, judge, score or embed, without training them, and of servers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from togi.commands.plan_machine import Machine
from togi.commands.plan_services import Standing, of_which, taken
from togi.model.sizes import Shape, key_bytes
from togi.recipe.hardware import Device
from togi.stages.cost import Cost
from togi.stages.training.phases import SCORED, forward_bytes
from togi.stages.training.resources import key_room


@dataclass(frozen=True, slots=True)
class Read:
    """A model that a stage reads: its sizes (a reward model has no head), its device in the recipe, and whether it
    generates text or gives scores."""

    shape: Shape
    device: str
    writes: bool
    scores: bool = False

    def size(self, width: int) -> float:
        """Bytes of the weights and, for a reward model, of the rows that it computes at once."""
        rows = forward_bytes(self.shape, SCORED, width) if self.scores else 0.0
        return width * self.shape.parameters + rows


def add_reading(
    models: Mapping[str, Read],
    servers: Sequence[Standing],
    machine: Machine,
    stage: str,
    compute_dtype: str,
    cost: Cost,
) -> None:
    """Adds the memory of the models and of `servers`, and problems with declared devices that are too small. Of
    several models on one device only the largest counts: if not all fit, loaded ones are released."""
    if not (models or servers) or not machine.known:
        return
    width = 2 if compute_dtype == "bfloat16" else 4
    sizes = {name: one.size(width) for name, one in models.items()}
    places = {name: machine.place(one.device) for name, one in models.items()}
    found: dict[str, float] = {}
    for name, size in sizes.items():
        found[places[name]] = max(found.get(places[name], 0.0), size)
    if models:
        cost.notes.append(
            "peak: the weights of the largest model that the stage reads, without the keys of its answers"
        )
    for place, size in taken(servers).items():
        found[place] = found.get(place, 0.0) + size
    cost.peak_bytes = found.get(machine.trains_on)
    cost.memory = found if machine.devices else {}
    where = f"{machine.where}: hardware: stage {stage}: "
    cost.problems += [where + wrong for wrong in _too_small(sizes, places, machine)]
    if not cost.problems:
        cost.problems += [where + wrong for wrong in _too_full(found, servers, machine)]
    if cost.sampled or cost.answer:
        for name, one in models.items():
            device = machine.devices.get(places[name])
            if one.writes and device is not None and device.is_card:
                cost.notes.append(_keys(name, sizes[name], key_bytes(one.shape, width), device))


def _keys(name: str, weights: float, token: int, device: Device) -> str:
    """A note on how many tokens fit at once for a model on a declared card."""
    room = key_room(device.size, weights)
    tokens = f"{int(room // token):,} tokens at once, the others wait"
    return f"keys: those of {name} have {room / 1e9:.2f} GB of {device.name}: {tokens}"


def _too_small(sizes: Mapping[str, float], places: Mapping[str, str], machine: Machine) -> Iterator[str]:
    """A message for each model that does not fit on its device."""
    for name, size in sizes.items():
        usable, device = machine.usable(places[name]), places[name]
        if usable is not None and size > usable:
            yield (
                f"the weights of {name} need {size / 1e9:.2f} GB of {machine.describe(device)}, which has "
                f"{machine.devices[device].memory:.4g} GB, of which {usable / 1e9:.2f} may be used; run it on a server "
                "(`url`, or `serve`), or use a larger card"
            )


def _too_full(found: Mapping[str, float], servers: Sequence[Standing], machine: Machine) -> Iterator[str]:
    """A message for each device that has no room for its servers, or not besides a model that the stage reads."""
    for device, needed in found.items():
        usable, words = machine.usable(device), of_which(servers, device)
        if words and usable is not None and needed > usable:
            yield (
                f"it needs {needed / 1e9:.2f} GB{words} of {machine.describe(device)}, which has "
                f"{machine.devices[device].memory:.4g} GB, of which {usable / 1e9:.2f} may be used; serve a smaller "
                "model, or give it another device"
            )
