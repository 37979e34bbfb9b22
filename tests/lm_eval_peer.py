"""Runs lm-eval against a server, with lm-eval's own interpreter (TOGI_LMEVAL_PYTHON). The job is the first argument,
as JSON. The last line of standard output is JSON: the answers, and for each request its ids and the length of its
context."""

import json
import sys
from types import SimpleNamespace
from typing import Any

from lm_eval.models.openai_completions import LocalCompletionsAPI


def main(job: dict[str, Any]) -> None:
    asks = LocalCompletionsAPI(
        model=job["model"],
        base_url=f"{job['url']}/completions",
        tokenizer=job["tokenizer"],
        tokenizer_backend="huggingface",
        tokenized_requests=job["form"] == "ids",
        batch_size=1 if job["form"] == "text" else 3,
        timeout=600,
    )
    sent: list[tuple[list[int], int]] = []
    for context, continuation in job["pairs"]:
        first, rest = ([asks.prefix_token_id], asks.tok_encode(continuation))
        if context:
            first, rest = asks._encode_pair(context, continuation)
        sent.append(([*first, *rest], len(first)))
    requests = [SimpleNamespace(args=tuple(pair)) for pair in job["pairs"]]
    answers = asks.loglikelihood(requests, disable_tqdm=True)
    print(json.dumps({"answers": answers, "ids": sent}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
