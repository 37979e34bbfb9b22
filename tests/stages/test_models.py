"""What stages load with a model."""

import subprocess
import sys


def test_loading_a_tokenizer_does_not_load_all_of_the_library():
    """A process that only tokenises would be twice as large, and return less memory."""
    units = "togi.model.load, togi.stages.training.examples_work, togi.stages.training.tokens_work"
    code = f"import sys, {units}; print('transformers.modeling_utils' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert found.stdout.strip() == "False"
