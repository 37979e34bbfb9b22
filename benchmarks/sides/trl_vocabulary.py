"""Log-probabilities of the answers by the fused head that TRL's GRPOTrainer puts on its model, entropy included."""

import time
from typing import Any

import torch
import vocabulary
import workloads
from side import Side, versions
from trl.trainer.utils import add_fused_lm_head


def main() -> None:
    side = Side()
    config = side.config
    net = vocabulary.build(config)
    add_fused_lm_head(net, outputs=("log_probs", "entropy"))
    pairs = [(prompt, answer) for prompt, answers in workloads.groups(config) for answer in answers]
    ids = torch.tensor([prompt + answer for prompt, answer in pairs])
    labels = ids.clone()
    labels[:, : config["prompt"]] = -100
    floor = vocabulary.fill_gradients(net)

    def measure() -> dict[str, Any]:
        start = time.perf_counter()
        logp = net(input_ids=ids, labels=labels, fused_lm_head=True).log_probs[:, -config["answer"] :]
        (-logp.mean()).backward()
        return {"seconds": time.perf_counter() - start}

    side.ready(versions=versions("trl"), floor_bytes=floor)
    side.serve(measure)


if __name__ == "__main__":
    main()
