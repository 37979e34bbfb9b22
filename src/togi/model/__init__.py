"""Models: loading, saving, adapters, forests, log-probabilities, rewards. Importing it warns of untested libraries."""

import logging

from togi.model.versions import warn_if_untested

# bitsandbytes, which peft imports, tells at every start what it has not got; a worker writes it into its log
logging.getLogger("bitsandbytes").addHandler(logging.NullHandler())

warn_if_untested()
