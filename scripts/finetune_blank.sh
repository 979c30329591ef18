#!/usr/bin/env bash
# Tunes a model to fill blanks of texts, with the GLM repository's configurations, e.g.
#   CHECKPOINT_PATH=/data/models DATA_ROOT=/data bash scripts/finetune_blank.sh \
#       config_tasks/model_blocklm_large_generation.sh config_tasks/seq_blank.sh
# Further arguments replace those of the configurations: --epochs 2, --seed 5678.
# Folders of data and models, and processes: scripts/tune.sh
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/tune.sh"
finetune seq "$@"
