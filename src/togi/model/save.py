"""Saves a network, its tokenizer and its chat template to a folder that `load` and transformers can read.

A model is saved first and checked afterwards: a failed check is reported (`check_saved`), but deletes nothing.
"""

import copy
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from togi.core.errors import InputError
from togi.core.files import read_json, write_json
from togi.core.sampling import Recommended
from togi.core.sources import ADAPTER_CONFIG, CARD
from togi.core.strangers import run_stranger
from togi.model.adapter import beneath, lora_library
from togi.model.card import About, write_card
from togi.model.decoders import use_library
from togi.model.folders import atomic_folder
from togi.model.load import LoadedModel, read_network
from togi.model.mapped import MappedWeights
from togi.model.older import readable_config, readable_tokenizer
from togi.model.padding import keep_last_token
from togi.model.shards import write_weights
from togi.model.streamed import SavedNetwork
from togi.text.render import check_template

log = logging.getLogger(__name__)

TRAINED = re.compile("lora_|trainable_tokens")  # weights of an adapter, by their names in peft
PROBE_TOKENS = 24
ROUNDINGS = 8  # allowed error of a probe, in units of the type's precision relative to the largest output
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff")
GENERATION = "generation_config.json"
KEPT = "recommended"
"""The key of togi.json with recommended sampling settings."""
NOTHING = About()


def save_model(model: LoadedModel, folder: Path, about: About = NOTHING, *, dtype: torch.dtype | None = None) -> None:
    """Saves the network, its tokenizer and its template, completely or not at all; `check_saved` reads them back.

    Weights are saved as `dtype` (None: unchanged); if they exceed float16, in float32, with a warning. `about` goes
    into the card. An adapter is saved merged; `model` stays unchanged, and only one layer at a time is copied.
    Raises OSError if the disk is full.
    """
    tokenizer = copy.deepcopy(model.tokenizer)
    if model.kind == "scorer":
        keep_last_token(model, tokenizer)
    with atomic_folder(folder) as temporary:
        _save_network(model, temporary, _roomy(model, dtype or beneath(model.net).dtype))
        _save_words(replace(model, tokenizer=tokenizer), temporary, about)


def save_adapter(model: LoadedModel, folder: Path, about: About, *, dtype: torch.dtype | None = None) -> None:
    """Saves only the adapter, in peft's layout, with the tokenizer and the template, completely or not at all; `about`
    names its base.

    Its weights are saved as trained, in float32, unless a `dtype` is given. Raises OSError if the disk is full.
    """
    config = model.net.peft_config["default"]
    if about.origin is not None:
        config.base_model_name_or_path = about.origin.place
        config.revision = about.origin.revision if about.origin.on_hub else None
    with atomic_folder(folder) as temporary:
        state = _adapter_state(model, dtype)
        model.net.save_pretrained(str(temporary), state_dict=state, save_embedding_layers=False)
        path = temporary / ADAPTER_CONFIG
        said = read_json(path)
        write_json(path, said | {"target_modules": sorted(said["target_modules"])})  # peft writes a set, unordered
        _save_words(model, temporary, about, adapter=True)


def _adapter_state(model: LoadedModel, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The weights of a network with an adapter, by name; those of the adapter are whole, in `dtype` (None:
    unchanged)."""
    state = model.net.state_dict(keep_vars=True)
    trained = {name: model.whole(weight).detach() for name, weight in state.items() if TRAINED.search(name)}
    return state | {name: weight.to(dtype or weight.dtype) for name, weight in trained.items()}


def _save_words(model: LoadedModel, folder: Path, about: About, *, adapter: bool = False) -> None:
    """Saves the tokenizer with the template, and the card."""
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = model.template.bind(model.tokenizer).to_jinja()
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    write_json(path, readable_tokenizer(read_json(path)))
    # the path of a folder says nothing about the model, and would make equal models differ
    name = Path(model.name).name if Path(model.name).is_absolute() else model.name
    write_card(folder, name, model.kind, model.template, about, adapter=adapter)


def _roomy(model: LoadedModel, dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float32 if the weights exceed float16."""
    if dtype == torch.float16:
        network = SavedNetwork(model.net, dtype, model.whole)
        largest = max(float(network.weight(name).abs().max()) for name, _ in network.plain.named_parameters())
        if largest > torch.finfo(dtype).max:
            log.warning("%s: a weight of %.3g exceeds float16, so the model is saved in float32", model.name, largest)
            return torch.float32
    return dtype


# --- the network and its generation settings --------------------------------------------------------------------------


def _save_network(model: LoadedModel, folder: Path, dtype: torch.dtype) -> None:
    """Saves the weights as `dtype`, the configuration and, for a causal model, the generation settings.

    The library refuses to save some generation configurations that it loads, so that file is written here.
    """
    network = SavedNetwork(model.net, dtype, model.whole)
    plain, generation = network.plain, None
    if model.kind == "causal":
        generation, plain.generation_config = plain.generation_config, GenerationConfig()
    plain.save_pretrained(folder, state_dict={})  # only the configuration
    path = folder / "config.json"
    stated = {"dtype": str(dtype).removeprefix("torch."), **_apart(plain)}
    write_json(path, readable_config(read_json(path) | stated))
    write_weights(network, folder)
    if model.kind == "causal":
        said = {} if generation is None else generation.to_diff_dict()
        write_json(folder / GENERATION, _generation(model, said))


def _apart(plain: Any) -> dict[str, Any]:
    """The setting of a network whose head differs from its embeddings, though its configuration ties them: other
    engines would serve the embeddings as the head."""
    head, tied = plain.get_output_embeddings(), getattr(plain.config, "tie_word_embeddings", False)
    apart = tied and head is not None and head.weight is not plain.get_input_embeddings().weight
    return {"tie_word_embeddings": False} if apart else {}


def _generation(model: LoadedModel, base: dict[str, Any]) -> dict[str, Any]:
    """The base's generation settings, with the template's terminator as an additional end: as an id if it is one token,
    else as a stop string (`generate` then needs `tokenizer=`)."""
    said = {key: value for key, value in base.items() if not key.startswith("_")}
    if said.get("do_sample") is False:  # these then have no effect, and the library would refuse to save them
        said = {key: value for key, value in said.items() if key not in SAMPLING}
    template = model.template.bind(model.tokenizer)
    terminator = check_template(template, model.tokenizer).terminator
    if len(terminator) == 1:
        old = said.get("eos_token_id")
        ends = [] if old is None else [*old] if isinstance(old, list | tuple) else [old]
        said["eos_token_id"] = list(dict.fromkeys([*ends, *terminator]))
    else:
        said["stop_strings"] = list(dict.fromkeys([*(said.get("stop_strings") or ()), template.terminator]))
    return said


def recommend(folder: Path, sampling: Recommended) -> list[str]:
    """Writes recommended sampling settings into those of togi.json and generation_config.json that a saved model has,
    and returns these files. Only togi.json gets the length of answers: other programs would cut all answers at that
    length.
    """
    change = {GENERATION: lambda said: _drawn(said, sampling), CARD: lambda said: said | {KEPT: sampling.model_dump()}}
    found = [name for name in change if (folder / name).is_file()]
    for name in found:
        write_json(folder / name, change[name](read_json(folder / name)))
    return found


def _drawn(said: dict[str, Any], sampling: Recommended) -> dict[str, Any]:
    """Generation settings with recommended sampling in place of other sampling."""
    return {key: value for key, value in said.items() if key not in SAMPLING} | sampling.generating()


# --- the check --------------------------------------------------------------------------------------------------------


def check_saved(model: LoadedModel, folder: Path) -> list[str]:
    """Reads a saved network back and returns its faults: none if every weight equals the trained one, and a probe gives
    the same output as the trained network with these weights.

    Both sides run the library's own layers, on CPU, in the saved type, so they differ only if the configuration
    describes another network. Saved weights stay in their files, and only one layer at a time is in memory.
    """
    dtype = _stored_dtype(folder)
    try:
        again = read_network(folder, dtype, model.kind).eval()
    except InputError as error:
        return [f"the saved model cannot be loaded: {error}"]
    trained, mapped = SavedNetwork(model.net, dtype, model.whole), MappedWeights(folder)
    stored = dict(again.named_parameters())
    for name, _ in trained.plain.named_parameters():
        if name not in stored or not _same(stored[name], trained.weight(name)):
            return [f"weight {name} differs from the trained one; the folder would not load as the trained model"]
        mapped.let_go(stored[name])
    twin = _twin(trained.plain, stored)
    for net in (twin, again):
        mapped.read_in_passing(net)
    return _probe(twin, again)


def _stored_dtype(folder: Path) -> torch.dtype:
    return getattr(torch, read_json(folder / "config.json").get("dtype", "float32"))


def check_saved_adapter(model: LoadedModel, folder: Path) -> list[str]:
    """Reads a saved adapter back and returns its faults: none if every weight equals the trained one."""
    lora = lora_library()
    stored, trained = lora.saved_weights(folder), lora.trained_weights(model.net, _adapter_state(model))
    wrong = [name for name, weight in trained.items() if name not in stored or not _same(stored[name], weight)]
    return [f"weight {name} of the adapter differs from the trained one" for name in wrong[:1]]


def _same(stored: Tensor, weight: Tensor) -> bool:
    return torch.equal(stored, weight.detach().to(stored.device, stored.dtype))


def _twin(net: Any, weights: dict[str, Tensor]) -> Any:
    """A copy of `net` on CPU that shares `weights` instead of its own."""
    mine = {id(old): weights[name] for name, old in net.named_parameters()}
    return copy.deepcopy(net, mine).to("cpu")


def _probe(twin: Any, again: Any) -> list[str]:
    """The fault that a probe finds between two networks with the same weights, if any."""
    width = again.config.get_text_config().vocab_size
    ids = torch.tensor([[(7919 * (i + 1)) % width for i in range(PROBE_TOKENS)]])
    try:
        expected, found = (run_stranger(lambda net=net: _outputs(net, ids), InputError) for net in (twin, again))
    except InputError as error:
        return [f"it fails on a probe: {error}"]
    if not bool(expected.isfinite().all()):
        return ["its outputs on a probe are not finite numbers"]
    allowed = ROUNDINGS * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    off = float((expected - found).abs().max())
    if off <= allowed:
        return []
    return [
        f"outputs on a probe differ by {off:.3g}; rounding explains at most {allowed:.3g}. The configuration does not "
        "describe the trained network"
    ]


def _outputs(net: Any, ids: Tensor) -> Tensor:
    """The output of the library's own layers for ids (1, T): logits, or the score of a scorer."""
    for module in net.modules():
        use_library(module)
    if net._can_set_attn_implementation():
        net.set_attn_implementation("eager")
    with torch.no_grad():
        return net(input_ids=ids, use_cache=False).logits
