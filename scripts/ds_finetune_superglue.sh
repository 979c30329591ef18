#!/usr/bin/env bash
# Tunes a model on a SuperGLUE task by cloze questions, with the GLM repository's configurations, e.g.
#   CHECKPOINT_PATH=/data/models DATA_ROOT=/data/superglue \
#       bash scripts/ds_finetune_superglue.sh config_tasks/model_blocklm_large.sh config_tasks/task_copa.sh
# Further arguments replace those of the configurations: --epochs 10, --seed 5678. The data's and models' folders and processes: scripts/tune.sh
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

if (($# < 2)); then
    echo "usage: bash $0 MODEL_CONFIG TASK_CONFIG [arguments of python -m tuning train]" >&2
    exit 2
fi
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/tune.sh"
read_config "$1" "config_tasks/model_*.sh"
read_config "$2" "config_tasks/task_*.sh"
shift 2
arguments=(--finetune --cloze-eval --experiment-name "$EXPERIMENT_NAME" --task "$TASK_NAME" --data-dir "$DATA_PATH"
    --save "$SAVE_PATH" --seq-length "$MAX_SEQ_LEN" --checkpoint-activations --model-parallel-size "$MP_SIZE")
for name in MODEL_ARGS TRAIN_ARGS COMMON_ARGS; do
    words_of "$name"
    arguments+=(${WORDS[@]+"${WORDS[@]}"})
done
if [[ -n ${DEEPSPEED_CONFIG:-} ]]; then # rates and batches are its own
    arguments+=(--deepspeed_config "$DEEPSPEED_CONFIG")
else
    arguments+=(--lr "$LR_SINGLE" --batch-size "$BATCH_SIZE")
fi
arguments+=(--epochs "$EPOCH_SINGLE")
run_original finetune_glm.py "${arguments[@]}" -- "$@"
