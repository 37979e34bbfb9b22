"""Updates of `train.grpo`: from a batch of graded answers to the micro-batches of its optimiser steps.

Log-probabilities of the policy that sampled (old) and of the initial model (reference) are computed here, with the
trainer's own forward pass on the micro-batches used for training, so equal weights give bit-identical results.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from togi.model import forest as forests
from togi.model.adapter import without_adapter
from togi.model.forest import Forest, move
from togi.model.load import LoadedModel
from togi.model.policy import Policy
from togi.objectives.base import Batch, Output, require
from togi.objectives.grpo import GRPO, SamplerCorrection
from togi.stages.arithmetic import in_machine_type
from togi.stages.context import Context
from togi.stages.timing import timed
from togi.stages.training.grpo import TrainGrpo
from togi.stages.training.grpo_rollouts_work import Answer, AnswerGroup, Rollout
from togi.train.loop import MicroBatch

Micro = MicroBatch[Forest]


class Updates:
    """Makes the policy's micro-batches. With an adapter, the reference is the same network with the adapter switched
    off; otherwise it is a frozen copy. With `beta` 0 there is no reference. With several ranks, `policy` is replaced by
    one whose weights are shards, and each rank gets its share of the micro-batches."""

    def __init__(self, settings: TrainGrpo, context: Context, model: LoadedModel) -> None:
        self.settings = settings
        self.ranks = context.ranks
        self.policy = Policy(model.net)
        self.policy.recompute = settings.activation_checkpointing
        self.policy.weigh_router(settings.router_loss or 0.0)
        self.device = model.net.device
        self.dtype = torch.promote_types(next(model.net.parameters()).dtype, torch.float32)
        self.frozen = _frozen(settings, model)
        self._measured = in_machine_type(self._logp, context)
        self._seen: list[Tensor] | None = None  # log-probabilities in the current update, by micro-batch

    def objective(self) -> GRPO:
        loss = self.settings.loss
        correction = None if loss.sampler_correction is None else loss.sampler_correction.model_dump()
        return GRPO(
            loss_type=loss.type,
            level=loss.level,
            eps=loss.clip,
            eps_high=loss.eps_high,
            delta=loss.delta,
            max_weight=loss.max_weight,
            beta=loss.beta,
            use_bias_correction_kl=loss.kl_bias_correction,
            max_tokens=self.settings.sampling.max_tokens if loss.type == "dr_grpo" else None,
            correction=None if correction is None else SamplerCorrection(**correction),
            off_policy_threshold=loss.off_policy_threshold,
        )

    def forward(self, forest: Forest) -> Output:
        """The policy's output, with a graph."""
        output = self._logp((self.policy, forest))
        if self._seen is not None:
            self._seen.append(require(output.logp_N, "logp_N").detach())
        return output

    def steps(self, rollout: Rollout) -> Iterator[list[Micro]]:
        """Yields the micro-batches of each optimiser step on a batch of samples.

        Old log-probabilities are those before the first of these steps. The first minibatch takes them from its own
        first forward pass, where the ratio is 1; the others from a separate pass. Each micro-batch yielded must go
        through `forward` exactly once, in order.
        """
        size, epochs = self.settings.prompts_per_step, self.settings.epochs_per_batch
        with timed(rollout.times, "prepare"):
            parts = [self._part(rollout.groups[at : at + size]) for at in range(0, len(rollout.groups), size)]
            parts[1:] = [[self._with_old(micro) for micro in part] for part in parts[1:]]
        for number in range(self.settings.updates):
            part = parts[number % len(parts)]
            self._seen = [] if number == 0 and epochs > 1 else None
            yield part
            if self._seen is not None:
                parts[0] = [_given_old(micro, old) for micro, old in zip(part, self._seen, strict=True)]

    # --- what is computed ---------------------------------------------------------------------------------------------

    def _part(self, groups: Sequence[AnswerGroup]) -> list[Micro]:
        """This rank's micro-batches of one optimiser step.

        An answer without gradient is not computed, but counts in the loss's divisor; a masked one counts as an answer
        without tokens. If no answer has a gradient, a single one is computed; if no answer counts at all, a prompt
        without scored tokens.
        """
        counted = [[answer for answer in group if answer.counts] for group in groups]
        learning = [[answer for answer in group if self.learns_from(answer)] for group in counted]
        computed = [group for group in learning if group] or [group[:1] for group in counted if group][:1]
        computed = computed or [[_unscored(groups[0][0])]]
        answers = [answer for group in computed for answer in group]
        trees = [[sequence_of(answer) for answer in group] for group in computed]
        cuts = self.ranks.share(forests.split_by_tokens(trees, self.settings.tokens_at_once))
        made = [replace(self._micro(cut, [answers[i] for i in cut.index_S]), idle=idle) for cut, idle in cuts]
        graded = [answer for group in groups for answer in group if answer.graded.total is not None]
        return _with_idle(made, graded, answers) if self.ranks.first else made

    def learns_from(self, answer: Answer) -> bool:
        """Whether an answer has a gradient. In a group without spread only the KL has one."""
        return answer.advantage != 0 or self.settings.loss.beta > 0

    def _micro(self, cut: forests.MicroBatch, answers: Sequence[Answer]) -> Micro:
        forest = forests.plant(cut.groups)
        advantages = [answer.advantage for answer in answers]
        sampler = [value for answer in answers for value in answer.completion.logprobs]
        batch = Batch(
            num_sequences=forest.num_sequences,
            sequence_N=forest.sequence_N.to(self.device),
            advantage_S=torch.tensor(advantages, dtype=self.dtype, device=self.device),
            sampler_logp_N=torch.tensor(sampler, dtype=self.dtype, device=self.device),
            ref_logp_N=self._reference(forest) if self.settings.loss.beta > 0 else None,
        )
        rows = tuple(answer.prompt.id for answer in answers)
        return MicroBatch(inputs=forest, batch=batch, rows=rows, num_tokens=len(forest.ids_T))

    # --- log-probabilities --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def logprobs(self, prompt: Sequence[int], answer: Sequence[int], temperature: float) -> list[float]:
        """The current policy's log-probabilities of an answer's ids, in nats. All ranks must call this."""
        scored = (False,) * len(prompt) + (True,) * len(answer)
        forest = forests.plant([[forests.Sequence((*prompt, *answer), scored)]])
        return require(self._measured((self.policy, forest, temperature)).logp_N, "logp_N").tolist()

    def _logp(self, inputs: "tuple[Policy, Forest] | tuple[Policy, Forest, float]") -> Output:
        policy, forest, *given = inputs
        temperature = given[0] if given else self.settings.sampling.temperature
        # every pass computes the entropy, because without it log-sum-exps differ in the last bit
        found = policy(move(forest, self.device), temperature=temperature, entropy=True)
        return Output(logp_N=found.logp_N, entropy_N=found.entropy_N, aux=found.aux)

    @torch.no_grad()
    def _reference(self, forest: Forest) -> Tensor:
        """Log-probabilities (N,) of the initial model."""
        with nullcontext() if self.frozen is not None else without_adapter(self.policy.net):  # type: ignore[arg-type]
            return require(self._measured((self.frozen or self.policy, forest)).logp_N, "logp_N")

    @torch.no_grad()
    def _with_old(self, micro: Micro) -> Micro:
        return _given_old(micro, self._measured((self.policy, micro.inputs)).logp_N)


def _frozen(settings: TrainGrpo, model: LoadedModel) -> Policy | None:
    if settings.loss.beta == 0 or settings.lora is not None:
        return None
    net = copy.deepcopy(model.net).requires_grad_(False)
    return Policy(net.to(torch.bfloat16) if settings.loss.reference_dtype == "bfloat16" else net, check=False)


def _given_old(micro: Micro, old_logp_N: Tensor | None) -> Micro:
    return replace(micro, batch=replace(micro.batch, old_logp_N=old_logp_N))


def _with_idle(made: list[Micro], graded: Sequence[Answer], computed: Sequence[Answer]) -> list[Micro]:
    """The micro-batches, of which the first also counts the answers that are not computed, and the tokens of the
    unmasked ones among them."""
    sequences = len(graded) - len(computed)
    counted = [answer for answer in graded if answer.counts]
    tokens = sum(len(a.completion.token_ids) for a in counted) - sum(len(a.completion.token_ids) for a in computed)
    if sequences <= 0:
        return made
    first = replace(made[0], batch=replace(made[0].batch, idle_sequences=sequences, idle_tokens=tokens))
    return [first, *made[1:]]


def _unscored(answer: Answer) -> Answer:
    """The prompt of an answer, without scored tokens."""
    return replace(answer, advantage=0.0, completion=replace(answer.completion, token_ids=(), logprobs=()))


def sequence_of(answer: Answer) -> forests.Sequence:
    """A prompt with one answer, of which every sampled token is scored."""
    prompt, ids = answer.prompt_ids, answer.completion.token_ids
    return forests.Sequence(prompt + ids, (False,) * len(prompt) + (True,) * len(ids))
