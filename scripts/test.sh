#!/usr/bin/env bash
# Sets everything up, checks the style, runs the tests. Arguments go to pytest, e.g.
#   bash scripts/test.sh tests/test_tokenizer.py -k blanks
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$REPOSITORY"
"$PYTHON" -m ruff check
exec "$PYTHON" -m pytest "$@"
