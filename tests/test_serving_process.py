"""The server as a process: its port, its line, its signals and its exit codes."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.faults import ranks_of

pytest.importorskip("uvicorn", reason="the server's packages are not installed")
ROOT = Path(__file__).resolve().parent.parent


def started(*argv, program=("-m", "serving"), **environment):
    return subprocess.Popen([sys.executable, *program, "--fp32", "--device", "cpu", *argv], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                            env={**os.environ, "PYTHONPATH": os.pathsep.join(
                                [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]), **environment})


def said(process):
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def ready():
    process = started("--port", "0", GLM_API_KEY="secret")
    line = process.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), process.stderr.read()
    yield process, int(line.rpartition(":")[2])
    process.kill()
    process.communicate()


def answer(port, body, results):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json",
                                                         "Authorization": "Bearer secret"})
    response = connection.getresponse()
    results.append((response.status, response.read()))


def test_sigterm_answers_what_is_in_flight_and_ends_well(ready):
    process, port = ready
    results = []
    asking = threading.Thread(target=answer, args=(
        port, b'{"prompt": "secret prompt", "max_tokens": 400, "min_tokens": 400, "stream": true}', results))
    asking.start()
    while not is_running(port):
        pass
    process.send_signal(signal.SIGTERM)
    asking.join(600)
    status, body = results[0]
    assert status == 200 and body.endswith(b"data: [DONE]\n\n")
    code, out, err = said(process)
    assert (code, out) == (0, "")
    assert "POST /v1/completions 200" in err
    assert "secret prompt" not in err and "secret" not in err.replace("secret prompt", "")


def is_running(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("GET", "/metrics", headers={"Authorization": "Bearer secret"})
    text = connection.getresponse().read().decode()
    connection.close()
    return 'glm_requests_running{model="glm-small"} 1.0' in text


@pytest.mark.parametrize("argv, what", [
    (["--port", "70000"], "--port 70000: must be a port, 0 to 65535"),
    (["--prot", "1"], "unknown argument '--prot'; did you mean --port?"),
    (["--api-key-file", "nothing"], "nothing"),
    (["--load", "nowhere"], "--load nowhere: no such folder"),
    (["--max-rows", "0"], "--max-rows 0: must be at least 1"),
    (["--drain-timeout", "-1"], "--drain-timeout"),
])
def test_mistakes_are_one_line(argv, what, tmp_path):
    code, out, err = said(started(*argv))
    assert (code, out) == (2, "") and what in err and err.count("\n") == 1, err


def test_a_port_that_is_taken_ends_the_program_before_the_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, out, err = said(started("--port", str(port), "--load", str(ROOT / "checkpoints" / "glm-small")))
    assert (code, out) == (2, "") and f"port {port}" in err and err.count("\n") == 1


@pytest.mark.slow
def test_two_ranks_serve_together(tmp_path):
    process = started("--port", "0", "--model-parallel-size", "2", program=("scripts/launch.py", "2", "serving"),
                      GLM_API_KEY="secret")
    port = int(process.stdout.readline().rpartition(":")[2])
    results = []
    for _ in range(2):
        answer(port, b'{"prompt": "The", "max_tokens": 5, "seed": 1}', results)
    assert results[0][0] == 200 and results[0][1].partition(b"choices")[2] == results[1][1].partition(b"choices")[2]
    process.send_signal(signal.SIGTERM)
    assert said(process)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("is_busy", [True, False])
def test_a_server_one_of_whose_ranks_is_killed_ends_with_one_line(tmp_path, is_busy):
    process = started("--port", "0", "--model-parallel-size", "2", program=("scripts/launch.py", "2", "serving"))
    port = int(process.stdout.readline().rpartition(":")[2])
    second = ranks_of(process, 2)[1]
    results = []
    if is_busy:
        asked = threading.Thread(target=answer, args=(
            port, b'{"prompt": "The", "max_tokens": 400, "min_tokens": 400}', results))
        asked.start()
        while not is_running(port):
            pass
    os.kill(second, signal.SIGKILL)
    code, _, err = said(process)
    lines = [line for line in err.splitlines() if " tokens in, " not in line]  # requests are logged
    assert code == 137 and len(lines) == 1 and lines[0].startswith("error: the process of rank 1 was ended by SIGKILL")
    if is_busy:
        asked.join()
        assert results[0][0] == 500
