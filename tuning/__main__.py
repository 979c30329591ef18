"""python -m tuning: see what a model is given, score it, train it, merge what was trained."""

from commands.tuning import main
from runtime.program import run

if __name__ == "__main__":
    run(main)
