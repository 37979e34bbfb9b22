"""The page on which people chat with models, tested in a real browser."""

import queue
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from served import serving
from starlette.requests import Request
from starlette.responses import Response

from togi.rollout.local import Sampler
from togi.serve.app import Served
from togi.serve.chat import Speaker, chat_app
from togi.serve.pages import POLICY, page_text

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = """
const until = async (done) => { while (!done()) await new Promise((next) => setTimeout(next, 20)); };
const type = (text) => { at("question").value = text; at("ask").requestSubmit(); };
(async () => {
  await until(() => talks[0].model.options.length === 2);
  at("max-tokens").value = 5;
  at("compare").click();
  type("<img src=x onerror=alert(1)>");
  await until(() => document.querySelectorAll(".turn small").length === 2);
  type("And now?");
  await until(() => document.querySelectorAll(".turn small").length === 4);
  at("max-tokens").value = 100000;
  type("Too much");
  await until(() => document.querySelectorAll(".turn.failed").length === 2);
  const told = {
    models: talks.map((talk) => talk.model.value),
    turns: talks.map((talk) => [...talk.turns.children].map((turn) => turn.firstChild?.textContent ?? "")),
    notes: [...document.querySelectorAll(".turn small")].map((note) => note.textContent),
    kept: talks.map((talk) => talk.messages.length),
    images: document.images.length,
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
  fetch("/told", { method: "POST", body: JSON.stringify(told) });
})();
"""


@pytest.fixture
def server(model) -> Iterator[SimpleNamespace]:
    """Two models on one page; the script that drives the page reports what it saw."""
    told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    async def tell(request: Request) -> Response:
        told.put(await request.json())
        return Response()

    def beside(name: str) -> tuple[Served, Speaker]:
        engine = Sampler(model.net, model.tokenizer, model.template.terminator)
        served = Served(name=name, kind="causal", limit=model.context, vocabulary=300)
        return served, Speaker(engine=engine, tokenizer=model.tokenizer, template=model.template)

    app = chat_app(*beside("one"), beside=[beside("two")])
    html = page_text("page.html").replace("</body>", '<script src="/drive.js"></script></body>')
    policy = {"Content-Security-Policy": POLICY}
    app.router.add_route("/drive", lambda request: Response(html, media_type="text/html", headers=policy))
    app.router.add_route("/drive.js", lambda request: Response(DRIVER, media_type="text/javascript"))
    app.router.add_route("/told", tell, methods=["POST"])
    with serving(app) as url:
        yield SimpleNamespace(url=url, told=told)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: the page in a real browser is not checked")
def test_two_models_answer_side_by_side(server, tmp_path: Path):
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command = [str(CHROMIUM), *options, f"--user-data-dir={tmp_path / 'profile'}", f"{server.url}/drive"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            found = server.told.get(timeout=120)
        finally:
            browser.terminate()
    assert found["models"] == ["one", "two"] and found["images"] == 0 and found["wide"] == 0
    for turns in found["turns"]:
        assert turns[0] == "<img src=x onerror=alert(1)>" and turns[2] == "And now?"
        assert "but the model's context is 512" in turns[5], "what went wrong stands where the answer would"
    assert all(re.fullmatch(r"[1-5] tokens in [\d.]+ s(, cut at the token limit)?", note) for note in found["notes"])
    assert found["kept"] == [4, 4], "a question without an answer is not sent again"
