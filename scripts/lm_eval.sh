#!/usr/bin/env bash
# Runs lm-evaluation-harness with the model `glm` (docs/lm-eval.md). Arguments are the harness's own, e.g.
#   bash scripts/lm_eval.sh --model glm --model_args pretrained=checkpoints/glm-small --tasks lambada_openai --batch_size auto
# It is not installed with the rest: .venv/bin/python -m pip install "lm_eval[api]>=0.4.9,<0.5"
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

# To be edited here, or given as environment variables.
MP_SIZE="${MP_SIZE:-1}" # on how many devices the model runs

REPOSITORY="$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"
source "$REPOSITORY/scripts/env.sh"
if ((MP_SIZE == 1)); then
    exec "$PYTHON" -m glm lm-eval "$@"
fi
exec "$PYTHON" "$REPOSITORY/scripts/launch.py" "$MP_SIZE" glm lm-eval "$@"
