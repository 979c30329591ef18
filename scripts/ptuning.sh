#!/usr/bin/env bash
# Sourced by ptuning_train.sh and ptuning_evaluate.sh: the settings of both, and run_ptuning.

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

# Runs ptuning's program with these settings and the arguments, in place of this shell.
run_ptuning() {
    run_original main.py --prompt_column "$PROMPT_COLUMN" --response_column "$RESPONSE_COLUMN" \
        --model_name_or_path "$MODEL_PATH" --output_dir "$OUTPUT" --max_source_length 64 --max_target_length 64 \
        --pre_seq_len "$PRE_SEQ_LEN" --quantization_bit 4 "$@"
}
