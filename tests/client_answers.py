"""The good answers of the hostile server: a function of the request, in the formats of real servers.

`lacks` names what a server silently ignores: n, logprobs, seed, schema, stop, ids; `refuses` names what it answers
with 400; answers to a prompt that contains `filters` are held back.
"""

import hashlib
import json
import struct

WORDS = [
    "red",
    "green",
    "blue",
    "and",
    "the",
    "a",
    "of",
    "to",
    "in",
    "is",
    "it",
    "was",
    "for",
    "on",
    "that",
    "with",
    "as",
]


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def words(seed, count):
    """`count` words derived from a seed."""
    numbers = hashlib.shake_256(seed).digest(count)
    return [" " + WORDS[number % len(WORDS)] for number in numbers]


def score(text):
    """A raw score between about -4 and 4, not rounded to bfloat16."""
    return int.from_bytes(digest(text)[:4], "big") / 2**32 * 8.0 - 4.0


class Answers:
    """The replies of one model on one kind of server; `asked` makes unseeded samples differ if seeds are ignored."""

    def __init__(
        self,
        model="m",
        speaks="openai",
        lacks=(),
        refuses=(),
        probabilities=False,
        rounded=False,
        context=4096,
        filters="",
    ):
        self.model, self.speaks, self.lacks, self.refuses = model, speaks, set(lacks), refuses
        self.probabilities, self.rounded, self.context, self.filters = probabilities, rounded, context, filters
        self.asked = 0

    def refused(self, body):
        """The parameter that this server rejects with 400, like servers that ignore nothing silently."""
        named = {"schema": "response_format", "seed": "seed", "stop": "stop", "n": "n", "logprobs": "logprobs"}
        return next((named[name] for name in self.refuses if body.get(named[name]) not in (None, 1)), None)

    def models(self):
        row = {"id": self.model, "object": "model", "owned_by": self.speaks if self.speaks != "openai" else "someone"}
        return {"object": "list", "data": [row | ({"max_model_len": self.context} if self.speaks == "vllm" else {})]}

    def reply(self, path, body):
        """The reply to a request; None for an unknown path."""
        self.asked += 1
        makers = {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.completion,
            "/generate": self.generate,
            "/classify": self.classify,
            "/score": self.pairs,
            "/v1/scores": self.own_scores,
            "/v1/embeddings": self.embeddings,
        }
        return makers[path](body) if path in makers else None

    def sample(self, body, prompt, index):
        """(words, finish_reason, stop_reason) of one choice."""
        if self.filters and self.filters in json.dumps(prompt):
            return [], "content_filter", None
        seed = body.get("seed")
        varied = self.asked if "seed" in self.lacks and seed is not None else 0
        name = digest([prompt, body.get("temperature"), seed, index, varied])
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or 16
        wanted = 4 + name[0] % 24
        if body.get("response_format") and "schema" not in self.lacks:
            return ['{"colour":', ' "red"}'], "stop", None
        found = words(name, min(wanted, limit))
        text = "".join(found)
        for stop in () if "stop" in self.lacks else body.get("stop") or ():
            if stop in text:
                return [text[: text.index(stop)]], "stop", stop
        return found, "stop" if wanted <= limit else "length", None

    def samples(self, body, prompt):
        count = 1 if "n" in self.lacks else body.get("n", 1)
        return [self.sample(body, prompt, index) for index in range(count)]

    def usage(self, prompt, found):
        read, written = max(1, len(json.dumps(prompt)) // 4), sum(len(words) for words, _, _ in found)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def logprobs(self, pieces):
        return [-(digest(piece)[0] + 1) / 64.0 for piece in pieces]

    def chat(self, body):
        found = self.samples(body, body["messages"])
        choices = []
        for index, (pieces, finish, stop) in enumerate(found):
            choice = {"index": index, "message": {"role": "assistant", "content": "".join(pieces)}, "stop_reason": stop}
            if body.get("logprobs") and "logprobs" not in self.lacks:
                rows = zip(pieces, self.logprobs(pieces), strict=True)
                content = [{"token": t, "logprob": p, "top_logprobs": [{"token": t, "logprob": p}]} for t, p in rows]
                choice["logprobs"] = {"content": content}
            choices.append(choice | {"finish_reason": finish})
        return {"model": self.model, "choices": choices, "usage": self.usage(body["messages"], found)}

    def completion(self, body):
        found = self.samples(body, body["prompt"])
        choices = []
        for index, (pieces, finish, stop) in enumerate(found):
            choice = {"index": index, "text": "".join(pieces), "finish_reason": finish, "stop_reason": stop}
            if body.get("logprobs") and "logprobs" not in self.lacks:
                each = self.logprobs(pieces)
                top = [{piece: value} for piece, value in zip(pieces, each, strict=True)]
                choice["logprobs"] = {"tokens": pieces, "token_logprobs": each, "top_logprobs": top}
            if body.get("return_token_ids") and "ids" not in self.lacks:
                choice["token_ids"] = [digest(piece)[0] for piece in pieces]
            choices.append(choice)
        return {"model": self.model, "choices": choices, "usage": self.usage(body["prompt"], found)}

    def generate(self, body):
        settings = body["sampling_params"]
        asked = settings | {"max_tokens": settings["max_new_tokens"], "seed": settings.get("sampling_seed")}
        rows = []
        for pieces, finish, stop in self.samples(asked, body["input_ids"]):
            meta = {"finish_reason": {"type": finish, "matched": stop}, "prompt_tokens": len(body["input_ids"])}
            meta["completion_tokens"] = len(pieces)
            if body.get("return_logprob"):
                places = [[p, digest(t)[0], t] for t, p in zip(pieces, self.logprobs(pieces), strict=True)]
                meta |= {"output_token_logprobs": places, "output_top_logprobs": [[place] for place in places]}
            ids = [digest(piece)[0] for piece in pieces]
            rows.append({"text": "".join(pieces), "output_ids": ids, "meta_info": meta})
        return rows if len(rows) > 1 else rows[0]

    def value(self, item, raw):
        number = score(item)
        if self.rounded:  # to bfloat16, like a head that computes in it
            bits = struct.unpack("<I", struct.pack("<f", number))[0] & 0xFFFF0000
            number = struct.unpack("<f", struct.pack("<I", bits))[0]
        return number if raw and not self.probabilities else 1.0 / (1.0 + 2.718281828**-number)

    def classify(self, body):
        if self.speaks == "sglang":
            items = body.get("text") or body["input_ids"]
            return [
                {"embedding": [self.value(item, True)], "meta_info": {"prompt_tokens": len(item)}} for item in items
            ]
        raw = body.get("use_activation") is False
        data = [{"index": i, "probs": [self.value(item, raw)]} for i, item in enumerate(body["input"])]
        return {"data": data, "usage": {"prompt_tokens": len(data), "total_tokens": len(data)}}

    def pairs(self, body):
        both = zip(body["text_1"], body["text_2"], strict=True)
        data = [{"index": i, "score": self.value(list(pair), True)} for i, pair in enumerate(both)]
        return {"data": data, "usage": {"prompt_tokens": len(data), "total_tokens": len(data)}}

    def own_scores(self, body):
        scores = [None if item.get("text") == "unscorable" else score(item) for item in body["items"]]
        errors = ["the text is empty" if value is None else None for value in scores]
        return {"scores": scores, "errors": errors, "usage": {"prompt_tokens": len(scores)}}

    def embeddings(self, body):
        data = [{"index": i, "embedding": [b / 255 for b in digest(t)[:8]]} for i, t in enumerate(body["input"])]
        return {"data": list(reversed(data)), "usage": {"prompt_tokens": len(data), "total_tokens": len(data)}}
