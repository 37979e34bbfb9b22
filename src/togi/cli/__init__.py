"""The command line: thin commands, each in a file that is imported only when the command is called."""

import difflib
import importlib
import io
import logging
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, NoReturn

import click

from togi import __version__
from togi.core.errors import Interrupted, OutputClosed, RecipeError, TogiError
from togi.core.extras import missing
from togi.core.terminal import PrintableFormatter, json_text, open_streams, say

WORK = ("init", "run", "plan", "check", "status", "show", "report", "list", "clean")
COMMANDS = (*WORK, "chat", "serve", "ground", "export", "push", "evaluate", "score", "compare", "trace", "schema")


OTHERS = {
    "runs": "list --runs",
    "stages": "list",
    "train": "run",
    "resume": "run",
    "eval": "evaluate",
    "logs": "status",
    "validate": "check",
    "upload": "push",
    "version": "--version",
    "help": "--help",
}
"""What some words of other tools are called here."""


class LazyGroup(click.Group):
    """A group whose commands live in `togi.cli.<name>`, as `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"togi.cli.{cmd_name}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds a command; the error for an unknown word names the one that was probably meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], (*OTHERS, *COMMANDS), n=1)
            if not near:
                raise
            meant = OTHERS.get(near[0], near[0])
            raise click.UsageError(f"{error.message} Did you mean `togi {meant}`?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in COMMANDS])

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:
        """Runs a command and exits with a code of the table. All errors are reported here."""
        open_streams()
        words = [*(sys.argv[1:] if args is None else args)]
        as_json = "--json" in words
        sys.excepthook = partial(_fault, as_json)
        try:
            _check_letters(words)
            code = super().main(words, prog_name, **{**extra, "standalone_mode": False})
        except (TogiError, click.ClickException, click.Abort) as error:
            code = _told(error, as_json)
        sys.exit(code or 0)

    def invoke(self, ctx: click.Context) -> Any:
        log = logging.getLogger("togi")  # slow work, such as converting weights, is logged to stderr
        log.handlers = [logging.StreamHandler()]
        log.handlers[0].setFormatter(PrintableFormatter())
        log.setLevel(logging.INFO)
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise missing(error) or error from None


def _check_letters(words: list[str]) -> None:
    """Raises RecipeError for words that are not valid UTF-8: no later code could write them."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise RecipeError(f"command line: {word!r}: not valid UTF-8") from None


def _told(error: TogiError | click.ClickException | click.Abort, as_json: bool) -> int:
    """Prints why a command ends, unless the reader of the output is gone. Returns the exit code."""
    if isinstance(error, click.Abort):
        error = Interrupted("interrupted")
    if isinstance(error, OutputClosed):
        return error.exit_code
    with suppress(TogiError):  # if standard output cannot be written, neither can this error
        if as_json:
            text = error.format_message() if isinstance(error, click.ClickException) else str(error)
            say(json_text({"error": type(error).__name__, "message": text, "exit": error.exit_code}))
            return error.exit_code
    with suppress(TogiError):
        if isinstance(error, click.ClickException):
            shown = io.StringIO()
            error.show(shown)
            say(shown.getvalue(), nl=False, err=True)
        else:
            say(f"togi: {error}", err=True)
    return error.exit_code


def _fault(as_json: bool, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Reports a bug in togi: a traceback, and with --json an error object too."""
    with suppress(TogiError):
        say("".join(traceback.format_exception(kind, error, trace)), nl=False, err=True)
        say("togi: this is a bug in togi; please report it with the lines above", err=True)
        if as_json:
            say(json_text({"error": kind.__name__, "message": str(error), "exit": 1}))


# The first lines of the commands' help, copied so that `togi --help` imports no command; a test compares them.
SUMMARIES = {
    "init": "Write a recipe for a model, data and a goal.",
    "run": "Do everything in a recipe that is not done yet.",
    "plan": "Show the graph, what is done, and the tokens, memory and time of the rest.",
    "check": "Preflight: keys, files, models, templates; show samples token by token.",
    "status": "Show the progress of a recipe's last run.",
    "show": "Show the output of a stage, or how many records every stage read, wrote and dropped.",
    "report": "Render a recipe's report again and print its path.",
    "list": "List stage types and their settings, and templates.",
    "clean": "Remove stored work that no run refers to.",
    "chat": "Talk to a model that a recipe trained or declares.",
    "export": "Write a model or data for other programs: safetensors, an adapter, GGUF, Parquet.",
    "push": "Publish an exported folder on a model hub.",
    "serve": "Serve models over HTTP, with OpenAI's API, until Ctrl-C or SIGTERM.",
    "ground": "Answer a question from documents, and name the relevant ones.",
    "evaluate": "Measure a model on benchmarks, or compute a benchmark's figures from stored verdicts and grades.",
    "score": "Score the answers in FILE with a reward model.",
    "compare": "Compare two models, or two runs, question by question.",
    "trace": "Show the history of a record: what made, changed, scored or dropped it.",
    "schema": "Print the JSON schema of recipes, for editors.",
}

EXIT_CODES = """\b
Exit codes:
  0    done
  1    a bug in togi; the log has a traceback
  2    the recipe, a key, a reference or the command line cannot be used
  3    data, a file or a model cannot be used
  4    a stage cannot continue
  5    the worker process died (out of memory, killed)
  6    compare --fail-if-worse: the second model is worse
  130  stopped by Ctrl-C or SIGTERM; everything finished is saved
  141  the reader of the output has closed it, as head does"""


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="togi")
def main() -> None:
    """togi takes a language model from base to aligned chat model: one recipe, one command, which you may kill at any
    time."""
