"""AdamW with moments in 8 bits, through bitsandbytes (arXiv 2110.02861); works on CUDA and on CPU."""

from typing import Any

import torch
from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]
from torch import Tensor

WRAPPED = "__bnb_optimizer_quant_state__"


class EightBitAdamW(AdamW8bit):
    """bitsandbytes' optimiser with a state of plain tensors, for saving. Tensors with fewer than 4,096 elements keep
    32-bit moments, as in the library."""

    def state_dict(self) -> dict[str, Any]:
        found = super().state_dict()
        return {**found, "state": {number: _plain(entries) for number, entries in found["state"].items()}}

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        state = {number: self._counted(entries) for number, entries in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": state}, move_to_device)

    def _counted(self, entries: dict[str, Any]) -> dict[str, Any]:
        """Converts a saved state to the library's form: a step as int, and moments in its wrapper, which keeps their
        type."""
        wrapped = {key: value for key, value in entries.items() if key != "step"}
        if "absmax1" in entries:
            device = entries["state1"].device
            wrapped |= {"qmap1": self.name2qmap["dynamic"].to(device), "qmap2": self.name2qmap["udynamic"].to(device)}
        return {"step": int(entries["step"]), WRAPPED: wrapped}


def _plain(entries: dict[str, Any]) -> dict[str, Tensor]:
    """The state without the quantisation tables, which are the same for all tensors."""
    flat = {**{key: value for key, value in entries.items() if key != WRAPPED}, **entries.get(WRAPPED, {})}
    kept = {key: value for key, value in flat.items() if not key.startswith("qmap")}
    return {key: torch.tensor(value) if isinstance(value, int) else value for key, value in kept.items()}
