#!/usr/bin/env bash
# Usage: scripts/setup.sh light|development FOLDER
# Makes a virtual environment and installs Hansa into it: the light package, or all that developers need.
set -euo pipefail

what=$1
venv=$2
torch=${HANSA_TORCH:-torch==2.13.0}

new_enough() {
    "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        if new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    {
        echo "Hansa needs Python 3.11 or newer."
        echo "Found: $("${PYTHON:-python3}" --version 2>&1 | head -n 1)."
        echo "Install a newer one, or name it: make PYTHON=/path/to/python3.11 ..."
    } >&2
    return 1
}

make_venv() {
    local python
    python=$(find_python)
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            echo "Installing python3-venv with apt-get ..."
            apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null
        else
            echo "$python has no venv module. On Debian or Ubuntu: sudo apt-get install python3-venv" >&2
            return 1
        fi
    fi
    "$python" -m venv --clear "$venv"
}

if ! new_enough "$venv/bin/python"; then
    echo "Making a virtual environment in $venv ..."
    make_venv
fi

unset PYTHONHOME PYTHONPATH
pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"
}

case $what in
light)
    echo "Installing Hansa (light: no torch) ..."
    pip install --quiet --editable '.[server,client]'
    ;;
development)
    echo "Installing torch, Hansa with all extras, and the tools of development ..."
    pip install --quiet --upgrade "pip>=25.1" # understands dependency groups
    pip install --quiet "$torch"              # first and by its version, so that nothing else chooses another build
    pip install --quiet --editable '.[all]' --group test --group lint --group docs
    ;;
*)
    echo "usage: scripts/setup.sh light|development FOLDER" >&2
    exit 2
    ;;
esac
