"""Log-probabilities of the answers from materialised logits, as in a plain training loop."""

import time
from typing import Any

import torch
import vocabulary
import workloads
from side import Side, versions


def main() -> None:
    side = Side()
    config = side.config
    net = vocabulary.build(config)
    pairs = [(prompt, answer) for prompt, answers in workloads.groups(config) for answer in answers]
    ids = torch.tensor([prompt + answer for prompt, answer in pairs])
    target = torch.tensor([answer for _, answer in pairs])
    floor = vocabulary.fill_gradients(net)

    def measure() -> dict[str, Any]:
        start = time.perf_counter()
        logits = net(input_ids=ids, logits_to_keep=config["answer"] + 1, use_cache=False).logits[:, :-1]
        logp = torch.log_softmax(logits.float(), -1).gather(2, target[..., None])
        (-logp.mean()).backward()
        return {"seconds": time.perf_counter() - start}

    side.ready(versions=versions(), floor_bytes=floor)
    side.serve(measure)


if __name__ == "__main__":
    main()
