#!/usr/bin/env bash
# Answers of a ChatGLM-6B with the prefix that scripts/ptuning_train.sh has learned, in generated_predictions.txt, e.g.
#   MODEL_PATH=/data/chatglm-6b DATA=AdvertiseGen bash scripts/ptuning_evaluate.sh
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/ptuning.sh"
run_ptuning --do_predict --test_file "$DATA/dev.json" --ptuning_checkpoint "$OUTPUT" \
    --per_device_eval_batch_size 1 -- "$@"
