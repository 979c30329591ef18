"""python -m glm COMMAND: what concerns a model and a machine before anything is run."""

from commands.main import main
from runtime.program import run

if __name__ == "__main__":
    run(main)
