#!/usr/bin/env bash
# Looks whether everything is here that a run needs, and works: packages, GPUs, kernels, memory, the checkpoint that CONFIG
# names; with HOST_FILE_PATH every machine. Installs and changes nothing. Arguments go to "python -m doctor", e.g.
#   bash scripts/doctor.sh
#   CONFIG=configs/model_glm_130b.sh CHECKPOINT_PATH=/data/glm-130b bash scripts/doctor.sh tasks/chinese
#   HOST_FILE_PATH=hostfile bash scripts/doctor.sh --json
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

LOOK_ONLY=yes # no environment is made: what there is, is looked at
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/env.sh"
exec "$PYTHON" -m doctor "$@"
