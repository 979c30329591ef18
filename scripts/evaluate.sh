#!/usr/bin/env bash
# Evaluates a model on tasks: YAML files, or folders of them. Arguments go to "python -m evaluation", e.g.
#   bash scripts/evaluate.sh tasks/quickstart
#   DATA_PATH=/data/evaluation bash scripts/evaluate.sh tasks/lambada tasks/chinese
#   bash scripts/evaluate.sh compare outputs/glm-small/one outputs/glm-small/other
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

# To be edited here, or given as environment variables.
CONFIG="${CONFIG:-configs/model_glm_small.sh}" # the model
#CHECKPOINT_PATH=                              # where its checkpoint is, if not where CONFIG says
#MP_SIZE=                                      # on how many devices it runs, if not as CONFIG says
#DATA_PATH=                                    # where the data is, if not in data/ of the repository

source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/model.sh"
if [[ ${1:-} == compare ]]; then
    exec "$PYTHON" -m evaluation "$@"
fi
DATA_PATH="${DATA_PATH:-$REPOSITORY/data}"
run_module evaluation --load "$CHECKPOINT_PATH" --data-path "$DATA_PATH" ${MODEL_ARGS[@]+"${MODEL_ARGS[@]}"} "$@"
