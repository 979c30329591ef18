"""Where compiled kernels are kept between runs, for all backends."""

import os
import tempfile
from pathlib import Path


class BuildError(RuntimeError):
    """Kernels could not be compiled or loaded; the message is one line."""


def cache_folder() -> Path:
    """$GLM_KERNEL_CACHE, else a folder in the user's cache."""
    if chosen := os.environ.get("GLM_KERNEL_CACHE"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glm-kernels"
    except RuntimeError as error:  # a user without a home
        raise BuildError("no folder to keep the compiled library in; set GLM_KERNEL_CACHE") from error


def keep(name: str, content: bytes) -> None:
    """Write a file of the cache folder whole or not at all; processes that write the same one do not disturb each
    other. Raises OSError."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as scratch:
        try:
            scratch.write(content)
            scratch.close()
            os.replace(scratch.name, folder / name)
        except OSError:
            Path(scratch.name).unlink(missing_ok=True)
            raise
