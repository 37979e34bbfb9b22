"""Memory of each of two ranks that load a model and save it, on the CPU: python benchmarks/memory_ranks.py [FOLDER]

Loading: each rank reads only its part of the weights, or all weights, of which it then keeps its part (as with an
adapter). Saving: the first rank writes each weight as the ranks send it, or keeps all weights, and then writes them. A
forward pass, after which each rank has its part and nothing else, is not measured. Figures are the largest resident
size above that before the model is loaded, with the allocator set to return freed memory at once. FOLDER is a model
folder; the default is SmolLM2-135M as converted by prepare.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import RESULTS, cpu_facts, prepare_model, revision, show
from memory_phases import GIVING_BACK

RANKS = 2
WAYS = ("parts", "whole")


def measure(model: Path, folder: Path, way: str, rank: int) -> None:
    """Prints a JSON line: the bytes of a rank at the peak of loading, between, and at the peak of saving."""
    import torch  # noqa: PLC0415 (the parent needs none of this)
    from transformers import LlamaForCausalLM  # noqa: F401, PLC0415

    from togi.core.sources import ModelSource  # noqa: PLC0415
    from togi.model.load import inspect, load_inspected, load_tokenizer_of, load_unread  # noqa: PLC0415
    from togi.model.policy import Policy  # noqa: PLC0415
    from togi.train import usage  # noqa: PLC0415
    from togi.train.ranks import join  # noqa: PLC0415
    from togi.train.sharding import ShardedModel  # noqa: PLC0415

    here, ranks = torch.device("cpu"), join(rank, RANKS, f"file://{folder}/meeting", rank)
    source = ModelSource(kind="path", name=str(model), template="chatml")
    facts = inspect(source, folder)
    load_tokenizer_of(facts)
    usage.begin_peak(here)
    before = usage.used(here)
    loaded: Any = (
        load_unread(source, facts, dtype=torch.float32, device=here)
        if way == "parts"
        else load_inspected(source, facts, dtype=torch.float32)
    )
    spread = ShardedModel(Policy(loaded.net, check=loaded.read is None), ranks, loaded.read)
    ranks.barrier()
    usage.enter("rest", here)
    usage.give_back(here)
    rest = usage.used(here)
    usage.enter("save", here)
    save(spread, loaded, folder / "m", ranks, way)
    ranks.barrier()
    found = {phase: size - before for phase, size in usage.phases(here).items()}
    print(json.dumps({"load": found["load"], "rest": rest - before, "save": found["save"]}))


def save(spread: Any, loaded: Any, folder: Path, ranks: Any, way: str) -> None:
    """Saves and checks the model of all ranks."""
    from dataclasses import replace  # noqa: PLC0415

    from togi.model.save import check_saved, save_model  # noqa: PLC0415
    from togi.train.sharding import on_first_rank_whole  # noqa: PLC0415

    def work(whole: Any) -> None:
        model = replace(loaded, whole=whole)
        save_model(model, folder)
        assert check_saved(model, folder) == []

    if way == "parts":
        spread.give_back()
    else:
        spread.gather()
    on_first_rank_whole(loaded.net, ranks, work)


def both(model: Path, way: str) -> list[dict[str, int]]:
    """The figures of both ranks."""
    with tempfile.TemporaryDirectory(prefix="togi-ranks-") as folder:
        env = {**os.environ, **GIVING_BACK, "OMP_NUM_THREADS": "1"}
        commands = [[sys.executable, __file__, model, "--measure", way, str(rank), folder] for rank in range(RANKS)]
        runs = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for command in commands]
        said = [run.communicate()[0] for run in runs]
        assert all(run.returncode == 0 for run in runs)
        return [json.loads(text.splitlines()[-1]) for text in said]


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("model", type=Path, nargs="?", help="a model's folder; SmolLM2-135M when absent")
    arguments.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.measure:
        way, rank, folder = options.measure
        measure(options.model, Path(folder), way, int(rank))
        return
    model = (options.model or prepare_model()).resolve()
    found = {way: both(model, way) for way in WAYS}
    rows = [
        [way, str(rank), *(f"{each[phase] / 1e6:,.0f}" for phase in ("load", "rest", "save"))]
        for way in WAYS
        for rank, each in enumerate(found[way])
    ]
    show("MB above the memory before", ["way", "rank", "load, peak", "between", "save, peak"], rows)
    facts = {"machine": cpu_facts(), "commit": revision(), "model": model.name}
    (RESULTS / "memory_ranks.json").write_text(json.dumps({**facts, "ways": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
