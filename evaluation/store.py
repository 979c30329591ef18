"""The journal of a run: every answer of the model, kept as soon as it is there, under a key made of its contents.

A line of journal.jsonl is {"key": ..., "answer": ..., "crc32": ...}, floats in full precision, the checksum that of the
bytes before it. Whenever the process dies, all whole lines count; what is left of a torn one is cut off, and a damaged
one is as if it were not there.

A key is made of SHA-256 of contents: weights, vocabulary, code and question. Whatever changes an answer changes its
key, so a kept answer is either the right one or not found; lines of another run do no harm, and the first answer under
a key is the one that holds.
"""

from __future__ import annotations

import ast
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from runtime import hashing
from runtime.errors import UserError
from runtime.files import REPOSITORY, AppendOnlyFile

JOURNAL = "journal.jsonl"
GO_ON = "the same command goes on from here"
_CHECKSUM = b', "crc32": "'
CODE_PACKAGES = ("runtime", "kernels", "quantization", "glm", "generation", "evaluation", "tasks")
CODE_SUFFIXES = (".py", ".cpp", ".h", ".cu")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Journal:
    """Answers by key, in memory and in a file that only grows. A context manager: closes the file."""

    def __init__(self, path: Path):
        """Reads what is there. Raises UserError where the file cannot be read or written."""
        self.path = path
        self.answers: dict[str, dict] = {}
        try:
            self._file = AppendOnlyFile(path)
            self._file.cut(self._read())
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None

    def _read(self) -> int:
        """Fills `answers`; how many bytes of the file are whole lines."""
        whole = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    value = _checked(line)
                    self.answers.setdefault(value["key"], value["answer"])
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue  # whatever damaged this line: its answer is computed again
        return whole

    def __contains__(self, key: str) -> bool:
        return key in self.answers

    def __getitem__(self, key: str) -> dict:
        return self.answers[key]

    def add(self, answers: Iterable[tuple[str, dict]]) -> None:
        """Keep the answers whose keys are new. Raises UserError where the disk takes no more; the file stays whole."""
        new = {}
        for key, answer in answers:
            if key not in self.answers:
                new.setdefault(key, answer)
        data = b"".join(_line(key, answer) for key, answer in new.items())
        try:
            self._file.add(data)
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}; mend it, and {GO_ON}") from None
        self.answers |= new

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _line(key: str, answer: dict) -> bytes:
    content = json.dumps({"key": key, "answer": answer}, allow_nan=False).encode()[:-1]
    return content + _CHECKSUM + b'%08x"}\n' % zlib.crc32(content)


def _checked(line: bytes) -> dict:
    """Raises ValueError for a line that is not as it was written: one digit more or less would be another result."""
    content, _, end = line.rpartition(_CHECKSUM)
    if end != b'%08x"}\n' % zlib.crc32(content):
        raise ValueError("damaged")
    return json.loads(content + b"}")


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
    """path, iteration and sha256 (of all files) of a checkpoint."""
    from glm.checkpoint import open_checkpoint

    paths = open_checkpoint(folder).paths
    digest = combined(zip((path.name for path in paths), hash_files(paths), strict=True))
    return {"path": str(folder), "iteration": paths[0].parent.name, "sha256": digest}


def hash_code(root: Path = REPOSITORY) -> str:
    """Of every source file below the packages that a result depends on; root: the repository.

    Of Python what is compiled counts: a comment, a docstring or a line's break changes nothing.
    """
    files = sorted(path for package in CODE_PACKAGES for path in (root / package).rglob("*")
                   if path.suffix in CODE_SUFFIXES and path.is_file())
    return combined((path.relative_to(root).as_posix(), _hash_source(path)) for path in files)


def _hash_source(path: Path) -> str:
    try:
        return _hash_python(path.read_bytes()) if path.suffix == ".py" else hash_file(path)
    except (OSError, SyntaxError, ValueError):  # no Python that could be run, a user's unfinished task say
        return hash_file(path)


@cache
def _hash_python(source: bytes) -> str:
    return hashlib.sha256(ascii(_tree(ast.parse(source))).encode()).hexdigest()


def _tree(node: ast.AST) -> tuple:
    """A syntax tree as tuples, without docstrings. What is absent is left out: Python's versions differ in what they
    have a place for. Plain loops: a run hashes 300,000 nodes."""
    parts = [type(node).__name__]
    for name in node._fields:
        part = getattr(node, name, None)
        if isinstance(part, ast.AST):
            part = _tree(part)
        elif isinstance(part, list):
            if name == "body" and isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                part = part[1:]
            part = tuple([_tree(each) if isinstance(each, ast.AST) else each for each in part])
        if part is not None and part != ():
            parts.append((name, part))
    return tuple(parts)


def hash_json(value: object) -> str:
    """Of a value that JSON can hold; tuples count as lists."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def hash_request(request) -> str:
    """Of all that makes an evaluation.requests.Request the question that it is."""
    return hash_json(request.content())


def keys_of(facts: Mapping[str, object], questions: Iterable[str]) -> list[str]:
    """The keys of the answers to questions, which are given by their hashes (`hash_request`).

    facts: everything else that an answer depends on: weights, dtype, code, ...
    """
    base = hash_json(dict(facts))
    return [hash_json([base, question]) for question in questions]
