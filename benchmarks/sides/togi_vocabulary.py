"""Log-probabilities of the answers by togi's forest and chunked head, entropy included."""

import time
from typing import Any

import togi_common
import vocabulary
from side import Side, versions

from togi.model.forest import plant
from togi.model.policy import Policy


def main() -> None:
    side = Side()
    config = side.config
    net = vocabulary.build(config)
    policy = Policy(net)
    groups = togi_common.sequences(config)
    floor = vocabulary.fill_gradients(net)

    def measure() -> dict[str, Any]:
        start = time.perf_counter()
        (-policy(plant(groups), entropy=True).logp_N.mean()).backward()
        return {"seconds": time.perf_counter() - start}

    side.ready(versions=versions("togi"), floor_bytes=floor)
    side.serve(measure)


if __name__ == "__main__":
    main()
