"""Two hosts on one machine: network namespaces joined by a cable, 10.77.0.1 (name: first) and 10.77.0.2 (second).

They share files and processes, as hosts with a network file system share the former. Everything lives inside namespaces
of its own and ends with them, whatever happens. An account's shell start-up is left out: it may print.
"""

import getpass
import os
import shlex
import shutil
import subprocess
from pathlib import Path

SECONDS = 900
NETWORK = """
set -euo pipefail
mount -t tmpfs none /run
ip netns add second
ip link add eth0 type veth peer name eth0 netns second
for inside in "" "ip netns exec second"; do
    $inside ip link set lo up
    $inside ip link set eth0 up
done
ip address add 10.77.0.1/24 dev eth0
ip netns exec second ip address add 10.77.0.2/24 dev eth0
printf '127.0.0.1 localhost\\n10.77.0.1 first\\n10.77.0.2 second\\n' >"$FOLDER/hosts"
mount --bind "$FOLDER/hosts" /etc/hosts
export GLOO_SOCKET_IFNAME=eth0
"""
SERVERS = """
mount -t tmpfs none /etc/ssh
mkdir -p /run/sshd
ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/server
ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/client
printf 'first,second,10.77.0.1,10.77.0.2 %s\n' "$(cut -d' ' -f1,2 /etc/ssh/server.pub)" >/etc/ssh/known
printf 'Host *\\nIdentityFile /etc/ssh/client\\nGlobalKnownHostsFile /etc/ssh/known\\n' >/etc/ssh/ssh_config
[[ ! -d ~/.ssh ]] || mount -t tmpfs none ~/.ssh
for file in ~/.bashrc ~/.bash_profile ~/.profile; do [[ ! -e $file ]] || mount --bind /dev/null $file; done
printf '%s\\n' 'HostKey /etc/ssh/server' 'AuthorizedKeysFile /etc/ssh/client.pub' 'StrictModes no' 'UsePAM no' \\
    'PermitRootLogin yes' 'PidFile none' >/etc/ssh/sshd_config
/usr/sbin/sshd
ip netns exec second /usr/sbin/sshd
"""


def without_namespaces() -> str | None:
    """Why no two hosts can be made here; None: they can."""
    for program in ("unshare", "ip", "timeout"):
        if shutil.which(program) is None:
            return f"needs {program} (util-linux, iproute2)"
    tried = subprocess.run([*_unshare(), "bash", "-c", "mount -t tmpfs none /run && ip netns add second && "
                            "ip link add eth0 type veth peer name eth0 netns second"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"network namespaces cannot be made: {tried.stderr.strip()[:200]}"


def without_ssh() -> str | None:
    """Why they cannot have ssh servers."""
    if os.geteuid() != 0:
        return f"ssh servers need root, not {getpass.getuser()}"
    for program, package in (("/usr/sbin/sshd", "openssh-server"), ("ssh", "openssh-client"), ("pdsh", "pdsh")):
        if shutil.which(program) is None:
            return f"needs {program} ({package})"
    return without_namespaces()


def on_two_hosts(script: str, folder: Path, with_ssh: bool, **options) -> subprocess.CompletedProcess:
    """Run a bash script on the first host; `ip netns exec second COMMAND` runs something on the second."""
    text = f"FOLDER={shlex.quote(str(folder))}\n{NETWORK}{SERVERS if with_ssh else ''}\n{script}"
    command = ["timeout", "-s", "KILL", str(SECONDS), *_unshare(), "bash", "-c", text]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)


def _unshare() -> list[str]:
    new = ["--mount", "--pid", "--net", "--uts", "--fork", "--kill-child=KILL", "--mount-proc"]
    return ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), *new]
