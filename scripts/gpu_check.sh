#!/usr/bin/env bash
# Checks and measures the CUDA kernels on this machine's GPU: at most 8 minutes, tables on the screen, results in
# gpu_check.json. Needs a Python with torch for CUDA ($PYTHON, default python3, else the environment that the other scripts
# have made) and this repository, nothing else; no environment is made. Arguments go to tools/gpu_check.py, e.g.
#   bash scripts/gpu_check.sh --only build correctness
#   PYTHON=.venv/bin/python bash scripts/gpu_check.sh --json result.json
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

repository="$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"
has_torch() { "$1" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' 2>/dev/null; }
python="${PYTHON:-python3}"
if [[ -z ${PYTHON:-} ]] && ! has_torch python3 && has_torch "$repository/.venv/bin/python"; then
    python="$repository/.venv/bin/python"
fi
if ! command -v "$python" >/dev/null; then
    echo "error: $python is not found; name a Python with torch: PYTHON=/path/to/python bash scripts/gpu_check.sh" >&2
    exit 2
fi
exec "$python" "$repository/tools/gpu_check.py" "$@"
