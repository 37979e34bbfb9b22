"""Predicted against measured peak memory of training steps, on the CPU: python benchmarks/memory_plan.py MODEL_FOLDER

Each row is a separate process: two steps of two micro-batches of random ids, in sequences of 256 tokens. The
measurement is the largest resident size during training, minus the resident size before the model was loaded, once with
the allocator settings of `togi run` and once with the system's defaults.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from togi.recipe.workers import ENVIRONMENT

ROWS = [
    {"tokens": 512},
    {"tokens": 1024},
    {"tokens": 2048},
    {"tokens": 512, "checkpointing": True},
    {"tokens": 1024, "checkpointing": True},
    {"tokens": 2048, "checkpointing": True},
    {"tokens": 1024, "accumulates": False},
    {"tokens": 1024, "rank": 16},
    {"tokens": 1024, "rank": 16, "checkpointing": True},
    {"tokens": 1024, "bits": 8},
    {"tokens": 1024, "rank": 16, "weights": "nf4"},
]


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process in memory, now (VmRSS) or at the peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def measure(folder: str, row: dict) -> None:
    """Prints a JSON line: predicted and measured bytes of one row."""
    import torch  # noqa: PLC0415 (the parent needs none of this)

    from togi.core.sources import ModelSource  # noqa: PLC0415
    from togi.model.forest import Sequence, plant  # noqa: PLC0415
    from togi.model.load import load  # noqa: PLC0415
    from togi.model.lora import LoraSettings, add_lora  # noqa: PLC0415
    from togi.model.policy import Policy  # noqa: PLC0415
    from togi.model.sizes import Job, Shape, predict  # noqa: PLC0415
    from togi.objectives.base import Batch, Output  # noqa: PLC0415
    from togi.objectives.sft import SFT  # noqa: PLC0415
    from togi.train.loop import MicroBatch, train_steps  # noqa: PLC0415
    from togi.train.optimizer import AdamWSettings, Schedule, Update, build_adamw, trained  # noqa: PLC0415

    options = {key: value for key, value in row.items() if key != "tokens"}
    job = Job(**options)
    dtype = torch.bfloat16 if job.weights == "bfloat16" else torch.float32
    warm_up()
    before = resident()
    nf4 = job.weights == "nf4"
    net = load(ModelSource(kind="path", name=folder, template="chatml"), Path(folder), dtype=dtype, nf4=nf4).net
    if job.rank:
        net = add_lora(net, LoraSettings(rank=job.rank, targets=job.targets), seed=0)
    policy = Policy(net)
    policy.recompute = job.checkpointing
    params = trained(net.named_parameters())
    optimizer = build_adamw(params, AdamWSettings(learning_rate=1e-6, bits=job.bits))
    update = Update(optimizer=optimizer, schedule=Schedule(), max_grad_norm=1.0)
    generator = torch.Generator().manual_seed(0)
    micros = []
    for _ in range(2 if job.accumulates else 1):
        rows = torch.randint(10, 40_000, (row["tokens"] // 256, 256), generator=generator).tolist()
        forest = plant([[Sequence(tuple(ids), (False,) + (True,) * 255)] for ids in rows])
        batch = Batch(num_sequences=len(rows), sequence_N=forest.sequence_N)
        micros.append(MicroBatch(inputs=forest, batch=batch, num_tokens=row["tokens"]))
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew
    list(train_steps(lambda f: Output(logp_N=policy(f).logp_N), update, SFT(), [micros] * 2))
    shape = Shape.of(net.config.to_dict())
    found = predict(shape, job, row["tokens"])
    print(json.dumps({"predicted": found.peak, "measured": resident("VmHWM") - before, "floor": found.floor}))


def warm_up() -> None:
    """A step of a tiny model with an adapter, so that code loaded on first use does not count as memory of the
    training."""
    import torch  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    from togi.model.lora import LoraSettings, add_lora  # noqa: PLC0415

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = add_lora(LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)), LoraSettings(rank=2), seed=0)
    optimizer = torch.optim.AdamW([weight for weight in net.parameters() if weight.requires_grad], fused=True)
    net(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a model folder")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.row:
        measure(chosen.model, json.loads(chosen.row))
        return
    print("| training, tokens of a micro-batch | floor | predicted | measured | in the environment of `togi run` |")
    print("|---|---:|---:|---:|---:|")
    for row in ROWS:
        command = [sys.executable, __file__, chosen.model, "--row", json.dumps(row)]
        cells = []
        for more in ({}, ENVIRONMENT):
            made = subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True, check=True)
            found = json.loads(made.stdout.splitlines()[-1])
            off = found["predicted"] / found["measured"] - 1
            cells.append(f"{found['measured'] / 1e6:,.0f} ({off:+.0%})")
        name = ", ".join(f"{key} {value}" for key, value in row.items())
        bounds = [f"{found[key] / 1e6:,.0f}" for key in ("floor", "predicted")]
        print(f"| {' | '.join([name, *bounds, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
