"""What a result was computed from, as SHA-256 of contents: weights, vocabulary, code, task and data files.

An answer of the model is kept under a key made of these (`Keys`). Whatever changes an answer changes its key, so a kept
answer is either the right one or not found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from runtime import hashing
from runtime.errors import UserError
from runtime.files import REPOSITORY

CODE_PACKAGES = ("runtime", "kernels", "quantization", "glm", "generation", "evaluation", "tasks")
CODE_SUFFIXES = (".py", ".cpp", ".h", ".cu")


def hash_file(path: Path) -> str:
    """Raises UserError for a file that cannot be read."""
    try:
        return hashing.hash_file(path, "sha256").partition(":")[2]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def hash_files(paths: Sequence[Path]) -> list[str]:
    """Of many files at once, in order."""
    return hashing.in_threads(hash_file, paths)


def combined(named: Iterable[tuple[str, str]]) -> str:
    """One hash of files that belong together: of their names and hashes."""
    lines = "".join(f"{name}\0{digest}\n" for name, digest in named)
    return hashlib.sha256(lines.encode()).hexdigest()


def checkpoint_facts(folder: Path) -> dict[str, str]:
    """path, iteration and sha256 (of all shards) of the checkpoint that `latest` names."""
    from glm.checkpoint import find_shards

    shards = find_shards(folder)
    digest = combined(zip((path.name for path in shards), hash_files(shards), strict=True))
    return {"path": str(folder), "iteration": shards[0].parent.name, "sha256": digest}


def hash_code(root: Path = REPOSITORY) -> str:
    """Of every source file below the packages that a result depends on; root: the repository."""
    files = sorted(path for package in CODE_PACKAGES for path in (root / package).rglob("*")
                   if path.suffix in CODE_SUFFIXES and path.is_file())
    return combined(zip((path.relative_to(root).as_posix() for path in files), hash_files(files), strict=True))


def hash_json(value: object) -> str:
    """Of a value that JSON can hold; tuples count as lists."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Keys:
    """Keys of answers. facts: everything that an answer depends on but the question (weights, dtype, code, ...)."""

    def __init__(self, facts: Mapping[str, object]):
        self._base = hash_json(dict(facts))

    def of(self, question: str) -> str:
        """The key of the answer to a question, which is given by its hash (hash_request)."""
        return hash_json([self._base, question])


def hash_request(request) -> str:
    """Of all that makes an evaluation.requests.Request the question that it is."""
    return hash_json(request.content())
