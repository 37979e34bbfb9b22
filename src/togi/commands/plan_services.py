"""Memory of the servers that a run starts for its models (`serve:`), on the devices of the recipe."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from togi.commands.plan_machine import Machine
from togi.model.sizes import Shape
from togi.recipe.hardware import PROCESSOR, Device
from togi.recipe.model_services import SEVERAL
from togi.stages.cost import Known
from togi.stages.training.phases import SCORED, Rollouts, drawing, forward_bytes, key_cache
from togi.stages.training.resources import USABLE

CLAIMS = {"vllm": ("--gpu-memory-utilization", 0.9), "sglang": ("--mem-fraction-static", 0.88)}
"""The argument of an engine that sets its share of a card's memory for weights and keys, and the engine's default."""
WIDE = ("float32", "float")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A model that the run serves, with the keys of its entry under `models:`. `stages` need the server, which runs
    from the first of them to the last; `samples_for` is the stage that samples from its policy there, if any."""

    name: str
    engine: str
    kind: str
    device: str
    args: tuple[str, ...]
    stages: tuple[str, ...]
    samples_for: str = ""

    def runs(self, stage: str, left: Sequence[str]) -> bool:
        """Whether the server runs during a stage; `left` are the stages that are not done, in order."""
        needed = [at for at, name in enumerate(left) if name in self.stages]
        return stage in left and bool(needed) and needed[0] <= left.index(stage) <= needed[-1]


@dataclass(frozen=True, slots=True)
class Standing:
    """A server that runs during a stage: the bytes that it takes on a device, and its own problem, if any. `sleeps`: it
    takes them only while the stage samples."""

    name: str
    place: str
    size: float
    problem: str = ""
    sleeps: bool = False


def uncounted(service: Service, known: Known) -> str:
    """Why the memory of a server cannot be counted; empty if it can."""
    several = [word for word in service.args if word.partition("=")[0] in SEVERAL]
    if several:
        return f"it uses several devices ({several[0]})"
    return known.why if known.shape is None else ""


def standing(
    service: Service, shape: Shape, machine: Machine, compute_dtype: str, sampled: Rollouts | None = None
) -> Standing:
    """A server during a stage, with the keys of `sampled` if it samples for a policy."""
    place = machine.place(service.device)
    card = machine.devices.get(place)
    shape = shape if service.kind == "causal" else replace(shape, tied=True)  # no head
    width = _width(service, compute_dtype)
    weights = float(width * shape.parameters)
    if service.engine in CLAIMS:
        return _claiming(service, place, weights, card)
    size = weights
    if service.kind == "reward":
        size += forward_bytes(shape, SCORED, width)
    elif sampled is not None:
        one = sampled.one_by_one()
        keys = key_cache(shape, one, width)
        size += keys + drawing(shape, one, keys, width)
    return Standing(service.name, place, size)


def _width(service: Service, compute_dtype: str) -> int:
    """Bytes of a weight on the server: togi's own computes as the run does, embedders in float32; other engines use 2
    bytes unless told otherwise."""
    told = _argument(service.args, "--dtype")
    if told is not None and told != "auto":
        return 4 if told in WIDE else 2
    if service.engine != "togi":
        return 2
    return 4 if service.kind == "embedder" or compute_dtype != "bfloat16" else 2


def _claiming(service: Service, place: str, weights: float, card: Device | None) -> Standing:
    """An engine that takes a share of its card at its start."""
    if card is None or not card.is_card:
        return Standing(service.name, place, weights)
    key, default = CLAIMS[service.engine]
    share = _share(_argument(service.args, key), default)
    problem = ""
    if weights > share * card.size:
        problem = (
            f"the weights of {service.name} need {weights / 1e9:.2f} GB, but its server takes only {share:g} of "
            f"{card.name} ({place}), {share * card.size / 1e9:.2f} GB; raise {key}, or use a larger card"
        )
    return Standing(service.name, place, max(weights, min(share, USABLE) * card.size), problem)


def _share(told: str | None, default: float) -> float:
    try:
        return default if told is None else float(told)
    except ValueError:
        return default  # the engine itself refuses it


def _argument(args: Sequence[str], key: str) -> str | None:
    """The value of an argument, written as `--key value` or `--key=value`."""
    for at, word in enumerate(args):
        name, sign, value = word.partition("=")
        if name == key:
            return value if sign else next(iter(args[at + 1 :]), None)
    return None


def taken(servers: Sequence[Standing]) -> dict[str, float]:
    """The bytes of all servers by device."""
    found: dict[str, float] = {}
    for each in servers:
        found[each.place] = found.get(each.place, 0.0) + each.size
    return found


def of_which(servers: Sequence[Standing], place: str) -> str:
    """The servers' part of a device's memory, for a message; empty if there is none."""
    here = [each for each in servers if each.place == place]
    if not here:
        return ""
    names = " and ".join(each.name for each in here)
    server = "server of" if len(here) == 1 else "servers of"
    return f" ({sum(each.size for each in here) / 1e9:.2f} of them for the {server} {names})"


def server_problems(servers: Sequence[Standing], machine: Machine) -> Iterator[str]:
    """The problems of servers apart from what else is on their devices: a device that hardware does not name, and a
    share of a card that does not hold the weights."""
    for each in servers:
        if each.place not in machine.devices and each.place != PROCESSOR:
            yield (
                f"the server of {each.name} is on {each.place}, which hardware does not name; add it, or change its "
                "device"
            )
        if each.problem:
            yield each.problem
