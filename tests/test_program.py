"""What surrounds every program: any locale, standard streams that are closed, full or unread, no docstrings."""

import os
import pty
import re
import subprocess
import sys

import pytest

from commands.generate import parser as generation_parser
from runtime.arguments import nearest_flag
from runtime.program import encoding_of
from tests.test_imports import ROOT, SOURCES

PROGRAM = """
import sys
from runtime.program import run

def main():
    print("said: 名字 \\udcff")
    print("complained", file=sys.stderr)
    print("read:", sys.stdin.read(), file=sys.stderr)
    with open("名字.txt", "w") as file:
        file.write(f"{file.fileno() > 2} {sys.argv[1:]}")
    return 3

run(main)
"""
# what users start: a package, or a file of tools/ that takes arguments
ENTRIES = {name: name.partition("/")[0] if name.endswith("/__main__.py") else name for name in SOURCES
           if name.endswith("/__main__.py")
           or (re.fullmatch(r"tools/\w+\.py", name) and "Parser(" in (ROOT / name).read_text(encoding="utf-8"))}


def shell(folder, command, **environment):
    """bash -c; PROGRAM is in program.py."""
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    python = f"{sys.executable} program.py 参数"
    return subprocess.run(["bash", "-c", command.replace("PROGRAM", python)], cwd=folder, capture_output=True,
                          encoding="utf-8", timeout=600, env={**os.environ, "PYTHONPATH": str(ROOT), **environment})


@pytest.mark.parametrize("command, code, out, err", [
    ("PROGRAM", 3, "said: 名字 ?\n", "complained\nread: \n"),
    ("echo 中 | PROGRAM", 3, "said: 名字 ?\n", "complained\nread: 中\n\n"),
    ("PROGRAM >&-", 3, "", "complained\nread: \n"), ("PROGRAM 2>&-", 3, "said: 名字 ?\n", ""),
    ("PROGRAM <&-", 3, "said: 名字 ?\n", "complained\nread: \n"), ("PROGRAM <&- >&- 2>&-", 3, "", ""),
    ("PROGRAM | true; exit ${PIPESTATUS[0]}", 3, "", "complained\nread: \n"),
    ("PROGRAM > /dev/full", 3, "", "complained\nread: \nerror: standard output: No space left on device\n"),
    ("PROGRAM 2> /dev/full", 3, "said: 名字 ?\n", ""),
])
@pytest.mark.parametrize("environment", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_no_locale_and_no_stream_disturbs_the_work(tmp_path, command, code, out, err, environment):
    if "PROGRAM <" not in command and "echo" not in command:
        command = command.replace("PROGRAM", "PROGRAM < /dev/null")
    done = shell(tmp_path, command, **environment)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)
    assert (tmp_path / "名字.txt").read_text(encoding="utf-8") == "True ['参数']"


def test_output_that_is_lost_is_an_error_though_the_work_is_done(tmp_path):
    program = "from runtime.program import run; run(lambda: print('said'))"
    done = shell(tmp_path, f'{sys.executable} -c "{program}" > /dev/full')
    assert (done.returncode, done.stderr) == (2, "error: standard output: No space left on device\n")


@pytest.mark.parametrize("name, shown, noted", [
    ("ISO-8859-1", "caf\xe9 ?".encode("latin-1"), True), ("UTF-8", "café 中".encode(), False),
    ("ANSI_X3.4-1968", "café 中".encode(), False), ("no-such-encoding", "café 中".encode(), False),
])
def test_a_terminal_is_written_to_in_its_own_encoding_and_that_is_said(name, shown, noted):
    program = (f"import locale; locale.nl_langinfo = lambda _: {name!r}\n"
               "from runtime.program import run; run(lambda: print('caf\\xe9 \\u4e2d'))")
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", program], stdin=subprocess.DEVNULL, stdout=theirs, timeout=600,
                          stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert os.read(ours, 100).rstrip() == shown
    os.close(ours), os.close(theirs)
    assert ("note: by its locale this terminal is not UTF-8 but iso8859-1:" in done.stderr) == noted, done.stderr
    assert done.stderr.count("\n") == noted


def test_what_is_no_terminal_has_the_encoding_of_its_stream(tmp_path):
    with (tmp_path / "file").open("w", encoding="latin-1") as file:
        assert encoding_of(file) == "iso8859-1"


@pytest.mark.parametrize("name", ENTRIES)
def test_every_program_is_run_so(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.search(r"\n    run\(main\)\n$", text)


@pytest.mark.parametrize("program", [["-m", "glm", "plan"], ["tools/verify_checkpoint.py", "checkpoints/glm-small"]])
def test_a_python_without_the_requirements(program):
    done = subprocess.run([sys.executable, "-S", "-E", *program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: \w+ is not installed for this Python, {re.escape(sys.executable)}; .*\n", done.stderr)


def test_every_program_has_help_without_docstrings():
    """python -OO keeps none."""
    program = ("import runpy, sys\n"
               "for entry in sys.argv[1:]:\n"
               "    is_module = '/' not in entry\n"
               "    sys.argv = [entry, '--help']\n"
               "    try:\n"
               "        (runpy.run_module if is_module else runpy.run_path)(entry, run_name='__main__')\n"
               "    except SystemExit as end:\n"
               "        assert not end.code, entry\n"
               "assert not __doc__ and not runpy.__doc__\n")
    entries = list(ENTRIES.values())
    done = subprocess.run([sys.executable, "-OO", "-c", program, *entries], cwd=ROOT, capture_output=True, text=True,
                          timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(entries) >= 15


@pytest.mark.parametrize("words", [["compare"], ["plan"], ["doctor"], ["report"]])
def test_so_has_every_command_of_a_program(words):
    module = {"compare": "evaluation", "report": "quantization"}.get(words[0], "glm")
    done = subprocess.run([sys.executable, "-OO", "-m", module, *words, "--help"], cwd=ROOT, capture_output=True,
                          text=True, timeout=600)
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr


@pytest.mark.parametrize("module, named", [("glm", "generate, .*, quantization"), ("quantization", "report")])
def test_a_program_that_needs_a_command_names_those_that_it_has(module, named):
    done = subprocess.run([sys.executable, "-m", module], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and re.fullmatch(f"error: no command was named; there (is|are): {named}\n", done.stderr)


@pytest.mark.parametrize("name", [name for name in ENTRIES if name.startswith("tools/")])
def test_every_tool_reads_its_flags_the_same_way(name):
    assert "argparse.ArgumentParser(" not in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("word, flag", [
    ("--tempreature", "--temperature"), ("--out-seq-len", "--out-seq-length"), ("--batch", "--batch-size"),
    ("--layers", "--num-layers"), ("--tokenizer", "--tokenizer-path"), ("--num-fewshot", None), ("--num-gpus", None),
    ("--checkpoint", None), ("--", None),
])
def test_a_flag_that_does_not_exist_gets_a_near_one_or_none(word, flag):
    known = [name for action in generation_parser()._actions for name in action.option_strings
             if name != "--tokenizer-type"]
    assert nearest_flag(word, known) == flag


def test_a_flag_that_help_does_not_list_is_not_advised(capsys):
    with pytest.raises(SystemExit):
        generation_parser().parse_args(["--tokenizer_typ", "x"])
    assert "--tokenizer-type" not in capsys.readouterr().err


def test_torch_s_warnings_do_not_bury_the_line_that_says_what_is_wrong():
    """A process that is ended while it waits for the others would print its stack otherwise."""
    code = "import os; from runtime.program import run; run(lambda: print(os.environ['TORCH_CPP_LOG_LEVEL']))"
    for said, level in (({}, "ERROR"), ({"TORCH_CPP_LOG_LEVEL": "INFO"}, "INFO")):
        environment = {name: text for name, text in os.environ.items() if name != "TORCH_CPP_LOG_LEVEL"} | said
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert (done.stdout, done.stderr, done.returncode) == (f"{level}\n", "", 0)
