#!/usr/bin/env bash
# Fills blanks and writes text: interactively, or for a file of prompts. Arguments go to "python -m generation", e.g.
#   bash scripts/generate.sh --input-source interactive
#   CONFIG=configs/model_glm_130b.sh CHECKPOINT_PATH=/data/glm-130b bash scripts/generate.sh --input-source prompts.txt
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

# To be edited here, or given as environment variables.
CONFIG="${CONFIG:-configs/model_glm_small.sh}" # the model
#CHECKPOINT_PATH=                              # where its checkpoint is, if not where CONFIG says
#MP_SIZE=                                      # on how many devices it runs, if not as CONFIG says

source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/model.sh"
run_module generation --load "$CHECKPOINT_PATH" ${MODEL_ARGS[@]+"${MODEL_ARGS[@]}"} "$@"
