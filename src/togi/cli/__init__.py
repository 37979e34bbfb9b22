"""The command line: thin commands, each in a file that is imported when it is called."""

import importlib
import logging
import sys
from typing import Any

import click

from togi import __version__
from togi.core.errors import TogiError
from togi.core.extras import missing
from togi.core.terminal import PrintableFormatter, json_text, say

COMMANDS = ("run", "plan", "check", "status", "show", "report", "list", "clean", "chat")


class LazyGroup(click.Group):
    """A group whose commands live in `togi.cli.<name>`, as `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"togi.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in COMMANDS])

    def invoke(self, ctx: click.Context) -> Any:
        log = logging.getLogger("togi")  # what takes its time, such as converting weights, is said on stderr
        log.handlers = [logging.StreamHandler()]
        log.handlers[0].setFormatter(PrintableFormatter())
        log.setLevel(logging.INFO)
        try:
            return self._invoke(ctx)
        except TogiError as error:
            if "--json" in sys.argv:
                say(json_text({"error": type(error).__name__, "message": str(error), "exit": error.exit_code}))
            else:
                say(f"togi: {error}", err=True)
            ctx.exit(error.exit_code)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise missing(error) or error from None


# One line each, here and not in the commands, so that `togi --help` imports none of them; a test compares.
SUMMARIES = {
    "run": "Do everything in a recipe that is not done yet.",
    "plan": "Show the graph, what is done and what is left, and what that will take.",
    "check": "Preflight: keys, files, models, templates; show samples token by token.",
    "status": "Show how far a recipe's last run came.",
    "show": "Show what a stage made: records, metrics or a model.",
    "report": "Render a recipe's report again and print where it lies.",
    "list": "List stage types and their settings, and templates.",
    "clean": "Remove stored work that no recipe refers to.",
    "chat": "Talk to a model that a recipe trained or declares.",
}

EXIT_CODES = """\b
Exit codes:
  0    done
  1    a fault of togi's own; the log holds a traceback
  2    the recipe, a key, a reference or the command line cannot be used
  3    data, a file or a model does not fit
  4    a stage cannot go on
  5    the worker process died (out of memory, killed)
  130  stopped by Ctrl-C or SIGTERM; everything finished is saved"""


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="togi")
def main() -> None:
    """togi takes a language model from base to aligned chat model: one recipe, one command, killable anywhere."""
