"""python -m glm plan: what a run takes of memory and time, before it is started."""

from commands.plan import main
from runtime.program import run

if __name__ == "__main__":
    run(main)
