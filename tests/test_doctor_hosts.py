"""The doctor on several hosts: an ssh that is made up, differences between hosts, and ranks that do not answer."""

import argparse
import copy
import dataclasses
import json
import os
import socket
import subprocess
import threading

import pytest
import torch

from doctor import allreduce, hosts, run
from doctor.allreduce import Outcome, Place
from doctor.finding import Finding
from doctor.hosts import Limits, join
from runtime.hosts import Host, is_here_alone
from tests.fake_ssh import FakeSsh
from tests.parallel_helper import run_ranks

A, B = Host("a", 2), Host("b", 2)
COMMON = {"versions": {"Python": "3.11", "torch": "2.13.0", "ruff": "0.17"}, "executable": "/env/bin/python",
          "code": "c0de", "precision": "bf16", "folder": "/data/glm", "gpus": "8 x A100", "checkpoint": "49300 5ee",
          "vocabulary": "70c", "vocabulary_file": "/data/glm/ice_text.model"}


# Reaching them


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", socket.gethostname()])
def test_a_host_that_is_this_one_needs_neither_ssh_nor_pdsh(tmp_path, monkeypatch, name):
    (tmp_path / "hosts").write_text(f"{name} slots=2\n")
    asked = []
    monkeypatch.setattr(run, "alone", lambda visit: run.Report([], {"processes": visit.processes}))
    monkeypatch.setattr(run, "join", lambda launcher, *rest: asked.append(launcher[-2:]) or (None, []))
    monkeypatch.setattr(hosts, "reach", lambda *_: pytest.fail("asked over ssh"))
    report = run.several_hosts(run.Visit(argparse.Namespace(rank_seconds=1), [], environment={}), tmp_path / "hosts")
    assert report.findings == [] and report.facts == {"processes": 2}
    assert asked == [[str(tmp_path / "hosts"), "1"]]


def test_hosts_that_are_not_this_one_alone_are_reached_over_ssh():
    assert not any(map(is_here_alone, ([A], [Host("localhost", 1), B], [Host("user@localhost", 1)])))


def test_hosts_that_do_not_answer_or_lack_something():
    ssh = FakeSsh({"a": (0, "", ""), "b": (255, "", "Permission denied (publickey).\n"), "c": (0, "DATA_PATH\n", "")})
    answering, found = hosts.reach([A, B, Host("c", 2)], ["-p", "22"], {"DATA_PATH": "/data"}, ssh)
    assert answering == [A]
    assert [(one.code, one.level, one.where) for one in found] == [("host-unreachable", "error", "b"),
                                                                  ("host-paths", "error", "c")]
    assert "Permission denied (publickey)." in found[0].what and "ssh -p 22 b true" in found[0].mend
    assert found[0].mend.startswith("ssh-copy-id b") and "rsync" in found[1].mend and "/data" in found[1].what


def test_no_ssh_at_all():
    answering, (first, *_) = hosts.reach([A], [], {}, FakeSsh({"a": FileNotFoundError()}))
    assert answering == [] and first.code == "ssh" and "openssh-client" in first.mend


# The doctor there


def test_a_host_s_own_findings_have_its_name():
    finding = Finding("compiler", "warning", "vm-17", "there is no C++ compiler", "apt install g++")
    report = {"findings": [vars(finding)], "facts": {"common": COMMON}}
    ssh = FakeSsh({"b": (1, json.dumps(report), "")})
    facts, (one,) = hosts.ask(B, ["-p", "22"], ["--load", "/my data"], {"DATA_PATH": "/d"}, ssh)
    assert facts["common"] == COMMON and (one.where, one.code, one.level) == ("b", "compiler", "warning")
    ((*_, command),) = ssh.commands
    assert "DATA_PATH=/d" in command and command.endswith("-m doctor --alone --json --load '/my data'")


@pytest.mark.parametrize("answer, why", [
    ((127, "", "bash: /env/bin/python: No such file or directory\n"), "No such file or directory"),
    ((1, "no json", ""), "exit code 1, and no report"),
    (subprocess.TimeoutExpired("ssh", 150), "no answer within 150 s")])
def test_a_doctor_that_does_not_run_there(answer, why):
    facts, (one,) = hosts.ask(B, [], [], {}, FakeSsh({"b": answer}))
    assert facts == {} and (one.code, one.where) == ("host-doctor", "b") and why in one.what


# What they must have in common


def differing(**changes):
    other = copy.deepcopy(COMMON) | changes
    return [(one.code, one.level, one.where, str(one)) for one in hosts.compare({"a": COMMON, "b": other}, False)]


def test_equal_hosts():
    assert differing() == [] and list(hosts.compare({"a": COMMON}, False)) == []


def test_versions():
    ((code, level, where, line),) = differing(versions={"Python": "3.12", "torch": "2.12.1", "ruff": "0.9"})
    assert (code, level, where) == ("host-versions", "error", "b")  # ruff is for tests alone
    assert "other versions than on a: Python 3.12 (a: 3.11), torch 2.12.1 (a: 2.13.0)" in line
    assert "mend it: ssh b /env/bin/python -m pip install -r" in line
    assert "torch missing (a: 2.13.0)" in differing(versions={"Python": "3.11"})[0][3]


@pytest.mark.parametrize("key, code, level, mend", [
    ("code", "host-code", "error", "rsync -a --exclude .venv"),
    ("checkpoint", "host-checkpoint", "error", "rsync -a /data/glm/ b:/data/glm/"),
    ("vocabulary", "host-vocabulary", "error", "rsync -a /data/glm/ice_text.model b:/data/glm/ice_text.model"),
    ("precision", "host-precision", "error", "say --bf16, --fp16 or --fp32"),
    ("gpus", "host-gpus", "warning", "out of the hostfile")])
def test_everything_else_that_differs(key, code, level, mend):
    ((*found, line),) = differing(**{key: "other"})
    assert found == [code, level, "b"] and mend in line


def test_a_precision_that_was_said_is_everybody_s():
    assert not list(hosts.compare({"a": COMMON, "b": COMMON | {"precision": "fp32"}}, True))


def test_what_is_compared():
    stages = {"torch": {"precision": "bf16", "gpus": [{"name": "A100"}] * 8},
              "shards": {"iteration": "49300", "sizes": "5ee", "folder": "/data/glm"},
              "vocabulary": {"sha256": "70c", "file": "/data/glm/ice_text.model"}}
    versions = {"torch": "2.13.0", "ruff": "0.17"}
    assert hosts.essentials(stages, versions, "/env/bin/python", "3.11.4", "c0de") == COMMON
    assert hosts.essentials({}, {}, "python", "3.11.4", "")["checkpoint"] is None  # never different, but a finding


# The all-reduce: what is made of it


def judged(*outcomes, reason=""):
    return [(one.code, one.level, one.where, str(one)) for one in hosts.check_all_reduce(
        outcomes, "aabb", reason)]


ALL = dict.fromkeys(range(4), "vm")


def test_a_fast_and_a_slow_network():
    assert judged(Outcome(4, "gloo", hosts=ALL, bandwidth=1.0)) == []
    ((code, level, where, line),) = judged(Outcome(4, "gloo", hosts=ALL, bandwidth=0.012))
    assert (code, level, where) == ("all-reduce-slow", "warning", "4 ranks") and "0.012 GB/s" in line


def test_a_rank_that_does_not_answer_is_named_with_its_host_and_what_it_said_itself():
    lines = judged(Outcome(4, missing=(2, 3), hosts={0: "vm", 1: "vm"}),
                   Outcome(4, hosts={2: "vm"}, failed={2: "cannot reach the first rank at 10.0.0.1:29500"}))
    assert [line[:3] for line in lines] == [("rank-missing", "error", "rank 2 on b"),
                                            ("rank-missing", "error", "rank 3 on b")]
    assert "does not answer: cannot reach the first rank at 10.0.0.1:29500" in lines[0][3]
    assert "GLOO_SOCKET_IFNAME" in lines[0][3]


def test_on_one_host_the_network_is_not_it():
    (line,) = hosts.check_all_reduce([Outcome(2, missing=(1,), hosts={0: "vm"})], ["vm", "vm"], "")
    assert line.where == "rank 1 on vm" and "--rank-seconds 120" in line.mend and "IFNAME" not in line.mend


def test_a_rank_that_fails_or_hangs():
    lines = judged(Outcome(4, hosts=ALL, failed={1: "did not come back from the all-reduce within 30 s"}))
    assert [line[:3] for line in lines] == [("all-reduce", "error", "rank 1 on a")]
    assert "did not come back" in lines[0][3]


def test_ranks_that_were_never_started():
    ((code, _, where, line),) = judged(reason="a process on host b failed (exit code 1)")
    assert (code, where) == ("all-reduce", "rank 0 on a")
    assert "the 4 ranks could not be joined: a process on host b failed" in line
    assert judged(reason="the process of rank 3 was ended by SIGKILL")[0][2] == "rank 3 on b"
    assert judged(reason="the process of rank 9 was ended by SIGKILL")[0][2] == "rank 0 on a"
    ((code, _, where, line),) = judged(Outcome(4, hosts={2: "vm"}, failed={2: "cannot reach the first rank"}))
    assert where == "rank 2 on b" and "cannot reach the first rank" in line


# Starting them, with programs in the place of the launchers


def started(tmp_path, body, is_first=True, **limits):
    (tmp_path / "launcher").write_text(f"#!/bin/bash\n{body}\n")
    (tmp_path / "launcher").chmod(0o755)
    limits = Limits(**{"everything": 600.0, "grace": 0.2, "end": 600.0, **limits})
    outcome, found = join([str(tmp_path / "launcher"), "2"], 30.0, dict(os.environ), "ab", is_first, limits)
    return outcome, [str(one) for one in found]


GOOD = Outcome(2, "gloo", hosts={0: "vm", 1: "vm"}, bandwidth=1.0)


def test_the_launcher_is_given_the_doctor_s_own_program(tmp_path):
    outcome, found = started(tmp_path, f"echo \"$*\" >{tmp_path}/words; echo '{allreduce.line_of(GOOD)}'")
    assert outcome == GOOD and found == []
    assert (tmp_path / "words").read_text() == "2 doctor all-reduce 30.0\n"


def test_a_rank_that_hangs_does_not_keep_what_the_first_has_said(tmp_path):
    missing = Outcome(2, missing=(1,), hosts={0: "vm"})
    outcome, (line,) = started(tmp_path, f"trap 'echo ended >{tmp_path}/end; kill $!; exit 143' TERM\n"
                                         f"echo '{allreduce.line_of(missing)}'; sleep 6000 & wait")
    assert outcome == missing and line.startswith("error: rank 1 on b: does not answer; ")
    assert (tmp_path / "end").read_text() == "ended\n"  # it was asked, and could end its processes


def test_a_launcher_that_says_nothing(tmp_path):
    outcome, (line,) = started(tmp_path, "trap 'kill $!; exit 143' TERM; sleep 6000 & wait", everything=0.5)
    assert outcome is None and "the 2 ranks could not be joined: nothing came back within 0 s" in line
    assert "could not be joined: no pdsh;" in started(tmp_path, "echo error: no pdsh >&2; exit 2")[1][0]
    assert started(tmp_path, "exit 0", is_first=False) == (None, [])  # the first says it elsewhere
    assert "could not be joined: no address;" in started(tmp_path, "echo no address >&2; exit 2", False)[1][0]


# The all-reduce itself, with real processes and a real store


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def place(rank, world, port, **changes):
    return Place(rank, world, rank, "127.0.0.1", port, rank == 0,
                 **{"seconds_to_join": 600.0, "seconds_to_work": 600.0, **changes})


def joined(port, world):
    import torch.distributed

    rank = torch.distributed.get_rank()
    torch.distributed.destroy_process_group()
    return allreduce.run(place(rank, world, port))


def test_two_ranks_measure_their_bandwidth(tmp_path):
    first, second = run_ranks(joined, 2, tmp_path, free_port(), 2)
    assert second is None and first.backend == "gloo" and first.bandwidth > 0 and not first.missing
    assert allreduce.read_outcomes("chatter\n" + allreduce.line_of(first) + "\n") == [first]


def together(operation, **changes):
    """The outcome of the first of two ranks, which are threads here."""
    port, found = free_port(), {}
    threads = [threading.Thread(target=lambda rank=rank: found.update(
        {rank: allreduce.run(place(rank, 2, port, **changes), operation)})) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    return found[0]


def test_a_rank_that_never_comes_is_known_to_the_first():
    port = free_port()
    server = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    second = threading.Thread(target=allreduce.run, args=(place(1, 3, port),))
    second.start()
    server.wait(["doctor/here/1"])
    outcome = allreduce.run(dataclasses.replace(place(0, 3, port, seconds_to_join=1.0), serves=False))
    second.join(600)
    assert outcome.missing == (2,) and sorted(outcome.hosts) == [0, 1] and outcome.bandwidth is None


def test_a_rank_that_hangs_or_fails_in_the_operation_is_named():
    over = threading.Event()

    def hangs(where, store):
        if where.rank:
            over.wait(600)
        return "gloo", 1.0

    outcome = together(hangs, seconds_to_work=3.0)
    over.set()
    # by itself, or where it is too slow for that by the first
    assert outcome.failed in [{1: f"did not come back from the all-reduce{how}"} for how in (" within 3 s", "")]

    def fails(where, store):
        if where.rank:
            raise RuntimeError("ncclSystemError: no network\nmore")
        return "gloo", 1.0

    assert together(fails).failed == {1: "ncclSystemError: no network"}


def test_the_bandwidth_is_that_of_the_slowest_rank():
    outcome = together(lambda where, _: ("gloo", (0.5 + where.rank) * 1e-9))
    assert outcome.bandwidth == pytest.approx(2 * (1 / 2) / 1.5)  # 2 (n - 1) / n times bytes over time, in GB/s


def test_a_first_rank_that_cannot_be_reached():
    outcome = allreduce.run(place(1, 2, free_port(), seconds_to_join=1.0))
    assert outcome.failed[1].startswith("cannot reach the first rank at 127.0.0.1:")


def test_where_a_rank_is_comes_from_the_launcher():
    given = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
    assert Place.read(given).serves and Place.read(given).socket is None
    assert Place.read(given | {allreduce.STORE_SOCKET: "7"}).socket == 7  # the launcher's, held open
    assert not Place.read(given | {"RANK": "1", allreduce.STORE_SOCKET: "7"}).serves
