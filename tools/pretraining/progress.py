"""What a training says while it runs: a line now and then, by time, since a step takes milliseconds or minutes."""

import time
from collections.abc import Callable, Mapping

from runtime.show import SECONDS_BETWEEN_LINES, duration


class Lines:
    """steps: when the run ends. tokens: of a step. after() gives the line that is due after a step, or None."""

    def __init__(self, step: int, steps: int, tokens: int, clock: Callable[[], float] = time.monotonic):
        self._begin = self._last = step
        self._steps, self._tokens, self._clock = steps, tokens, clock
        self._then = clock()

    def after(self, step: int, loss: float, held_out: Mapping[str, float] | None = None) -> str | None:
        """The first step has a line at once: from it one sees what the others will take; so has one with losses of
        held-out text, by name."""
        now = self._clock()
        if not held_out and step > self._begin + 1 and now - self._then < SECONDS_BETWEEN_LINES:
            return None
        speed = (step - self._last) / max(now - self._then, 1e-9)
        self._last, self._then = step, now
        also = "".join(f", {name} {value:.3f}" for name, value in (held_out or {}).items())
        return (f"step {step} of {self._steps}: loss {loss:.3f}, {speed * self._tokens:,.0f} tokens/s, "
                f"{duration((self._steps - step) / speed)} left"
                + (f"; held out: {also[2:]}" if also else ""))
