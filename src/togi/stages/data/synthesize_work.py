"""The work of `synthesize`: one plan per method; harvest_work runs all of them."""

from collections.abc import Callable, Iterator

from togi.core.records import Message
from togi.model.forest import Sequence
from togi.stages.context import Context
from togi.stages.data import continued_work, instructed_work, texts_work
from togi.stages.data.harvest_work import Plan, fits_context, harvest
from togi.stages.data.synthesize import Synthesize
from togi.stages.data.synthesize_rows import params_of
from togi.stages.rehearsal_work import Rehearsed, prompt_rows, weightless

Asked = tuple[Message, ...] | str
PLANS: dict[str, Callable[[Synthesize, Context], Plan]] = {
    "few_shot": continued_work.few_shot,
    "magpie": continued_work.magpie,
    "evolve": instructed_work.instructed,
    "rewrite": instructed_work.instructed,
    "cot": instructed_work.instructed,
    "qa": texts_work.qa,
    "grounded": texts_work.grounded,
}
ASKED: dict[str, Callable[[Synthesize, Context], Iterator[tuple[str, Asked]]]] = {
    "evolve": instructed_work.rehearsed,
    "rewrite": instructed_work.rehearsed,
    "cot": instructed_work.rehearsed,
    "qa": texts_work.rehearsed,
    "grounded": texts_work.rehearsed,
}
"""For methods that ask in conversations: what they will ask first, with the id of the source record."""


def run(settings: Synthesize, context: Context) -> None:
    harvest(settings, context, PLANS[settings.method](settings, context))


def rehearse(settings: Synthesize, context: Context) -> Iterator[Rehearsed]:
    """Yields what the model is shown first, without conversations that do not fit its context: those will be
    dropped."""
    model, most = weightless(context, settings.model), params_of(settings).max_tokens
    if settings.method in ASKED:
        fits = fits_context(settings, context)
        shown: list[tuple[str, Asked]] = [each for each in ASKED[settings.method](settings, context) if fits(each[1])]
    else:
        shown = list(continued_work.rehearsed(settings, context, model))
    conversations = [(name, asked) for name, asked in shown if not isinstance(asked, str)]
    yield from prompt_rows(context, model, conversations, most)
    for name, text in shown:
        if isinstance(text, str):
            ids = tuple(model.tokenizer(text, add_special_tokens=True)["input_ids"])
            yield Rehearsed(name, model, (Sequence(ids, (False,) * len(ids)),), most)
