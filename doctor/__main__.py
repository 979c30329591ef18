"""python -m glm doctor: is everything here that a run needs, and does it work?"""

from commands.doctor import main
from runtime.program import run

if __name__ == "__main__":
    run(main)
