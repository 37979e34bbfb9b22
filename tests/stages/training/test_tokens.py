"""Training reads tokens from disk, which are made once, with the same examples, order and bits as from memory."""

from dataclasses import replace

import pytest
from tiny_pairs import bare_context, pair

from togi.core.errors import DamagedFile, StageError
from togi.core.settings import PairsRef
from togi.model.forest import num_tokens
from togi.recipe.pool import PoolShards
from togi.stages.models import load_trainable
from togi.stages.shards import do_shard
from togi.stages.training import dpo_work, tokenising_work
from togi.stages.training.dpo import TrainDpo
from togi.stages.training.example_work import Example
from togi.stages.training.examples_work import Data
from togi.stages.training.fit_work import fit
from togi.stages.training.pairs_work import PairToExample, read_pairs
from togi.stages.training.reference_work import with_reference
from togi.stages.training.token_files_work import TokenFile
from togi.stages.training.token_writer_work import TokenWriter
from togi.stages.training.tokens_work import tokenised

PAIRS = [pair(f"Question {i % 9}?", f"Yes, {'it is ' * (i % 4)}.", f"No, {i}.", f"p{i}") for i in range(20)]
EMPTY = pair("Question?", "", "No.", "empty")


def settings(**more) -> TrainDpo:
    given = {"type": "train.dpo", "init": "$base", "pairs": "$pairs", "batch_size": 4, "learning_rate": 1e-2}
    return TrainDpo.model_validate({**given, **more})


def border(context, made=None) -> PairToExample:
    made = made or settings()
    return PairToExample(settings=made, context=context, model=load_trainable(context, made.init, made))


def examples(made, records=PAIRS) -> list[Example]:
    found = [made(record) for record in records]
    assert all(isinstance(each, Example) for each in found)
    return found


def tokens_of(context, made) -> TokenFile:
    return tokenised(made.settings, context, PairsRef("$pairs"), made)


def test_what_is_read_is_what_the_records_become(tmp_path):
    context = bare_context(tmp_path, [*PAIRS, EMPTY])
    made = border(context)
    file = tokens_of(context, made)
    expected = examples(made)
    assert [(each.id, each.group, each.margin) for each in file] == [(e.id, e.group, e.margin) for e in expected]
    assert file.column("size").tolist() == [num_tokens(e.group) for e in expected]
    assert file.column("scored").tolist() == [sum(sum(side.scored) for side in e.group) for e in expected]
    alike = [[one.prompt == other.prompt for other in file] for one in file]
    assert alike == [[one.prompt == other.prompt for other in expected] for one in expected]
    assert [(drop.id, drop.reason) for drop in context.drops] == [("empty", "empty_answer")]


def test_weights_trained_from_the_disk_are_those_trained_from_memory(tmp_path):
    weights = []
    for place in ("disk", "memory"):
        context = replace(bare_context(tmp_path, PAIRS), folder=tmp_path / place)
        context.folder.mkdir()
        made = border(context)
        data = read_pairs(made.settings, context, made)
        if place == "memory":
            data = Data(examples(made))
        task = dpo_work.DpoTask(settings(), context, made.model, data)
        task.data = with_reference(context, task, 4096)
        fit(made.settings, context, made.model, task)
        weights.append({name: value.clone() for name, value in made.model.net.state_dict().items()})
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_a_second_stage_and_a_second_start_tokenise_nothing(tmp_path, monkeypatch):
    context = bare_context(tmp_path, [*PAIRS, EMPTY])
    first = read_pairs(settings(overflow="truncate", max_length=24, max_prompt_length=12), context, border(context))
    monkeypatch.setattr(PairToExample, "__call__", lambda self, pair: pytest.fail("a record was tokenised again"))
    again = replace(bare_context(tmp_path, [*PAIRS, EMPTY]), counts={})
    second = read_pairs(settings(overflow="truncate", max_length=24, max_prompt_length=12), again, border(again))
    assert [each.group for each in second.training] == [each.group for each in first.training]
    assert again.counts == context.counts and list(again.drops) == list(context.drops)
    assert (second.warnings, second.system) == (first.warnings, first.system)
    assert again.lineage() == context.lineage()


@pytest.mark.parametrize("name", ["ids.bin", "rows.bin", "marks.bin", "drops.jsonl"])
def test_a_file_that_is_cut_is_told_and_made_again(tmp_path, name):
    context = bare_context(tmp_path, [*PAIRS, EMPTY])
    whole = tokens_of(context, border(context))
    content = (whole.folder / name).read_bytes()
    (whole.folder / name).write_bytes(content[:-3])
    with pytest.raises(DamagedFile, match=f"{name}: .* truncated: found {len(content) - 3} bytes, {len(content)} "):
        TokenFile(whole.folder)
    told = []
    context.control.send = lambda event: told.append(event.get("message", ""))
    again = tokens_of(context, border(context))
    assert any("tokenised data is truncated" in line and "Tokenising again" in line for line in told)
    assert (again.folder / name).read_bytes() == content


def test_the_tokens_of_other_settings_are_never_taken_for_these(tmp_path):
    context = bare_context(tmp_path, PAIRS)
    ours = tokens_of(context, border(context))
    other = tokens_of(context, border(context, settings(max_length=64)))
    assert other.folder != ours.folder
    for path in other.folder.iterdir():
        (ours.folder / path.name).write_bytes(path.read_bytes())
    told = []
    context.control.send = lambda event: told.append(event.get("message", ""))
    tokens_of(context, border(context))
    assert any("of other records, another tokenizer or other settings" in line for line in told)


@pytest.mark.parametrize(("vocabulary", "most"), [(1 << 16, 2.5), (1 << 17, 4.5)])
def test_a_token_takes_few_bytes_of_the_disk(tmp_path, vocabulary, most):
    context = bare_context(tmp_path, [pair("Why? " * 60, "It is so. " * 60, "No. " * 60, "p")])
    example = examples(border(context), [pair("Why? " * 10, "It is so. " * 10, "No. " * 10, "p")])[0]
    writer = TokenWriter(tmp_path, vocabulary)
    for _ in range(500):
        writer.add(example)
    writer.finish({})
    taken = sum(path.stat().st_size for path in tmp_path.glob("*.bin"))
    assert taken / writer.tokens < most and len(TokenFile(tmp_path)[499].group[0].ids) == len(example.group[0].ids)


def test_processes_of_a_pool_write_the_bytes_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenising_work, "SHARD_ROWS", 8)
    pool = PoolShards(2)
    contents, counts = [], []
    for place in ("alone", "pool"):
        context = bare_context(tmp_path / place, [*PAIRS[:15], EMPTY, *PAIRS[15:]])
        made = border(context, settings(overflow="truncate", max_length=24, max_prompt_length=12))
        if place == "pool":
            context.shards = pool
            context.leaving.callback(pool.close)
        with context.leaving:
            folder = tokens_of(context, made).folder
        contents.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
        counts.append((made.counts, list(context.drops)))
    assert contents[0] == contents[1] and counts[0] == counts[1] and len(counts[0][1]) == 1
    assert len(pool.processes) == 2


def test_another_tokenizer_in_the_pool_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenising_work, "SHARD_ROWS", 8)
    context = bare_context(tmp_path, PAIRS)
    made = border(context)
    context.shards = InThisProcess()
    made.model.tokenizer.add_tokens(["a word that the file of the tokenizer lacks"])
    with pytest.raises(StageError, match="a worker process read a different tokenizer or template"):
        tokens_of(context, made)
    assert not list(context.cache.glob("*tokens-*"))


class InThisProcess(PoolShards):
    """Processes shards as a pool process does, but in this process."""

    def __init__(self) -> None:
        super().__init__(1)

    def values(self, tasks):
        return map(do_shard, tasks)
