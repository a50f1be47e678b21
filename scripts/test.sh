#!/bin/sh
# test.sh - builds and runs everything that needs no GPU, twice: the release build, then address and undefined-behaviour
# sanitizers.  With SAN set (make test SAN=thread), only that build.  The last line is the sum, `N passed, N failed`.
set -eu
cd "$(dirname "$0")/.."

flavours=${SAN:-"none address,undefined"}
passed=0
failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

for flavour in $flavours; do
    if [ "$flavour" = none ]; then
        make --no-print-directory -s -j"$(nproc)" tests
        out=build
    else
        make --no-print-directory -s -j"$(nproc)" SAN="$flavour" tests
        out=build/san-$(echo "$flavour" | tr , -)
    fi
    echo "== tests of $out"
    # The status of the runner is in its last line; tee keeps the output visible.
    .venv/bin/python scripts/run_tests.py "$out" ${TESTS:+"$TESTS"} 2>&1 | tee "$log" || true
    last=$(tail -n 1 "$log")
    case "$last" in
    *" passed, "*" failed") ;;
    *) last="0 passed, 1 failed" ;;
    esac
    passed=$((passed + ${last%% *}))
    rest=${last#* passed, }
    failed=$((failed + ${rest%% *}))
done

echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
