"""The reward server: its scores equal the local scorer's to the bit; each request is one batch."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from served import ask, said, serving
from tiny_encoders import write_encoder
from tiny_models import loaded

from togi.core.records import Message
from togi.model.encoder_scorer import load_scorer_of
from togi.model.load import LoadedModel
from togi.model.reward_model import ModelScorer, add_scalar_head
from togi.serve.app import Served
from togi.serve.reward import reward_app
from togi.serve.texts import longest_text
from togi.text.render import render_text
from togi.text.template import get_template

TALKS = [("Say it.", "It."), ("Say it.", "No, I will not."), ("Why?", "Because.")]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return add_scalar_head(loaded(), seed=4)


@pytest.fixture(scope="module")
def scorer(model) -> ModelScorer:
    return ModelScorer(model, max_tokens=200)


@pytest.fixture(scope="module")
def url(model, scorer) -> Iterator[str]:
    vocabulary = model.net.get_input_embeddings().num_embeddings
    served = Served(name="rm", kind="reward", limit=scorer.limit, vocabulary=vocabulary)
    with serving(reward_app(served, scorer, model.tokenizer)) as found:
        yield found


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def text_ids(model, question: str, answer: str) -> list[int]:
    messages = (Message("user", question), Message("assistant", answer))
    return render_text(model.template, model.tokenizer, messages)


def test_scores_are_the_local_scorers_raw_logits(url, model, scorer):
    items = [((Message("user", question),), answer) for question, answer in TALKS]
    local = scorer.score(items)
    assert len(set(local)) == len(TALKS)
    body = {"model": "rm", "items": [{"messages": turns(*talk)} for talk in TALKS]}
    status, found = ask(f"{url}/v1/scores", body)
    assert status == 200 and found["scores"] == local and found["errors"] == [None] * 3
    ids = [text_ids(model, *talk) for talk in TALKS]
    assert found["usage"]["prompt_tokens"] == sum(map(len, ids))
    found = ask(f"{url}/v1/scores", {"model": "rm", "items": [{"ids": each} for each in ids]})[1]
    assert found["scores"] == scorer.score_ids(ids) == pytest.approx(local, abs=1e-5)


def test_classify_has_the_shape_of_sglang(url, model, scorer):
    ids = [text_ids(model, *talk) for talk in TALKS]
    texts = [model.tokenizer.decode(each) for each in ids]
    local = scorer.score_ids(ids)
    items = [{"text": text} for text in texts]
    assert ask(f"{url}/v1/scores", {"model": "rm", "items": items})[1]["scores"] == local
    for given in ({"text": texts}, {"input_ids": ids}):
        found = ask(f"{url}/classify", {"model": "rm", **given})[1]
        assert [each["embedding"] for each in found] == [[score] for score in local]
        assert [each["meta_info"]["prompt_tokens"] for each in found] == [len(each) for each in ids]
    one = ask(f"{url}/classify", {"model": "rm", "text": texts[2]})[1]
    assert one["embedding"] == scorer.score_ids([ids[2]])


def test_a_conversation_that_is_too_long_has_an_error_in_the_place_of_its_score(url, scorer):
    long = turns("Say it.", "very " * 60)
    status, found = ask(
        f"{url}/v1/scores", {"model": "rm", "items": [{"messages": long}, {"messages": turns("a", "b")}]}
    )
    assert status == 200 and found["scores"][0] is None and found["scores"][1] is not None
    assert "it reads at most 200" in found["errors"][0] and found["errors"][1] is None
    status, found = ask(f"{url}/classify", {"model": "rm", "text": "very " * 60})
    assert status == 400 and "it reads at most 200" in found["error"]["message"]


@pytest.mark.parametrize(
    ("path", "more", "says"),
    [
        ("v1/scores", {"items": []}, "items: the list is empty; give at least one item"),
        ("v1/scores", {"items": [{"messages": turns("a", "b")[:1]}]}, "last, the assistant's answer"),
        ("v1/scores", {"items": [{"messages": turns("a", "b")}, {"ids": [1]}]}, "items must be all conversations"),
        ("v1/scores", {"items": [{"text": "a", "ids": [1]}]}, "give one of messages, text and ids"),
        ("v1/scores", {"items": [{"ids": [10**6]}]}, "1000000 is not a token id of this model"),
        ("classify", {"text": "a", "input_ids": [1]}, "give either text or input_ids"),
        ("classify", {"text": []}, "the list is empty"),
        ("classify", {"text": ["a", ""]}, "at least one token"),
        ("classify", {"text": "a", "use_activation": True}, "use_activation: this server does not support it"),
    ],
)
def test_what_does_not_fit_is_refused(url, path, more, says):
    status, found = ask(f"{url}/{path}", {"model": "rm", **more})
    assert status == 400 and says in found["error"]["message"]


def test_an_encoder_scores_conversations_as_it_does_here_and_refuses_bare_texts(tmp_path):
    judge = load_scorer_of(write_encoder(tmp_path / "rm"), tmp_path)
    served = Served(name="rm", kind="reward", limit=judge.limit, vocabulary=len(judge.tokenizer))
    local = judge.score([((Message("user", question),), answer) for question, answer in TALKS])
    assert len(set(local)) == len(TALKS)
    with serving(reward_app(served, judge, judge.tokenizer)) as url:
        status, found = ask(f"{url}/v1/scores", {"model": "rm", "items": [{"messages": turns(*t)} for t in TALKS]})
        assert status == 200 and found["scores"] == local
        assert found["usage"]["prompt_tokens"] == sum(len(judge.tokenizer(*talk)["input_ids"]) for talk in TALKS)
        for path, more in (("v1/scores", {"items": [{"text": "So."}]}), ("classify", {"text": "So."})):
            status, found = ask(f"{url}/{path}", {"model": "rm", **more})
            assert status == 400 and "as a pair, not a single text" in found["error"]["message"]


def test_health_says_the_kind(url):
    assert ask(f"{url}/health")[1] == {"status": "ok", "engine": "togi", "kind": "reward"}


def test_the_tokens_of_scores_are_counted(url, model):
    def counted() -> float:
        lines = said(f"{url}/metrics")[1].splitlines()
        name = 'togi_tokens_total{kind="prompt",model="rm"}'
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    before = counted()
    assert ask(f"{url}/v1/scores", {"model": "rm", "items": [{"ids": [1, 2, 3]}, {"ids": [4]}]})[0] == 200
    assert counted() == before + 4
    assert ask(f"{url}/classify", {"model": "rm", "input_ids": [[1, 2], [3, 4, 5]]})[0] == 200
    assert counted() == before + 9


def test_a_text_that_cannot_fit_fails_alone_and_unread(url, model, scorer):
    most = longest_text(model.tokenizer, scorer.limit)
    assert most is not None
    items = [{"text": "a"}, {"text": "a" * (most + 1)}, {"text": "b"}]
    found = ask(f"{url}/v1/scores", {"model": "rm", "items": items})[1]
    first, second = scorer.score_ids([model.tokenizer(text)["input_ids"] for text in "ab"])
    assert found["scores"] == [first, None, second]
    assert found["errors"][0] is None and "characters, but 200 tokens can hold" in found["errors"][1]


def test_a_conversation_that_cannot_fit_fails_alone_and_unread(model):
    read: list[int] = []

    class Watched(type(model.tokenizer)):
        def __call__(self, text: str, **options: Any) -> Any:
            read.append(len(text))
            return super().__call__(text, **options)

    tokenizer = Watched(tokenizer_object=model.tokenizer.backend_tokenizer, eos_token=model.tokenizer.eos_token)
    scorer = ModelScorer(replace(model, tokenizer=tokenizer), max_tokens=200)
    most = longest_text(tokenizer, 200)
    assert most is not None
    served = Served(name="rm", kind="reward", limit=200, vocabulary=len(tokenizer))
    items = [{"messages": turns("a", "b")}, {"messages": turns("a", "b" * most)}, {"messages": turns("c", "d")}]
    with serving(reward_app(served, scorer, tokenizer)) as url:
        found = ask(f"{url}/v1/scores", {"model": "rm", "items": items})[1]
    assert [score is None for score in found["scores"]] == [False, True, False]
    assert "characters, but 200 tokens can hold" in found["errors"][1] and max(read) <= most
    talks = [((Message("user", "a"),), "b"), ((Message("user", "c"),), "d")]
    assert [found["scores"][0], found["scores"][2]] == scorer.score(talks)
    assert found["usage"]["prompt_tokens"] == sum(scorer.score_and_count(talks)[1])


def test_a_conversation_is_rendered_once_or_twice_if_its_text_is_long(model):
    rendered: list[str] = []

    class Watched(ModelScorer):
        def text(self, messages: tuple[Message, ...], answer: str) -> str:
            rendered.append(answer)
            return super().text(messages, answer)

        def sequence(self, messages: tuple[Message, ...], answer: str) -> Any:
            rendered.append(answer)
            return super().sequence(messages, answer)

    most = longest_text(model.tokenizer, 200)
    assert most is not None
    stripping = replace(model, template=get_template("llama3-text", model.tokenizer))
    scorer = Watched(replace(stripping, template=replace(stripping.template, strip=True)), max_tokens=200)
    served = Served(name="rm", kind="reward", limit=200, vocabulary=len(model.tokenizer))
    items = [{"messages": turns("a", "b")}, {"messages": turns("a", "c" + " " * most)}]
    with serving(reward_app(served, scorer, model.tokenizer)) as url:
        found = ask(f"{url}/v1/scores", {"model": "rm", "items": items})[1]
    assert found["errors"] == [None, None] and [answer.strip() for answer in rendered] == ["c", "b", "c"]
