#!/usr/bin/env bash
# Checks and measures the CUDA kernels on this machine's GPU: at most 8 minutes, tables on the screen, results in
# gpu_check.json. Needs a Python with torch for CUDA ($PYTHON, default python3) and this repository, nothing else: the
# environment of the other scripts is neither used nor made. Arguments go to tools/gpu_check.py, e.g.
#   bash scripts/gpu_check.sh --only build correctness
#   PYTHON=.venv/bin/python bash scripts/gpu_check.sh --json result.json
set -euo pipefail

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
python="${PYTHON:-python3}"
if ! command -v "$python" >/dev/null; then
    echo "error: $python is not found; name a Python with torch: PYTHON=/path/to/python bash scripts/gpu_check.sh" >&2
    exit 2
fi
exec "$python" "$repository/tools/gpu_check.py" "$@"
