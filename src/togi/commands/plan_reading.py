"""Memory of the models that a stage reads to answer, judge, score or embed, without training them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from togi.commands.plan_machine import Machine
from togi.model.sizes import Shape, key_bytes
from togi.recipe.hardware import Device
from togi.stages.cost import Cost
from togi.stages.training.resources import key_room


@dataclass(frozen=True, slots=True)
class Read:
    """A model that a stage reads: its sizes (a reward model has no head), its device in the recipe, and whether it
    generates text."""

    shape: Shape
    device: str
    writes: bool


def add_reading(models: Mapping[str, Read], machine: Machine, stage: str, compute_dtype: str, cost: Cost) -> None:
    """Adds the memory of the weights, and problems with declared devices that are too small. Of several models on one
    device only the largest counts: if not all fit, loaded ones are released."""
    if not models or not machine.known:
        return
    width = 2 if compute_dtype == "bfloat16" else 4
    sizes = {name: float(width * one.shape.parameters) for name, one in models.items()}
    places = {name: machine.place(one.device) for name, one in models.items()}
    found: dict[str, float] = {}
    for name, size in sizes.items():
        found[places[name]] = max(found.get(places[name], 0.0), size)
    cost.peak_bytes = found.get(machine.trains_on)
    cost.memory = found if machine.devices else {}
    cost.notes.append("peak: the weights of the largest model that the stage reads, without the keys of its answers")
    cost.problems += _too_small(sizes, places, machine, stage)
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


def _too_small(sizes: Mapping[str, float], places: Mapping[str, str], machine: Machine, stage: str) -> Iterator[str]:
    for name, size in sizes.items():
        usable, device = machine.usable(places[name]), places[name]
        if usable is not None and size > usable:
            yield (
                f"{machine.where}: hardware: stage {stage}: the weights of {name} need {size / 1e9:.2f} GB of "
                f"{machine.describe(device)}, which has {machine.devices[device].memory:.4g} GB, of which "
                f"{usable / 1e9:.2f} may be used; run it on a server (`url`, or `serve`), or use a larger card"
            )
