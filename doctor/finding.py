"""What may be wrong, by name; and one finding of it in one line: what, on which host or rank, what mends it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from runtime.files import REPOSITORY

ERROR, WARNING = "error", "warning"
# All findings by code; docs/doctor.md has the same table, with what mends them.
FINDINGS = {
    # packages
    "python": "this Python is older than 3.10 or newer than 3.12",
    "requirement": "a package of requirements.txt is missing, or of another version",
    "apex": "the `apex` that is installed is another program from PyPI, not NVIDIA's",
    "icetk": "icetk has put a protobuf here that breaks the tokenizer",
    "icetk-pin": "icetk is installed and demands an old protobuf: the next pip install may bring it",
    "torch-import": "torch is installed but does not import",
    "sat-import": "SwissArmyTransformer does not import",
    "tokenizer-import": "sentencepiece does not work with this protobuf",
    "probe": "a process that tried one of these things crashed or hung",
    # configuration
    "config": "CONFIG names no file",
    "config-script": "bash cannot read the file that CONFIG names",
    "config-arguments": "MODEL_ARGS has a flag or a value that there is not",
    "mp-size": "MP_SIZE is no number of devices",
    # GPUs
    "torch-without-cuda": "there is a GPU, or one is asked for, and torch is not built for CUDA",
    "driver": "there is a GPU, but its driver does not load",
    "driver-old": "the driver is too old for torch's CUDA",
    "gpu-hidden": "there is a GPU and a driver, but torch sees no GPU",
    "gpu-architecture": "torch is not built for this GPU's compute capability",
    "gpu-count": "a host has fewer GPUs than processes of the run",
    "device": "torch cannot use the device, neither a CPU nor a GPU of CUDA, that the run names",
    # kernels
    "compiler": "there is no C++ compiler for the kernels of the CPU",
    "cpu-kernels": "the kernels of the CPU do not compile, load or compute",
    "nvrtc": "the library that compiles the kernels of the GPU is not found",
    "cuda-kernels": "the kernels of the GPU do not compile, load or compute",
    "kernel-cache": "compiled kernels cannot be kept",
    # the machine
    "memory": "the configured model does not fit into the memory that is free",
    "disk": "the disk is nearly full where results go",
    "working-folder": "nothing can be written where results go",
    "cpu-quota": "more threads would run than the control group gives cores",
    "busy": "other programs want the cores, too",
    "open-files": "too few open files are allowed for so many ranks",
    "shared-memory": "/dev/shm is too small for NCCL",
    "port": "the port where the ranks of several hosts meet is in use",
    # the model and the data
    "checkpoint": "no checkpoint folder, no `latest`, or a missing shard",
    "checkpoint-config": "the model's shape is not known, or model_config.json is wrong",
    "checkpoint-headers": "a shard is cut off, unreadable, or not of this model",
    "degree": "the model cannot be divided among MP_SIZE ranks",
    "checkpoint-degree": "the checkpoint has another number of parts than MP_SIZE, and is to be streamed",
    "checkpoint-bits": "the checkpoint is quantised otherwise than the flags say",
    "disk-conversion": "no room for a converted copy of the checkpoint, which is needed",
    "tokenizer": "the vocabulary file is missing or damaged",
    "vocabulary": "the vocabulary's ids do not fit the model",
    "data-path": "the folder of the tasks' data is not there",
    "task-file": "a task file is missing, or has a mistake",
    "task-data": "a task has no data",
    "data-readable": "a data file cannot be read by this user",
    # several processes, several hosts
    "hostfile": "the hostfile is missing, has a mistake, or does not fit MP_SIZE",
    "ssh": "there is no program ssh",
    "pdsh": "there is no program pdsh",
    "host-unreachable": "a host does not answer over ssh",
    "host-paths": "a host lacks the interpreter, the repository, the checkpoint or the data",
    "host-doctor": "the doctor does not run on a host",
    "host-versions": "a host has other versions of Python or of packages",
    "host-code": "a host has another state of this repository",
    "host-checkpoint": "a host has another checkpoint",
    "host-vocabulary": "a host has another vocabulary",
    "host-precision": "a host would compute in another precision",
    "host-gpus": "a host has other GPUs",
    "rank-missing": "a rank does not answer",
    "all-reduce": "a rank fails, or hangs, in the all-reduce of all ranks",
    "all-reduce-slow": "the network between the ranks is very slow",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    code: str  # its name in FINDINGS and docs/doctor.md
    level: str  # "error" (a run fails, or is wrong) or "warning" (it is slower, or may fail later)
    where: str  # the host, or rank and host
    what: str
    mend: str  # what to do, a command wherever there is one

    def __post_init__(self) -> None:
        if self.code not in FINDINGS:
            raise KeyError(f"{self.code} is not in FINDINGS")

    def __str__(self) -> str:
        line = f"{self.level}: {self.where}: {self.what}; mend it: {self.mend} [{self.code}]"
        return " ".join(line.split("\n"))


def error(code: str, where: str, what: str, mend: str) -> Finding:
    return Finding(code, ERROR, where, what, mend)


def warning(code: str, where: str, what: str, mend: str) -> Finding:
    return Finding(code, WARNING, where, what, mend)


def exit_code(findings: Iterable[Finding]) -> int:
    """0: nothing is wrong, 1: warnings, 2: errors."""
    levels = {finding.level for finding in findings}
    return 2 if ERROR in levels else 1 if levels else 0


def pip(arguments: str, executable: str = sys.executable) -> str:
    """The command that installs something for an interpreter."""
    return f"{shlex.quote(executable)} -m pip {arguments}"


def requirements(executable: str = sys.executable) -> str:
    """The command that installs what requirements.txt names."""
    return pip(f"install -r {shlex.quote(str(REPOSITORY / 'requirements.txt'))}", executable)
