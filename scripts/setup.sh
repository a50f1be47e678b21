#!/bin/sh
# setup.sh - installs what a build and the tests need and is missing: Debian 12 packages (as root or through sudo) and
# the Python packages of scripts/requirements.txt in .venv.  Run again, it finds nothing to do.
set -eu
cd "$(dirname "$0")/.."

packages="build-essential pkg-config ca-certificates curl git python3 python3-venv
    libuv1-dev libcjson-dev libjemalloc-dev libpcre2-dev libutf8proc-dev libcmocka-dev node-llhttp systemd"

missing=
for package in $packages; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done

if [ -n "$missing" ]; then
    as_root=
    if [ "$(id -u)" != 0 ]; then
        as_root=sudo
        command -v sudo >/dev/null || { echo "setup: as root, run: apt-get install$missing" >&2; exit 1; }
    fi
    echo "setup: installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    # shellcheck disable=SC2086
    { $as_root apt-get update -q && $as_root apt-get install -q -y --no-install-recommends $missing; } >"$log" 2>&1 ||
        { cat "$log" >&2; echo "setup: installing the packages failed" >&2; exit 1; }
    rm -f "$log"
fi

wanted=$(sha256sum scripts/requirements.txt | cut -d' ' -f1)
if [ "$(cat .venv/requirements.sha256 2>/dev/null)" != "$wanted" ]; then
    echo "setup: installing the Python test packages into .venv"
    python3 -m venv .venv
    .venv/bin/python -m pip install -q --disable-pip-version-check -r scripts/requirements.txt
    echo "$wanted" >.venv/requirements.sha256
fi
