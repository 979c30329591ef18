"""python -m evaluation: score a model on tasks."""

from commands.evaluate import main
from runtime.program import run

if __name__ == "__main__":
    run(main)
