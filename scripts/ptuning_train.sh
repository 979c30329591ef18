#!/usr/bin/env bash
# P-tuning v2 of ChatGLM-6B: a prefix is learned, the model, in INT4, is not. As train.sh of ChatGLM-6B's ptuning, e.g.
#   MODEL_PATH=/data/chatglm-6b DATA=AdvertiseGen bash scripts/ptuning_train.sh
# Further arguments follow, with the original's names: --history_column history --max_steps 100
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

# To be edited here, or given as environment variables.
PRE_SEQ_LEN="${PRE_SEQ_LEN:-128}"
LR="${LR:-2e-2}"
MODEL_PATH="${MODEL_PATH:-THUDM/chatglm-6b}" # the folder of the model
DATA="${DATA:-AdvertiseGen}"                 # with train.json and dev.json
PROMPT_COLUMN="${PROMPT_COLUMN:-content}"
RESPONSE_COLUMN="${RESPONSE_COLUMN:-summary}"
MAX_STEPS="${MAX_STEPS:-3000}"
OUTPUT="${OUTPUT:-output/adgen-chatglm-6b-pt-$PRE_SEQ_LEN-$LR}"

source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/tune.sh"
run_original main.py --do_train --train_file "$DATA/train.json" --validation_file "$DATA/dev.json" \
    --prompt_column "$PROMPT_COLUMN" --response_column "$RESPONSE_COLUMN" --model_name_or_path "$MODEL_PATH" \
    --output_dir "$OUTPUT" --max_source_length 64 --max_target_length 64 --per_device_train_batch_size 1 \
    --gradient_accumulation_steps 16 --max_steps "$MAX_STEPS" --save_steps 1000 --learning_rate "$LR" \
    --pre_seq_len "$PRE_SEQ_LEN" --quantization_bit 4 -- "$@"
