#!/usr/bin/env bash
# Sourced by the scripts that run a model: reads $CONFIG, then makes the environment (env.sh).
# Sets CHECKPOINT_PATH, MP_SIZE, MODEL_ARGS and defines run_module.

REPOSITORY="$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"

# A path is taken from the working directory first, then from the repository.
if [[ ! -f $CONFIG && -f $REPOSITORY/$CONFIG ]]; then
    CONFIG="$REPOSITORY/$CONFIG"
fi
if [[ ! -f $CONFIG ]]; then
    echo "error: CONFIG=$CONFIG: no such file; there are: $(cd "$REPOSITORY" && echo configs/model_*.sh)" >&2
    exit 2
fi
[[ $CONFIG == /* ]] || CONFIG="$PWD/$CONFIG"
source "$REPOSITORY/scripts/read_config.sh" "$CONFIG"
if [[ ! -d $CHECKPOINT_PATH ]]; then
    echo "error: CHECKPOINT_PATH=$CHECKPOINT_PATH: no such folder; set it to the folder that holds the checkpoint's" \
        "file 'latest', as an environment variable or in $CONFIG (README.md says where checkpoints come from)" >&2
    exit 2
fi
if [[ ! $MP_SIZE =~ ^[1-9][0-9]{0,3}$ ]] || ((MP_SIZE > 1024)); then # a process is started for each
    echo "error: MP_SIZE=$MP_SIZE: must be the number of devices the model is spread over, 1 or more (at most 1024)" >&2
    exit 2
fi
source "$REPOSITORY/scripts/env.sh"

# Runs "python -m MODULE ARGUMENTS..." in MP_SIZE processes, in place of this shell.
run_module() {
    if ((MP_SIZE == 1)); then
        exec "$PYTHON" -m "$@"
    fi
    exec "$PYTHON" "$REPOSITORY/scripts/launch.py" "$MP_SIZE" "$1" --model-parallel-size "$MP_SIZE" "${@:2}"
}
