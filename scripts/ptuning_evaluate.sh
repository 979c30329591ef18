#!/usr/bin/env bash
# Answers of a ChatGLM-6B with the prefix that scripts/ptuning_train.sh has learned, in generated_predictions.txt, e.g.
#   MODEL_PATH=/data/chatglm-6b DATA=AdvertiseGen bash scripts/ptuning_evaluate.sh
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

# To be edited here, or given as environment variables.
PRE_SEQ_LEN="${PRE_SEQ_LEN:-128}"
LR="${LR:-2e-2}"
MODEL_PATH="${MODEL_PATH:-THUDM/chatglm-6b}"
DATA="${DATA:-AdvertiseGen}"
PROMPT_COLUMN="${PROMPT_COLUMN:-content}"
RESPONSE_COLUMN="${RESPONSE_COLUMN:-summary}"
OUTPUT="${OUTPUT:-output/adgen-chatglm-6b-pt-$PRE_SEQ_LEN-$LR}"

source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/tune.sh"
run_original main.py --do_predict --test_file "$DATA/dev.json" --prompt_column "$PROMPT_COLUMN" \
    --response_column "$RESPONSE_COLUMN" --model_name_or_path "$MODEL_PATH" --ptuning_checkpoint "$OUTPUT" \
    --output_dir "$OUTPUT" --max_source_length 64 --max_target_length 64 --per_device_eval_batch_size 1 \
    --pre_seq_len "$PRE_SEQ_LEN" --quantization_bit 4 -- "$@"
