"""The doctor's command line: exit codes, one line for each finding, JSON, no secrets; and its documents."""

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from commands import doctor as command
from doctor import finding
from doctor.finding import FINDINGS, Finding, exit_code
from tests.golden_data import SHAPE, TOKENIZER, TP1

ROOT = Path(__file__).resolve().parent.parent
MODEL = ["--load", str(TP1), "--tokenizer-path", str(TOKENIZER / "ice_text.model"), "--fp32", "--device", "cpu",
         *(f"--{name}={value}" for name, value in SHAPE.items())]
CLEAN = {name: value for name, value in os.environ.items()
         if name not in ("CONFIG", "CHECKPOINT_PATH", "MP_SIZE", "DATA_PATH", "HOST_FILE_PATH", "MASTER_PORT")}


def doctor(*words, python=(sys.executable,), cwd=ROOT, **environment):
    return subprocess.run([*python, "-m", "doctor", *words], cwd=cwd, capture_output=True, text=True, timeout=600,
                          env={**CLEAN, "PYTHONPATH": str(ROOT), **environment})


def test_a_healthy_machine(tmp_path):
    """Whatever else this machine lacks: nothing is wrong with the packages or the model."""
    done = doctor(*MODEL, "--json", MY_TOKEN="s3cret")
    report = json.loads(done.stdout)
    of_the_machine = {"compiler", "cpu-kernels", "kernel-cache", "disk", "working-folder", "torch-without-cuda", "busy",
                      "cpu-quota"}
    assert not {one["code"] for one in report["findings"]} - of_the_machine
    assert done.returncode == report["exit_code"] == exit_code(Finding(**one) for one in report["findings"])
    assert report["facts"]["stages"]["headers"] == {"bits": 0, "tensors": 55}
    assert report["facts"]["machine"]["cores"] >= 1 and report["all_reduce"] is None
    assert "s3cret" not in done.stdout and done.stderr == ""


def test_many_faults_at_once_have_a_line_each(tmp_path):
    (tmp_path / "mine.sh").write_text("CHECKPOINT_PATH=/no/checkpoint\nMP_SIZE=0\nMODEL_ARGS=(--modle glm-130b)\n")
    (tmp_path / "tasks.yaml").write_text("name: x\ntyp: gen\n")
    done = doctor("tasks.yaml", cwd=tmp_path, CONFIG="mine.sh", DATA_PATH="/no/data", MY_TOKEN="s3cret",
                  GLM_KERNEL_CACHE="/proc/none")
    assert done.returncode == 2 and done.stderr == "" and "s3cret" not in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith(("error: ", "warning: "))]
    codes = {line.rpartition("[")[2].rstrip("]") for line in lines}
    assert codes >= {"config-arguments", "mp-size", "checkpoint", "data-path", "task-file", "kernel-cache"}
    assert "MODEL_ARGS in mine.sh: unknown argument '--modle'; did you mean --mode" in done.stdout
    assert all("; mend it: " in line for line in lines)
    errors, warnings = (sum(line.startswith(level) for line in lines) for level in ("error", "warning"))
    assert re.search(rf"^{errors} errors, {warnings} warning", done.stdout, re.M)


def test_memory_that_does_not_suffice(tmp_path):
    """GLM-130B's shape beside a small file: no machine of these tests holds it."""
    (tmp_path / "49300").mkdir()
    (tmp_path / "latest").write_text("49300")
    (tmp_path / "49300" / "mp_rank_00_model_states.pt").write_bytes(b"")
    done = doctor("--load", str(tmp_path), "--model", "glm-130b", "--device", "cpu", "--fp32")
    assert done.returncode == 2
    (line,) = [line for line in done.stdout.splitlines() if line.endswith("[memory]")]
    assert "the configured model does not fit: " in line and "--offload-memory-limit" in line
    assert "[checkpoint-headers]" in done.stdout  # and the file is none


def test_without_any_package_the_doctor_runs_all_the_same(tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    done = doctor(*MODEL, python=(str(tmp_path / "bare" / "bin" / "python"),))
    assert done.returncode == 2, done.stderr
    names = re.findall(r"^\w", (ROOT / "requirements.txt").read_text(), re.M)
    codes = {line.rpartition("[")[2] for line in done.stdout.splitlines() if line.startswith("error")}
    assert done.stdout.count("[requirement]") == len(names) and codes == {"requirement]"}  # and nothing in its wake


def test_several_processes_are_joined():
    done = doctor(*MODEL, "--rank-seconds", "600", MP_SIZE="2")
    assert re.search(r"^all-reduce of 2 ranks over gloo: \d[\d.]* GB/s$", done.stdout, re.M), done.stdout
    assert "[checkpoint-degree]" not in done.stdout and done.returncode < 2  # each takes its part of the only file


@pytest.mark.parametrize("words, environment, message", [
    (["--hostfil", "x"], {}, "error: unknown argument '--hostfil'; did you mean --hostfile?"),
    (["--rank-seconds", "soon"], {}, "'soon' is not a number of seconds"),
    ([], {"MASTER_PORT": "99999"}, "error: MASTER_PORT=99999: must be a port, 1 to 65535")])
def test_mistakes_on_the_command_line(words, environment, message):
    done = doctor(*words, **environment)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_a_hostfile_with_a_mistake(tmp_path):
    (tmp_path / "hosts").write_text("a slots=1\na slots=1\n")
    done = doctor(*MODEL, "--hostfile", str(tmp_path / "hosts"))
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("error")]
    assert done.returncode == 2 and f"{tmp_path}/hosts:2: host a is there already" in line and "[hostfile]" in line


def test_hosts_behind_an_ssh_that_reaches_nobody_and_no_pdsh(tmp_path):
    (tmp_path / "ssh").write_text("#!/bin/sh\necho no route to host >&2; exit 255\n")
    (tmp_path / "ssh").chmod(0o755)
    (tmp_path / "bash").symlink_to("/bin/bash")
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    done = doctor(*MODEL, HOST_FILE_PATH=str(tmp_path / "hosts"), PATH=f"{tmp_path}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("error")]
    assert [line.rpartition("[")[2] for line in lines] == ["pdsh]", "host-unreachable]", "host-unreachable]"]
    assert "error: b: host b cannot be reached over ssh: no route to host" in lines[2] and done.returncode == 2


def test_the_other_ways_to_start_it():
    for start in (["-m", "glm", "doctor"], ["-m", "doctor"]):
        shown = subprocess.run([sys.executable, *start, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert shown.returncode == 0 and "--rank-seconds" in shown.stdout


def test_the_script_makes_no_environment(tmp_path):
    """In a clone whose Python lacks everything: the doctor is started with it, and nothing is installed."""
    for name in ("scripts/env.sh", "scripts/doctor.sh", "scripts/check_requirements.py", "requirements.txt",
                 "constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/bash\n[[ $* != *" doctor"* ]] || {{ echo "$*"; exit 0; }}\n'
                      f'exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(["bash", str(tmp_path / "scripts" / "doctor.sh"), "--json", "two words"], env=environment,
                          capture_output=True, text=True)
    assert done.stdout == "-m doctor --json two words\n", done.stderr
    assert not (tmp_path / ".venv").exists()


def test_an_installation_without_the_clone_is_told_where_to_look(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "REPOSITORY", tmp_path)
    assert command.main([]) == 2
    assert f"the doctor looks at a clone of the repository, and {tmp_path} is none" in capsys.readouterr().err


# Findings, and the table of them


def test_exit_codes():
    fault, doubt = finding.error("driver", "a", "no", "do"), finding.warning("disk", "a", "no", "do")
    assert [exit_code([]), exit_code([doubt]), exit_code([doubt, fault])] == [0, 1, 2]


def test_a_finding_is_one_line():
    found = finding.error("driver", "host 7", "two\nlines", "sudo apt install it")
    assert str(found) == "error: host 7: two lines; mend it: sudo apt install it [driver]"


def test_findings_are_those_of_the_catalogue():
    with pytest.raises(KeyError, match="no-such is not in FINDINGS"):
        finding.error("no-such", "a", "b", "c")
    sources = "".join(path.read_text() for path in [*(ROOT / "doctor").glob("*.py"), ROOT / "commands" / "doctor.py"]
                      if path.name != "finding.py")
    assert [code for code in FINDINGS if f'"{code}"' not in sources] == []


def test_the_document_lists_all_findings():
    text = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| (error|warning)[^|]* \| (.+?) \| .+ \|$", text, re.M)
    assert [(code, what) for code, _, what in rows] == list(FINDINGS.items())
    flags = {flag for row in re.findall(r"^\| (`.*?`) \|", text, re.M) for flag in re.findall(r"--[a-z-]+", row)}
    actions = [action for group in command.make_parser()._action_groups if group.title == "doctor"
               for action in group._group_actions if action.help != "==SUPPRESS=="]
    assert flags == {option for action in actions for option in action.option_strings}


def test_every_finding_is_provoked_by_a_test():
    texts = "".join(path.read_text() for path in Path(__file__).parent.glob("test_doctor*.py"))
    assert [code for code in FINDINGS if not re.search(rf'["\[]{code}["\]]', texts)] == []
