#!/usr/bin/env bash
# Measures speed on this machine: prefill and decoding beside what the machine can do at best. Arguments go to
# tools/benchmark.py, e.g.
#   bash scripts/benchmark.sh --model shape-335m --dtype bf16 fp32 --json result.json
#   bash scripts/benchmark.sh --load checkpoints/glm-small
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/env.sh"
exec "$PYTHON" "$REPOSITORY/tools/benchmark.py" "$@"
