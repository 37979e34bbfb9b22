"""The published figures that togi ships are complete, name source and licence, and equal what the cards print."""

import pytest

from togi.core.errors import InputError
from togi.evaluate.published import published, tables


@pytest.mark.parametrize("name", list(tables()))
def test_every_table_says_where_it_comes_from_and_every_row_is_whole(name):
    table = tables()[name]
    assert table.source.startswith("https://") and table.licence and table.how
    assert table.rows and all(len(row.values) == len(table.metrics) for row in table.rows)
    assert len({row.model for row in table.rows}) == len(table.rows)


def test_figures_are_those_of_the_cards():
    arena = published("ru_arena_general")
    vikhr = arena.column("win rate")["vikhr-nemo-12b-instruct-r-21-09-24"]
    assert (vikhr.value, vikhr.low, vikhr.high) == (79.8, 77.6, 81.7)
    assert arena.column("mean tokens")["gpt-3.5-turbo-0125"].value == 220
    assert "180 of 500 questions leaked" in arena.rows[2].note
    assert published("mt_bench_ja").column("score")["llm-jp-3.1-13b-instruct4"].value == 7.37
    assert published("mt_bench_en").column("score")["llm-jp-3.1-13b-instruct4"].value == 7.01
    safe = published("answer_carefully")
    assert [safe.column(each.name)["llm-jp-3-8x13b-instruct3"].value for each in safe.metrics] == [4.48, 91.6, 4.3]
    assert published("helpsteer3_ja").column("accuracy")["cyberagent/ca-reward-3b-ja"].value == 0.7032
    assert published("llmjp_chatbot_arena").column("accuracy")["gpt-4o-2024-08-06"].value == 0.6842
    assert published("grounded_out_of_domain").column("correct")["Vikhr-Nemo-12B-Instruct-R-21-09-24"].value == 92
    assert published("grounded_in_domain").column("absolute index difference")["gpt-4o"].value is None


def test_an_unknown_table_is_named_with_those_there_are():
    with pytest.raises(InputError, match="found 'mt_bench_fr'; choose from ru_arena_general, "):
        published("mt_bench_fr")
