#!/usr/bin/env bash
# Sourced with the full path of a configuration: sets what it says. The carriage returns and the byte order mark that
# editors of Windows write do not become part of a value.

if [[ "$(<"$1")" == *$'\r'* || "$(<"$1")" == $'\xef\xbb\xbf'* ]]; then
    _config="$(<"$1")"
    _config="${_config#$'\xef\xbb\xbf'}"
    eval "${_config//$'\r'/}"
else
    source "$1"
fi
