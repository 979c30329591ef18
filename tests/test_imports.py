"""The rules of the house: who imports whom, what happens at import, and what no file may hold."""

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# each imports only what is left of it
FLOORS = ["runtime", "kernels", "quantization", "glm", "planning", "generation", "evaluation", "tasks", "doctor",
          "serving", "tuning", "tools", "commands"]
ON_TOP = ["scripts", "tests"]
PROGRAMS = ("tools", "commands")  # parse arguments and print
ENTRY_LINES = 8  # of a file that starts a command, and may import it from above
SAT_FILES = {"glm/sat.py", "runtime/parallel.py"}
TEXT_SUFFIXES = {".py", ".sh", ".md", ".toml", ".txt", ".json", ".yaml", ".yml", ".cpp", ".h", ".cu", ".cff", ""}


def repository_files():
    """Paths relative to the root: what git tracks or would track; all files in a downloaded archive, without git."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode == 0:
        return sorted(name for name in set(listed.stdout.splitlines()) if (ROOT / name).is_file())
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    hidden = re.compile(r"(^|/)(\.(?!ci/|gitignore)|__pycache__/|outputs/)")
    return sorted(str(path) for path in files if not hidden.search(str(path)))


FILES = repository_files()
SOURCES = [name for name in FILES if name.endswith(".py")]
HOUSE = [name for name in SOURCES if name.split("/")[0] in FLOORS]
STARTED_BY_PATH = ["tools/convert_tp.py", "tools/verify_checkpoint.py"]
ENTRIES = [name for name in HOUSE if name.endswith("/__main__.py") or name in STARTED_BY_PATH]
LIBRARY = [name for name in HOUSE if name.split("/")[0] not in PROGRAMS and name not in ENTRIES]


@functools.cache
def tree_of(name):
    return ast.parse((ROOT / name).read_text(encoding="utf-8"), name)


def imported_packages(name):
    """Top-level names of all imports in a file, lazy ones included."""
    found = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: imports are absolute here"
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("name", [name for name in HOUSE if name not in ENTRIES])
def test_imports_go_one_way(name):
    floor = FLOORS.index(name.split("/")[0])
    assert not imported_packages(name) & {*FLOORS[floor + 1 :], *ON_TOP}


@pytest.mark.parametrize("name", ENTRIES)
def test_entry_files_only_start_a_command(name):
    """`python -m generation` needs a file in generation/; it is the only kind that imports from a floor above."""
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= ENTRY_LINES
    assert imported_packages(name) - set(sys.stdlib_module_names) <= {"commands", "runtime"}


def test_sat_is_imported_in_two_files_only():
    users = {name for name in SOURCES if "sat" in imported_packages(name) and not name.startswith("tests/")}
    assert users <= SAT_FILES


def test_tools_and_scripts_import_no_tests():
    for name in SOURCES:
        if name.startswith(("tools/", "scripts/")):
            assert "tests" not in imported_packages(name), name


@pytest.mark.parametrize("name", LIBRARY)
def test_importing_only_defines_names(name):
    """At top level: a docstring, imports, definitions and constants; no calls for their effect, no loops."""
    imports = (ast.Import, ast.ImportFrom)
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If, ast.Try)
    for node in tree_of(name).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        quiet_imports = isinstance(node, ast.With) and all(isinstance(inner, imports) for inner in node.body)
        assert docstring or quiet_imports or isinstance(node, imports + definitions), (
            f"{name}:{node.lineno}: a statement runs at import"
        )


@pytest.mark.parametrize("name", LIBRARY)
def test_only_entry_points_parse_arguments_and_print(name):
    """Diagnostics on standard error are allowed; standard output belongs to commands and tools."""
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            prints = isinstance(node.func, ast.Name) and called == "print"
            to_stderr = any(keyword.arg == "file" for keyword in node.keywords)
            assert called != "ArgumentParser", f"{name}:{node.lineno}"
            assert not prints or to_stderr, f"{name}:{node.lineno}"


@pytest.mark.parametrize("name", ENTRIES)
def test_help_does_not_wait_for_torch(name):
    package = name.removesuffix("/__main__.py")
    how = (f"run_path({name!r}, run_name='__main__')" if name in STARTED_BY_PATH else
           f"run_module({package!r}, run_name='__main__', alter_sys=True)")
    program = (
        "import runpy, sys\n"
        f"sys.argv = [{package!r}, '--help']\n"
        "try:\n"
        f"    runpy.{how}\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "heavy = {'torch', 'sat', 'deepspeed', 'numpy', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize("name", [name for name in SOURCES if re.fullmatch(r"tools/\w+\.py", name)
                                  and "CommandParser" in (ROOT / name).read_text(encoding="utf-8")])
def test_tools_start_from_any_folder(name, tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([sys.executable, str(ROOT / name), "--help"], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr


def test_our_kernels_are_found():
    import kernels  # also the name of a published package

    assert Path(kernels.__file__).resolve() == ROOT / "kernels" / "__init__.py"


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".py", ".sh"))])
def test_no_file_is_over_300_lines(name):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 300


def test_limits_in_seconds_only_guard_tests_against_hanging():
    """So they are so long that no machine, however slow and busy, comes near them; no test may fail by the clock."""
    tests = [name for name in SOURCES if name.startswith("tests/")]
    short = [f"{name}:{node.lineno}" for name in tests for node in ast.walk(tree_of(name))
             if isinstance(node, ast.keyword) and node.arg in ("timeout", "deadline")
             and isinstance(node.value, ast.Constant) and node.value.value is not None and node.value.value < 600]
    assert not short


def test_no_path_of_a_builder_s_machine():
    """A path that exists on one machine only must not get into the code, the documents or the configurations."""
    homes = re.compile(r"(?<![\w.~}$])/(?:work|root|home|farm|Users)/\w+")
    for name in FILES:
        path = ROOT / name
        if path.suffix in TEXT_SUFFIXES and "golden" not in path.parts:
            found = homes.search(path.read_text(encoding="utf-8", errors="replace"))
            assert not found, f"{name}: {found.group()}"


def test_everything_imported_is_declared():
    """Every third-party package that a file imports has its line in requirements.txt; a few are optional."""
    package_of = {"yaml": "pyyaml", "sklearn": "scikit-learn", "sat": "swissarmytransformer", "google": "protobuf"}
    optional = {"apex", "setuptools", "playwright", "llama_cpp", "gguf", "openvino", "nncf", "optimum", "psutil",
                "tensorboardX", "tensorboard", "openvino_genai", "lm_eval"}
    declared = {
        re.match(r"[\w-]+", line).group().lower()
        for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if re.match(r"\w", line)
    }
    ours = {*FLOORS, *ON_TOP}
    for name in SOURCES:
        foreign = imported_packages(name) - set(sys.stdlib_module_names) - ours - optional
        siblings = {path.stem for path in (ROOT / name).parent.glob("*.py")}
        undeclared = {package_of.get(package, package.replace("_", "-")) for package in foreign - siblings} - declared
        assert not undeclared, f"{name}: {undeclared}"
