"""The policy on a server: publishes its weights, in a folder or over a connection, and verifies with a probe that the
server has them.

The probe compares the server's log-probabilities of a fixed text with the trainer's. A restarted server samples from
the weights that it was started with; its answers are then discarded.
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
from togi.client.wire_transfer import TensorForm
from togi.core.errors import StageError
from togi.core.seeds import derive
from togi.model.card import About
from togi.model.load import LoadedModel
from togi.model.save import save_adapter, save_model
from togi.model.shards import stored_shapes, stored_weights
from togi.model.streamed import SavedNetwork
from togi.rollout.remote import RemoteEngine
from togi.rollout.transfer import Sender
from togi.stages.arithmetic import arithmetic, device
from togi.stages.context import Context
from togi.stages.endpoints_remote import live_client
from togi.stages.training.engine import EngineSettings
from togi.stages.training.grpo import TrainGrpo

FOLDER = "checkpoints/published"  # removed with the checkpoints when the stage is finished
PROBE_TOKENS, PROBE_SAMPLED = 64, 16
TRIES = 3

Measure = Callable[[Sequence[int], Sequence[int], float], list[float]]
"""Returns the trainer's log-probabilities of an answer's ids, given (prompt ids, answer ids, temperature)."""


class RemotePolicy:
    """The engine that samples from `model` on a server.

    `probe` holds the ids of the probe's text. `off` is the mean difference, in nats, between the server's and the
    trainer's log-probabilities at the last publication of this process. All ranks call every method together.
    """

    def __init__(self, settings: TrainGrpo, context: Context, model: LoadedModel) -> None:
        assert settings.engine is not None
        self.settings: EngineSettings = settings.engine
        self.context, self.model = context, model
        self.temperature = settings.sampling.temperature
        self.probe: tuple[int, ...] = ()
        self.longest = PROBE_TOKENS
        self.off: float | None = None
        self.sender = Sender(device()) if settings.engine.publish == "transfer" else None
        self.client = live_client(context, settings.engine.model, self.sender)
        orders = context.ranks.first
        self.engine = RemoteEngine(self.client, model.tokenizer, model.template.terminator, self._write, orders=orders)
        self._dtype = arithmetic(context).dtype
        self._folder = self._place()
        self._told: tuple[float, ...] = ()
        self._losses = self._count = 0
        self._tried = False
        self._ahead = settings.staleness > 0

    # --- publishing ---------------------------------------------------------------------------------------------------

    def _place(self) -> Path:
        """The folder for published weights. Removes what a killed run left there."""
        shared = self.settings.folder
        folder = self.context.folder / FOLDER if shared is None else Path(shared) / self.context.folder.name
        if self.context.ranks.first:
            shutil.rmtree(folder, ignore_errors=True)
        return folder

    def _write(self, weights: Iterable[tuple[str, Any]]) -> Weights:
        values = dict(weights)
        return self.context.ranks.on_first_rank(lambda: self._prepared(values))

    def _prepared(self, values: dict[str, Tensor]) -> Weights:
        """Prepares the current weights for a server, which is awake afterwards. Before the first time, it must have
        slept once, so that a server that cannot is noticed before it samples."""
        self._count += 1
        weights = self._saved(values) if self.sender is None else self._loaded(self.sender, values)
        if self.settings.sleep:
            if not self._tried:
                self.client.sleep()
            self.client.wake()
        return weights

    def _loaded(self, sender: Sender, values: dict[str, Tensor]) -> Weights:
        """Gives the sender the current weights. One batch ahead it gets a copy, because the policy changes while the
        server may still need them again."""
        kept = {name: value.detach().clone() for name, value in values.items()} if self._ahead else values
        network = SavedNetwork(self._twin(kept), self._dtype)
        sender.load([_form(*each) for each in stored_shapes(network)], lambda: stored_weights(network))
        return Weights("", self._mark())

    def _saved(self, values: dict[str, Tensor]) -> Weights:
        """Saves the current weights to a new folder. The previous folder stays until the server has loaded them."""
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
        """A copy of the network that uses `values`, without copying them."""
        shared = {id(old): values.get(name, old) for name, old in self.model.net.named_parameters()}
        return copy.deepcopy(self.model.net, shared)

    def _mark(self) -> str:
        """A unique name for weights on the server, also across killed runs."""
        return f"togi-{self._count}-{time.time_ns():x}"

    # --- sleep --------------------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Makes the server sleep, if the recipe says so, until weights are published."""
        if self.settings.sleep:
            self.context.ranks.on_first_rank(self.client.sleep)

    def free(self) -> None:
        """Frees the memory of weights to send."""
        if self.sender is not None:
            self.sender.load([], lambda: iter(()))

    def leave(self) -> None:
        """Leaves the server awake, and closes the connection."""
        if self.settings.sleep:
            self.context.ranks.on_first_rank(self.client.wake)
        self.engine.close()

    # --- the probe ----------------------------------------------------------------------------------------------------

    def check(self, measure: Measure) -> None:
        """Compares the server's log-probabilities of the probe with the trainer's, which `measure` computes. Raises
        StageError if the server does not have the published weights."""
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
            self._again()  # the server was restarted between publication and probe
        raise StageError(
            f"stage {self.context.name}: the server of {self.settings.model} does not have the weights that were "
            f"published: its log-probabilities of a probe differ from the trainer's by {off:.3g} nats on average "
            f"(engine.tolerance: {self.settings.tolerance:g}); serve the model that `init` names, with the precision "
            "of the trainer"
        )

    def _try_samples(self, measure: Measure) -> None:
        """Checks, only once, that the log-probabilities of samples are comparable with the trainer's. Raises StageError
        if not."""
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
                f"trainer's by {off:.3g} nats on average (engine.tolerance: {self.settings.tolerance:g}), although "
                f"those of given texts agree: they must be taken at temperature {self.temperature:g}; start vLLM with "
                "--logprobs-mode processed_logprobs"
            )

    def confirm(self) -> bool:
        """Whether all answers since the last publication came from the published weights. If not, publishes them again;
        the answers must be discarded."""
        lost = self.engine.foreign > 0 or self.client.losses != self._losses
        if not self.context.ranks.any(lost) and self.context.ranks.on_first_rank(self._holds):
            return True
        self.context.log(
            f"the server of {self.settings.model} was unavailable or has other weights: the policy's weights are "
            "published again, and its answers are discarded and sampled again"
        )
        self.client.weights = self.context.ranks.on_first_rank(self._again)
        self.engine.foreign, self._losses = 0, self.client.losses
        return False

    def _holds(self) -> bool:
        told, mark = self.client.score(self.probe)
        return self._is_ours(mark) and _apart(told, self._told) <= self.settings.tolerance

    def _again(self) -> Weights:
        """Publishes the last weights again, under a new mark."""
        weights = self.client.weights
        assert weights is not None
        self._count += 1
        self.client.take(replace(weights, mark=self._mark(), before=weights.mark))
        assert self.client.weights is not None
        return self.client.weights

    def _is_ours(self, mark: str | None) -> bool:
        return mark is None or (self.client.weights is not None and mark == self.client.weights.mark)

    def _tidy(self) -> None:
        """Removes earlier publications; the server has loaded the latest."""
        kept = self.client.weights
        for folder in self._folder.glob("*"):
            if kept is not None and str(folder) != kept.folder:
                shutil.rmtree(folder, ignore_errors=True)


def _form(name: str, tensor: Tensor) -> TensorForm:
    kind = str(tensor.dtype).removeprefix("torch.")
    return TensorForm(name, kind, tuple(tensor.shape), tensor.numel() * tensor.element_size())


def _apart(first: Sequence[float], second: Sequence[float]) -> float:
    """The mean absolute difference of two lists of log-probabilities, in nats."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first)
