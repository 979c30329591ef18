"""Generation: blank filling and free text, greedy, sampled or by beam search."""

from __future__ import annotations

__all__ = ["BeamParams", "Result", "SamplingParams", "chat", "fill_blanks", "generate"]

_HOME = {"BeamParams": "params", "SamplingParams": "params", "fill_blanks": "fill", "Result": "blanks",
         "generate": "batch", "chat": "chatting"}


def __getattr__(name: str):
    """Import on first use: `python -m generation --help` must not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"generation.{_HOME[name]}"), name)
