#!/bin/sh
# Runs the tests or benchmarks of the GPU and writes a report that says on what.
#
#     scripts/gpu.sh test|bench|quick [DIR] [REPORT]        (GPU_LIMIT: seconds a program may take)
#
# DIR holds what `make gpu` built (build/gpu); it may have been built elsewhere and brought here.  quick
# runs small shapes alone, for compute-sanitizer, which it uses where it is installed.  Run from the
# repository's root: the tests read tests/fixtures and config/demo-model.
set -u

mode=${1:-test}
dir=${2:-build/gpu}
report=${3:-$dir/report-$mode.txt}
limit=${GPU_LIMIT:-300}
export LD_LIBRARY_PATH="$dir/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

case $mode in
test | bench | quick) ;;
*)
    echo "usage: scripts/gpu.sh test|bench|quick [DIR] [REPORT]" >&2
    exit 2
    ;;
esac
if [ ! -x "$dir/dakd" ]; then
    echo "$dir/dakd is not there: run make gpu first" >&2
    exit 2
fi
if ! ls /dev/nvidia[0-9]* >/dev/null 2>&1; then
    echo "this machine has no NVIDIA GPU: bring $dir, scripts, tests/fixtures and config/demo-model to" >&2
    echo "one that has, and run scripts/gpu.sh $mode $dir there" >&2
    exit 2
fi

# Runs one program; its last line, or how it ended, decides.
failures=0
run() {
    echo "== $*"
    start=$(date +%s)
    timeout "$limit" "$@"
    status=$?
    [ $status -ne 0 ] && failures=$((failures + 1))
    echo "== exit $status after $(($(date +%s) - start)) s"
}

# The daemon on the GPU answers one question as the reference implementation does.
serve() {
    echo "== dakd serve on the GPU: $*"
    port_file=$(mktemp)
    rm -f "$port_file"
    "$dir/dakd" serve config/demo-model --device cuda --port 0 --port-file "$port_file" "$@" &
    daemon=$!
    for _ in $(seq 100); do
        [ -s "$port_file" ] && break
        sleep 0.1
    done
    python3 - "$(cat "$port_file" 2>/dev/null)" <<'PY'
import json, sys, urllib.request
cases = json.load(open("tests/fixtures/demo_answers.json"))
wrong = 0
for case in cases:
    body = {"messages": case["messages"], "temperature": 0, "max_tokens": len(case["answer_ids"]) + 1}
    request = urllib.request.Request(f"http://127.0.0.1:{sys.argv[1]}/v1/chat/completions",
                                     json.dumps(body).encode(), {"Content-Type": "application/json"})
    answer = json.load(urllib.request.urlopen(request, timeout=30))
    same = answer["choices"][0]["message"]["content"] == case["answer"]
    if not same and case["min_margin"] >= 0.25:
        wrong += 1
        print("FAILED:", case["messages"], answer["choices"][0]["message"]["content"])
print(len(cases) - wrong, "passed,", wrong, "failed")
sys.exit(wrong != 0)
PY
    status=$?
    kill -TERM $daemon 2>/dev/null
    wait $daemon || status=1
    rm -f "$port_file"
    [ $status -ne 0 ] && failures=$((failures + 1))
    echo "== exit $status"
}

all() {
    echo "mode:    $mode"
    echo "commit:  $(cat "$dir/commit")"
    echo "date:    $(date -u +%Y-%m-%dT%H:%M:%SZ)"
    echo "device:  $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader)"
    echo "machine: $(uname -sr), $(nproc) cores"
    case $mode in
    test)
        for program in "$dir"/gpu_*; do run "$program"; done
        serve
        serve --remote host:1GiB --offload 0.5
        if [ "$(ls -d /dev/nvidia[0-9]* | wc -l)" -gt 1 ]; then
            serve --remote peer:1:1GiB --offload 0.5
        else
            echo "one GPU: no tier in a peer's memory was tested"
        fi
        ;;
    bench)
        for program in "$dir"/gpu_*; do
            if grep -q -- --bench "$program"; then run "$program" --bench; fi
        done
        ;;
    quick)
        for program in "$dir"/gpu_*; do
            if command -v compute-sanitizer >/dev/null; then
                run compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 9 "$program" --quick
            else
                run "$program" --quick
            fi
        done
        ;;
    esac
    echo "programs that failed: $failures"
    [ "$failures" -eq 0 ]
}

all 2>&1 | tee "$report"
# The pipe's status is tee's: the report's last line has the verdict.
tail -n 1 "$report" | grep -qx 'programs that failed: 0'
