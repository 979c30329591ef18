"""What the fuzz tests (test_fuzz_*.py) share: how many inputs, what may come of one, and what no input may do.

The ordinary run tries a few inputs of every kind, the same every time. FUZZ_EXAMPLES=5000 tries so many of each, new
ones every time; FUZZ_COUNTS=FILE appends how many inputs each kind had.
"""

import atexit
import collections
import contextlib
import json
import os
import re
import resource
import signal
from pathlib import Path

import hypothesis
from hypothesis import strategies as st

from runtime.errors import UserError

ASKED = os.environ.get("FUZZ_EXAMPLES")
SECONDS = 120  # that one input may take; a busy machine has its pauses
MEMORY = 2_000_000_000  # bytes by which one input may raise the process's peak
LONGEST = 6000  # characters of a fault's line
TRIED = collections.Counter()
REFUSED = collections.Counter()
CANARY = "FUZZ_CANARY_WAS_RUN"  # set in the environment by every piece of code that an input tries to get run

texts = st.text(st.characters(), max_size=200)  # all of Unicode, halves of surrogate pairs too
names = st.sampled_from(
    [
        "../x", "/etc/passwd", "..", ".", "", "a/../../b", "~", "\\..\\x", "con", "a" * 300, "\u202e..", "\ud800",
        "a\nb", "a\x00b",
        "\x1b[31m",
        ".hidden", "x/", "//", "%2e%2e%2f", "’", "．．/x",
    ]
)
numbers = st.one_of(
    st.integers(-3, 3), st.integers(), st.sampled_from([2**31, 2**63, -(2**63), 10**30, 10**400, True]), st.floats(),
    st.sampled_from([1e308, 5e-324]),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts, names),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)

hostile_json = st.sampled_from(
    [  # what JSON's reader stumbles over
        "[" * 100_000,
        '{"a":' * 100_000, "1" * 5000, "-" + "1" * 5000 + ".5e" + "9" * 30, "NaN", "Infinity", "1e999", "", " ",
        "\ufeff{}", "{}", "[]", "null", "true", '"a"', "0", '{"a": 1, "a": 2}', '{"\\ud800": "\\udc00"}', "\x00", "{",
        '{"tasks": ' + "[" * 2000 + "]" * 2000 + "}",
    ]
)

# beginnings of files that people have in the place of ours
disguises = st.sampled_from(
    [
        b"version https://git-lfs.github.com/spec/v1\n", b"\x1f\x8b\x08", b"PK\x03\x04", b"BZh9", b"\xfd7zXZ\0",
        b"\x28\xb5\x2f\xfd", b"PAR1", b"ARROW1\0\0", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\xff\xfe\0\0",
        b"a\0b\0", b"<!DOCTYPE html>", b"\n<html", b"\x10\0\0\0\0\0\0\0{\"", b"\x80\x02", b"\r\n", b"\x00",
    ]
)


def fuzz(examples: int, **strategies):
    """given(...) with `examples` inputs, or as many as FUZZ_EXAMPLES says, in proportion to 100."""
    count = examples if ASKED is None else max(1, int(ASKED) * examples // 100)
    settings = hypothesis.settings(
        max_examples=count,
        derandomize=ASKED is None,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    def decorate(test):
        return settings(hypothesis.given(**strategies)(test))

    return decorate


@contextlib.contextmanager
def only_user_errors(kind: str):
    """The block may raise UserError with one line for each fault, and nothing else; it ends in time, in little memory,
    and runs no code of the input. Yields a list that holds the message if there was one."""
    TRIED[kind] += 1
    messages = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield messages
    except UserError as error:
        messages.append(str(error))
        REFUSED[kind] += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert CANARY not in os.environ, "code of the input was run"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY, f"the input took {grown} bytes of memory"
    for message in messages:
        is_message(message)


def is_message(message: str) -> None:
    """What UserError promises: something is said, a line for each fault, nothing that a terminal would obey."""
    assert message.strip()
    for line in message.split("\nerror: "):
        assert line.strip() and len(line) < LONGEST
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202e\ud800-\udfff]", line), repr(line)


def _late(*_):
    raise TimeoutError(f"the input took more than {SECONDS} s")


def mutated(original: bytes):
    """Strategy: the bytes with parts changed, cut out, doubled, put in, or cut off at the end."""
    place = st.integers(0, len(original))
    change = st.tuples(st.sampled_from("xcdit"), place, st.integers(1, 40), st.binary(min_size=1, max_size=8))
    return st.lists(change, min_size=1, max_size=4).map(lambda changes: _changed(original, changes))


def _changed(data: bytes, changes) -> bytes:
    for what, place, size, new in changes:
        place = min(place, len(data))
        if what == "x":
            data = data[:place] + new + data[place + len(new) :]
        elif what == "c":
            data = data[:place] + data[place + size :]
        elif what == "d":
            data = data[:place] + data[place : place + size] + data[place:]
        elif what == "i":
            data = data[:place] + new + data[place:]
        else:
            data = data[:place]
    return data


def changed_json(value, draw):
    """The JSON value with one or two of its parts replaced, removed, renamed or given again."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 2))):
        parts = list(_parts(value))
        if not parts:
            break
        holder, key = draw(st.sampled_from(parts))
        if draw(st.integers(0, 5)) == 0:
            del holder[key]
        elif isinstance(holder, dict) and draw(st.integers(0, 3)) == 0:
            holder[draw(st.one_of(names, texts))] = holder.pop(key)
        else:
            holder[key] = draw(json_values)
    return value


def _parts(value):
    """(container, key) of everything inside."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, inner in items:
        yield value, key
        yield from _parts(inner)


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


@atexit.register
def _count() -> None:
    if os.environ.get("FUZZ_COUNTS") and TRIED:
        with open(os.environ["FUZZ_COUNTS"], "a", encoding="utf-8") as file:
            for kind, count in sorted(TRIED.items()):
                file.write(json.dumps({"kind": kind, "tried": count, "refused": REFUSED[kind]}) + "\n")
