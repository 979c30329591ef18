"""Ranks for tests: nobody leaves while another one may still be on its way into a group."""

import os
import sys
import time
from pathlib import Path

from tests.parallel_helper import run_ranks


def _one_is_late(folder):
    """Rank 0 answers at once; rank 1 looks, some time later, whether it is still there."""
    import torch

    note = Path(folder) / "process"
    if torch.distributed.get_rank() == 0:
        note.with_suffix(".new").write_text(str(os.getpid()))
        note.with_suffix(".new").rename(note)
        return True
    while not note.exists():
        time.sleep(0.01)
    time.sleep(0.5)
    return "\nState:\tZ" not in Path(f"/proc/{note.read_text()}/status").read_text()


def test_a_rank_that_has_answered_stays_until_all_have(tmp_path):
    assert run_ranks(_one_is_late, 2, tmp_path, str(tmp_path)) == [True, True]


def _what_is_there(folder):
    return "tests.preloaded" in sys.modules, len(os.listdir(f"/proc/{os.getppid()}/task"))


def test_ranks_have_what_is_imported_before_and_come_from_a_process_of_one_thread(tmp_path):
    """A server passes over an import that fails; what its other threads hold would be held in its ranks for ever."""
    assert run_ranks(_what_is_there, 1, tmp_path, str(tmp_path)) == [(True, 1)]
