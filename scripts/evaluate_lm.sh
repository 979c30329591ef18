#!/usr/bin/env bash
# Evaluates a model on GLM's own evaluation of LAMBADA and WikiText-103, in both directions, or on the tasks that are named. As scripts/evaluate.sh, e.g.
#   CHECKPOINT_PATH=/data/glm-10b DATA_PATH=/data/evaluation bash scripts/evaluate_lm.sh
#   CHECKPOINT_PATH=/data/glm-10b bash scripts/evaluate_lm.sh tasks/glm/lambada.yaml --limit 100
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

here="$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
case "${1:-}" in
'' | -*) set -- "$here/../tasks/glm" "$@" ;;
esac
exec bash "$here/evaluate.sh" "$@"
