"""One reward model, one text, one score: here, in the library alone, in a padded batch, whatever the text ends with."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import BYTES, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from togi.core.errors import InputError
from togi.core.records import Message
from togi.core.sources import CARD, ModelSource
from togi.model.encoder_scorer import load_scorer_of
from togi.model.load import LoadedModel
from togi.model.reward_model import ModelScorer, add_scalar_head, check_scalar_head, load_reward_model
from togi.model.save import save_model
from togi.text.template import Template, get_template

TURNS = ("system", "user", "assistant")
EOS_ENDS = Template(  # like many real ones: a turn ends with eos, which is also the pad token
    name="ends-with-eos",
    terminator="<eos>",
    generation="[assistant]",
    roles={role: (f"[{role}]", "<eos>") for role in TURNS},
)
ITEMS = [
    ((Message("user", "Why?"),), "Because."),
    ((Message("system", "Be brief."), Message("user", "How?")), "So."),
    ((Message("user", "Why?"),), "It is so because it is so, and so it is."),
    ((Message("user", "What?"),), ""),
]


def saved(folder: Path, kind: str = "llama", template: Template = EOS_ENDS, *special: str, pad: str = "<eos>") -> Path:
    """The folder of a scorer whose pad token was `pad` before saving; `special` are further special tokens."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.pad_token = pad
    net = tiny_model(kind, torch.float32, vocab_size=BYTES, pad_token_id=tokenizer.pad_token_id)
    model = LoadedModel(net=net, tokenizer=tokenizer, template=template, name="tiny")
    save_model(add_scalar_head(model, seed=4), folder)
    return folder


def from_outside(folder: Path, kind: str = "llama") -> Path:
    """A scorer as others publish it: its conversations end with eos, which is also its pad token."""
    saved(folder, kind)
    (folder / CARD).unlink()
    for name, changes in (
        ("config.json", {"pad_token_id": tiny_tokenizer().eos_token_id}),
        ("tokenizer_config.json", {"pad_token": "<eos>"}),
    ):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def read_from(folder: Path) -> LoadedModel:
    return load_reward_model(ModelSource(kind="path", name=str(folder)), folder)


def ours(folder: Path) -> list[float]:
    scores = ModelScorer(read_from(folder)).score(ITEMS)
    return [float(score) for score in scores if isinstance(score, float)]


@torch.no_grad()
def theirs(folder: Path, side: str, size: int) -> list[float]:
    """Scores by transformers alone, of the texts that the saved chat template writes, `size` at a time."""
    net: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    rows = [[*({"role": m.role, "content": m.content} for m in asked), {"role": "assistant", "content": answer}]
            for asked, answer in ITEMS]  # fmt: skip
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
    found: list[float] = []
    for start in range(0, len(texts), size):
        batch = tokenizer(texts[start : start + size], add_special_tokens=False, padding=size > 1, return_tensors="pt")
        batch.pop("token_type_ids", None)
        found += net(**batch).logits[:, 0].tolist()
    return found


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("template", [EOS_ENDS, get_template("chatml-nobos")], ids=lambda template: template.name)
def test_the_library_gives_the_same_score_alone_and_in_a_padded_batch(kind, template, tmp_path):
    folder = saved(tmp_path / "rm", kind, template)
    expected = ours(folder)
    assert len({round(score, 4) for score in expected}) == len(ITEMS)
    for side, size in (("right", 1), ("right", 4), ("left", 4)):
        assert theirs(folder, side, size) == pytest.approx(expected, abs=1e-4), (side, size)


@pytest.mark.parametrize(
    ("special", "pad", "found"),
    [
        ((), "<bos>", "<bos>"),  # this pad token ends no text: it stays
        ((), "<eos>", "<pad>"),
        (("<|reserved_3|>",), "<eos>", "<pad>"),
    ],
)
def test_the_pad_token_of_a_saved_scorer_ends_no_text(special, pad, found, tmp_path):
    folder = saved(tmp_path / "rm", "llama", EOS_ENDS, *special, pad=pad)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert tokenizer.pad_token == found and config["pad_token_id"] == tokenizer.pad_token_id
    text = "[user]<pad>Why?<eos>"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == tiny_tokenizer()(text)["input_ids"]


def test_without_another_special_token_there_is_none(tmp_path, caplog):
    table = {piece: i for i, piece in enumerate(["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab=table, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    net = tiny_model("llama", torch.float32, vocab_size=BYTES, pad_token_id=0)
    model = LoadedModel(net=net, tokenizer=tokenizer, template=EOS_ENDS, name="tiny")
    save_model(add_scalar_head(model, seed=4), tmp_path / "rm")
    assert "so the saved scorer has none" in caplog.text
    assert json.loads((tmp_path / "rm" / "config.json").read_text())["pad_token_id"] is None
    assert theirs(tmp_path / "rm", "right", 1) == pytest.approx(ours(tmp_path / "rm"), abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_a_scorer_from_outside_is_read_where_the_library_reads_it(kind, tmp_path, caplog):
    """It was trained so. The token before the end is read, and the log says so once."""
    folder = from_outside(tmp_path / "rm", kind)
    expected = theirs(folder, "right", 1)
    assert len({round(score, 4) for score in expected}) == len(ITEMS)
    for side in ("right", "left"):
        assert theirs(folder, side, 4) == pytest.approx(expected, abs=1e-4), side
    assert ours(folder) == pytest.approx(expected, abs=1e-4)
    (told,) = [record.getMessage() for record in caplog.records if "pad token" in record.getMessage()]
    assert "a conversation ends with '<eos>'" in told and "read at the token before" in told


def test_stages_and_servers_read_it_there_too(tmp_path):
    """As they load it: with conversations, and with ids, which may end with several of these tokens."""
    folder = from_outside(tmp_path / "rm")
    scorer = load_scorer_of(ModelSource(kind="path", name=str(folder)), folder)
    assert isinstance(scorer, ModelScorer)
    expected = theirs(folder, "right", 1)
    assert scorer.score(ITEMS) == pytest.approx(expected, abs=1e-4)
    ids = [list(scorer.sequence(*item).ids) for item in ITEMS]
    end = tiny_tokenizer().eos_token_id
    assert scorer.score_ids([[*each, end, end] for each in ids]) == pytest.approx(expected, abs=1e-4)
    with torch.no_grad():
        library = scorer.model.net(torch.tensor([[end, end]])).logits[0].tolist()
    assert scorer.score_ids([[end, end]]) == pytest.approx(library, abs=1e-4)


def test_a_copy_of_it_is_read_there_too(tmp_path):
    """A new pad token would make the library read the copy at the end."""
    folder = from_outside(tmp_path / "rm")
    save_model(read_from(folder), tmp_path / "copy")
    expected = theirs(folder, "right", 1)
    assert theirs(tmp_path / "copy", "right", 4) == pytest.approx(expected, abs=1e-4)
    assert ours(tmp_path / "copy") == pytest.approx(expected, abs=1e-4)


def test_a_model_that_reads_its_pad_token_is_refused(tmp_path):
    """Its class does not follow the library's rule, so togi cannot know which token it reads."""
    model = read_from(from_outside(tmp_path / "rm"))

    class LlamaForSequenceClassification(type(model.net)):
        def forward(self, input_ids, **given):
            hidden = self.model(input_ids=input_ids, **given).last_hidden_state
            return SimpleNamespace(logits=self.score(hidden)[:, -1])

    model.net.__class__ = LlamaForSequenceClassification
    with pytest.raises(InputError, match="gives scores"):
        check_scalar_head(model)
