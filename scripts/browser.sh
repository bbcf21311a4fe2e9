#!/usr/bin/env bash
# Makes sure that Debian's Chromium is there, for the tests that look at pages.
set -euo pipefail

if command -v chromium >/dev/null; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing Chromium with apt-get ..."
    if apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; then
        exit 0
    fi
fi
echo "Chromium is missing, so tests of pages are skipped (in CI they fail). Install it: sudo apt-get install chromium" >&2
