#!/usr/bin/env bash
# ROUGE of written texts and their references, a text a line, as `python -m tuning evaluate --hyps FILE` writes them.
# Further arguments go to "python -m tuning score-text", e.g.
#   bash scripts/evaluate_seq2seq.sh runs/cnndm/test.jsonl.hyps runs/cnndm/test.jsonl.refs --rules cnn_dm
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

if (($# < 2)); then
    echo "usage: bash scripts/evaluate_seq2seq.sh HYPS REFS [arguments of score-text]" >&2
    exit 2
fi
hyps="$1" refs="$2"
shift 2
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/env.sh"
exec "$PYTHON" -m tuning score-text --predictions "$hyps" --references "$refs" "$@"
