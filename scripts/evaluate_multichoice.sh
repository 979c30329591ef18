#!/usr/bin/env bash
# Evaluates a model on tasks of multiple choice or on the tasks that are named. As scripts/evaluate.sh, e.g.
#   CHECKPOINT_PATH=/data/glm-10b DATA_PATH=/data/evaluation bash scripts/evaluate_multichoice.sh
#   CHECKPOINT_PATH=/data/glm-10b bash scripts/evaluate_multichoice.sh my_tasks/fruit.yaml --limit 100
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

here="$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
case "${1:-}" in
'' | -*) set -- "$here/../tasks/bloom" "$here/../tasks/mmlu" "$here/../tasks/chinese/fewclue" "$@" ;;
esac
exec bash "$here/evaluate.sh" "$@"
