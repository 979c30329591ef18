"""tools/benchmark_offload.py: what it measures, and processes whose memory is really limited."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import UserError
from tests.test_offload import checkpoint
from tools import benchmark_offload
from tools.benchmarking import capped
from tools.benchmarking.offload import Measured, row_of

ROOT = Path(__file__).resolve().parent.parent


def test_the_floor_is_the_slower_of_disk_and_model():
    resident = Measured(0, 24, 2_500_000_000, 0, 1e9, 0.1, 10.0, "abc")
    disk_bound = Measured(12, 24, 1_300_000_000, 1_200_000_000, 2e9, 0.75, 12.5, "abc")
    row = row_of(1.3, disk_bound, resident, 1_700_000_000, 1_650_000_000)
    assert (row["token_floor_ms"], row["token_share"], row["score_share"]) == (600.0, 0.8, 0.8)
    assert row["streamed_layers"] == "12/24" and row["cap_gb"] == 1.7 and row["same_answers"] is True
    model_bound = disk_bound._replace(streamed_bytes=100_000_000, step_seconds=0.125, answers="abd")
    row = row_of(2.4, model_bound, resident, None, None)
    assert (row["token_floor_ms"], row["token_share"], row["same_answers"]) == (100.0, 0.8, False)


def test_a_tiny_run_writes_the_table_and_the_file(tmp_path, monkeypatch, capsys):
    """In this process; the answers are the resident model's."""
    folder = checkpoint(tmp_path / "model")
    monkeypatch.setattr(capped, "run_capped", lambda function, arguments, cap: (function(*arguments), None))
    monkeypatch.setattr("tools.benchmarking.offload.disk_rate", lambda _: 1e9)  # the file is smaller than a piece
    monkeypatch.setattr(sys, "argv", [
        "benchmark_offload.py", "--load", str(folder), "--limits", "0.0003", "--steps", "3", "--score", "2", "24",
        "--repeats", "1", "--json", str(tmp_path / "out.json")])
    assert benchmark_offload.main() == 0
    resident, streamed = json.loads((tmp_path / "out.json").read_text())["results"]
    assert resident["streamed_layers"] == "0/7" and streamed["streamed_layers"] != "0/7"
    assert streamed["same_answers"] is True and streamed["token_ms"] > 0 and streamed["score_s"] >= 0
    assert "Streamed layers beside the model in memory" in capsys.readouterr().out


def take(size: int) -> int:
    return len(bytearray(b"x") * size)


def test_memory_is_really_limited():
    try:
        taken, peak = capped.run_capped(take, (80_000_000,), 200_000_000)
    except UserError as error:
        pytest.skip(str(error))
    assert taken == 80_000_000 <= peak <= 200_000_000
    with pytest.raises(UserError, match=r"exit code -9; 0.2 GB are too little memory for it"):
        capped.run_capped(take, (400_000_000,), 200_000_000)


def test_a_group_that_cannot_be_made_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(capped, "GROUPS", tmp_path / "nowhere")
    with pytest.raises(UserError, match="no control group .* can be made .*: run as root"):
        capped.run_capped(take, (1,), 10_000_000)


def test_without_a_cap_nothing_is_limited():
    assert capped.run_capped(take, (10,), None) == (10, None)


def test_help_needs_no_torch():
    code = ("import sys; from tools import benchmark_offload; benchmark_offload.make_parser().format_help(); "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
