#!/usr/bin/env bash
# Tunes a model on a SuperGLUE task by cloze questions, with the GLM repository's configurations, e.g.
#   CHECKPOINT_PATH=/data/models DATA_ROOT=/data/superglue \
#       bash scripts/ds_finetune_superglue.sh config_tasks/model_blocklm_large.sh config_tasks/task_copa.sh
# Further arguments replace those of the configurations: --epochs 10, --seed 5678.
# Folders of data and models, and processes: scripts/tune.sh
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/tune.sh"
finetune task "$@"
