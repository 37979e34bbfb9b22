"""Low-rank adapters (LoRA, arXiv 2106.09685; rsLoRA, arXiv 2312.03732) on any linear layers, and trainable token rows,
with peft."""

import copy
import importlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.save_and_load import load_peft_weights
from torch import Tensor, nn
from transformers import PreTrainedModel

from togi.core.errors import InputError
from togi.model.adapter import ALL_LINEAR, LoraSettings, matches, refuse_targets
from togi.model.headers import some
from togi.model.network import foreign, linear_names

log = logging.getLogger(__name__)


def _targets(net: PreTrainedModel, settings: LoraSettings) -> list[str]:
    """Full names of the layers that get an adapter. Raises InputError for a target that matches no layer."""
    known = linear_names(net)
    if ALL_LINEAR in settings.targets:
        heads = ("score", "lm_head", *settings.full)
        named = [t for t in settings.targets if t != ALL_LINEAR]
        rest = [n for n in known if not any(matches(n, h) for h in heads) and n != _head_name(net)]
    else:
        named, rest = [*settings.targets], []
    refuse_targets(named, known)
    chosen = {name: None for name in known if name in rest or any(matches(name, target) for target in named)}
    return list(chosen)


def _name_of(net: PreTrainedModel, wanted: nn.Module | None) -> str:
    return next((name for name, module in net.named_modules() if wanted is not None and module is wanted), "")


def _head_name(net: PreTrainedModel) -> str:
    return _name_of(net, net.get_output_embeddings())


def _row_modules(net: PreTrainedModel, settings: LoraSettings, targets: Sequence[str]) -> dict[str, list[int]] | None:
    """The trainable rows of each module, in peft's form. Tied heads follow their embeddings automatically."""
    rows = sorted({*settings.token_rows, *settings.new_rows})
    if not rows:
        return None
    head = _head_name(net)
    if settings.token_rows and head in targets:
        raise InputError(
            f"{head} cannot have both an adapter and token_rows: leave it out of the targets, or leave out token_rows"
        )
    names = [_name_of(net, net.get_input_embeddings())]
    if head and head not in targets and not net.config.get_text_config().tie_word_embeddings:
        names.append(head)
    return {name: list(rows) for name in names}


def _untie(net: PreTrainedModel) -> None:
    """Gives the output head its own copy of the weights, so that an adapter on it does not affect the embeddings."""
    head = net.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    head.weight = nn.Parameter(head.weight.detach().clone())
    net.config.get_text_config().tie_word_embeddings = False
    net.config.tie_word_embeddings = False
    net.all_tied_weights_keys = {}
    log.warning("the output head gets an adapter, so it no longer shares weights with the input embeddings")


def add_lora(net: Any, settings: LoraSettings, *, seed: int) -> PeftModel:
    """Freezes `net` and adds an adapter that changes nothing yet. An existing adapter is merged first, so that turning
    the new one off gives exactly the given model.

    Raises InputError for a rank below 1, a target that matches no layer, or rows of a head that also gets an adapter.
    """
    if settings.rank < 1:
        raise InputError(f"rank {settings.rank}: the rank of an adapter must be at least 1")
    if isinstance(net, PeftModel):
        net = net.merge_and_unload()  # type: ignore[operator]
    targets = _targets(net, settings)
    rows = _row_modules(net, settings, targets)
    tied = net.config.get_text_config().tie_word_embeddings
    if tied and _head_name(net) in targets:
        _untie(net)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        target_modules=targets,
        lora_dropout=0.0,  # sequences with a shared trunk would share its dropout mask
        use_rslora=settings.rslora,
        modules_to_save=list(settings.full) or None,
        trainable_token_indices=rows,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(net, config)  # the adapter is float32 even if the weights are bfloat16
    return adapted.eval()


def merged(net: PeftModel, dtype: torch.dtype | None = None) -> Any:
    """The network with its adapter permanently merged; quantised layers become plain ones.

    The sum is computed in `dtype` if that is wider than the base weights, so that it is not rounded.
    """
    base: Any = net.get_base_model()
    wide = base.dtype if dtype is None else torch.promote_types(base.dtype, dtype)
    if getattr(base, "is_loaded_in_4bit", False):
        return importlib.import_module("togi.model.quantised").merge_quantised(net, wide)
    if wide != base.dtype:
        base.to(wide)
    return net.merge_and_unload()  # type: ignore[operator]


def merged_parts(
    net: PeftModel, dtype: torch.dtype, whole: Callable[[Tensor], Tensor]
) -> dict[str, Callable[[], nn.Module]]:
    """For each part that an adapter changes, a function that builds the plain part that `merged` would give, bit for
    bit; by the part's name in the base network. Each call builds a new part, and the network stays unchanged. `whole`
    gives the whole tensor of a weight, of which this process may have only a part."""
    base: Any = net.get_base_model()
    four_bits = getattr(base, "is_loaded_in_4bit", False)
    parts = importlib.import_module("togi.model.quantised").written_out(net, dtype) if four_bits else {}
    kind = dtype if four_bits or dtype != base.dtype else None
    for name, part in base.named_modules():
        inside = any(name.startswith(f"{other}.") for other in parts)
        if not inside and isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper):
            parts.setdefault(name, partial(_merged_part, part, kind, whole))
    return parts


@torch.no_grad()
def _merged_part(part: Any, dtype: torch.dtype | None, whole: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of a part with its adapter merged, in `dtype` (None: unchanged)."""
    gathered = {id(weight): (weight, whole(weight)) for weight in part.parameters()}
    twin = copy.deepcopy(
        part,
        {
            at: nn.Parameter(found, weight.requires_grad)
            for at, (weight, found) in gathered.items()
            if found is not weight
        },
    )
    if dtype is not None:
        twin.to(dtype)
    if isinstance(twin, AuxiliaryTrainingWrapper):
        return twin.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    twin.merge()
    return twin.get_base_layer()


def with_adapter(net: Any, folder: Path, *, meta: bool = False) -> Any:
    """The network with a peft adapter merged; with `meta`, only checks that the adapter fits.

    Raises InputError for an adapter that does not fit: other layers, other shapes, other rows of embeddings.
    """
    where = f"{folder}: the adapter does not fit its base"
    config = foreign(lambda: PeftConfig.from_pretrained(str(folder)), f"{folder}: the adapter cannot be read")
    config.inference_mode = True
    adapted = foreign(lambda: PeftModel(net, config), where)
    report = foreign(lambda: adapted.load_adapter(str(folder), "default", is_trainable=False), where)
    if left := sorted(report.unexpected_keys):
        raise InputError(f"{where}: the base has no layers for {len(left)} of its weights ({some(left)})")
    missing = sorted(name for name in report.missing_keys if "lora_" in name or "modules_to_save" in name)
    if missing:
        raise InputError(
            f"{where}: {len(missing)} of its weights are missing ({some(missing)}); save the adapter again"
        )
    if meta:
        return net
    whole = foreign(lambda: merged(adapted), f"{folder}: the adapter cannot be merged")
    for weight in whole.parameters():  # peft has frozen them
        weight.requires_grad_(weight.is_floating_point())
    return whole


def saved_weights(folder: Path) -> dict[str, Tensor]:
    """The weights in an adapter's folder, on the CPU, by their names there."""
    return load_peft_weights(str(folder), device="cpu")


def trained_weights(net: PeftModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's weights among those of `state`, by the names under which they are saved."""
    return get_peft_model_state_dict(net, state_dict=state, save_embedding_layers=False)
