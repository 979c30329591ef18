"""Does this interpreter meet requirements.txt? Standard library only, since it runs before anything is installed.

usage: python scripts/check_requirements.py requirements.txt

Exit code 0: yes. 1: packages are missing or out of bounds, named on standard output. 3: a Python that is not supported.
"""

import operator
import re
import sys
from importlib import metadata

OLDEST, NEWEST = (3, 10), (3, 12)
OPERATORS = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def release(version):
    """The numbers of a version, zeros at the end dropped: "2.13.0+cpu" -> (2, 13)."""
    numbers = [int(number) for number in re.match(r"\d+(?:\.\d+)*", version).group().split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def parse(line):
    """ "name>=1,<2  # why" -> ("name", [(">=", "1"), ("<", "2")]); None for a line without a requirement."""
    line = line.partition("#")[0].strip()
    if not line:
        return None
    name, bounds = re.fullmatch(r"([A-Za-z0-9._-]+)\s*(.*)", line).groups()
    return name, [re.fullmatch(r"\s*([=!<>]=|[<>])\s*([\w.+]+)\s*", bound).groups() for bound in bounds.split(",")]


def lacking(lines):
    """One text per requirement that is not met, e.g. "torch==2.13.0 (found 2.5.1)"."""
    result = []
    for requirement in filter(None, map(parse, lines)):
        name, bounds = requirement
        wanted = name + ",".join(sign + limit for sign, limit in bounds)
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            result.append(wanted)
            continue
        if not all(OPERATORS[sign](release(found), release(limit)) for sign, limit in bounds):
            result.append(f"{wanted} (found {found})")
    return result


def main(path):
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        return 3
    with open(path, encoding="utf-8") as file:
        missing = lacking(file)
    print("\n".join(missing))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
