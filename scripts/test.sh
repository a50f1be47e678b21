#!/bin/sh
# test.sh - builds and runs everything that needs no GPU, twice: the release build, then address and undefined-behaviour
# sanitizers; then the programs in which threads meet once more, under the thread sanitizer.  With SAN set (make test
# SAN=thread), all of that build and nothing else.  The last line is the sum, `N passed, N failed`.
set -eu
cd "$(dirname "$0")/.."

flavours=${SAN:-"none address,undefined"}
threaded="unit_engine_control unit_engine_engine unit_kernels_ops unit_kernels_ring unit_server_http
          unit_server_http_stream unit_server_intake"
passed=0
failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Runs run_tests.py with these arguments and adds up.
run() {
    # The status of the runner is in its last line; tee keeps the output visible.
    .venv/bin/python scripts/run_tests.py "$@" 2>&1 | tee "$log" || true
    last=$(tail -n 1 "$log")
    case "$last" in
    *" passed, "*" failed") ;;
    *) last="0 passed, 1 failed" ;;
    esac
    passed=$((passed + ${last%% *}))
    rest=${last#* passed, }
    failed=$((failed + ${rest%% *}))
}

for flavour in $flavours; do
    if [ "$flavour" = none ]; then
        make --no-print-directory -s -j"$(nproc)" tests
        out=build
    else
        make --no-print-directory -s -j"$(nproc)" SAN="$flavour" tests
        out=build/san-$(echo "$flavour" | tr , -)
    fi
    echo "== tests of $out"
    run "$out" ${TESTS:+"$TESTS"}
done

if [ -z "${SAN:-}${TESTS:-}" ]; then
    # shellcheck disable=SC2086
    make --no-print-directory -s -j"$(nproc)" SAN=thread NVCC= OUT=build/threads \
        $(printf 'build/threads/tests/%s ' $threaded)
    echo "== tests of build/threads"
    # shellcheck disable=SC2086
    run build/threads --programs $threaded
fi

echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
