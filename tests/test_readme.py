"""What the readmes say is so: links lead somewhere, every argument is listed, the Python example runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
READMES = ["README.md", "README_zh.md"]
ARGUMENTS = ["docs/arguments.md", "docs/arguments_zh.md"]
DOCUMENTS = READMES + [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/*.md"))]
HAS_MODEL = (ROOT / "checkpoints" / "glm-small" / "latest").exists()


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text_of(name)):
        if HAS_MODEL or not target.startswith("checkpoints/"):
            assert ((ROOT / name).parent / target).exists(), target


@pytest.fixture(scope="module")
def flags():
    """The arguments that `--help` of generation and evaluation shows, but for --help itself."""
    found = set()
    for module in ("generation", "evaluation"):
        command = [sys.executable, "-m", module, "--help"]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600).stdout
        found |= set(re.findall(r"^ +(?:-\w, )?(--[a-z0-9-]+)", shown, re.M)) - {"--help"}
    return found


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument_is_listed(name, flags):
    """Once for each of the programs that it belongs to."""
    rows = re.findall(r"^\| (`.*?--.*?) \|", text_of(name), re.M)
    listed = [flag for row in rows for flag in re.findall(r"--[a-z0-9-]+", row)]
    assert set(listed) == set(flags)
    assert {flag for flag in listed if listed.count(flag) > 1} == {"--overwrite"}


@pytest.mark.skipif(not HAS_MODEL, reason="the embedded model is not in this clone")
@pytest.mark.parametrize("name", READMES)
def test_the_python_example_runs(name, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", text_of(name), re.S)
    monkeypatch.chdir(ROOT)
    exec(compile(example, name, "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 6


def test_both_readmes_show_the_same_numbers_and_commands():
    """A figure or a command that was changed in one must be changed in the other."""
    blocks = [re.findall(r"^ *```bash\n(.*?)```", text_of(name), re.S | re.M) for name in READMES]
    commands = [[re.sub(r" +# .*", "", line).strip() for block in one for line in block.splitlines()] for one in blocks]
    assert commands[0] == commands[1]
    tables = [re.findall(r"^\| \d × .*", text_of(name), re.M) for name in READMES]
    assert tables[0] == tables[1] and len(tables[0]) >= 6
