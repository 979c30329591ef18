#!/usr/bin/env bash
# Serves a model: OpenAI-compatible routes, GLM's blanks, and a page. Arguments go to "python -m serving", e.g.
#   bash scripts/serve.sh --port 8000
#   CONFIG=configs/model_glm_130b.sh CHECKPOINT_PATH=/data/glm-130b bash scripts/serve.sh --port 8000
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

# To be edited here, or given as environment variables.
CONFIG="${CONFIG:-configs/model_glm_small.sh}" # the model
#CHECKPOINT_PATH=                              # where its checkpoint is, if not where CONFIG says
#MP_SIZE=                                      # on how many devices it runs, if not as CONFIG says

source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/model.sh"
run_module serving --load "$CHECKPOINT_PATH" ${MODEL_ARGS[@]+"${MODEL_ARGS[@]}"} "$@"
