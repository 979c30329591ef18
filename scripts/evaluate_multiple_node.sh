#!/usr/bin/env bash
# Evaluates tasks on several machines: tensor parallel inside each, data parallel across. Arguments as evaluate.sh's, e.g.
#   HOST_FILE_PATH=hostfile CONFIG=configs/model_glm_130b.sh bash scripts/evaluate_multiple_node.sh tasks/chinese
#
# DeepSpeed's launcher starts the processes over ssh, which must not ask for a password (pdsh has to be installed). This
# repository, its environment, the checkpoint and the data lie at the same paths on every host. Where ssh between hosts is
# not to be had, the same command is given on every host, with NODE_RANK=0, 1, ... and MASTER_ADDR (no pdsh needed).
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

# To be edited here, or given as environment variables.
HOST_FILE_PATH="${HOST_FILE_PATH:-hostfile}"     # a line for every host: worker-1 slots=8
CONFIG="${CONFIG:-configs/model_glm_small.sh}"   # the model
#CHECKPOINT_PATH=                                # where its checkpoint is, if not where CONFIG says
#MP_SIZE=                                        # devices of a host that share a model, if not as CONFIG says
#export DATA_PATH=                               # where the data is, if not in data/ of the repository
export MASTER_PORT="${MASTER_PORT:-29500}"       # a free port of the first host
#export MASTER_ADDR=10.0.0.1                     # the first host's address, if not the first that `hostname -I` tells
#export SSH_PORT=22
#export GLOO_SOCKET_IFNAME=eth0                  # the network that connects the hosts, where there are several
#export NCCL_SOCKET_IFNAME=eth0 NCCL_IB_DISABLE=0 NCCL_DEBUG=WARN

source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/model.sh"
case " $* " in *" --help "* | *" -h "*) exec "$PYTHON" -m evaluation --help ;; esac
export CHECKPOINT_PATH DATA_PATH="${DATA_PATH:-$REPOSITORY/data}"
exec "$PYTHON" "$REPOSITORY/scripts/launch_hosts.py" "$HOST_FILE_PATH" "$MP_SIZE" evaluation \
    --load "$CHECKPOINT_PATH" --model-parallel-size "$MP_SIZE" --data-path "$DATA_PATH" \
    ${MODEL_ARGS[@]+"${MODEL_ARGS[@]}"} "$@"
