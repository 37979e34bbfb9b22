"""Memory of copies in a training, avoided and not: python benchmarks/memory_copies.py [MODEL_FOLDER]

Saving: an adapter is merged, written and read back one weight at a time, as togi does, or all at once with the calls of
the library. Sampling: the copy that a policy with an adapter samples from shares the frozen weights, or copies them.
Each figure comes from a separate process: its largest resident size above the size before, one thread, on the CPU.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import RESULTS, cpu_facts, prepare_model, revision, show

FORMS: dict[str, dict[str, Any]] = {"float32": {"dtype": "float32"}, "NF4": {"dtype": "bfloat16", "nf4": True}}
WORK = {"save, weight by weight": "streamed", "save, whole": "whole", "copy, shared": "shared", "copy, whole": "copied"}


def adapted(model: str, form: dict[str, Any]) -> Any:
    """A loaded model with an adapter of rank 16."""
    import torch  # noqa: PLC0415 (the parent needs none of this)

    from togi.core.sources import ModelSource  # noqa: PLC0415
    from togi.model.adapter import LoraSettings  # noqa: PLC0415
    from togi.model.load import load  # noqa: PLC0415
    from togi.model.lora import add_lora  # noqa: PLC0415

    source = ModelSource(kind="path", name=model, template="chatml")
    found = load(source, Path(model), dtype=getattr(torch, form["dtype"]), nf4=form.get("nf4", False))
    net = found.net
    for weight in net.parameters():
        weight.data = weight.data.clone()  # as training has it: no longer pages of the file
    return replace(found, net=add_lora(net, LoraSettings(rank=16), seed=0))


def works(model: Any, folder: Path) -> dict[str, Callable[[], Any]]:
    """The measured functions, by name."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    from togi.model.lora import merged  # noqa: PLC0415
    from togi.model.save import check_saved, save_model  # noqa: PLC0415
    from togi.rollout.sampling_model import beside_training  # noqa: PLC0415

    def streamed() -> None:
        save_model(model, folder / "m")
        assert check_saved(model, folder / "m") == []

    def whole() -> None:
        net = merged(model.net)
        net.save_pretrained(folder / "m")
        again = AutoModelForCausalLM.from_pretrained(folder / "m", dtype=net.dtype)
        for (_, ours), (_, stored) in zip(net.named_parameters(), again.named_parameters(), strict=True):
            assert torch.equal(ours, stored)
        ids = torch.arange(24)[None]
        with torch.no_grad():
            assert all(each(input_ids=ids).logits.isfinite().all() for each in (net, again))

    dtype = next(weight.dtype for weight in model.net.parameters() if weight.is_floating_point())
    return {
        "streamed": streamed,
        "whole": whole,
        "shared": lambda: beside_training(model.net, dtype),
        "copied": lambda: copy.deepcopy(model.net),
    }


def measure(model: str, form: dict[str, Any], work: str) -> None:
    """Prints a JSON line: bytes before and at the peak, and the seconds of the work."""
    import torch  # noqa: PLC0415

    from togi.train import usage  # noqa: PLC0415

    here = torch.device("cpu")
    made = adapted(model, form)
    with tempfile.TemporaryDirectory() as folder:
        usage.begin_peak(here)
        before, started = usage.used(here), time.perf_counter()
        kept = works(made, Path(folder))[work]()
        facts = {"before": before, "peak": usage.peak(here) - before, "seconds": time.perf_counter() - started}
    del kept
    print(json.dumps(facts))


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("model", nargs="?", help="a model's folder; SmolLM2-135M when absent")
    arguments.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.measure:
        measure(options.model, FORMS[options.measure[0]], options.measure[1])
        return
    model = options.model or str(prepare_model())
    found: dict[str, Any] = {}
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for form in FORMS:
        for work in WORK.values():
            command = [sys.executable, __file__, model, "--measure", form, work]
            made = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
            found.setdefault(form, {})[work] = json.loads(made.stdout.splitlines()[-1])
    rows = [[name, *(f"{found[form][work]['peak'] / 1e6:,.0f}" for form in FORMS)] for name, work in WORK.items()]
    show("MB at the peak, above the trained model", ["work", *FORMS], rows)
    facts = {"machine": cpu_facts(), "commit": revision(), "model": Path(model).name}
    (RESULTS / "memory_copies.json").write_text(json.dumps({**facts, "forms": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
