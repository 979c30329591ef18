"""Whether a checkpoint is whole (commands/convert.py); runs from any folder, without an installation."""
import os, sys  # noqa: E401, I001

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
from commands.convert import verify
from runtime.program import run

run(verify)
