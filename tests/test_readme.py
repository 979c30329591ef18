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
def test_the_python_example_runs(monkeypatch, capsys):
    english, chinese = (re.findall(r"```python\n(.*?)```", text_of(name), re.S) for name in READMES)
    assert english == chinese and len(english) == 1
    monkeypatch.chdir(ROOT)
    exec(compile(english[0], "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 3 and lines[0].startswith("He put his hand in his pocket and took out ")


@pytest.mark.skipif(not HAS_MODEL, reason="the embedded model is not in this clone")
def test_the_transcript_is_what_comes_out():
    """Prompts come back as typed, and the words shown are among the beams: any of them, for rounding may say which of
    two comes first. Sampled words are not compared: a processor that rounds in another way may draw others."""
    import commands.generate as command
    import glm
    from generation import fill_blanks
    from generation.blanks import split
    from generation.session import QUERY

    english, chinese = (re.search(r"TRANSCRIPT: begin -->\n```\n(.*?)\n```\n<!-- TRANSCRIPT: end", text_of(name),
                                  re.S)[1] for name in READMES)
    assert english == chinese
    head, *turns = english.split(QUERY)
    (line,) = re.findall(r"^\$ bash scripts/generate.sh (.*)$", head, re.M)
    options = command.options_of(command.parser().parse_args(line.split()))
    by_beams = []
    for turn in turns:
        typed, shown = turn.rstrip("\n").partition("\n")[::2]
        if typed.startswith("/set "):
            _, name, value = typed.split()
            options = options.with_text(name, value)
            assert shown == f"{name} = {value}"
        elif typed != "stop" and options.strategy == "BeamSearchStrategy":
            by_beams.append((typed, shown, options.params))
        elif typed != "stop":
            stretches = re.escape(typed).replace(re.escape("[sMASK]"), "(.+)")
            assert re.fullmatch(stretches, shown)
    assert len(by_beams) >= 4 and len({params for _, _, params in by_beams}) == 1
    loaded = glm.load(ROOT / "checkpoints" / "glm-small", dtype="float32")
    assert all(split(typed, loaded[1]).num_blanks == 1 for typed, _, _ in by_beams)
    results = fill_blanks(*loaded, [typed for typed, _, _ in by_beams], by_beams[0][2])
    for (_, shown, _), result in zip(by_beams, results, strict=True):
        assert shown in [beam.text for beam in result.beams]


def test_both_readmes_show_the_same_numbers_and_commands():
    """A figure or a command that was changed in one must be changed in the other."""
    blocks = [re.findall(r"^ *```bash\n(.*?)```", text_of(name), re.S | re.M) for name in READMES]
    commands = [[re.sub(r" +# .*", "", line).strip() for block in one for line in block.splitlines()] for one in blocks]
    assert commands[0] == commands[1]
    tables = [re.findall(r"^\| \d × .*", text_of(name), re.M) for name in READMES]
    assert tables[0] == tables[1] and len(tables[0]) >= 6
