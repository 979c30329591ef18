"""Runs a module in several processes of this machine, as torchrun does; its exit code is that of the first to fail.

usage: python scripts/launch.py PROCESSES MODULE ARGUMENTS...

torchrun itself answers every exit code other than 0 with a traceback and a report of its own, below which the one line
that says what is wrong is lost.
"""

import logging
import os
import signal
import sys


def main(processes: int, module: str, arguments: list[str]) -> int:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable()  # the loggers of torch set their own levels
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    command = ["--standalone", "--nproc_per_node", str(processes), "-m", module, *arguments]
    try:
        run.run(run.parse_args(command))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            hint = " (the system ends processes so when memory runs out)" if name == "SIGKILL" else ""
            print(f"error: the process of rank {rank} was ended by {name}{hint}", file=sys.stderr)
            return 128 - failure.exitcode
        return failure.exitcode
    except (SignalException, KeyboardInterrupt) as error:
        return 128 + int(getattr(error, "sigval", signal.SIGINT))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
