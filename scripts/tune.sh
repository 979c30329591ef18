#!/usr/bin/env bash
# Sourced by the scripts that tune as the GLM repository and ChatGLM-6B's ptuning do: makes the environment (env.sh) and
# defines finetune, words_of and run_original.
#   NUM_GPUS_PER_WORKER=8   processes on this machine, or on each host
#   HOST_FILE_PATH=FILE     several hosts, a line each (worker-1 slots=8)
#   MP_SIZE=1               processes that share a model

REPOSITORY="$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"
NUM_GPUS_PER_WORKER="${NUM_GPUS_PER_WORKER:-1}"
HOST_FILE_PATH="${HOST_FILE_PATH:-}"
MP_SIZE="${MP_SIZE:-1}"
DATA_ROOT="${DATA_ROOT:-data}"                  # where the tasks' folders are
CHECKPOINT_PATH="${CHECKPOINT_PATH:-checkpoints}" # where the models' folders are
SAVE_PATH="${SAVE_PATH:-runs}"                  # where a folder for each experiment is made
MASK_RATIO="${MASK_RATIO:-0.1}"                 # of config_tasks/seq_blank.sh: share of the words that become blanks

for _name in NUM_GPUS_PER_WORKER MP_SIZE; do
    if [[ ! ${!_name} =~ ^[1-9][0-9]*$ ]]; then
        echo "error: $_name=${!_name}: must be a number of 1 or more" >&2
        exit 2
    fi
done

# Reads a configuration, which is taken from the working directory first, then from the repository.
read_config() {
    local file="$1"
    [[ -f $file || ! -f $REPOSITORY/$file ]] || file="$REPOSITORY/$file"
    if [[ ! -f $file ]]; then
        echo "error: $1: no such file; there are: $(cd "$REPOSITORY" && echo $2)" >&2
        exit 2
    fi
    [[ $file == /* ]] || file="$PWD/$file"
    trap 'exit 2' EXIT # where bash names a variable that the configuration reads and nobody has set
    source "$REPOSITORY/scripts/read_config.sh" "$file"
    trap - EXIT
}

# Stops where a configuration, named first, does not set one of the variables of such a configuration.
wants() {
    local file="$1" name
    shift
    for name in "$@"; do
        if ! declare -p "$name" >/dev/null 2>&1; then # which takes an empty array for set
            echo "error: $file sets no $name; is it a configuration of another kind?" >&2
            exit 2
        fi
    done
}

# An argument list that a configuration wrote as an array or, as the originals do, as one string: into the array WORDS.
words_of() {
    local -n _list="$1"
    WORDS=()
    if [[ "$(declare -p "$1" 2>/dev/null)" == "declare -a"* ]]; then
        WORDS=("${_list[@]}")
    elif [[ -n ${_list:-} ]]; then
        read -r -d '' -a WORDS <<<"$_list" || true
    fi
}

# Tunes by the two configurations that go first; what follows replaces what they say. $1 is what the second one's name
# begins with, task or seq; the array OWN holds what the script itself says.
finetune() {
    local kind="$1"
    shift
    if (($# < 2)); then
        echo "usage: bash $0 MODEL_CONFIG TASK_CONFIG [arguments of python -m tuning train]" >&2
        exit 2
    fi
    read_config "$1" "config_tasks/model_*.sh"
    wants "$1" MODEL_ARGS
    read_config "$2" "config_tasks/${kind}_*.sh"
    wants "$2" EXPERIMENT_NAME TASK_NAME DATA_PATH
    if [[ $kind == task ]]; then
        wants "$2" MAX_SEQ_LEN EPOCH_SINGLE
        [[ -n ${DEEPSPEED_CONFIG:-} ]] || wants "$2" LR_SINGLE BATCH_SIZE
    else
        wants "$2" TASK_ARGS
    fi
    shift 2
    local name lists=(MODEL_ARGS TRAIN_ARGS COMMON_ARGS)
    local arguments=(--finetune --experiment-name "$EXPERIMENT_NAME" --task "$TASK_NAME" --data-dir "$DATA_PATH"
        --save "$SAVE_PATH" --checkpoint-activations --model-parallel-size "$MP_SIZE" ${OWN[@]+"${OWN[@]}"})
    if [[ $kind == task ]]; then
        arguments+=(--cloze-eval --seq-length "$MAX_SEQ_LEN" --epochs "$EPOCH_SINGLE")
    else
        lists+=(TASK_ARGS)
    fi
    for name in "${lists[@]}"; do
        words_of "$name"
        arguments+=(${WORDS[@]+"${WORDS[@]}"})
    done
    if [[ -n ${DEEPSPEED_CONFIG:-} ]]; then # rates and batches are its own
        arguments+=(--deepspeed_config "$DEEPSPEED_CONFIG")
    elif [[ $kind == task ]]; then
        arguments+=(--lr "$LR_SINGLE" --batch-size "$BATCH_SIZE")
    fi
    run_original finetune_glm.py "${arguments[@]}" -- "$@"
}

# Runs a command line of the originals in all processes, in place of this shell.
run_original() {
    source "$REPOSITORY/scripts/env.sh"
    if [[ -n $HOST_FILE_PATH ]]; then
        exec "$PYTHON" "$REPOSITORY/scripts/launch_hosts.py" "$HOST_FILE_PATH" "$MP_SIZE" tuning original "$@"
    fi
    if ((NUM_GPUS_PER_WORKER > 1)); then
        exec "$PYTHON" "$REPOSITORY/scripts/launch.py" "$NUM_GPUS_PER_WORKER" tuning original "$@"
    fi
    exec "$PYTHON" -m tuning original "$@"
}
