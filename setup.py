"""A wheel is the toolkit as an application: one package, glm_toolkit, with the whole tree inside. An editable install
is the clone itself, as pyproject.toml says."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TREE = ("runtime", "kernels", "quantization", "glm", "planning", "generation", "evaluation", "tasks", "doctor",
        "serving", "tuning", "tools", "commands", "scripts", "configs", "checkpoints",
        "requirements.txt", "LICENSE", "MODEL_LICENSE")
PACKAGE = "glm_toolkit"


class build_one_package(build_py):
    def run(self):
        if self.editable_mode:
            return super().run()
        target = Path(self.build_lib) / PACKAGE
        shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        for name in TREE:
            if Path(name).is_dir():
                shutil.copytree(name, target / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"),
                                dirs_exist_ok=True)
            else:
                shutil.copy(name, target / "tree" / name)
        return None


setup(cmdclass={"build_py": build_one_package})
