"""python -m quantization report: what INT8 and INT4 change in a model, measured."""

from commands.quantization import main
from runtime.program import run

if __name__ == "__main__":
    run(main)
