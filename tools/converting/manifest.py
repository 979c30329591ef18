"""What belongs to a checkpoint, file by file, as JSON beside `latest`: sizes, hashes, and where each tensor lies.

    {"format": "glm-checkpoint-manifest 1",
     "made_by": {...} or null,                                 the conversion, where it was one
     "files": {"49300/mp_rank_00_model_states.pt": {
                   "bytes": 123, "hash": "xxh3_128:...",       of the whole file, as `xxhsum -H2` prints it
                   "structure": "9b3c11a0",                    CRC-32 of all that is no tensor
                   "tensors": {NAME: "start bytes crc32"}}},   in bytes; the zip archive holds the same checksums
     "sha256": "..."}                                          of this text without this line's value

The hash says whether a file is what it was, the checksums say where it is not. A conversion keeps the same facts of
what it has finished, so that the same command goes on where a killed one ended:

    OUT/.converting/journal.json        the conversion (settings, identity of the input) and the finished shards
    OUT/.converting/lock                held while a process works on OUT
    OUT/.converting/<iteration>/...     shards, under their names once they are whole (Hugging Face's: shards/...)

At the end the iteration's folder is moved to OUT, `latest` is written, and OUT/.converting is removed. Until then OUT
has no `latest`, so nothing loads. Of Hugging Face's layout the shards are moved, and their index is written last.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from glm.checkpoint import CONVERTING, Region
from runtime.errors import UserError
from runtime.files import Lock, replacing
from runtime.reading import LARGE, NoSuchFile, read_json, read_text

NAME = "manifest.json"
FORMAT = "glm-checkpoint-manifest 1"
_JOURNAL, _LOCK, _SHARDS = "journal.json", "lock", "shards"
_IGNORED = {CONVERTING, "lost+found"}  # the second is in every new disk


class FileFacts(NamedTuple):
    """hash: "kind:digits". structure_crc32: None where the file is not divided into regions."""

    bytes: int
    hash: str
    regions: Sequence[Region] = ()
    structure_crc32: int | None = None


class Manifest(NamedTuple):
    """files: by their paths relative to the folder, with slashes."""

    files: Mapping[str, FileFacts]
    made_by: Mapping[str, object] | None = None


def facts_to_json(facts: FileFacts) -> dict[str, object]:
    value: dict[str, object] = {"bytes": facts.bytes, "hash": facts.hash}
    if facts.structure_crc32 is not None:
        value["structure"] = f"{facts.structure_crc32:08x}"
        value["tensors"] = {region.name: f"{region.start} {region.bytes} {region.crc32:08x}"
                            for region in facts.regions}
    return value


def facts_from_json(value: Mapping) -> FileFacts:
    """Raises ValueError, KeyError, TypeError or AttributeError for what facts_to_json does not write."""
    regions = []
    for name, text in value.get("tensors", {}).items():
        start, size, checksum = text.split(" ")
        regions.append(Region(name, int(start), int(size), int(checksum, 16)))
    ends = [(0, 0), *((region.start, region.start + region.bytes) for region in regions)]
    if any(start < end or size < start for (_, end), (start, size) in itertools.pairwise(ends)):
        raise ValueError("regions overlap")  # a file would be read again and again
    structure = int(value["structure"], 16) if "structure" in value else None
    return FileFacts(int(value["bytes"]), str(value["hash"]), regions, structure)


def write_manifest(path: Path, manifest: Manifest) -> None:
    with replacing(path) as temporary:
        temporary.write_text(_text(manifest), encoding="utf-8")


def read_manifest(path: Path) -> Manifest:
    """Raises UserError for a file that is missing, no manifest, or not as it was written."""
    try:
        text = read_text(path, LARGE, f"manifest {path}")
    except NoSuchFile:
        raise UserError(f"no manifest {path}; make one of a checkpoint that is known to be good: "
                        f"python tools/verify_checkpoint.py {path.parent} --write-manifest") from None
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise UserError(f"{path} has the format {content['format']!r}; allowed: {FORMAT!r}")
        manifest = Manifest({name: facts_from_json(value) for name, value in content["files"].items()},
                            content["made_by"])
        if outside := [name for name in manifest.files if not _is_inside(name)]:
            raise UserError(f"manifest {path} names {outside[0][:80]!r}, which is no file of its folder")
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"manifest {path} is damaged or no manifest: copy it again, or make a new one of a checkpoint "
                        "that is known to be good (--write-manifest)") from None
    if text != _text(manifest):
        raise UserError(f"manifest {path} is not as it was written: copy it again, or make a new one of a checkpoint "
                        "that is known to be good (--write-manifest)")
    return manifest


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _text(manifest: Manifest) -> str:
    content = {"format": FORMAT, "made_by": manifest.made_by,
               "files": {name: facts_to_json(facts) for name, facts in manifest.files.items()}, "sha256": ""}
    content["sha256"] = hashlib.sha256(_dump(content).encode()).hexdigest()
    return _dump(content)


def _dump(content: Mapping) -> str:
    return json.dumps(content, indent=1, ensure_ascii=True) + "\n"


class Journal:
    """Of one output folder; made by ``opened``. folder: of the shards in the output; "": they lie in it itself."""

    def __init__(self, output: Path, conversion: Mapping[str, object], folder: str, finished: dict[str, FileFacts]):
        self.output, self.conversion, self.finished = output, conversion, finished
        self._folder = output / CONVERTING
        self._final, self._unfinished = output / folder, self._folder / (folder or _SHARDS)

    @property
    def shards(self) -> Path:
        """Where shards are written: in the output's folder once that has been moved to its place."""
        return self._unfinished if self._final == self.output or not self._final.is_dir() else self._final

    def is_finished(self, name: str) -> bool:
        path = next((path for path in (self._final / name, self.shards / name) if path.is_file()), None)
        return name in self.finished and path is not None and path.stat().st_size == self.finished[name].bytes

    def finish(self, name: str, facts: FileFacts) -> None:
        self.finished[name] = facts
        self.write()

    def write(self) -> None:
        self.shards.mkdir(parents=True, exist_ok=True)
        value = {"conversion": self.conversion,
                 "finished": {name: facts_to_json(facts) for name, facts in self.finished.items()}}
        with replacing(self._folder / _JOURNAL) as temporary:
            _write_durably(temporary, json.dumps(value))

    def publish(self, last: Mapping[str, str]) -> None:
        """Everything is there: move the shards to their place, then say so. last: files that do, and their texts."""
        if self._final == self.output:
            for name in self.finished:
                if (self._unfinished / name).is_file():
                    os.rename(self._unfinished / name, self.output / name)
        elif not self._final.is_dir():
            os.rename(self._unfinished, self._final)
        sync_folder(self.output)
        for name, text in last.items():
            with replacing(self.output / name) as temporary:
                _write_durably(temporary, text)
        sync_folder(self.output)

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def is_whole(output: Path, conversion: Mapping[str, object]) -> bool:
    """Whether the output holds exactly this conversion, whole."""
    if not (output / NAME).is_file():
        return False
    try:
        manifest = read_manifest(output / NAME)
    except UserError:
        return False
    return manifest.made_by == conversion and all(
        (output / name).is_file() and (output / name).stat().st_size == facts.bytes
        for name, facts in manifest.files.items())


@contextlib.contextmanager
def opened(output: Path, conversion: Mapping[str, object], folder: str,
           flag: str = "--output-folder") -> Iterator[Journal]:
    """The journal of this conversion in the output folder, new or continued; no other process works on it meanwhile.

    folder: of the shards, as a Journal has it. flag: what the user named the output folder with.
    Raises UserError where the output folder holds something else.
    """
    _finished(output, conversion, flag)  # before anything is made in a folder that holds something else
    with Lock(output, flag, f"{CONVERTING}/{_LOCK}"):
        journal = Journal(output, conversion, folder, _finished(output, conversion, flag))  # nobody else changes it now
        for rest in journal.shards.glob(".*.tmp"):  # of a killed process; its bytes count as free
            rest.unlink()
        journal.write()
        try:
            yield journal
        except Exception:
            if not journal.finished:  # nothing to go on with: leave nothing behind
                journal.remove()
                with contextlib.suppress(OSError):
                    output.rmdir()
            raise


def _finished(output: Path, conversion: Mapping[str, object], flag: str) -> dict[str, FileFacts]:
    if output.exists() and not output.is_dir():
        raise UserError(f"{flag} {output} is a file; name a folder that does not exist yet")
    if output.is_symlink() and not output.exists():
        raise UserError(f"{flag} {output} is a link to {os.readlink(output)}, which does not exist; make that "
                        "folder or name another")
    if (output / CONVERTING).is_symlink():
        raise UserError(f"{flag} {output}: {CONVERTING} is a link, through which nothing is written; "
                        "remove it")
    journal = output / CONVERTING / _JOURNAL
    if not journal.is_file():
        found = sorted(path.name for path in output.iterdir() if path.name not in _IGNORED) if output.is_dir() else []
        if found:
            raise UserError(f"{flag} {output} holds {', '.join(found[:3])}{' ...' * (len(found) > 3)} "
                            "already; name a folder that does not exist yet, or is empty")
        return {}
    try:
        value = read_json(journal, LARGE)
        before, finished = dict(value["conversion"]), value["finished"]
        facts = {name: facts_from_json(entry) for name, entry in finished.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{journal} is damaged: delete the folder {output} and start again") from None
    differing = [key for key in {**conversion, **before} if (before.get(key) or None) != (conversion.get(key) or None)]
    if differing:
        key = differing[0]
        raise UserError(f"{flag} {output} holds an unfinished conversion with another {key} "
                        f"({_shown(before.get(key))}, now {_shown(conversion.get(key))}); repeat that command, name "
                        "another folder or delete this one")
    return facts


def _shown(value: object) -> str:
    return "files of another size or date" if isinstance(value, list | dict) else str(value)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """The names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
