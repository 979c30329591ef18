"""python -m generation: fill blanks and write text, in a session or for a file of prompts."""

from commands.generate import main
from runtime.program import run

if __name__ == "__main__":
    run(main)
