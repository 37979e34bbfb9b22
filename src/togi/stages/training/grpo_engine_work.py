"""The policy on a server: its weights are written where the server finds them, and a probe says whether it has them.

The probe is the log-probabilities of a fixed text: the server's own, against those that the trainer computes. A server
that was started anew samples from the weights that it was started with; what it answered is thrown away then.
"""

import copy
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from togi.client.wire_samples import SampleRequest, Weights
from togi.core.errors import StageError
from togi.core.seeds import derive
from togi.model.card import About
from togi.model.load import LoadedModel
from togi.model.save import save_adapter, save_model
from togi.rollout.remote import RemoteEngine
from togi.stages.arithmetic import arithmetic
from togi.stages.context import Context
from togi.stages.endpoints_remote import live_client
from togi.stages.training.engine import EngineSettings
from togi.stages.training.grpo import TrainGrpo

FOLDER = "checkpoints/published"  # goes with the checkpoints when the stage is finished
PROBE_TOKENS, PROBE_SAMPLED = 64, 16
TRIES = 3

Measure = Callable[[Sequence[int], Sequence[int], float], list[float]]
"""Log-probabilities that the trainer gives to the ids of an answer after a prompt, at a temperature."""


class RemotePolicy:
    """The engine that samples `model` on a server. `probe` are the ids of a text; `measure` is what the trainer says of
    it. `off` is how far apart both were at the last publication of this process, in nats. All ranks call everything
    here together."""

    def __init__(self, settings: TrainGrpo, context: Context, model: LoadedModel) -> None:
        assert settings.engine is not None
        self.settings: EngineSettings = settings.engine
        self.context, self.model = context, model
        self.temperature = settings.sampling.temperature
        self.probe: tuple[int, ...] = ()
        self.longest = PROBE_TOKENS
        self.off: float | None = None
        self.client = live_client(context, settings.engine.model)
        orders = context.ranks.first
        self.engine = RemoteEngine(self.client, model.tokenizer, model.template.terminator, self._write, orders=orders)
        self._dtype = arithmetic(context).dtype
        self._folder = self._place()
        self._told: tuple[float, ...] = ()
        self._losses = self._count = 0
        self._tried = False

    # --- publishing ---------------------------------------------------------------------------------------------------

    def _place(self) -> Path:
        """Where weights are put; what a killed run left there is removed."""
        shared = self.settings.folder
        folder = self.context.folder / FOLDER if shared is None else Path(shared) / self.context.folder.name
        if self.context.ranks.first:
            shutil.rmtree(folder, ignore_errors=True)
        return folder

    def _write(self, weights: Iterable[tuple[str, Any]]) -> Weights:
        values = dict(weights)
        return self.context.ranks.on_first_rank(lambda: self._saved(values))

    def _saved(self, values: dict[str, Tensor]) -> Weights:
        """The weights of now in a folder of their own; the one before stays until the server has these."""
        self._count += 1
        before = self.client.weights
        folder = self._folder / f"{self._count:06d}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        about = About(stage=self.context.name, origin=self.model.origin)
        adapter = self.settings.publish == "adapter"
        model = replace(self.model, net=self._twin(values))
        if adapter:
            save_adapter(model, folder, about)
        else:
            save_model(model, folder, about, dtype=self._dtype)
        return Weights(str(folder), self._mark(), adapter, before.mark if before is not None else "")

    def _twin(self, values: dict[str, Tensor]) -> Any:
        """The network with `values`, which it shares."""
        shared = {id(old): values.get(name, old) for name, old in self.model.net.named_parameters()}
        return copy.deepcopy(self.model.net, shared)

    def _mark(self) -> str:
        """A name that no weights on the server have, of this run or of one that was killed."""
        return f"togi-{self._count}-{time.time_ns():x}"

    # --- the probe ----------------------------------------------------------------------------------------------------

    def check(self, measure: Measure) -> None:
        """Holds what the server says of the probe against what the trainer does. Raises StageError where it does not
        have the weights that were published."""
        own = measure(self.probe[:1], self.probe[1:], 1.0)
        self.off = self.context.ranks.on_first_rank(lambda: self._checked(own))
        if not self._tried:
            self._try_samples(measure)
        self._losses = self.client.losses
        self.context.ranks.on_first_rank(self._tidy)

    def _checked(self, own: Sequence[float]) -> float:
        for _ in range(TRIES):
            losses = self.client.losses
            told, mark = self.client.score(self.probe)
            off = _apart(own, told)
            if off <= self.settings.tolerance and self._is_ours(mark):
                self._told = told
                return off
            if losses == self.client.losses:
                break
            self._again()  # it was started anew between the order and the probe
        raise StageError(
            f"stage {self.context.name}: the server of {self.settings.model} does not have the weights that were "
            f"published: its log-probabilities of a probe differ from the trainer's by {off:.3g} nats on average "
            f"(engine.tolerance: {self.settings.tolerance:g}); serve the model that `init` names, in a type that is as "
            "wide as the trainer's"
        )

    def _try_samples(self, measure: Measure) -> None:
        """Whether the log-probabilities of samples mean what the trainer's do: tried once."""
        request = SampleRequest(
            prompt=self.probe,
            temperature=self.temperature,
            max_tokens=PROBE_SAMPLED,
            seed=derive(self.context.seed, "probe"),
            terminator=self.model.template.terminator,
        )
        found = self.context.ranks.on_first_rank(lambda: self.client.wait(self.client.sample(request)))
        off = _apart(measure(self.probe, found.ids, self.temperature), found.logprobs)
        self._tried = True
        if off > self.settings.tolerance:
            raise StageError(
                f"stage {self.context.name}: log-probabilities of samples from {self.settings.model} differ from the "
                f"trainer's by {off:.3g} nats on average (engine.tolerance: {self.settings.tolerance:g}), though those "
                f"of given texts agree: they must be of the distribution at temperature {self.temperature:g}; start "
                "vLLM with --logprobs-mode processed_logprobs"
            )

    def confirm(self) -> bool:
        """Whether what the server answered since the last publication came from the weights of then. Otherwise it has
        them again, and the answers are worth nothing."""
        lost = self.engine.foreign > 0 or self.client.losses != self._losses
        if not self.context.ranks.any(lost) and self.context.ranks.on_first_rank(self._holds):
            return True
        self.context.log(
            f"the server of {self.settings.model} was away, or has other weights now: it is given the policy's again, "
            "and what it answered is sampled again"
        )
        self.client.weights = self.context.ranks.on_first_rank(self._again)
        self.engine.foreign, self._losses = 0, self.client.losses
        return False

    def _holds(self) -> bool:
        told, mark = self.client.score(self.probe)
        return self._is_ours(mark) and _apart(told, self._told) <= self.settings.tolerance

    def _again(self) -> Weights:
        """Gives the server the weights of the last publication once more, under a mark of their own."""
        weights = self.client.weights
        assert weights is not None
        self._count += 1
        self.client.take(replace(weights, mark=self._mark(), before=weights.mark))
        assert self.client.weights is not None
        return self.client.weights

    def _is_ours(self, mark: str | None) -> bool:
        return mark is None or (self.client.weights is not None and mark == self.client.weights.mark)

    def _tidy(self) -> None:
        """Removes what was published before: the server has read what came after it."""
        kept = self.client.weights
        for folder in self._folder.iterdir():
            if kept is not None and str(folder) != kept.folder:
                shutil.rmtree(folder, ignore_errors=True)


def _apart(first: Sequence[float], second: Sequence[float]) -> float:
    """How far two lists of log-probabilities are apart, in nats, on average."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first)
