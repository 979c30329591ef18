#!/usr/bin/env bash
# Sets everything up, checks the style, runs the tests on all cores (8 at most). Arguments go to pytest, e.g.
#   bash scripts/test.sh tests/test_tokenizers.py -k blanks
#   bash scripts/test.sh -n 0 --pdb tests/test_tokenizers.py    in one process
#   bash scripts/test.sh --slow                                everything, which takes much longer
# --isa avx2 (or generic), first: as on a processor that has no newer instructions, in our kernels and in torch's.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/env.sh"
cd "$REPOSITORY"
if [[ ${1:-} == --isa ]]; then
    case "${2:-}" in
        avx2) export ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 ;;
        generic) export ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 ;;
        *) echo "error: --isa ${2:-}: must be avx2 or generic" >&2 && exit 2 ;;
    esac
    export GLM_CPU_ISA="$2"
    shift 2
fi
# nproc would obey OMP_NUM_THREADS
cores="$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)"
# The models are tiny, and every core has a process of its own; tests that want threads ask for them.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
"$PYTHON" -m ruff check
# Modules in the order of tests/conftest.py, which begins with the long ones; pytest-xdist's own begins with those of
# many tests.
exec "$PYTHON" -m pytest -n "$((cores < 8 ? cores : 8))" --dist loadscope --no-loadscope-reorder "$@"
