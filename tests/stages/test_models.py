"""What stages load with a model."""

import subprocess
import sys


def test_loading_a_tokenizer_does_not_load_all_of_the_library():
    """Data stages tokenise in processes of their own, which would be twice as large."""
    code = "import sys, togi.stages.models as _; print('transformers.modeling_utils' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert found.stdout.strip() == "False"
