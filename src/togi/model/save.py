"""Models out: a network, its tokenizer and its chat template, into a folder that `load` and transformers read."""

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from togi.core.errors import StageError
from togi.core.files import write_json
from togi.core.records import Message
from togi.model.folders import atomic_folder
from togi.model.load import CARD, CLASSES, LoadedModel, quantised_library
from togi.text.render import render_chat

log = logging.getLogger(__name__)


def save_model(model: LoadedModel, folder: Path) -> LoadedModel:
    """Saves the network, its tokenizer and its template, whole or not at all, and reads them back to compare.

    An adapter is merged into the network first, for good: use the model that is returned. Raises StageError if what was
    read back computes something else than what was to be saved, OSError if the disk is full.
    """
    if isinstance(model.net, PeftModel):
        model = replace(model, net=merged(model.net))
    if model.kind == "scorer":
        _keep_last_token(model)
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = model.template.bind(tokenizer).to_jinja()
    with atomic_folder(folder) as temporary:
        model.net.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        # a folder's place says nothing about the model, and would make equal models differ
        name = Path(model.name).name if Path(model.name).is_absolute() else model.name
        card = {"format": 1, "kind": model.kind, "name": name, "template": model.template.to_json()}
        write_json(temporary / CARD, card)
        check_saved(model, temporary)
    return model


def merged(net: PeftModel) -> Any:
    """The network with its adapter merged into it, for good; quantised layers become plain ones."""
    if getattr(net.get_base_model(), "is_loaded_in_4bit", False):
        return quantised_library().merge_quantised(net)
    return net.merge_and_unload()  # type: ignore[operator]


def _keep_last_token(model: LoadedModel) -> None:
    """Removes the pad id from a scorer's configuration where its conversations end with that very token: the library
    would read the token before. Without a pad id it reads the right one, and refuses to pad."""
    config = model.net.config.get_text_config()
    turns = [Message("user", "a"), Message("assistant", "b")]
    if (
        config.pad_token_id is not None
        and render_chat(model.template, model.tokenizer, turns).ids[-1] == config.pad_token_id
    ):
        log.warning("%s: conversations end with the pad token, so the saved scorer has no pad token", model.name)
        config.pad_token_id = model.net.config.pad_token_id = None


def _outputs(net: Any, ids: Tensor) -> Tensor:
    """What the network gives for ids (1, T): logits, or the score of a scorer."""
    with torch.no_grad():
        return net(input_ids=ids.to(net.device)).logits.detach().cpu()


def check_saved(model: LoadedModel, folder: Path) -> None:
    """Reads a saved network back and compares every weight, and the outputs on a probe.

    Raises StageError if they differ.
    """
    again = CLASSES[model.kind].from_pretrained(folder, dtype=model.net.dtype, use_safetensors=True).eval()
    stored = dict(again.named_parameters())
    for name, weight in model.net.named_parameters():
        if name not in stored or not torch.equal(stored[name], weight.detach().to(stored[name].device)):
            raise StageError(
                f"{folder}: weight {name} is not what was saved; the model would not load as it was trained"
            )
    width = model.net.config.get_text_config().vocab_size
    ids = torch.tensor([[(7919 * (i + 1)) % width for i in range(24)]])
    device = model.net.device
    trained = _outputs(model.net, ids)
    if device.type != "cpu":  # which may not hold both: the trained one gives way for as long as the other is asked
        model.net.to("cpu")
    read = _outputs(again.to(device), ids)
    if device.type != "cpu":
        again.to("cpu")
        model.net.to(device)
    if not torch.allclose(trained, read, rtol=1e-4, atol=1e-4 * float(trained.abs().max())):
        raise StageError(
            f"{folder}: after saving and loading, outputs on a probe differ by {(trained - read).abs().max():.3g}; the "
            "configuration does not describe the network that was trained"
        )
