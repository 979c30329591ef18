#!/usr/bin/env bash
# Sourced by the other scripts. Afterwards $PYTHON is an interpreter that meets requirements.txt and the modules of
# this repository can be imported from any working directory.
#
# Which interpreter: $PYTHON where it is given, else the active environment (venv or conda), else .venv in this folder,
# else the system's python3; the first that meets requirements.txt. If none does, .venv is made, once.
#   PYTHON=/path/to/python3.11   the interpreter to use, or to make .venv with
#   TORCH_INDEX_URL=URL          the index to take torch from, for another build of it (CPU only, another CUDA)
#   NEWEST=yes                   .venv, with the newest versions within requirements.txt, not those of constraints.txt
#
# With LOOK_ONLY set no environment is made: where none is complete, the active one or the system's Python is taken.
#
# A finished .venv holds a copy of the two files it was made from (.requirements); one that is being made, or was cut off
# while being made, holds .unfinished. While it is made anew, the one before stands aside (.venv.before).

REPOSITORY="$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"

_env_say() { printf '%s\n' "$*" >&2; }

_env_version() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

# Packages that the interpreter $1 lacks, one a line; 0: none, 1: some, others: not a supported Python.
_env_check() { "$1" "$REPOSITORY/scripts/check_requirements.py" "$REPOSITORY/requirements.txt" 2>/dev/null; }

# What .venv is made from: bounds and, but for NEWEST, the exact versions within them.
_env_recipe() { (cd "$REPOSITORY" && cat requirements.txt && { [[ -n ${NEWEST:-} ]] || cat constraints.txt; }); }

# Is .venv complete, up to date and, where $PYTHON is named, made with that interpreter?
_env_complete() {
    local venv="$REPOSITORY/.venv"
    [[ -x $venv/bin/python && ! -e $venv/.unfinished ]] || return 1
    [[ "$(_env_recipe)" == "$(cat "$venv/.requirements" 2>/dev/null)" ]] || return 1
    [[ -z ${PYTHON:-} || "$(cat "$venv/.base" 2>/dev/null)" == "$PYTHON" ]]
}

# The interpreter to make .venv with: $PYTHON, else the first supported one on PATH. Prints its path.
_env_base() {
    local candidate path version seen=""
    for candidate in ${PYTHON:+"$PYTHON"} ${PYTHON:-python3 python python3.12 python3.11 python3.10}; do
        path="$(command -v "$candidate")" || continue
        version="$(_env_version "$path")" || continue
        case "$version" in 3.10.* | 3.11.* | 3.12.*) printf '%s\n' "$path" && return 0 ;; esac
        seen+=" $path is $version."
        [[ -n ${PYTHON:-} ]] && break
    done
    _env_say "error: Python 3.10, 3.11 or 3.12 is needed.${seen:- No python3 was found.}" \
        "Install one, or name it: PYTHON=/path/to/python3.11 bash scripts/..."
    return 1
}

_env_report_failure() { # $1 what was run, $2 its exit code, $3 the log
    _env_say "error: making the environment failed ($1: exit code $2)"
    grep -E '^ *(ERROR|error):' "$3" | tail -n 3 >&2
    _env_say "The last lines of $3:"
    tail -n 8 "$3" | sed 's/^/    /' >&2
    _env_say "Nothing half-made is left behind; the next start tries again."
    [[ ! -e $venv.before ]] ||
        _env_say "The environment of before is kept: PYTHON='$venv/bin/python' in front of the command takes it."
}

# Runs a command in the background, its output in the log $1, and shows what it is at.
_env_run() {
    local log="$1" started="$SECONDS" shown=0 code=0 at
    shift
    set -m # a process group of its own, so that _env_clean can end all of it
    "$@" >>"$log" 2>&1 </dev/null 9>&- &
    child=$!
    set +m
    while kill -0 "$child" 2>/dev/null; do
        at="$(grep -E '^ *(Collecting|Downloading|Building|Running|Installing) ' "$log" | tail -n 1)"
        if [[ -t 2 ]]; then
            printf '\r\033[K%5d s  %.60s' "$((SECONDS - started))" "${at#"${at%%[! ]*}"}" >&2
        elif ((SECONDS - started - shown >= 30)); then
            shown=$((SECONDS - started))
            _env_say "  $shown s: ${at:0:100}"
        fi
        sleep 0.2
    done
    wait "$child" || code=$?
    child=""
    [[ -t 2 ]] && printf '\r\033[K' >&2
    return "$code"
}

# Ends the running command and puts the .venv of before, if there was one, in the place of the unfinished one. A second
# Ctrl-C does not cut it short.
_env_clean() {
    trap '' HUP INT TERM
    if [[ -n $child ]]; then
        kill -- "-$child" 2>/dev/null
        while kill -0 -- "-$child" 2>/dev/null; do sleep 0.05; done # "wait" would end this trap on Ctrl-C
    fi
    rm -rf -- "$venv"
    [[ ! -e $venv.before ]] || mv -- "$venv.before" "$venv"
}

# Variables, because "-c" does not reach what a package is built with; a later pip has one of its own for that. Both are
# split at blanks, hence no path before the name.
_env_install() {
    cd "$REPOSITORY" || return
    [[ -n ${NEWEST:-} ]] || export PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
    "${pip[@]}" -r requirements.txt -e . # the clone itself: `import glm` from any folder, and the command glm
}

# Makes .venv with the interpreter $1. Runs in a subshell: its traps and its lock end with it.
_env_build() (
    base="$1" venv="$REPOSITORY/.venv" log="$REPOSITORY/.venv.log" child=""
    pip=("$venv/bin/python" -m pip install --disable-pip-version-check)
    if ! { exec 9>>"$REPOSITORY/.venv.lock"; } 2>/dev/null; then
        _env_say "error: cannot write to $REPOSITORY, where the environment .venv is made;" \
            "activate one that meets requirements.txt, or make the folder writable"
        exit 1
    fi
    if command -v flock >/dev/null && ! flock -n 9; then
        _env_say "Another start is making the environment; waiting for it."
        flock 9
    fi
    _env_complete && exit 0
    if [[ -e $venv && ! -e $venv/.unfinished && ! -e $venv/.requirements ]]; then
        _env_say "error: $venv was not made by this script and does not meet requirements.txt;" \
            "move it away, or complete it: '$venv/bin/python' -m pip install -r '$REPOSITORY/requirements.txt'"
        exit 1
    fi

    if [[ -e $venv/.requirements && ! -e $venv/.unfinished ]]; then
        rm -rf -- "$venv.before" && mv -- "$venv" "$venv.before" || exit 1
    fi
    trap _env_clean EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    _env_say "Making the Python environment $venv (once; some minutes, and some GB where torch comes with CUDA)."
    rm -rf -- "$venv" "$log" # the log, too: it might be a link
    : >"$log"
    mkdir -p "$venv" && : >"$venv/.unfinished" || exit 1
    if ! "$base" -c 'import ensurepip, venv' >>"$log" 2>&1; then
        _env_say "error: $base has no venv module; on Debian and Ubuntu: sudo apt install python3-venv"
        exit 1
    fi
    _env_run "$log" "$base" -m venv "$venv" || { _env_report_failure "python -m venv" $? "$log"; exit 1; }
    if [[ -n ${TORCH_INDEX_URL:-} ]]; then
        _env_run "$log" "${pip[@]}" --index-url "$TORCH_INDEX_URL" "$(grep '^torch==' "$REPOSITORY/requirements.txt")" ||
            { _env_report_failure "pip install torch from $TORCH_INDEX_URL" $? "$log"; exit 1; }
    fi
    _env_run "$log" _env_install ||
        { _env_report_failure "pip install -r requirements.txt" $? "$log"; exit 1; }
    # Compiles the kernels now and not in the middle of the first answer; they are optional, so is a compiler.
    echo "Building the kernels of the CPU" >>"$log"
    PYTHONPATH="$REPOSITORY" _env_run "$log" "$venv/bin/python" -c "import kernels; kernels.compiled()" || :
    printf '%s\n' "$base" >"$venv/.base"
    _env_recipe >"$venv/.requirements" && rm "$venv/.unfinished" || exit 1
    trap - EXIT
    rm -rf -- "$venv.before"
    _env_say "The environment is ready."
)

# Sets PYTHON as the head of this file says.
_env_find() {
    local venv="$REPOSITORY/.venv" active="" missing base
    if [[ -n ${PYTHON:-} ]]; then
        active="$(command -v "$PYTHON")" || { _env_say "error: PYTHON=$PYTHON: there is no such interpreter" && return 1; }
        PYTHON="$active"
    elif [[ -n ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]]; then
        active="$(command -v python || command -v python3)" || active=""
    fi
    if [[ -n $active && -z ${NEWEST:-} ]] && missing="$(_env_check "$active")"; then
        PYTHON="$active" && return 0
    fi
    if _env_complete; then
        PYTHON="$venv/bin/python" && return 0
    fi
    for base in "$venv/bin/python" python3; do # a .venv made by hand; a system or container that has everything
        [[ -z ${PYTHON:-}${NEWEST:-} && ! -e $venv/.unfinished ]] || break
        [[ $base == python3 || ! -e $venv/.requirements ]] || continue # made here, and out of date
        if command -v "$base" >/dev/null && _env_check "$base" >/dev/null; then
            PYTHON="$(command -v "$base")" && return 0
        fi
    done
    base="$(_env_base)" || return 1
    if [[ -n ${LOOK_ONLY:-} ]]; then # the doctor: it says itself what is missing
        [[ -x $venv/bin/python ]] && base="$venv/bin/python"
        PYTHON="${active:-$base}" && return 0
    fi
    [[ -n ${missing:-} ]] && _env_say "$active lacks: ${missing//$'\n'/, }"
    _env_build "$base" || return 1
    PYTHON="$venv/bin/python"
}

_env_find || return 1
export PYTHON REPOSITORY
export PYTHONPATH="$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONSAFEPATH=1 # a folder "tasks" or "kernels" in the working directory must not be taken for ours
