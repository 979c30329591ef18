"""The doctor on this host: folders, limits, /dev/shm, the port; a full disk and a small /dev/shm are really made."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from commands.doctor import parse
from doctor import machine
from doctor.machine import Folder, Machine
from doctor.model import Shortage, check_memory, memory_shortage
from planning import check
from runtime import resources
from tests.two_hosts import _unshare

ROOT = Path(__file__).resolve().parent.parent
GOOD = Machine("here", 64, int(500e9), 4096, int(250e9), Folder("/work", int(1e12)), Folder("/cache", int(1e12)),
               "/usr/bin/c++", 29500, "", 8)


def found(processes=1, world=1, uses_gpus=False, needs_port=False, **changes):
    return [(one.code, one.level, str(one)) for one in machine.check(dataclasses.replace(GOOD, **changes), "here",
                                                                     processes, world, uses_gpus, needs_port)]


def test_a_good_machine_has_no_finding():
    assert found(8, 16, True, True) == []


def test_a_disk_that_is_nearly_full():
    ((code, level, line),) = found(working=Folder("/work", 120_000_000))
    assert (code, level) == ("disk", "warning") and "/work, where results go unless told otherwise, has 0.12 GB" in line


def test_a_folder_that_cannot_be_written():
    ((code, level, line),) = found(working=Folder("/work", 10**12, "Read-only file system"))
    assert (code, level) == ("working-folder", "warning") and "Read-only file system" in line
    ((code, level, line),) = found(cache=Folder("/cache", 0, "No space left on device"))
    assert (code, level) == ("kernel-cache", "warning") and "cannot be kept in /cache: No space left" in line
    assert "export GLM_KERNEL_CACHE=" in line


def test_no_compiler_matters_on_a_cpu():
    ((code, level, line),) = found(compiler=None)
    assert (code, level) == ("compiler", "warning") and "sudo apt install g++" in line
    assert found(compiler=None, uses_gpus=True) == []


def test_more_threads_than_the_control_group_gives_cores():
    ((code, level, line),) = found(quota=2.5)
    assert (code, level) == ("cpu-quota", "warning") and "64 threads would share the time of 2.5 cores" in line
    assert "export OMP_NUM_THREADS=2" in line
    assert found(quota=2.5, threads=2) == [] and found(quota=64.0) == [] and found(quota=2.5, uses_gpus=True) == []
    assert "OMP_NUM_THREADS=1" in found(quota=0.5)[0][2]


def test_a_crowded_machine():
    ((code, level, line),) = found(load=130.0)
    assert (code, level) == ("busy", "warning") and "130.0 programs want the 64 cores at a time" in line
    assert "export OMP_NUM_THREADS=1" in line
    assert found(load=90.0) == [] and found(load=130.0, threads=1) == []


def test_few_open_files_matter_with_many_ranks():
    ((code, level, line),) = found(world=64, open_files=1024)
    assert (code, level) == ("open-files", "warning")
    assert "may open 1024 files, and 64 ranks need about 2304" in line and "ulimit -n 2304" in line
    assert found(world=8, open_files=1024) == [] and found(open_files=64) == [] and found(world=64, open_files=-1) == []


def test_a_container_s_small_shared_memory():
    ((code, level, line),) = found(processes=8, uses_gpus=True, shared=64 << 20)
    assert (code, level) == ("shared-memory", "warning") and "/dev/shm has 0.07 GB" in line and "--shm-size" in line
    assert found(processes=8, shared=64 << 20) == [] and found(uses_gpus=True, shared=64 << 20) == []


def test_a_port_in_use():
    ((code, level, line),) = found(needs_port=True, port_fault="Address already in use")
    assert (code, level) == ("port", "error") and "port 29500" in line and "export MASTER_PORT=29501" in line
    assert found(port_fault="Address already in use") == []  # one host takes a free port by itself


# Memory, by the arithmetic of planning


def short(where, processes=1, ways=("--quantization-bit-width 4", "--offload-memory-limit 9")):
    (one,) = check_memory(Shortage(where, 32e9, 10e9, processes, ways), "here")
    assert (one.code, one.level) == ("memory", "error")
    return str(one)


def test_a_model_that_does_not_fit():
    assert list(check_memory(None, "here")) == []
    line = short("this machine", 8)
    assert "32.00 GB are needed by 8 processes, this machine has 10.00 GB free" in line
    assert "mend it: --quantization-bit-width 4; or --offload-memory-limit 9 (" in line and "-m glm plan" in line
    assert "mend it: a smaller model, or a machine with more memory" in short("this machine", ways=())
    assert "mend it: ulimit -v unlimited -d unlimited; or --q" in short("the limit on this process's address space")


@pytest.mark.parametrize("free, processes, fits", [(300e9, 8, True), (200e9, 8, False), (200e9, 4, True)])
def test_all_processes_of_a_host_share_its_memory(monkeypatch, tmp_path, free, processes, fits):
    """GLM-130B in bf16 takes 32 GB in each of 8 processes."""
    real = check.room_here
    monkeypatch.setattr(check, "room_here", lambda *of: dataclasses.replace(real(*of), host=free))
    (tmp_path / "49300").mkdir()
    (tmp_path / "latest").write_text("49300")
    (tmp_path / "49300" / "mp_rank_00_model_states.pt").write_bytes(b"")
    arguments = parse(["--load", str(tmp_path), "--model", "glm-130b", "--device", "cpu", "--bf16"])
    lacking = memory_shortage(arguments, 8, processes)
    assert (lacking is None) is fits
    assert arguments.model_parallel_size is None  # left as it was
    assert fits or (lacking.where == "this machine" and lacking.ways and 250e9 < lacking.needed < 265e9)


def test_a_checkpoint_that_is_not_there_is_another_finding(tmp_path):
    assert memory_shortage(parse(["--load", str(tmp_path / "no"), "--device", "cpu"]), 1, 1) is None


# Really there


@pytest.mark.parametrize("line, files, cores", [
    ("0::/job", {"job/cpu.max": "250000 100000", "cpu.max": "max 100000"}, 2.5),
    ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
    ("3:cpu,cpuacct:/job", {"cpu/job/cpu.cfs_quota_us": "200000", "cpu/job/cpu.cfs_period_us": "100000"}, 2.0),
    ("3:cpu:/job", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, None),
    ("3:memory:/job", {}, None)])
def test_the_control_groups_cores(tmp_path, monkeypatch, line, files, cores):
    monkeypatch.setattr(resources, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(resources, "OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text(f"{line}\n")
    for name, content in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(f"{content}\n")
    assert machine.cpu_quota() == cores


def test_the_number_of_threads():
    assert machine.thread_count({"OMP_NUM_THREADS": "4,2"}) == 4
    assert machine.thread_count({"OMP_NUM_THREADS": "many"}) is None and machine.thread_count({}) is None


def test_a_port_that_somebody_listens_on():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen(1)
        assert machine.try_port(other.getsockname()[1]) == "Address already in use"
    assert machine.try_port(1) in ("Permission denied", "")  # root may


def test_folders_are_tried_by_writing(tmp_path):
    assert machine.look_at_folder(tmp_path).why == ""
    assert machine.look_at_folder(tmp_path / "not" / "yet").why == ""
    assert not any(tmp_path.iterdir())  # neither made nor left anything
    (tmp_path / "file").touch()
    assert machine.look_at_folder(tmp_path / "file" / "below").why == "Not a directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    assert machine.look_at_folder(tmp_path).why == "Permission denied"


def inside(mounts, folder):
    """What the doctor finds where `mounts` are mounted, in a namespace of their own; cwd and cache in `folder`."""
    program = ("from doctor import machine; import os, sys\n"
               f"facts = machine.look({{'GLM_KERNEL_CACHE': {str(folder / 'cache')!r}, 'PATH': ''}}, 29500)\n"
               "for one in machine.check(facts, 'here', processes=2, uses_gpus=True): sys.stdout.write(f'{one}\\n')")
    script = f"{mounts}\ncd {folder}\nexec {sys.executable} -c \"$0\""
    done = subprocess.run([*_unshare(), "bash", "-ec", script, program], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "FOLDER": str(folder)})
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()[:200]}")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_full_disk_and_a_small_shared_memory_are_really_seen(tmp_path):
    lines = inside("mount -t tmpfs -o size=1m none $FOLDER; mount -t tmpfs -o size=64m none /dev/shm\n"
                   "head -c 1M /dev/zero >$FOLDER/full || true", tmp_path)
    assert [line.rpartition(" ")[2] for line in lines] == ["[working-folder]", "[kernel-cache]", "[shared-memory]"]
    assert "No space left on device" in lines[0]


def test_a_small_disk_and_a_read_only_one_are_really_seen(tmp_path):
    (tmp_path / "cache").mkdir()
    lines = inside("mount -t tmpfs -o size=100m none $FOLDER; mkdir $FOLDER/cache\n"
                   "mount -t tmpfs -o ro none $FOLDER/cache; mount -t tmpfs -o size=2g none /dev/shm", tmp_path)
    assert [line.rpartition(" ")[2] for line in lines] == ["[disk]", "[kernel-cache]"]
    assert "Read-only file system" in lines[1]


def test_gpus_are_counted_without_a_driver(tmp_path):
    assert machine.count_nvidia(tmp_path) == 0
    for number, (vendor, kind) in enumerate([("0x10de", "0x030200"), ("0x10de", "0x040300"), ("0x8086", "0x030000"),
                                             ("0x10de", "0x030000")]):
        folder = tmp_path / "sys/bus/pci/devices" / f"0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    assert machine.count_nvidia(tmp_path) == 2  # neither the sound of a graphics card nor Intel's
    (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    assert machine.count_nvidia(tmp_path) == 1


def test_the_compiler_and_the_cache_are_those_of_the_environment_that_is_asked_for(tmp_path):
    """They are found as the kernels find them (kernels.cache), in the environment of the run to come."""
    found = machine.folder_for_kernels({"GLM_KERNEL_CACHE": str(tmp_path / "mine")})
    assert (found.path, found.why) == (str(tmp_path / "mine"), "")
    assert machine.folder_for_kernels({"XDG_CACHE_HOME": str(tmp_path)}).path == str(tmp_path / "glm-kernels")
    compiler = tmp_path / "c++"
    compiler.write_text("")
    assert machine.compiler_of({"PATH": str(tmp_path)}) is None
    compiler.chmod(0o755)
    assert machine.compiler_of({"PATH": str(tmp_path)}) == str(compiler)


def test_a_user_without_a_home_has_no_place_for_kernels(monkeypatch):
    def no_home():
        raise RuntimeError

    monkeypatch.setattr("pathlib.Path.home", no_home)
    assert machine.folder_for_kernels({}).why == "no folder to keep the compiled library in"
