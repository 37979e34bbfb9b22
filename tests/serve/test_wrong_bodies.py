"""Errors about bodies name parameters as the client wrote them, what was found and what is allowed."""

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from served import ask, serving

from togi.rollout.local import Sampler
from togi.serve.app import Served
from togi.serve.chat import Speaker, chat_app

CHAT, TEXT = "v1/chat/completions", "v1/completions"
HALF = "\ud800"


@pytest.fixture(scope="module")
def url(model):
    engine = Sampler(model.net, model.tokenizer, model.template.terminator)
    served = Served(name="m", kind="causal", limit=model.context, vocabulary=300)
    with serving(chat_app(served, Speaker(engine=engine, tokenizer=model.tokenizer, template=model.template))) as found:
        yield found


def turn(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **more}]}


@pytest.mark.parametrize(
    ("path", "more", "param", "says"),
    [
        (TEXT, {"stop": ["a", None]}, "stop", "found a list of text and nothing; allowed is a text, or a list"),
        (TEXT, {"prompt": [1, "a"]}, "prompt", "allowed is a text, a list of texts, a list of token ids, or"),
        (TEXT, {"prompt": {}}, "prompt", "found an object; allowed is a text"),
        (TEXT, {"prompt": HALF}, "prompt", "half of a surrogate pair is not valid Unicode"),
        (TEXT, {"prompt": ["a", HALF]}, "prompt.1", "half of a surrogate pair is not valid Unicode"),
        (TEXT, {"stop": [HALF]}, "stop.0", "half of a surrogate pair is not valid Unicode"),
        (TEXT, {"model": HALF}, "model", "half of a surrogate pair is not valid Unicode"),
        (TEXT, {"stream_options": 5}, "stream_options", "found a number; allowed is an object"),
        (TEXT, {"temperature": "1"}, "temperature", "Input should be a valid number"),
        (CHAT, {"messages": []}, "messages", "messages: the list is empty; give at least one item"),
        (CHAT, {"messages": [None]}, "messages.0", "found nothing; allowed is an object"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages.0.content", "Field required"),
        (CHAT, turn(5), "messages.0.content", 'found a number; allowed is a text, or a list of parts {"type": "text"'),
        (CHAT, turn([{"type": "text", "text": HALF}]), "messages.0.content.0.text", "half of a surrogate pair"),
        (CHAT, turn([{"type": "text", "text": "a", "b": 1}]), "messages.0.content.0.b", "does not support it"),
        (CHAT, turn("a", name="bob"), "messages.0.name", "does not support it"),
    ],
)
def test_an_error_names_the_parameter_as_it_was_sent(url, path, more, param, says):
    body = {"model": "m", "max_tokens": 1, **({"prompt": "a"} if path == TEXT else turn("a")), **more}
    status, found = ask(f"{url}/{path}", body)
    told = found["error"]
    assert (status, told["param"]) == (400, param) and told["message"].startswith(f"{param}: ")
    assert says in told["message"] and "function" not in told["message"] and "[" not in told["message"]


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (b'{"model": "m", }', "application/json", "the body is not valid JSON: "),
        (b"[]", "application/json", "the body must be a JSON object; found a list"),
        (b"null", "application/json", "the body must be a JSON object; found no body"),
        (b"5", "application/json", "the body must be a JSON object; found a number"),
        (b"", "application/json", "the body must be a JSON object; found no body"),
        (json.dumps({"model": "m", "prompt": "a"}).encode(), "text/plain", "send Content-Type: application/json"),
    ],
)
def test_a_body_that_is_no_object_is_described(url, content, kind, says):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{url}/{TEXT}", content, {"content-type": kind}), timeout=60)
    with refused.value as error:
        told = json.loads(error.read())["error"]
    assert error.code == 400 and says in told["message"] and told["param"] is None
