"""python -m serving: an OpenAI-compatible server."""

from commands.serve import main
from runtime.program import run

if __name__ == "__main__":
    run(main)
