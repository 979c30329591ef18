"""Things found by their names: in a table, or by a dotted path to a class or function of the user's own."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from runtime import show
from runtime.errors import UserError

MOST_PARTS = 10  # of a dotted name, of which any may be too many


def nearest(name: str, known) -> str:
    """", did you mean 'x'?" for the known name most like this one, small and capital letters alike; else ""."""
    close = show.nearest(name, known)
    return f", did you mean {close!r}?" if close else ""


def lookup(table: Mapping[str, Any], name: str, what: str, where: str) -> Any:
    """table[name]; UserError "where: unknown <what> 'name', did you mean ...? known: ..." if it is not there."""
    if name in table:
        return table[name]
    raise UserError(f"{where}: unknown {what} {name!r}{nearest(name, table)} (known: {', '.join(table)})")


def import_dotted(name: str, folder: str | Path, where: str = "") -> Any:
    """The class, function or other object that a dotted path names, such as "tasks.lambada.task.LAMBADA".

    folder: of the file that names it; "my_task.MyTask" is looked for in folder/my_task.py first, then among all
    that Python can import. where: begins the message of the UserError if there is none, or if importing it fails.
    """
    begin = f"{where}: " if where else ""
    parts = name.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UserError(f"{begin}{name!r} is no dotted path; write module.Name, such as tasks.lambada.task.LAMBADA")
    *module_parts, attribute = parts
    file = Path(folder, *module_parts).with_suffix(".py")
    module = None
    try:
        module = _from_file(file) if os.path.isfile(file) else importlib.import_module(".".join(module_parts))
        return getattr(module, attribute)
    except AttributeError as error:
        if module is None:
            raise UserError(f"{begin}{_import_fault(name, Path(folder), file, module_parts, error)}") from error
        public = [other for other in vars(module) if not other.startswith("_")]
        source = getattr(module, "__file__", None) or module.__name__
        raise UserError(f"{begin}{source} has no {attribute!r}{nearest(attribute, public)}") from None
    except (Exception, SystemExit) as error:  # whatever a user's module does when it runs
        raise UserError(f"{begin}{_import_fault(name, Path(folder), file, module_parts, error)}") from error


def _import_fault(name: str, folder: Path, file: Path, module_parts: list[str], error: BaseException) -> str:
    module = ".".join(module_parts)
    is_unknown = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
    if is_unknown and not os.path.isfile(file):
        there = _shorter(folder, module_parts)
        hint = f"; {there[0]} is there: write {there[1]}.{name.rpartition('.')[2]}" if there else ""
        return f"{name}: there is neither a file {file} nor a module {module}{hint}"
    lacking = (getattr(error, "name", None) or "").split(".") if isinstance(error, ModuleNotFoundError) else []
    there = _shorter(file.parent, lacking)
    hint = f"; {there[0]} is there: import it as {there[1]}" if there else ""
    source = file if os.path.isfile(file) else ".".join(module_parts)
    return f"{name}: importing {source} failed: {type(error).__name__}: {error}{hint}"


def _shorter(folder: Path, parts: list[str]) -> tuple[Path, str] | None:
    """The file of a module in a folder that was named with the folder's own name, or more, before it: `tasks.mine`
    where mine.py is beside the task file, and `tasks` is a package of this toolkit. With the name that finds it."""
    for begin in range(1, min(len(parts), MOST_PARTS)):
        file = folder.joinpath(*parts[begin:]).with_suffix(".py")
        if os.path.isfile(file):
            return file, ".".join(parts[begin:])
    return None


def _from_file(file: Path) -> ModuleType:
    """The module of a file outside the import path; run once. It may import the files beside it by their names."""
    file = file.resolve()
    name = f"_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(file.parent))
    return module
