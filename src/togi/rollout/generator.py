"""Answers prompts with the embedded sampler: renders prompts for it and returns text."""

from collections.abc import Iterator, Sequence

from torch import nn

from togi.core.errors import InputError, RecordError
from togi.core.protocols import Request, Tokenizer
from togi.core.records import Completion, Prompt, SamplingParams
from togi.core.seeds import derive
from togi.rollout.local import Sampler
from togi.text.render import render_prompt
from togi.text.template import Template


class ModelGenerator:
    """The `Generator` of a model in this process, under its chat template.

    Prompts are computed in fixed batches of at most `batch_rows` samples. Sample i of a prompt has the random stream
    `derive(params.seed, prompt.id, i)`, so an answer depends on its prompt and not on its position in the list. Errors
    call the model `name`.
    """

    def __init__(
        self, net: nn.Module, tokenizer: Tokenizer, template: Template, *, batch_rows: int = 64, name: str = ""
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.template = template
        self.sampler = Sampler(net, tokenizer, template.terminator, batch_rows=batch_rows)

    @property
    def terminator(self) -> str:
        """The text that ends an answer."""
        return self.template.terminator

    @property
    def turn_starts(self) -> tuple[str, ...]:
        """The texts that begin another turn; an answer must not continue past one."""
        return self.template.turn_starts

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[Completion]]:
        """`params.n` completions of each prompt, in order. Raises InputError for a prompt that does not fit."""
        ids = [self._rendered(prompt) for prompt in prompts]
        return self.sampler.generate(ids, params, [_seeds(prompt, params) for prompt in prompts])

    def _rendered(self, prompt: Prompt) -> list[int]:
        try:
            return render_prompt(self.template, self.tokenizer, prompt.messages)
        except InputError as error:
            model = f"model {self.name}: " if self.name else ""
            raise RecordError(f"prompt {prompt.id}: {model}{error}", prompt.id) from None

    def fits(self, prompt: Prompt, params: SamplingParams) -> bool:
        """Whether the model's context has room for a prompt and the longest answer to it."""
        length = len(self._rendered(prompt))
        return self.sampler.limit is None or length + params.max_tokens <= self.sampler.limit

    def stream(self, prompt: Prompt, params: SamplingParams) -> Iterator[str]:
        """Yields pieces of one answer as they become certain, without the terminator; several streams may be read
        alternately.

        Closing the iterator early cancels the answer. Raises InputError for a prompt that does not fit.
        """
        ids = render_prompt(self.template, self.tokenizer, prompt.messages)
        seeds = tuple(_seeds(prompt, params))
        request = self.sampler.add(Request(prompt_ids=tuple(ids), params=params, seeds=seeds, stream=True))
        try:
            for event in self.sampler.events(request):
                if event.index == 0 and event.text:
                    yield event.text
        finally:
            self.sampler.cancel(request)


def _seeds(prompt: Prompt, params: SamplingParams) -> list[int]:
    return [derive(params.seed, prompt.id, index) for index in range(params.n)]
