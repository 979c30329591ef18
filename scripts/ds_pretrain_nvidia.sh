#!/usr/bin/env bash
# Pretrains a model with GLM's whole objective, with the GLM repository's configurations, e.g.
#   TRAIN_DATA=documents.jsonl TOKENIZER_PATH=/data/vocabulary CHECKPOINT_PATH=/data/models/glm-base \
#       bash scripts/ds_pretrain_nvidia.sh config/ds_block_base.sh
# TRAIN_DATA: a document a line, {"prompt": "", "text": "..."}. Further arguments follow: --train-iters 1000
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

if (($# < 1)); then
    echo "usage: bash $0 CONFIG [arguments of python -m tuning train]" >&2
    exit 2
fi
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/tune.sh"
TRAIN_DATA="${TRAIN_DATA:-documents.jsonl}"
TOKENIZER_PATH="${TOKENIZER_PATH:-$CHECKPOINT_PATH}"
read_config "$1" "config/ds_block_*.sh"
wants "$1" gpt_options
shift
words_of gpt_options
run_original pretrain_glm.py "${WORDS[@]}" --model-parallel-size "$MP_SIZE" -- "$@"
