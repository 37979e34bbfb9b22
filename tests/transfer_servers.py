"""Fake servers that receive a policy's weights over a connection, and that sleep. They check the order and the body of
every request; a request in the wrong state would harm the real server.

vLLM 0.32 receives through `Pipe`, which stands for NCCL. SGLang 0.5 joins a real gloo group, as torch's own helper
makes it.
"""

import base64
import hashlib
import json
import math
import queue
import sys
from datetime import timedelta
from typing import Any

import torch
from policy_servers import VLLM, Answer, Server, SGLang
from torch import Tensor, distributed
from torch.distributed import TCPStore
from torch.distributed.distributed_c10d import PrefixStore, _new_process_group_helper, _world

from togi.client.wire_transfer import Meeting

WAIT = 20.0
SOON = timedelta(seconds=WAIT)


def identity(tensors: dict[str, Tensor]) -> str:
    """The hash of tensors, with their names and types, in order."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class Pipe:
    """The link of a trainer to fakes in the same process: `broadcast` returns when a fake has taken the tensor."""

    def __init__(self) -> None:
        self._sent: queue.Queue[Tensor] = queue.Queue(1)

    def opener(self, speaks: str, base: str, size: int, device: torch.device) -> "tuple[Pipe, Meeting]":
        return self, Meeting("togi-1", size, "nccl", unique_id=bytes(range(128)))

    def join(self) -> None: ...

    def broadcast(self, tensor: Tensor) -> None:
        try:
            self._sent.put(tensor.clone(), timeout=WAIT)
        except queue.Full:  # nobody takes it any more: as torch says it
            raise RuntimeError("the other end has left") from None

    def take(self) -> Tensor:
        return self._sent.get(timeout=WAIT)

    def close(self) -> None: ...


class NapVLLM(VLLM):
    """`state`: new, met, started. `asleep`: as after /sleep. `able`: started with --enable-sleep-mode."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.pipe, self.state, self.asleep, self.able = Pipe(), "new", False, True
        self.awake = dict(self.paths)
        self.paths = {path: self.while_awake(path) for path in self.awake} | {
            "/init_weight_transfer_engine": self.meet,
            "/start_weight_update": lambda body: self.step(body, "met", "started"),
            "/update_weights": self.receive,
            "/finish_weight_update": lambda body: self.step(body, "started", "met"),
            "/shutdown_weight_transfer_engine": lambda body: self.step(body, self.state, "new"),
            "/sleep?level=1": self.sleep,
            "/wake_up": self.wake,
        }
        server.pages |= {"/get_world_size": lambda: {"world_size": 2}, "/is_sleeping": self.tell}

    def while_awake(self, path: str) -> Any:
        def handle(body: Any) -> Answer:
            if self.asleep:
                self.server.wrong.append(f"{path} while asleep")
            return self.awake[path](body)

        return handle

    def step(self, body: Any, before: str, after: str) -> Answer:
        if self.state != before or body:
            self.server.wrong.append(f"{self.state} to {after}: {body}")
        self.state = after
        return 200, {"message": "ok"}

    def meet(self, body: Any) -> Answer:
        form = {"rank_offset": int, "world_size": int, "nccl_unique_id_b64": str, "packed": bool}
        form |= {"packed_buffer_size_bytes": int, "packed_num_buffers": int}
        self.server.fits("init_info", body["init_info"], form)
        told = body["init_info"]
        if list(body) != ["init_info"] or (told["rank_offset"], told["world_size"]) != (1, 3):
            self.server.wrong.append(f"init: {body}")
        if len(base64.b64decode(told["nccl_unique_id_b64"], validate=True)) != 128 or not told["packed"]:
            self.server.wrong.append(f"init: {told}")
        return self.step({}, "new", "met")

    def receive(self, body: Any) -> Answer:
        update = body["update_info"]
        self.server.fits("update_info", update, {"names": list, "dtype_names": list, "shapes": list})
        if self.state != "started" or self.asleep:
            self.server.wrong.append(f"update_weights while {self.state}")
        kinds = [getattr(torch, name) for name in update["dtype_names"]]
        sizes = [math.prod(shape) * kind.itemsize for kind, shape in zip(kinds, update["shapes"], strict=True)]
        pieces = self.pipe.take().split(sizes)  # below the size of a buffer, all are one
        shaped = [
            piece.clone().view(kind).view(shape)
            for piece, kind, shape in zip(pieces, kinds, update["shapes"], strict=True)
        ]
        self.server.loaded = identity(dict(zip(update["names"], shaped, strict=True)))
        return 200, {"message": "Weights updated"}

    def sleep(self, body: Any) -> Answer:
        if self.able:
            self.asleep = True
        return 200, {"status": "sleeping", "level": 1}

    def wake(self, body: Any) -> Answer:
        self.asleep = False
        return 200, {"status": "awake", "tags": None}

    def tell(self) -> Any:
        return {"is_sleeping": self.asleep}


class NapSGLang(SGLang):
    """Weights are undefined after a wake-up. Waking what does not sleep kills the real server."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.asleep, self.group, self.name, self.store = False, None, "", None
        self.got: dict[str, Tensor] = {}
        self.awake = dict(self.paths)
        self.paths = {path: self.while_awake(path) for path in self.awake} | {
            "/init_weights_update_group": self.meet,
            "/update_weights_from_distributed": self.receive,
            "/destroy_weights_update_group": self.part,
            "/release_memory_occupation": lambda body: self.nap(body, True),
            "/resume_memory_occupation": lambda body: self.nap(body, False),
            "/update_weight_version": self.mark,
        }
        server.pages |= {
            "/server_info": lambda: {"tp_size": 1, "dp_size": 1, "pp_size": 1},
            "/get_model_info": lambda: {"model_path": "policy", "weight_version": self.version},
        }

    def while_awake(self, path: str) -> Any:
        def handle(body: Any) -> Answer:
            if self.asleep or (path == "/generate" and self.server.loaded == "undefined"):
                self.server.wrong.append(f"{path} while asleep")
            return self.awake[path](body)

        return handle

    def meet(self, body: Any) -> Answer:
        form = {"master_address": str, "master_port": int, "rank_offset": int, "world_size": int}
        self.server.fits("init", body, form | {"group_name": str, "backend": str})
        rank, size, self.name = body["rank_offset"], body["world_size"], body["group_name"]
        if (rank, size, body["backend"]) != (1, 2, "gloo"):
            self.server.wrong.append(f"init: {body}")
        self.store = TCPStore(body["master_address"], body["master_port"], size, False, SOON)
        below = PrefixStore(self.name, self.store)
        backend = distributed.Backend("gloo")
        self.group, _ = _new_process_group_helper(size, rank, [], backend, below, group_name=self.name, timeout=SOON)
        _world.pg_group_ranks[self.group] = {0: 0, 1: 1}
        return 200, {"success": True, "message": "Succeeded."}

    def receive(self, body: Any) -> Answer:
        form = {"names": list, "dtypes": list, "shapes": list, "group_name": str, "flush_cache": bool}
        self.server.fits("distributed", body, form, "weight_version")
        if self.group is None or body["group_name"] != self.name:
            return 400, {"success": False, "message": f"Group {body['group_name']} not in the model update groups."}
        if body["flush_cache"] != ("weight_version" in body) or self.asleep:
            self.server.wrong.append(f"distributed: {body}")
        for name, kind, shape in zip(body["names"], body["dtypes"], body["shapes"], strict=True):
            self.got[name] = torch.empty(shape, dtype=getattr(torch, kind))
            distributed.broadcast(self.got[name], src=0, group=self.group)
        if "weight_version" in body:
            self.server.loaded, self.version, self.got = identity(self.got), body["weight_version"], {}
        return 200, {"success": True, "message": "Succeeded to update parameter online."}

    def part(self, body: Any) -> Answer:
        self.server.fits("destroy", body, {"group_name": str})
        known = self.group is not None and body["group_name"] == self.name
        self.forget()
        return (200 if known else 400), {"success": known, "message": ""}

    def forget(self) -> None:
        """Closes the connections, as a restart does."""
        if self.group is not None:
            distributed.destroy_process_group(self.group)
        self.group = None

    def nap(self, body: Any, asleep: bool) -> Answer:
        if body != {"tags": ["kv_cache", "weights"]} or asleep == self.asleep:
            self.server.wrong.append(f"asleep is {self.asleep}, to be {asleep}: {body}")
        self.asleep = asleep
        if not asleep:
            self.server.loaded = "undefined"
        return 200, None

    def mark(self, body: Any) -> Answer:
        self.server.fits("version", body, {"new_version": str, "abort_all_requests": bool})
        self.version = body["new_version"]
        return 200, {"success": True, "message": "", "new_version": self.version}


if __name__ == "__main__":  # PROTOCOL PORT LETTERS, for tests that kill it
    speaks = {"vllm": NapVLLM, "sglang": NapSGLang}[sys.argv[1]]
    Server(speaks, json.loads(sys.argv[3]), int(sys.argv[2])).serve_forever()
