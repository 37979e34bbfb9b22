"""Memory and time of a training on a machine, and settings that would make it fit."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from togi.commands.plan_machine import Machine
from togi.commands.plan_services import Standing, of_which, taken
from togi.core.files import read_cache
from togi.model.sizes import Job, Shape, key_bytes, largest, predict, rank_peak
from togi.recipe.hardware import PROCESSOR
from togi.stages.cost import Cost, Load, Sampled
from togi.stages.table import STAGES
from togi.stages.training.job import TrainingJob, grader_bytes
from togi.stages.training.lora import Lora
from togi.stages.training.optimisation import Optimisation
from togi.stages.training.phases import Rollouts, by_phase, forward_bytes, judging, one_group, scored

SMALLEST = 256  # tokens of a micro-batch that `auto` may choose
FLOPS = 1e12  # operations in one of `tflops`


@dataclass(frozen=True, slots=True)
class Grader:
    """A reward model or judge in memory during a training: its sizes, its device in the recipe, and the most tokens
    that a judge writes."""

    shape: Shape
    device: str
    writes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A training of a model with the sizes `shape` on `machine`, with its graders, and `servers` beside it."""

    job: TrainingJob
    shape: Shape
    compute_dtype: str
    machine: Machine
    graders: Sequence[Grader]
    load: Load
    servers: Sequence[Standing] = ()

    @property
    def here(self) -> Job:
        """The job on this machine."""
        return self.job.at(self.compute_dtype, cuda=self.machine.on_card)

    @property
    def room(self) -> float:
        """Usable bytes."""
        return self.machine.room(self.job.settings.processes)

    @property
    def own(self) -> list[Grader]:
        """The graders on the training device."""
        return [each for each in self.graders if self.machine.place(each.device) == self.machine.trains_on]

    @property
    def devices(self) -> list[str]:
        """The devices that it trains on."""
        on_card = self.machine.on_card
        return [f"cuda:{n}" for n in range(self.job.settings.processes)] if on_card else [self.machine.trains_on]

    @property
    def served(self) -> float:
        """Bytes of servers on the training device that are awake while it trains."""
        return taken([each for each in self.servers if not each.sleeps]).get(self.machine.trains_on, 0.0)

    @property
    def woken(self) -> float:
        """Bytes that a server takes on the training device only while the policy samples."""
        return taken([each for each in self.servers if each.sleeps]).get(self.machine.trains_on, 0.0)

    @property
    def beside(self) -> float:
        """Bytes of other models on the training device."""
        return self.job.beside(self.shape, self.compute_dtype, [each.shape for each in self.own]) + self.served

    def peak(self, tokens: int) -> float:
        """Peak bytes of the training device with micro-batches of `tokens`."""
        sampling = rank_peak(self.shape, self.here, 0) + self.woken if self.woken else 0.0
        trained = max(rank_peak(self.shape, self.here, tokens), sampling) + self.beside
        return max([trained, *self.phases(tokens).values()])

    def phases(self, tokens: int) -> dict[str, float]:
        """Peak bytes of each phase of a policy that samples itself, on the device of one process; empty for other
        trainings."""
        rollouts = self.rollouts
        if rollouts is None or self.job.served:
            return {}
        copies = self.job.copies(self.here, self.shape, self.compute_dtype)
        own = [each.shape for each in self.own]
        found = by_phase(self.shape, self.here, rollouts, tokens=tokens, copies=copies, graders=own)
        found["score"] += max((self.grading(each, rollouts) for each in self.own), default=0.0)
        return {phase: size + self.served for phase, size in found.items()}

    def grading(self, judge: Grader, rollouts: Rollouts) -> float:
        """Bytes that a judge on the training device holds while it grades a group, besides its weights; 0 for a reward
        model."""
        return judging(judge.shape, self.here, rollouts, judge.writes) if judge.writes else 0.0

    @property
    def rollouts(self) -> Rollouts | None:
        """How a policy samples; prompts that do not exist yet are assumed to be as long as the answers."""
        found, sampled = self.job.rollouts, self.load.sampling
        return found and replace(found, prompt=found.answer if sampled is None else sampled.prompt)

    def limit(self) -> int:
        """Tokens of a micro-batch, from the recipe or as many as fit."""
        limit = self.job.settings.micro_batch_tokens
        return (self.most() or SMALLEST) if limit == "auto" else limit

    def tokens(self) -> int:
        """Tokens of the largest micro-batch: the limit or the step, whichever is smaller; a longer example has its own
        micro-batch."""
        return math.ceil(max(min(self.limit(), self.load.step), self.load.example))

    def most(self) -> int:
        """The largest number of tokens that fits; 0 if none fit."""
        return largest(self.shape, self.here, self.room - self.beside)

    def memory(self, tokens: int) -> dict[str, float]:
        """Bytes by device, with micro-batches of `tokens`."""
        peak, elsewhere = self.peak(tokens), self.elsewhere()
        found = {self.machine.trains_on: peak}
        for place, size in elsewhere.items():
            found[place] = size + (peak - self.served if place in self.devices else 0.0)
        return found

    def elsewhere(self) -> dict[str, float]:
        """Bytes of reward models, judges and servers on other devices than the first. Each process loads the graders;
        one of them grades."""
        found = {place: size for place, size in taken(self.servers).items() if place != self.machine.trains_on}
        tokens = 0 if self.rollouts is None else scored(self.rollouts)
        width = 2 if self.compute_dtype == "bfloat16" else 4
        for grader in self.graders:
            place = self.machine.place(grader.device)
            if place != self.machine.trains_on:
                size = self.job.settings.processes * grader_bytes([grader.shape], self.compute_dtype)
                found[place] = found.get(place, 0.0) + size + forward_bytes(grader.shape, tokens, width)
                if self.rollouts is not None:
                    found[place] += self.grading(grader, self.rollouts)
        return found


def add_memory(training: Training, stage: str, cost: Cost) -> None:
    """Adds the peak memory, and problems with declared devices that are too small."""
    machine, settings = training.machine, training.job.settings
    auto = settings.micro_batch_tokens == "auto"
    if auto and not machine.known:
        why = "chosen from the accelerator's memory when the stage begins"
        cost.unknown.append(f"peak memory: micro_batch_tokens auto, {why}")
        return
    if wrong := _missing(machine, settings):
        cost.problems.append(f"{machine.where}: hardware: stage {stage}: {wrong}")
        return
    tokens = training.tokens()
    cost.peak_bytes = training.peak(tokens)
    if auto:
        room = training.room
        fits = f"{training.most() or SMALLEST:,} tokens fit" if cost.peak_bytes <= room else "the peak is more than"
        cost.notes.append(f"micro_batch_tokens auto: {fits} the {room / 1e9:.2f} GB that may be used{_when(machine)}")
    longest = ", the longest example" if tokens > training.limit() else ""
    cost.notes.append(f"peak: with micro-batches of {tokens:,} tokens{longest}")
    if phases := training.phases(tokens):
        cost.phases = phases
        told = ", ".join(f"{phase} {size / 1e9:.2f}" for phase, size in phases.items())
        cost.notes.append(f"peak by phase: {told} GB{_prompts(training)}")
    if machine.devices:
        cost.memory = training.memory(tokens)
        cost.problems += [f"{machine.where}: hardware: stage {stage}: {wrong}" for wrong in _too_small(training, cost)]


def _when(machine: Machine) -> str:
    return f" of {machine.describe(machine.trains_on)}" if machine.devices else " now"


def _prompts(training: Training) -> str:
    if training.load.sampling is not None:
        return ""
    return "; the prompts do not exist yet and are assumed to be as long as the answers"


def _missing(machine: Machine, settings: Optimisation) -> str:
    """A message if there are fewer cards than processes; otherwise empty."""
    cards = sum(device.is_card for device in machine.devices.values())
    if not cards or settings.processes <= cards:
        return ""
    return f"processes is {settings.processes}, but hardware names {cards} cards: each process needs one; name them all"


def _too_small(training: Training, cost: Cost) -> Iterator[str]:
    """A message for each device with less memory than the stage needs there."""
    machine = training.machine
    for device, needed in cost.memory.items():
        usable = training.room if device in training.devices else machine.usable(device)
        if device not in machine.devices:
            if device != PROCESSOR and (kind := _grader_on(training, device)):
                yield f"a {kind} is on {device}, which hardware does not name; add it, or change its device"
        elif usable is not None and needed > usable:
            servers, size = of_which(training.servers, device), machine.devices[device].memory
            yield (
                f"it needs {needed / 1e9:.2f} GB{servers} of {machine.describe(device)}, which has {size:.4g} GB, of "
                f"which {usable / 1e9:.2f} may be used{_advice(training, device, bool(servers))}"
            )


def _grader_on(training: Training, device: str) -> str:
    """The kind of a grader on a device; empty if there is none."""
    found = [each for each in training.graders if training.machine.place(each.device) == device]
    return "" if not found else "judge" if all(each.writes for each in found) else "reward model"


def _advice(training: Training, device: str, serves: bool) -> str:
    """What to do about a device that is too small."""
    if device == training.machine.trains_on:
        return _remedy(training) + ("; or serve the model on another device" if serves else "")
    if device in training.devices:
        return "; a process trains there too: put the other model on another device"
    return f"; use a smaller {'model' if serves else _grader_on(training, device)}, or a larger card"


def _remedy(training: Training) -> str:
    """Settings that would make the training fit, as in a recipe."""
    found = list(_fitting(training))
    if found:
        return f"; it fits with {', or with '.join(found)}"
    fewest = _fewest(training)
    least = min(changed.peak(fewest) for _, changed in _changed(training))
    whole = f", with micro-batches of {fewest:,} tokens, because examples are never cut" if fewest > SMALLEST else ""
    return (
        "; smaller micro-batches, checkpointing and 4 bits do not make it fit: "
        f"the minimum is {least / 1e9:.2f} GB{whole}"
    )


def _fitting(training: Training) -> Iterator[str]:
    """Sufficient changes, the smallest first."""
    good: list[tuple[str, ...]] = []
    for names, changed in _changed(training):
        if any(set(before) <= set(names) for before in good):
            continue
        if changed.peak(changed.tokens()) <= training.room:
            good.append(names)
            yield " and ".join(names)
        elif (tokens := _fewest(changed)) and changed.peak(tokens) <= training.room:
            good.append(names)
            most = max(tokens, changed.most())
            yield " and ".join([*names, f"micro_batch_tokens: {most}"])


def _fewest(training: Training) -> int:
    """The smallest micro-batch that is tried: examples are never cut."""
    return math.ceil(max(SMALLEST, training.load.example))


def _changed(training: Training) -> Iterator[tuple[tuple[str, ...], Training]]:
    """The training with each combination of changed settings, starting with none."""
    changes = list(_changes(training))
    for count in range(len(changes) + 1):
        for chosen in combinations(changes, count):
            settings = training.job.settings
            for _, update in chosen:
                settings = settings.model_copy(update=update)
            made = STAGES[settings.type].job
            assert made is not None
            yield tuple(words for words, _ in chosen), replace(training, job=made(settings))


def _changes(training: Training) -> Iterator[tuple[str, dict[str, object]]]:
    """Settings that save memory and are not set yet: their text, and the change."""
    settings = training.job.settings
    rollouts = (
        None if training.rollouts is None or training.job.served else training.rollouts.of_one(settings.processes)
    )
    if rollouts is not None and rollouts.bound is None and rollouts.rows > rollouts.group:
        width = 2 if training.compute_dtype == "bfloat16" else 4
        size = math.ceil(one_group(training.shape, rollouts, width) / 1e8) / 10
        yield f"key_cache: {size:g}", {"key_cache": size}
    if not settings.activation_checkpointing:
        yield "activation_checkpointing: true", {"activation_checkpointing": True}
    if settings.processes > 1:
        return
    lora = settings.lora
    if lora is None and settings.optimizer == "adamw":
        yield "optimizer: adamw-8bit", {"optimizer": "adamw-8bit"}
    if lora is None or (lora.base != "nf4" and lora.save == "merged"):
        four_bits = (lora or Lora()).model_copy(update={"base": "nf4"})
        words = f"lora: {{rank: {four_bits.rank}, base: nf4}}" if lora is None else "lora.base: nf4"
        yield words, {"lora": four_bits, "weights": "float32"}


# --- time -------------------------------------------------------------------------------------------------------------


def add_time(training: Training, store: Path, cost: Cost) -> None:
    """Adds the time of the stage's operations, at the speed of the declared devices or of earlier stages."""
    assert cost.flops is not None
    if training.machine.devices:
        _declared_time(training, cost)
        return
    kind = training.job.settings.type
    rate = achieved(store, kind)
    if rate is None:
        rate = achieved(store, "train.*")
        if rate is None:
            cost.unknown.append("time: no stage that trains has finished in this store yet")
            return
        cost.notes.append(f"time: at the speed of another kind of training, since no {kind} has finished")
    cost.seconds = cost.flops / rate


def _declared_time(training: Training, cost: Cost) -> None:
    """Adds a lower bound of the time: at the full speed of the declared device."""
    device, sampled = training.machine.trainer, training.load.sampling
    assert device is not None and cost.flops is not None
    name = training.machine.describe(training.machine.trains_on)
    missing = [key for key in ("tflops", "bandwidth") if getattr(device, key) is None]
    if "tflops" in missing or (sampled and missing):
        cost.unknown.append(f"time: hardware gives no {' and no '.join(missing)} for {name}")
        return
    assert device.tflops is not None
    speed = device.tflops * FLOPS
    seconds = cost.flops / speed
    if sampled is not None and device.bandwidth is not None:
        seconds += _sampling_time(training, sampled, speed, device.bandwidth * 1e9)
    cost.seconds = seconds / training.job.settings.processes
    cost.notes.append(f"time: at the full speed that hardware gives {name}, a lower bound without grading and saving")


def _sampling_time(training: Training, sampled: Sampled, speed: float, bandwidth: float) -> float:
    """Seconds of sampling: each pass reads all weights and all keys, or computes, whichever takes longer."""
    shape, width = training.shape, 2 if training.compute_dtype == "bfloat16" else 4
    weights = min(predict(shape, training.here, 1).weights, float(width * shape.parameters))
    tokens = sampled.rows * sampled.answer / 2 + sampled.rows / sampled.group * sampled.prompt
    operations = 2.0 * (shape.used_matrices + shape.embeddings)
    one = max((weights + tokens * key_bytes(shape, width)) / bandwidth, sampled.rows * operations / speed)
    prompts = sampled.rows / sampled.group * sampled.prompt * 2.0 * shape.used_matrices / speed
    return sampled.batches * (sampled.answer * one + prompts)


def achieved(store: Path, kind: str) -> float | None:
    """Operations per second of the last finished stage of this type, over its whole duration."""
    done = sorted(store.glob(f"{kind}-*/DONE"), key=lambda path: path.stat().st_mtime)
    for path in reversed(done):
        memory = path.parent / "memory.json"
        found, done = read_cache(memory, {"flops": int | float}), read_cache(path, {"seconds": int | float})
        if found and done and found["flops"] and done["seconds"]:
            return float(found["flops"]) / float(done["seconds"])
    return None
