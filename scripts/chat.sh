#!/usr/bin/env bash
# A conversation with a chat model. Arguments go to "python -m generation --chat", e.g.
#   CHECKPOINT_PATH=/data/chatglm-6b bash scripts/chat.sh
#   CHECKPOINT_PATH=/data/chatglm2-6b bash scripts/chat.sh --temperature 0.8 --quantization-bit-width 4
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

# To be edited here, or given as environment variables.
CONFIG="${CONFIG:-configs/model_glm_small.sh}" # the model
#CHECKPOINT_PATH=                              # where its checkpoint is, if not where CONFIG says
#MP_SIZE=                                      # on how many devices it runs, if not as CONFIG says

source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/model.sh"
run_module generation --chat --load "$CHECKPOINT_PATH" ${MODEL_ARGS[@]+"${MODEL_ARGS[@]}"} "$@"
