"""Numbers on the command lines of training, as types for argparse."""

import argparse
import math


def count(word: str) -> int:
    """A whole number above 0."""
    if (value := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a number of 1 or more")
    return value


def count_or_zero(word: str) -> int:
    if (value := int(word)) < 0:
        raise argparse.ArgumentTypeError(f"{word} is not a number of 0 or more")
    return value


def amount(word: str) -> float:
    """A finite number of 0 or more."""
    value = float(word)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{word} is not a number of 0 or more")
    return value


def share(word: str) -> float:
    """From 0 to 1."""
    value = float(word)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{word} is not a share, from 0 to 1")
    return value


def part(word: str) -> float:
    """A share that is neither nothing nor all."""
    value = float(word)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a share, above 0 and below 1")
    return value
