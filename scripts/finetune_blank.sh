#!/usr/bin/env bash
# Tunes a model to fill blanks of texts, with the GLM repository's configurations, e.g.
#   CHECKPOINT_PATH=/data/models DATA_ROOT=/data bash scripts/finetune_blank.sh \
#       config_tasks/model_blocklm_large_generation.sh config_tasks/seq_blank.sh
# Further arguments replace those of the configurations: --epochs 2, --seed 5678. The data's and models' folders and processes: scripts/tune.sh
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

if (($# < 2)); then
    echo "usage: bash $0 MODEL_CONFIG TASK_CONFIG [arguments of python -m tuning train]" >&2
    exit 2
fi
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/tune.sh"
MASK_RATIO="${MASK_RATIO:-0.1}" # share of the words that become blanks
read_config "$1" "config_tasks/model_*.sh"
read_config "$2" "config_tasks/seq_*.sh"
shift 2
arguments=(--finetune --experiment-name "$EXPERIMENT_NAME" --task "$TASK_NAME" --data-dir "$DATA_PATH"
    --save "$SAVE_PATH" --checkpoint-activations --model-parallel-size "$MP_SIZE")
for name in MODEL_ARGS TRAIN_ARGS COMMON_ARGS TASK_ARGS; do
    words_of "$name"
    arguments+=(${WORDS[@]+"${WORDS[@]}"})
done
[[ -z ${DEEPSPEED_CONFIG:-} ]] || arguments+=(--deepspeed_config "$DEEPSPEED_CONFIG")
run_original finetune_glm.py "${arguments[@]}" -- "$@"
