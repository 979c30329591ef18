#!/usr/bin/env bash
# Turns the public raw files of evaluation tasks into the evaluator's data. Arguments go to tools/prepare_data.py, e.g.
#   bash scripts/prepare_data.sh --list
#   bash scripts/prepare_data.sh --raw /data/raw --output /data/evaluation
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/env.sh"
exec "$PYTHON" "$REPOSITORY/tools/prepare_data.py" "$@"
