"""The page on which people chat with models, tested in a real browser."""

import queue
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from served import serving
from starlette.requests import Request
from starlette.responses import Response

from togi.core.sampling import Recommended
from togi.rollout.local import Sampler
from togi.serve.app import Served
from togi.serve.chat import Speaker, chat_app
from togi.serve.pages import POLICY, page_text

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: the page in a real browser is not checked")
TOOLS = """
const until = async (done) => { while (!done()) await new Promise((next) => setTimeout(next, 20)); };
const type = (text) => { at("question").value = text; at("ask").requestSubmit(); };
const tell = (told) => fetch("/told", { method: "POST", body: JSON.stringify(told) });
const loaded = () => until(() => talks[0].model.options.length === 2);
"""
COMPARE = """
(async () => {
  await loaded();
  at("max-tokens").value = 5;
  at("compare").click();
  type("<img src=x onerror=alert(1)>");
  await until(() => document.querySelectorAll(".turn small").length === 2);
  type("And now?");
  await until(() => document.querySelectorAll(".turn small").length === 4);
  at("max-tokens").value = 100000;
  type("Too much");
  await until(() => document.querySelectorAll(".turn.failed").length === 2);
  tell({
    models: talks.map((talk) => talk.model.value),
    turns: talks.map((talk) => [...talk.turns.children].map((turn) => turn.firstChild?.textContent ?? "")),
    notes: [...document.querySelectorAll(".turn small")].map((note) => note.textContent),
    kept: talks.map((talk) => talk.messages.length),
    images: document.images.length,
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  });
})();
"""
INTERRUPT = """
(async () => {
  await loaded();
  at("temperature").value = 0;
  at("max-tokens").value = "";
  const change = () => talks[0].model.dispatchEvent(new Event("change"));
  const ways = [() => at("reset").click(), change, () => at("compare").click()];
  const seen = [];
  for (const begin of ways) {
    type("Tell me more");
    await until(() => talks[0].turns.lastChild?.textContent);
    const failed = document.querySelectorAll(".turn.failed").length, button = at("send").textContent;
    begin();
    await until(() => at("send").textContent === "Send");
    const turns = document.querySelectorAll(".turn").length;
    seen.push({ failed, button, turns, kept: talks.map((talk) => [...talk.messages]) });
  }
  tell(seen);
})();
"""
RECOMMENDED = """
(async () => {
  await loaded();
  const shown = [at("temperature").value, at("temperature").placeholder], sent = [], fetched = window.fetch;
  window.fetch = (url, asked) => { sent.push(JSON.parse(asked.body)); return fetched(url, asked); };
  at("max-tokens").value = 2;
  at("compare").click();
  for (const temperature of ["", "0.9"]) {
    at("temperature").value = temperature;
    const before = document.querySelectorAll(".turn small").length;
    type("Hi");
    await until(() => document.querySelectorAll(".turn small").length === before + 2);
  }
  window.fetch = fetched;
  tell({ shown, sent: sent.map((body) => [body.model, body.temperature ?? null]) });
})();
"""
BROKEN = """
(async () => {
  await loaded();
  const sent = [
    { choices: [{ delta: { content: "Well, " }, finish_reason: null }] },
    { error: { message: "no answer within 600 s", type: "server_error", param: null, code: 504 } },
  ];
  const text = sent.map((event) => `data: ${JSON.stringify(event)}\\n\\n`).join(""), fetched = window.fetch;
  window.fetch = async () => new Response(text);
  type("Hi");
  await until(() => at("send").textContent === "Send" && talks[0].turns.children.length === 2);
  window.fetch = fetched;
  const turn = talks[0].turns.lastChild;
  tell({ shown: turn.textContent, failed: turn.classList.contains("failed"), kept: talks[0].messages.length });
})();
"""
SYSTEMS = """
(async () => {
  await loaded();
  const seen = [], sent = [], fetched = window.fetch;
  window.fetch = async (url, asked) => { sent.push(JSON.parse(asked.body)); return new Response(""); };
  const systems = (body) => body.messages.filter((turn) => turn.role === "system").map((turn) => turn.content);
  const ask = async () => {
    sent.length = 0;
    type("Hi");
    await until(() => at("send").textContent === "Send");
    const field = at("system");
    seen.push([field.value, field.placeholder, Object.fromEntries(sent.map((body) => [body.model, systems(body)]))]);
  };
  const choose = (name) => { talks[0].model.value = name; talks[0].model.dispatchEvent(new Event("change")); };
  const write = (text) => { at("system").value = text; at("system").dispatchEvent(new Event("input")); };
  await ask();
  choose("two");
  await ask();
  choose("one");
  at("compare").click();
  await ask();
  write("Rhyme.");
  choose("two");
  choose("one");
  await ask();
  write("");
  await ask();
  window.fetch = fetched;
  tell(seen);
})();
"""
OF_TWO = "Talk like a pirate.\nBe brief. "


class Slow(Sampler):
    """A sampler whose answers are still under way when the page does something else."""

    def step(self) -> None:
        time.sleep(0.05)
        super().step()


@pytest.fixture
def server(model) -> Iterator[SimpleNamespace]:
    """Two models on one page, the second with recommended sampling and a system prompt; the script that drives the page
    reports what it saw."""
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()

    async def tell(request: Request) -> Response:
        told.put(await request.json())
        return Response()

    def beside(name: str, **more: Any) -> tuple[Served, Speaker]:
        engine = Slow(model.net, model.tokenizer, model.template.terminator)
        served = Served(name=name, kind="causal", limit=model.context, vocabulary=300, **more)
        return served, Speaker(engine=engine, tokenizer=model.tokenizer, template=model.template)

    app = chat_app(*beside("one"), beside=[beside("two", sampling=Recommended.of("vikhr-nemo"), system=OF_TWO)])
    policy = {"Content-Security-Policy": POLICY}
    scripts = {"compare": COMPARE, "interrupt": INTERRUPT, "recommended": RECOMMENDED}
    for name, script in {**scripts, "broken": BROKEN, "systems": SYSTEMS}.items():
        html = page_text("page.html").replace("</body>", f'<script src="/{name}.js"></script></body>')
        app.router.add_route(f"/{name}", _answers(html, "text/html", policy))
        app.router.add_route(f"/{name}.js", _answers(TOOLS + script, "text/javascript", {}))
    app.router.add_route("/told", tell, methods=["POST"])
    with serving(app) as url:
        yield SimpleNamespace(url=url, told=told)


def _answers(text: str, kind: str, headers: dict[str, str]) -> Callable[[Request], Response]:
    return lambda _: Response(text, media_type=kind, headers=headers)


def driven(server: SimpleNamespace, script: str, folder: Path) -> Any:
    """What a script saw that drives the page in a browser."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command = [str(CHROMIUM), *options, f"--user-data-dir={folder / 'profile'}", f"{server.url}/{script}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            return server.told.get(timeout=120)
        finally:
            browser.terminate()


@needs_browser
def test_two_models_answer_side_by_side(server, tmp_path: Path):
    found = driven(server, "compare", tmp_path)
    assert found["models"] == ["one", "two"] and found["images"] == 0 and found["wide"] == 0
    for turns in found["turns"]:
        assert turns[0] == "<img src=x onerror=alert(1)>" and turns[2] == "And now?"
        assert "but the model's context is 512" in turns[5], "what went wrong stands where the answer would"
    assert all(re.fullmatch(r"[1-5] tokens in [\d.]+ s(, cut at the token limit)?", note) for note in found["notes"])
    assert found["kept"] == [4, 4], "a question without an answer is not sent again"


@needs_browser
def test_an_answer_under_way_does_not_get_into_a_new_conversation(server, tmp_path: Path):
    found = driven(server, "interrupt", tmp_path)
    assert len(found) == 3, "a new chat, another model, a comparison"
    for each in found:
        assert each["failed"] == 0 and each["button"] == "Stop", "an empty field of tokens means the default"
        assert each["kept"] == [[], []] and each["turns"] == 0


@needs_browser
def test_an_empty_temperature_is_the_models_own(server, tmp_path: Path):
    found = driven(server, "recommended", tmp_path)
    assert found["shown"] == ["", "0.7 / 0.3"]
    assert sorted(found["sent"][:2]) == [["one", 0.7], ["two", None]], "the server has the settings of the second"
    assert sorted(found["sent"][2:]) == [["one", 0.9], ["two", 0.9]]


@needs_browser
def test_an_error_in_a_stream_stands_where_the_answer_would(server, tmp_path: Path):
    assert driven(server, "broken", tmp_path) == {"shown": "no answer within 600 s", "failed": True, "kept": 0}


@needs_browser
def test_the_system_prompt_is_that_of_each_model_until_the_user_writes_one(server, tmp_path: Path):
    alone, trained, compared, typed, emptied = driven(server, "systems", tmp_path)
    assert alone == ["", "none", {"one": []}]
    assert trained == [OF_TWO, "none", {"two": [OF_TWO]}], "with its lines and spaces, as in training"
    assert compared == ["", "each model's own", {"one": [], "two": [OF_TWO]}]
    assert typed == ["Rhyme.", "none", {"one": ["Rhyme."], "two": ["Rhyme."]}]
    assert emptied == ["", "none", {"one": [], "two": []}]
