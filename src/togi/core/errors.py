"""The errors that togi raises.

    TogiError                     exit code
      RecipeError                 2   a recipe, a key, a reference or a command line that cannot be used
      InputError                  3   data, a file or a model that cannot be used
        RecordError               3   one record that cannot be used
        DamagedFile               3   one of togi's own files is empty, truncated or changed
      StageError                  4   a stage that cannot continue (loss not finite, no sample passes a gate, disk full)
        GraderError               4   one answer that could not be graded; a reward counts it and continues
      Fault                       1   an unexpected exception in a worker: a bug in togi
      WorkerDied                  5   the worker process ended without a message (out of memory, killed)
      Interrupted                 130 stopped by Ctrl-C or SIGTERM; everything finished is saved
        OutputClosed              141 the reader of the output has closed it (`togi list | head -1`)

A message states the location (file:line or dotted key), what was found, what is allowed and what to do. Any other
exception is a bug in togi: it gives exit code 1 and a traceback in the log. A worker reports it to the parent as a
Fault.
"""


class TogiError(Exception):
    """Base of the errors that are shown to the user without a traceback."""

    exit_code = 1


class RecipeError(TogiError):
    """A recipe, a setting, a reference or a command line that cannot be used."""

    exit_code = 2


class InputError(TogiError):
    """Data, a file or a model that its reader cannot use."""

    exit_code = 3


class RecordError(InputError):
    """A record that cannot be used; `record` is its id. Other processes see it as an InputError."""

    def __init__(self, message: str, record: str) -> None:
        super().__init__(message)
        self.record = record


class DamagedFile(InputError):
    """A file that togi wrote, or reads as JSON, is empty, truncated or changed."""


class StageError(TogiError):
    """A stage that cannot continue; its finished work is saved."""

    exit_code = 4


class GraderError(StageError):
    """One answer could not be graded. This is a failure, never a score of 0: the sample leaves its group and is
    counted."""


class Fault(TogiError):
    """An unexpected exception in a worker; its traceback is in the worker's log."""

    exit_code = 1


class WorkerDied(TogiError):
    """The worker process ended without a message."""

    exit_code = 5


class Interrupted(TogiError):
    """Stopped by a signal; the same command continues from here."""

    exit_code = 130


class OutputClosed(Interrupted):
    """The reader of the output has closed it, as `head` does. Shells report this as exit code 141."""

    exit_code = 141


_ALL = (RecipeError, InputError, DamagedFile, StageError, GraderError, Fault, WorkerDied, Interrupted, OutputClosed)
ERRORS = {cls.__name__: cls for cls in _ALL}
"""The errors that one process can report to another, by the name of their class."""


def kind_name(error: TogiError) -> str:
    """The name in `ERRORS` of an error's class or, for a class that is not there, of the nearest one above it."""
    return next((cls.__name__ for cls in type(error).__mro__ if cls.__name__ in ERRORS), Fault.__name__)
