"""Runs vLLM on a model folder, with vLLM's own interpreter (TOGI_VLLM_PYTHON). A request comes as JSON on standard
input; the answer is written as JSON into the file named by the first argument."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

vllm: Any = importlib.import_module("vllm")


def scores(request: dict[str, Any]) -> list[float]:
    """The raw score of each list of token ids."""
    llm = vllm.LLM(model=request["folder"], runner="pooling", **OPTIONS)
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    found = llm.encode(prompts, pooling_task="classify", pooling_params=vllm.PoolingParams(use_activation=False))
    return [float(output.outputs.data[0]) for output in found]


def texts(request: dict[str, Any]) -> list[str]:
    """The answer to each conversation, ended by the folder's own generation settings."""
    llm = vllm.LLM(model=request["folder"], **OPTIONS)
    params = llm.get_default_sampling_params()
    params.temperature, params.max_tokens = 0.0, request["max_tokens"]
    return [output.outputs[0].text for output in llm.chat(request["conversations"], params)]


OPTIONS: dict[str, Any] = {"dtype": "float32", "max_model_len": 256, "enforce_eager": True, "max_num_seqs": 8}

if __name__ == "__main__":
    asked = json.load(sys.stdin)
    answer = scores(asked) if asked["task"] == "scores" else texts(asked)
    Path(sys.argv[1]).write_text(json.dumps(answer))
