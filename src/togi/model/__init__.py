"""Models: loading, saving, adapters, forests, log-probabilities, rewards. The import warns about untested libraries."""

import logging

from togi.model.versions import warn_if_untested

# bitsandbytes, which peft imports, logs at every start what it lacks; this keeps that out of the logs of workers
logging.getLogger("bitsandbytes").addHandler(logging.NullHandler())

warn_if_untested()
