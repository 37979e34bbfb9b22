"""Computes the log-probabilities of a forest's scored tokens with a model.

Shapes: T rows, N scored tokens, H width, V vocabulary; see `forest`.
"""

import logging
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from togi.core.errors import InputError
from togi.core.strangers import run_stranger
from togi.model.adapter import beneath
from togi.model.attention import TREE_ATTENTION, forest_arguments, refuse_unsupported, shares_prompts
from togi.model.decoders import library_parts, use_library
from togi.model.families import FAMILIES
from togi.model.forest import Forest, Sequence, move, plant
from togi.model.fused_layers import keep_less
from togi.model.head import Head, TokenLogp, find_head, token_logp
from togi.model.recompute import recomputed_layers
from togi.model.router import experts_per_token, router_loss, row_weights

log = logging.getLogger(__name__)


def unwrapped(net: nn.Module) -> PreTrainedModel:
    """The transformers model inside an adapter; its layers contain the adapter's weights.

    Raises InputError for anything but a model of transformers.
    """
    model = beneath(net)
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"{type(net).__name__} is not a model of the transformers library")
    return model


def body_of(model: PreTrainedModel) -> nn.Module:
    """The decoder without its head: the result of `get_decoder`, or the inner model."""
    found = model.get_decoder()
    if isinstance(found, PreTrainedModel) and found is not model:
        return found
    return next((inner for inner in model.children() if isinstance(inner, PreTrainedModel)), found)


def use_tree_attention(net: nn.Module, *, check: bool = True) -> bool:
    """Plugs tree attention into `net`, and parts that keep less for the backward pass (`fused_layers`). Returns False
    if its layers do not use the library's attention interface, or need features that tree attention lacks. With `check`
    those parts are compared with the library's on a probe; if they differ, the library's are used, with a warning.

    Raises InputError for models with bidirectional attention.
    """
    model = unwrapped(net)
    refuse_unsupported(model.config)
    if not shares_prompts(model.config) or not model._can_set_attn_implementation():
        return False
    model.set_attn_implementation(TREE_ATTENTION)
    if keep_less(model) and check and not check_parts(model):
        for module in model.modules():
            use_library(module)
        log.warning(
            "%s: togi's own norms, gates and attention differ from those of transformers %s on a probe; the "
            "library's are used, which need more memory and time",
            model.config.model_type, metadata.version("transformers"),
        )  # fmt: skip
    return True


def hidden_states(net: nn.Module, forest: Forest, *, apart: bool = False) -> Tensor:
    """Last hidden states (T, H) of a forest; `apart` runs a separate forward pass for each sequence."""
    model = unwrapped(net)
    if not apart:
        return body_of(model)(**forest_arguments(forest)).last_hidden_state[0]
    pieces = []
    for tree in forest.layout.trees:
        trunk_T = forest.ids_T[tree.start : tree.trunk_stop]
        for number, (start, stop) in enumerate(tree.branches or ((tree.trunk_stop, tree.trunk_stop),)):
            ids_T = torch.cat([trunk_T, forest.ids_T[start:stop]])
            hidden_TH = hidden_alone(model, ids_T)
            # every sequence computes the same trunk; the first result is kept
            pieces.append(hidden_TH if number == 0 else hidden_TH[len(trunk_T) :])
    return torch.cat(pieces)


def hidden_alone(model: PreTrainedModel, ids_T: Tensor) -> Tensor:
    """Last hidden states (T, H) of one sequence, computed by the library."""
    return body_of(model)(input_ids=ids_T[None], use_cache=False).last_hidden_state[0]


def score_tokens(
    net: nn.Module,
    forest: Forest,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk: int | None = None,
    apart: bool = False,
) -> TokenLogp:
    """Log-probabilities (N,) of the scored tokens, differentiable; computes logits only for those tokens, in chunks.

    Unless `apart`, `net` must have been prepared by `use_tree_attention` (as in a `Policy`).
    """
    hidden_NH = hidden_states(net, forest, apart=apart)[forest.source_N]
    head = find_head(unwrapped(net))
    return token_logp(head, hidden_NH, forest.target_N, temperature=temperature, entropy=entropy, chunk=chunk)


def plain_logprobs(net: nn.Module, sequences: Iterable[Sequence], *, temperature: float = 1.0) -> Tensor:
    """The plain computation: one sequence at a time, all logits; (N,) in the order of a forest. For checks."""
    parts = []
    for sequence in sequences:
        ids_T = torch.tensor(sequence.ids, device=next(net.parameters()).device)
        logits_TV: Tensor = net(input_ids=ids_T[None], use_cache=False).logits[0]
        logp_TV = torch.log_softmax(logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32)) / temperature, -1)
        scored_T = torch.tensor(sequence.scored, device=ids_T.device)[1:]
        parts.append(logp_TV[:-1].gather(1, ids_T[1:, None])[:, 0][scored_T])
    return torch.cat(parts)


def probe_ids(model: PreTrainedModel, length: int) -> list[int]:
    """Token ids spread over the vocabulary, the same for every run."""
    width = model.config.get_text_config().vocab_size
    return [(7919 * (i + 1)) % width for i in range(length)]


def nearly_equal(found: Tensor, expected: Tensor) -> bool:
    """Whether two results are equal up to rounding, relative to the largest entry."""
    tolerance = 5e-2 if expected.dtype in (torch.bfloat16, torch.float16) else 1e-3
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@torch.no_grad()
def check_head(net: nn.Module) -> None:
    """Compares togi's computation of the output head with the model's own logits on a probe.

    Raises InputError if they differ, since the model then transforms its logits in an unknown way.
    """
    model = unwrapped(net)
    device = next(model.parameters()).device
    ids = torch.tensor([probe_ids(model, 8)], device=device)
    where = f"{type(model).__name__}: it fails on a probe"
    expected = run_stranger(lambda: model(input_ids=ids, use_cache=False).logits[0], InputError, where)
    head = find_head(model)
    found = run_stranger(lambda: head(hidden_alone(model, ids[0])), InputError, where)
    if not expected.isfinite().all():
        raise InputError(f"{type(model).__name__}: its logits on a probe are not finite numbers, in {expected.dtype}")
    if not nearly_equal(found.to(expected.dtype), expected):
        raise InputError(
            f"{type(model).__name__}: logits computed from its hidden states and output head differ from its own by "
            f"{(found - expected).abs().max():.3g}; its head does something unknown, so togi cannot train it or score "
            "with it"
        )


@torch.no_grad()
def check_parts(model: PreTrainedModel) -> bool:
    """Whether togi's parts give the same hidden states on a probe as the library's. True also if the library's own
    parts fail on it, which is not the fault of togi's parts."""
    ids = probe_ids(model, 16)
    scored = (False,) * 8 + (True,) * 8
    forest = move(plant([[Sequence(tuple(ids), scored)]]), next(model.parameters()).device)
    try:
        found_TH = run_stranger(lambda: hidden_states(model, forest), InputError)
    except InputError as error:
        log.info("%s: togi's own parts fail on a probe: %s", model.config.model_type, error)
        found_TH = None
    with library_parts(model):
        try:
            expected_TH = run_stranger(lambda: hidden_alone(model, forest.ids_T[: len(ids)]), InputError)
        except InputError:
            return True
    return found_TH is not None and nearly_equal(found_TH[: len(ids)], expected_TH)


@torch.no_grad()
def check_tree(net: nn.Module) -> bool:
    """Whether a probe tree gives the same results as its sequences one at a time. False also if the model fails, as
    when its code does not pass the tree on."""
    model = unwrapped(net)
    ids = probe_ids(model, 20)
    scored = (False,) * 8 + (True,) * 4
    group = [Sequence(tuple(ids[:8] + ids[8:12]), scored), Sequence(tuple(ids[:8] + ids[12:16]), scored)]
    forest = move(plant([group, [Sequence(tuple(ids[8:20]), scored)]]), next(model.parameters()).device)
    try:
        expected_TH = run_stranger(lambda: hidden_states(net, forest, apart=True), InputError)
        found_TH = run_stranger(lambda: hidden_states(net, forest), InputError)
    except InputError as error:
        log.info("%s: a probe tree fails: %s", model.config.model_type, error)
        return False
    return found_TH.shape == expected_TH.shape and nearly_equal(found_TH[: len(expected_TH)], expected_TH)


def share_prompts(net: nn.Module, *, check: bool, own: str | None = None) -> bool:
    """Makes `net` compute shared prompts once, if possible. Otherwise returns False, with a warning: each sequence is
    then computed separately, with the library's attention (`own`; None: that which `net` has)."""
    model = unwrapped(net)
    own, kind = own or model.config._attn_implementation, model.config.get_text_config().model_type
    if use_tree_attention(net, check=check) and (not check or kind in FAMILIES or check_tree(net)):
        return True
    if model.config._attn_implementation == TREE_ATTENTION:
        model.set_attn_implementation("eager" if own is None or own == TREE_ATTENTION else own)
    if check:
        log.warning("%s: sharing a prompt changes its results; computing each sequence apart, which is slower", kind)
    return False


class Policy(nn.Module):
    """A causal language model that scores forests: body and chunked head in one forward method, so that sharding can
    wrap it as root.

    With `check` the head is compared with the model's own logits, and a family outside `FAMILIES` runs a probe tree. If
    that fails, `apart` is set, with a warning, and sequences are computed one at a time. `router_loss` is the weight of
    the load-balancing loss of a mixture-of-experts model, which is returned with the log-probabilities. While
    `recompute` is set, only the input of each layer is kept, and the backward pass recomputes the layer. Raises
    InputError for a model that cannot be scored exactly, and for a router loss without a router.
    """

    def __init__(
        self, net: nn.Module, *, check: bool = True, chunk: int | None = None, router_loss: float = 0.0
    ) -> None:
        super().__init__()
        self.net = net
        self.chunk = chunk
        self.recompute = False
        net.eval()  # no dropout: sequences with a shared trunk would share its mask
        self._attention = unwrapped(net).config._attn_implementation
        self.apart = not share_prompts(net, check=check)
        if check:
            check_head(net)
        self.weigh_router(router_loss)

    def examine(self) -> None:
        """Does what `check` does, for a model whose weights were not read yet when it became a policy."""
        self.apart = not share_prompts(self.net, check=True, own=self._attention)
        check_head(self.net)

    def weigh_router(self, weight: float) -> None:
        """Sets `router_loss`. Raises InputError if the model has no router, or computes sequences apart."""
        self.router_loss = weight
        self.top_k = experts_per_token(unwrapped(self.net)) if weight else 0
        if self.apart and weight:
            raise InputError("the router loss needs a model that computes a shared prompt once: set router_loss to 0")

    def train(self, mode: bool = True) -> "Policy":
        """Does nothing: the model stays in evaluation mode, even in training."""
        return self

    @property
    def head(self) -> Head:
        """The model's own output head."""
        return find_head(unwrapped(self.net))

    def forward(self, forest: Forest, temperature: float = 1.0, entropy: bool = False) -> TokenLogp:
        """Log-probabilities of the scored tokens of a forest on the model's device."""
        with recomputed_layers(unwrapped(self.net), self.recompute):
            return self._scored(forest, temperature, entropy)

    def _scored(self, forest: Forest, temperature: float, entropy: bool) -> TokenLogp:
        if not self.router_loss:
            return score_tokens(
                self.net, forest, temperature=temperature, entropy=entropy, chunk=self.chunk, apart=self.apart
            )
        found = body_of(unwrapped(self.net))(**forest_arguments(forest), output_router_logits=True)
        hidden_NH = found.last_hidden_state[0][forest.source_N]
        scored = token_logp(
            self.head, hidden_NH, forest.target_N, temperature=temperature, entropy=entropy, chunk=self.chunk
        )
        aux = self.router_loss * router_loss(found.router_logits, row_weights(forest), self.top_k)
        return scored._replace(aux=aux)

    def num_parameters(self) -> dict[str, int]:
        """The numbers of all parameters and of trainable ones."""
        counts: dict[str, Any] = {"total": 0, "trainable": 0}
        for parameter in self.parameters():
            counts["total"] += parameter.numel()
            counts["trainable"] += parameter.numel() * parameter.requires_grad
        return counts
