"""Memory of the models that a stage reads: what answers, judges, scores and embeds, without training."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from togi.commands.plan_machine import Machine
from togi.model.sizes import Shape, key_bytes
from togi.recipe.hardware import Device
from togi.stages.cost import Cost
from togi.stages.training.resources import key_room


@dataclass(frozen=True, slots=True)
class Read:
    """A model that a stage reads: its sizes (a reward model has no head), the device that the recipe gives it, and
    whether it writes."""

    shape: Shape
    device: str
    writes: bool


def add_reading(models: Mapping[str, Read], machine: Machine, stage: str, compute_dtype: str, cost: Cost) -> None:
    """Adds what the weights take, and what a declared device is too small for. Of several models on one device the
    largest decides: where not all fit, those that are kept go."""
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
    cost.notes.append("peak: the weights of the largest model that is read, without the keys of what it writes")
    cost.problems += _too_small(sizes, places, machine, stage)
    if cost.sampled or cost.answer:
        for name, one in models.items():
            device = machine.devices.get(places[name])
            if one.writes and device is not None and device.is_card:
                cost.notes.append(_keys(name, sizes[name], key_bytes(one.shape, width), device))


def _keys(name: str, weights: float, token: int, device: Device) -> str:
    """How many tokens at once a model on a declared card has room for."""
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
                f"{usable / 1e9:.2f} may be used; let a server compute it (`url`, or `serve`), or take a larger card"
            )
