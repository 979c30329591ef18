"""Lengths of time as people say them."""


def duration(seconds: float) -> str:
    """0.004 s, 8.2 s, 43 s, 2 min 05 s, 3 h 07 min."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s" if seconds >= 0.095 else f"{seconds:.1g} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
