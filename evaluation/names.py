"""What task files name: metrics, and classes and functions of a user's own by dotted paths; and calls of that code.

Whatever goes wrong in it is one line that says where: the exception and the last line of the user's file that was
reached, or what a method should have returned.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from evaluation.metrics import METRICS, Metric, mean
from runtime import show
from runtime.errors import UserError, shown
from runtime.files import REPOSITORY

MOST_PARTS = 10  # of a dotted name, of which any may be too many
OURS = ("runtime", "kernels", "quantization", "glm", "planning", "generation", "evaluation", "commands")  # not tasks/


def nearest(name: str, known) -> str:
    """", did you mean 'x'?" for the known name most like this one, small and capital letters alike; else ""."""
    close = show.nearest(name, known)
    return f", did you mean {close!r}?" if close else ""


def find_metric(name: str, folder: str | Path, extra: Mapping[str, Metric], task_type: str, where: str) -> Metric:
    """The metric that a task file names.

    name: of METRICS or of `extra` (a task class's own), or the dotted path of a Metric, or of a function item -> number
    whose mean is the figure. folder: the task file's, where a dotted path is looked for first.
    Raises UserError, beginning with `where`, for an unknown name and for a metric of another type of task.
    """
    if "." in name:
        return _own_metric(name, import_dotted(name, folder, where), where)
    known = {**METRICS, **extra}
    if name not in known:
        raise UserError(f"{where}: unknown metric {name!r}{nearest(name, known)} (known: {', '.join(known)})")
    metric = known[name]
    if task_type not in metric.types:
        fitting = [other for other, each in METRICS.items() if task_type in each.types]
        raise UserError(f"{where}: {name} is no metric of {task_type} tasks (those are {', '.join(fitting)})")
    return metric


def _own_metric(name: str, found: Any, where: str) -> Metric:
    if isinstance(found, Metric):
        return found
    if isinstance(found, type) or not callable(found):
        raise UserError(f"{where}: {name} must be an evaluation.metrics.Metric or a function that makes a number of an "
                        "item")
    return Metric(name, lambda item: (found(item), 1.0), mean)


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


def check_class(task: type, where: str) -> None:
    """Of a class of one's own, what is read before anything of it is called."""
    names, more = getattr(task, "default_metrics", None), getattr(task, "extra_metrics", {})
    if names is not None and not (isinstance(names, list | tuple) and all(isinstance(each, str) for each in names)):
        raise UserError(f"{where}: default_metrics: must be a tuple such as ('Accuracy',), is {shown(names)}")
    if not (isinstance(more, Mapping) and all(isinstance(each, Metric) for each in more.values())):
        raise UserError(f"{where}: extra_metrics: must map names to evaluation.metrics.Metric, is {shown(more)}")


@contextlib.contextmanager
def calling(config, where: str) -> Iterator[None]:
    """The block calls methods that the class of the task `config` may have as its own. where: begins the message.

    Raises UserError for any exception that comes out of a user's file, or out of anywhere for a class of one's own.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        place = _place(error, is_any=config.module is not None)
        if place is None:  # a fault of this toolkit
            raise
        raise UserError(f"{where}: {type(error).__name__}: {error} ({place})") from error


def _place(error: BaseException, is_any: bool) -> str | None:
    """The last line in a file that is neither ours nor a library's; is_any: if there is none, the last one at all."""
    frames = traceback.extract_tb(error.__traceback__)
    others = [*(str(REPOSITORY / package) for package in OURS), *sysconfig.get_paths().values()]
    own = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(folder) for folder in others)]
    if not own and not is_any:
        return None
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}, in {frame.name}"


def returned(value: Any, is_right: bool, method: Callable, what: str, where: str) -> Any:
    """The value, if it is what a method must return. Raises UserError naming the method and where it is written."""
    if is_right:
        return value
    found = "nothing" if value is None else f"a value of the type {type(value).__name__}"
    code = inspect.unwrap(getattr(method, "__func__", method)).__code__
    raise UserError(f"{where}: {method.__qualname__} must return {what}; it returned {found} "
                    f"({code.co_filename}:{code.co_firstlineno})")


def called(config, where: str, what: str, is_right: Callable[[Any], bool], method: Callable, *arguments: Any) -> Any:
    """What a method that the class of a task may have as its own returns: `what`, of which is_right is true. Raises
    UserError as `calling` and `returned` do."""
    with calling(config, where):
        value = method(*arguments)
    return returned(value, is_right(value), method, what, where)


def is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(each, kind) for each in value)


def is_mapping_to(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) and fits(each) for key, each in value.items())
