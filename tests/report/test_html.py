"""The report: complete, escaped, self-contained, small, fast, and readable on a phone in a real browser."""

import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import pytest
from report_fake_run import HOSTILE, write_run

from togi.report.collect import collect
from togi.report.html import answer_html, marked, render_report
from togi.report.view import (
    AlarmView,
    BenchmarkView,
    CellView,
    ColumnView,
    IntervalView,
    RowView,
    RunView,
    StageView,
    ToldView,
)

VOID = {"meta", "link", "br", "img", "path", "circle", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags are balanced and collects them with their attributes and the page's text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return render_report(collect(write_run(tmp_path_factory.mktemp("done"))))


def test_runs_of_one_recipe_are_told_apart():
    page = render_report(
        RunView(name="r", state="done", stages=[], id="d24b8aacf691", overrides=("seed=2", "name=<r>"))
    )
    assert "run d24b8aacf691, changed settings: seed=2 name=<r>" in " ".join(Page(page).text)


def test_everything_that_a_reader_looks_for_is_there(done):
    text = " ".join(Page(done).text)
    for part in (
        "All 11 stages are done, 3 of them from the cache",
        "Clearly better: terminator rate, held-out reward, reward. Clearly worse: self-BLEU.",
        "answers are shorter than 60 % of the base's",
        "Scores are the reward of texts cut to <one> length.",
        "near duplicate ngrams 38",
        "Gate pass rate",
        "Groups without reward spread",
        "Time by phase",
        "+0.829 to +0.934",
        "no clear difference",
        "猫は薄明薄暮性で",
        "答えは短く、丁寧に。",
        "sampling.max_tokens",
        "2.13.0",
        "ab" * 32,
    ):
        assert part in text, part


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(done):
    page = Page(done)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert attributes.get("href", "#").startswith(("#", "data:,"))
    assert "http://" not in done and "https://" not in done and "@import" not in done and "url(" not in done


def test_figures_of_reward_models_have_a_table_of_their_own(done):
    text = " ".join(" ".join(Page(done).text).split())
    both, _, alone = text.partition("Of the reward models that scored the answers, not of the policy:")
    assert "Policy Difference Verdict" in both and "held-out accuracy" not in both.partition("Before and after")[2]
    assert alone.startswith(" Metric Value held-out accuracy") and "0.830" in alone


def test_a_hostile_answer_stays_text(done):
    text = "".join(Page(done).text)
    assert '</div></details><script>document.title="owned"</script><img src=x onerror="alert(1)">' in text
    assert "{{ 7*7 }}" in text
    assert "\\x00\\x1b[31m \\u202egnp.exe" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", done)
    assert "&lt;|eot_id|&gt;</b>" in done


def test_hostile_names_messages_and_halves_of_characters_stay_text():
    stage = StageView(
        name=HOSTILE, type="<i>", state="failed", error=HOSTILE, settings={HOSTILE: HOSTILE}, drops={HOSTILE: 3}
    )
    page = render_report(RunView(name=HOSTILE + "\ud800", state="failed", stages=[stage], error=HOSTILE))
    page.encode("utf-8")
    assert not {tag for tag, _ in Page(page).tags} & {"script", "img", "i>"}
    assert "\\ud800" in page


def test_tokens_of_a_template_are_marked_and_long_answers_cut():
    assert answer_html("a<|im_end|>") == "a<b class=tok>&lt;|im_end|&gt;</b>"
    assert str(answer_html("x" * 5000)).endswith("<i class=cut>… 1,000 more characters</i>")


def test_words_between_backticks_are_code_and_stay_text():
    assert marked("see `togi show R <s>`: a ` b") == "see <code>togi show R &lt;s&gt;</code>: a ` b"
    alarm = AlarmView(name="odd", message="set `max_length`")
    stages = [StageView(name="a", type="x", state="done", alarms=[alarm], benchmarks=[wide(9, 2)])]
    page = render_report(RunView(name="r", state="done", stages=stages))
    assert "set <code>max_length</code>" in page and "use <code>rounds</code>" in page


def wide(columns: int, models: int) -> BenchmarkView:
    """A benchmark of so many metrics and models."""
    named = [ColumnView(name=f"metric {n}", share=n % 2 == 0, higher_is_better=True) for n in range(columns)]
    cells = {f"model {m}": {each.name: CellView(value=0.5, low=0.25, high=0.75, n=448) for each in named}
             for m in range(models)}  # fmt: skip
    change = {"model 1": {"metric 3": CellView(value=0.2, low=0.125, high=0.275, n=448)}}
    told = ToldView(title="a: b", card="c", source="s", licence="MIT", how="h", cells={"theirs": cells["model 0"]})
    return BenchmarkView(
        benchmark="chat_health", columns=named, cells=cells, rows=448, mark="0", baseline="model 0",
        differences=change, notes=["use `rounds`"], published=[told],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "models", "first"), [(11, 2, "Metric"), (5, 2, "Model"), (11, 11, "Model"), (7, 2, "Metric")]
)
def test_a_table_of_many_metrics_has_them_as_rows(columns, models, first):
    stages = [StageView(name="a", type="x", state="done", benchmarks=[wide(columns, models)])]
    page = render_report(RunView(name="r", state="done", stages=stages))
    text = " ".join(" ".join(Page(page.partition('class="board"')[2].partition("</table>")[0]).text).split())
    assert text.startswith(f"> {first} ") and "model 1" in text and "baseline" in text and "theirs" in text
    assert text.count("(448)") == columns * models and "+0.200 (0.125 to 0.275)" in text


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("failed", "Failed at stage “policy” with 9 of 11 stages done."),
        ("interrupted", "Interrupted with 9 of 11 stages done."),
        ("running", "Running, 9 of 11 stages done."),
    ],
)
def test_an_unfinished_run_has_a_report_that_says_so(tmp_path, state, sentence):
    text = " ".join(Page(render_report(collect(write_run(tmp_path, state=state, stop_at="policy")))).text)
    assert sentence in text
    assert "Before and after" not in text
    assert ("the loss is not finite at step 17" in text) is (state == "failed")


def test_a_run_that_has_only_begun_has_a_report():
    page = render_report(
        RunView(name="x", state="running", stages=[StageView(name="a", type="synthesize", state="waiting")])
    )
    assert "0 of 1 stage done" in page
    Page(render_report(RunView(name="x", state="failed", stages=[], error="no stage")))


def test_records_that_vanish_without_a_reason_are_shown():
    stage = StageView(name="a", type="curate", state="done", counts_in=10, counts_out=5, drops={"too_short": 2})
    assert "without a reason 3" in render_report(RunView(name="x", state="done", stages=[stage]))


def test_what_is_held_out_is_shown_and_not_taken_for_lost():
    stage = StageView(
        name="a", type="train.sft", state="done", counts_in=10, counts_out=5, held_out=3, drops={"too_long": 2}
    )
    page = render_report(RunView(name="x", state="done", stages=[stage]))
    assert "held out 3" in page and "without a reason" not in page


def test_a_value_without_counterpart_has_no_empty_columns():
    value = IntervalView(mean=0.5, low=0.2, high=0.8, level=0.95, n=6)
    stage = StageView(name="a", type="train.reward", state="done", rows=[RowView(metric="accuracy", policy=value)])
    page = render_report(RunView(name="x", state="done", stages=[stage]))
    assert "<th>Value</th>" in page and "<th>Base</th>" not in page and "Before and after" not in page


def test_a_long_run_is_small_and_quick(tmp_path):
    folder = write_run(tmp_path, steps=3000, answers=400)
    best = min(_seconds(folder) for _ in range(2))
    assert best < 2.0
    assert len(render_report(collect(folder)).encode()) < 1_500_000


def _seconds(folder):
    start = time.process_time()
    render_report(collect(folder))
    return time.process_time() - start


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

MEASURE = """<!doctype html><body><script>
const frame = document.createElement("iframe");
frame.style = "border:0;width:WIDTHpx;height:2000px";
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(d => d.open = true);
  const beyond = [...page.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > WIDTH + 1);
  document.body.textContent = JSON.stringify({
    client: root.clientWidth, scroll: root.scrollWidth, title: page.title, scripts: page.scripts.length,
    beyond: beyond.slice(0, 5).map(e => e.tagName + "." + (e.getAttribute("class") || "")),
    text: Math.min(...[...page.querySelectorAll("p, dd, td")].map(e => parseFloat(getComputedStyle(e).fontSize))),
    plots: page.querySelectorAll("svg.plot").length,
  });
};
frame.srcdoc = PAGE;
document.body.append(frame);
</script></body>"""


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: the look in a real browser is not checked")


def _measure(html, width, folder):
    """Measures `html` in a real browser, in a frame of `width` pixels and with everything unfolded."""
    page = json.dumps(html).replace("</", "<\\/").replace("<!--", "<\\!--")
    (folder / "frame.html").write_text(MEASURE.replace("WIDTH", str(width)).replace("PAGE", page), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000"]
    options += [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,2000", "--dump-dom"]
    command = [CHROMIUM, *options, f"file://{folder}/frame.html"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return json.loads(re.search(r"<body>(\{.*\})</body>", found.stdout, re.DOTALL)[1])


@needs_chromium
@pytest.mark.parametrize("width", [390, 320, 1280])
def test_in_a_real_browser_nothing_is_wider_than_the_screen(done, tmp_path, width):
    measured = _measure(done, width, tmp_path)
    assert measured["client"] == measured["scroll"] == width
    assert measured["beyond"] == []
    assert measured["text"] >= 12
    assert measured["title"] == "quickstart · done"
    assert measured["scripts"] == 0
    assert measured["plots"] > 10


@needs_chromium
def test_the_browser_test_sees_what_is_too_wide(done, tmp_path):
    measured = _measure(done.replace("<footer>", '<footer style="width:600px">'), 390, tmp_path)
    assert measured["scroll"] > 390
    assert measured["beyond"] == ["FOOTER."]
