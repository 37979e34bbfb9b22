"""Every error that togi raises on purpose.

    TogiError                     exit code
      RecipeError                 2   a recipe, a key, a reference or a command line that cannot be used
      InputError                  3   data, a file or a model that does not fit
        DamagedFile               3   a file of togi's own that is empty, cut, or not as it was written
      StageError                  4   a stage that cannot go on (loss not finite, no sample passes a gate, disk full)
        GraderError               4   one answer that could not be graded; a reward counts it instead of ending
      Fault                       1   an exception in a worker that nobody expected
      WorkerDied                  5   the worker process ended without saying why (out of memory, killed)
      Interrupted                 130 stopped by Ctrl-C or SIGTERM; everything finished is saved
        OutputClosed              141 what reads the output has left (`togi list | head -1`)

A message says where (file:line or dotted key), what was found, what is allowed and what to do. Any other exception is
a fault of togi's own: it ends with exit code 1 and a traceback in the log. One in a worker is told to the parent, where
it is a Fault.
"""


class TogiError(Exception):
    """Root of the errors that are shown to the user without a traceback."""

    exit_code = 1


class RecipeError(TogiError):
    """A recipe, a setting, a reference or a command line that cannot be used."""

    exit_code = 2


class InputError(TogiError):
    """Data, a file or a model that does not fit what reads it."""

    exit_code = 3


class DamagedFile(InputError):
    """A file that togi wrote, or reads as JSON, is empty, cut, or not as it was written."""


class StageError(TogiError):
    """A stage that cannot go on; what it finished is saved."""

    exit_code = 4


class GraderError(StageError):
    """One answer could not be graded. A failure, never a zero: the sample leaves its group and is counted."""


class Fault(TogiError):
    """An exception in a worker that nobody expected; its traceback is in the worker's log."""

    exit_code = 1


class WorkerDied(TogiError):
    """The worker process ended without a message."""

    exit_code = 5


class Interrupted(TogiError):
    """Stopped by a signal at a point from which the same command goes on."""

    exit_code = 130


class OutputClosed(Interrupted):
    """What reads the output has left, as `head` does; a shell shows 141 for what such a pipe ends."""

    exit_code = 141


_ALL = (RecipeError, InputError, DamagedFile, StageError, GraderError, WorkerDied, Interrupted, OutputClosed)
ERRORS = {cls.__name__: cls for cls in _ALL}
