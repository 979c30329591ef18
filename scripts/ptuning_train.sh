#!/usr/bin/env bash
# P-tuning v2 of ChatGLM-6B: a prefix is learned, the model, in INT4, is not. As train.sh of ChatGLM-6B's ptuning, e.g.
#   MODEL_PATH=/data/chatglm-6b DATA=AdvertiseGen bash scripts/ptuning_train.sh
# Further arguments follow, with the original's names: --history_column history --max_steps 100
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/ptuning.sh"
run_ptuning --do_train --train_file "$DATA/train.json" --validation_file "$DATA/dev.json" \
    --per_device_train_batch_size 1 --gradient_accumulation_steps 16 --max_steps "$MAX_STEPS" \
    --save_steps 1000 --learning_rate "$LR" -- "$@"
