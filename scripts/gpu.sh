#!/bin/sh
# Runs the tests, sanitizers or benchmarks of the GPU and writes a report that says on what.
#
#     scripts/gpu.sh test  [DIR [REPORT]]            every test program, the served demo model, 256 streams
#     scripts/gpu.sh bench [PART...] [DIR [REPORT]]  PART: probe kernels hbm prefill mixed pcie peer windows greedy
#                                                    parts streams chat predict kv fp8 compare; all but compare without one,
#                                                    and greedy, which is a part of parts
#     scripts/gpu.sh soak  [DIR [REPORT]]            the served demo model under everything that clients do, SOAK seconds
#     scripts/gpu.sh quick [DIR [REPORT]]            compute-sanitizer over small shapes; DIR: build/debug/gpu
#     scripts/gpu.sh profile [DIR [REPORT]]          where a step's time goes; DIR: build/trace/gpu
#
# DIR holds what `make gpu` built (build/gpu; make DEBUG=1 gpu: build/debug/gpu; make TRACE=1 gpu:
# build/trace/gpu); it may have been built elsewhere and brought here.  Nothing need be installed but
# python3.  GPU_LIMIT: seconds a program may take; RATIOS: per cent of the weights
# that pcie and peer put there, in place of the usual ones; WINDOWS: which of the cases of windows (pcie5 pcie10
# pcie5+copy peer10 peer30 peer10+copy); GREEDY: which of greedy's (pcie10 peer30, or of another share); PARTS: which
# of hbm pcie peer greedy of parts; COMPARE: which of the cases of compare (8b-pcie 30b-pcie 70b-pcie 8b-peer 30b-peer
# 70b-peer, or all with pcie, or with peer), SHARES, BATCHES, PROMPTS and LAYERS: of them, e.g. 0,free,0.1 and 8,64
# and 1024 and 8; PREDICT: which of hbm pcie peer of predict; KV: which of the cases of kv (steady-peer steady-pcie
# short-peer short-pcie short-both opt-peer opt-pcie opt512-peer); SOAK: seconds (420).  Run from the repository's
# root: the tests read tests/fixtures,
# config/demo-model and config/models.
#
# bench writes one JSON file a run into results/ beside the report, quick the tools' own words into
# sanitizer/.  All of bench is made to take less than twenty minutes, pcie 130 s, mixed 100 s, peer 90 s, windows
# 90 s, parts 80 s with greedy's 40, chat 60 s, predict 90 s, kv 100 s and fp8 30 s of them; compare, which is apart, takes eleven
# more.
set -u

usage() {
    sed -n 's/^# \{0,1\}//; 4,10p' "$0" >&2
    exit 2
}
[ $# -gt 0 ] || set -- test
mode=$1
shift
parts=
case $mode in
test | soak) default=build/gpu ;;
quick) default=build/debug/gpu ;;
profile) default=build/trace/gpu ;;
bench)
    default=build/gpu
    while [ $# -gt 0 ]; do
        case $1 in
        probe | kernels | hbm | prefill | mixed | pcie | peer | windows | greedy | parts | streams | chat | predict | kv | fp8 | compare)
            parts="$parts $1"
            ;;
        *) break ;;
        esac
        shift
    done
    ;;
*) usage ;;
esac
[ $# -le 2 ] || usage
dir=${1:-$default}
report=${2:-$dir/report-$mode.txt}
limit=${GPU_LIMIT:-300}
parts=${parts:-probe kernels hbm prefill mixed pcie peer windows parts streams chat predict kv fp8}
model=config/models/Llama-3.1-8B
# Where a ratio of two steps is wanted and not a time: as good of 16 layers as of 32, and loaded in half the time.
half_the_layers='--hf-overrides={"num_hidden_layers":16}'
# What dakd measures of the links is measured in this run.
XDG_STATE_HOME=$(mktemp -d)
export XDG_STATE_HOME
export LD_LIBRARY_PATH="$dir/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

program=dakd
[ "$mode" != profile ] || program=gpu_profile
if [ ! -x "$dir/$program" ]; then
    echo "$dir/$program is not there: run make gpu first (see the head of scripts/gpu.sh)" >&2
    exit 2
fi
if ! ls /dev/nvidia[0-9]* >/dev/null 2>&1; then
    echo "this machine has no NVIDIA GPU: bring $dir, scripts, tests, config/demo-model and config/models" >&2
    echo "to one that has, and run scripts/gpu.sh $mode $dir there" >&2
    exit 2
fi
gpus=$(ls -d /dev/nvidia[0-9]* | wc -l)
commit=$(cat "$dir/commit")
# As results are named: 2026-11-21-h200-0123abc
device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | sed 's/NVIDIA //; s/ .*//' | tr '[:upper:]' '[:lower:]')
stamp=$(date -u +%Y-%m-%d)-$device-$(echo "$commit" | cut -c 1-7)
results=$(dirname "$report")/results
logs=$(dirname "$report")/sanitizer
work=$(mktemp -d)
trap 'rm -rf "$work" "$XDG_STATE_HOME"' EXIT
: >"$work/failures"

failed() {
    echo x >>"$work/failures"
}

# Runs one program; its exit status decides.
run() {
    echo "== $*"
    start=$(date +%s)
    timeout -k 5 "$limit" "$@"
    status=$?
    [ $status -ne 0 ] && failed
    echo "== exit $status after $(($(date +%s) - start)) s"
}

# --- test -------------------------------------------------------------------------------------------

# The daemon on the GPU answers one question as the reference implementation does.
serve() {
    echo "== dakd serve on the GPU: $*"
    port_file=$work/port
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
    [ $status -ne 0 ] && failed
    echo "== exit $status"
}

test_all() {
    for program in "$dir"/gpu_*; do run "$program"; done
    serve
    serve --remote host:1GiB --offload 0.5 --force-offload
    serve --remote host:1GiB --offload 0.5 --force-offload --congestion-control off
    for way in direct prefetch uva; do
        serve --remote host:1GiB --offload 0.5 --force-offload --offload-mode $way
    done
    if [ "$gpus" -gt 1 ]; then
        serve --remote peer:1:1GiB --offload 0.5 --force-offload
        serve --remote peer:1:1GiB,host:1GiB --offload 0.5 --force-offload --offload-mode prefetch
    else
        echo "one GPU: no tier in a peer's memory was tested"
    fi
    run python3 tests/gpu_streams.py "$dir/dakd" $model --streams 256 --prompt 64 --output 48 -- --device cuda
    # Does not fit: what leaves HBM is planned.
    run python3 tests/gpu_streams.py "$dir/dakd" $model --streams 16 --prompt 32 --output 8 -- --device cuda --gpu-memory-utilization 0.1
}

# --- quick ------------------------------------------------------------------------------------------

# Pairs of accesses that racecheck reports and that are ordered all the same, as awk expressions of
# (first, second):
#   the word `landed` is what synchronises: written by st.release, read by ld.acquire, which racecheck
#       does not take for an order
#   `issue_clock` is ordered by it: the poller reads a slot's stamp before it says the block landed,
#       and the producer writes the next only after
known_pairs='
function known(pair) {
    return pair ~ /ptx_load_acquire_shared/ && pair ~ /ptx_store_release_shared/ ||
           pair ~ /cu_(produce|wide)_weights/ && pair ~ /cu_(poll_remote|wide_poll)/
}
/Race reported between/ { first = $0 }
/ and (Read|Write) access at/ { if (known(first " " $0)) k++; else { u++; if (u <= 3) print first " " $0 > "/dev/stderr" } }
END { print k + 0, u + 0 }'

# The verdict on a log: a sentence, and status 1 where something is wrong.  No verdict is not a fault
# of the program, and is said.
verdict() {
    tool=$1 log=$2 code=$3 name=$(basename "$2")
    if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then
        echo "no verdict: the tool did not end within $sanitizer_limit s"
    elif grep -qE '[1-9][0-9]* failed|^FAILED' "$log"; then
        echo "FAILED: a result is wrong: $(grep -m 1 FAILED "$log")"
        return 1
    elif ! grep -q 'SUMMARY' "$log"; then
        echo "no verdict: the tool ended with status $code: $(tail -n 1 "$log" | cut -c 1-100)"
    elif [ "$tool" = racecheck ]; then
        counts=$(awk "$known_pairs" "$log" 2>"$work/unknown-$name")
        [ "${counts#* }" -eq 0 ] || { echo "FAILED: ${counts#* } pairs race: $(head -n 1 "$work/unknown-$name")"; return 1; }
        [ "${counts% *}" -eq 0 ] && echo "clean" || echo "clean but for ${counts% *} known pairs (see scripts/gpu.sh)"
    elif grep -qE 'ERROR SUMMARY: 0 errors' "$log"; then
        echo "clean"
    else
        echo "FAILED: $(grep -m 1 SUMMARY "$log")"
        return 1
    fi
}

# sanitize TOOL NAME COMMAND...: in the background, eight at a time; they share the GPU.
sanitizer_limit=${GPU_LIMIT:-60}
jobs=0
sanitize() {
    {
        tool=$1 name=$2
        shift 2
        log=$logs/$tool-$name.txt start=$(date +%s)
        timeout -k 5 "$sanitizer_limit" compute-sanitizer --tool "$tool" --report-api-errors no \
            --error-exitcode 9 --print-limit 100000 "$@" >"$log" 2>&1
        said=$(verdict "$tool" "$log" $?) || failed
        printf '%-10s %-24s %3d s  %s\n' "$tool" "$name" $(($(date +%s) - start)) "$said"
    } &
    jobs=$((jobs + 1))
    [ $((jobs % 8)) -ne 0 ] || wait
}

quick_all() {
    if ! command -v compute-sanitizer >/dev/null; then
        echo "no compute-sanitizer here: the small shapes run by themselves"
        for program in "$dir"/gpu_*; do run "$program" --quick; done
        return
    fi
    tiny=$dir/gpu_tiny
    mkdir -p "$logs"
    for program in "$dir"/gpu_*; do
        case ${program##*/} in
        gpu_tiny | gpu_profile | gpu_control) ;; # families apart; times; the products of others, many times over
        *) sanitize memcheck "${program##*/}" "$program" --quick ;;
        esac
    done
    for family in $("$tiny" --list); do
        case $family in
        gemm-* | norm-* | small | stream | sample-*) sanitize racecheck "$family" "$tiny" "$family" ;;
        esac
    done
    sanitize racecheck attention "$dir/gpu_attention" --small
    sanitize racecheck attention-e4m3 "$dir/gpu_attention_e4m3" --small
    for tool in racecheck synccheck initcheck; do sanitize $tool prefill "$dir/gpu_prefill" --tiny; done
    sanitize racecheck probe "$dir/gpu_probe" --tiny
    sanitize racecheck stage "$dir/gpu_stage" --tiny
    sanitize racecheck loads "$dir/gpu_loads" --tiny
    sanitize racecheck prefill-attention "$dir/gpu_prefill_attention" --small
    for tool in memcheck synccheck initcheck; do
        for family in gemm norm sample small stream; do sanitize $tool "$family" "$tiny" "$family"; done
    done
    wait
}

# --- bench ------------------------------------------------------------------------------------------

# dakd_bench MODEL FLAGS...: with weights that are made up, on the GPU.
dakd_bench() {
    timeout -k 5 "$limit" "$dir/dakd" bench "$@" --load-format dummy --dtype bfloat16 --device cuda --log-level warn
}

# bench_shown NAME MODEL FLAGS...: what it says goes into the report.
bench_shown() {
    shown=$1
    shift
    start=$(date +%s)
    dakd_bench "$@"
    status=$?
    [ $status -eq 0 ] || failed
    echo "-- $shown: exit $status after $(($(date +%s) - start)) s"
}

# bench_quiet NAME MODEL FLAGS...: what it says is of interest only where it fails, which is the status.
bench_quiet() {
    quiet=$1
    shift
    dakd_bench "$@" >"$work/bench.txt" 2>&1
    status=$?
    [ $status -ne 0 ] || return 0
    failed
    echo "FAILED: $quiet, status $status: $(tail -n 2 "$work/bench.txt")"
    return 1
}

# bench_one NAME BATCHES INPUT OUTPUT FLAGS...: one run of dakd bench, its figures in a JSON file, an
# array where BATCHES are several ("1,32,128").  Compared, batch by batch, with the runs that all_hbm
# and bounded name, if any: the same without remote bytes, and with windows.
bench_one() {
    name=$1 batches=$2 input=$3 output=$4
    shift 4
    json=$results/$stamp-bench-8b-$name.json
    start=$(date +%s)
    bench_quiet "$name" $model --batch "$batches" --input-len "$input" --output-len "$output" --json "$json" "$@" || return
    python3 - "$name" $(($(date +%s) - start)) "$json" "${all_hbm:+$results/$stamp-bench-8b-$all_hbm.json}" \
        "${bounded:+$results/$stamp-bench-8b-$bounded.json}" <<'PY'
import json, os, sys
def read(path):
    if not path or not os.path.exists(path):
        return {}
    runs = json.load(open(path))
    return {r["batch_sequences"]: r for r in (runs if isinstance(runs, list) else [runs])}
name, seconds, runs, all_hbm, bounded = sys.argv[1], sys.argv[2], *map(read, sys.argv[3:])
for batch, r in runs.items():
    tiers = " ".join(f"{t['name']} {t['achieved_bytes_per_s'] / 1e9:.1f} of {t['read_bytes_per_s'] / 1e9:.1f}" for t in r["tiers"])
    trips = "".join(f"  trip us {t['round_trip_mean_us']:.1f} <= {t['round_trip_max_us']:.1f}"
                    for t in r["tiers"] if "round_trip_mean_us" in t)
    beside = "".join(f"  time/{what} {r['tpot_steady_median_ms'] / other[batch]['tpot_steady_median_ms']:.3f}"
                     for what, other in (("all-HBM", all_hbm), ("static", bounded)) if batch in other)
    if "prompt_link_floor_ms" in r and batch in all_hbm and r["input_tokens_per_sequence"] > 256:
        link, hbm = r["prompt_link_floor_ms"], all_hbm[batch]["prompt_ms"]
        crossed = " ".join(f"{t['name']} {t['prompt_step_counted_bytes'] / t['prompt_step_weight_bytes']:.4f}" for t in r["tiers"][1:])
        print(f"{name:20} prompt of {r['input_tokens_per_sequence']:.0f} in {r['prompt_step_count']:.0f} steps: {r['prompt_ms']:.2f} ms"
              f"  link {link:.2f}  all-HBM {hbm:.2f}  time/larger {r['prompt_ms'] / max(link, hbm):.3f}  weights crossed: {crossed} times")
    print(f"{name:20} b{batch:<4} floor {r['floor_per_step_ms']:8.3f} ms ({r['floor_tier']}) TPOT {r['tpot_steady_median_ms']:8.3f}"
          f" ms  floor/TPOT {r['floor_over_tpot_ratio']:.3f}{beside}  {r['decode_tokens_per_s']:8.1f} tokens/s"
          f"  outside device {r.get('engine_outside_device_share_ratio', float('nan')):.4f}  GB/s: {tiers}{trips}")
print(f"{name:20} [{seconds} s]")
PY
}

bench_hbm() {
    all_hbm= bounded=
    bench_one hbm 1,8,32 512 128
    bench_one hbm-batch128-context1024 128 1024 32 --max-num-batched-tokens 8192
}

# bench_mfu BATCH INPUT: prompts, against the peak of matrix products probed in the same run.
bench_mfu() {
    json=$results/$stamp-bench-8b-prefill-$1x$2.json
    bench_quiet "$1 x $2" $model --batch "$1" --input-len "$2" --output-len 24 --max-num-batched-tokens 2048 \
        --max-model-len 40960 --json "$json" || return
    python3 - "$json" <<'PY'
import json, sys
r = json.load(open(sys.argv[1]))
print(f"{r['batch_sequences']} x {r['input_tokens_per_sequence']:5}: {r['prefill_tokens_per_s']:8.0f} tokens/s  "
      f"{r['prefill_tflops']:6.1f} of {r['matrix_peak_tflops']:.1f} TFLOPS  MFU {r['prefill_mfu_ratio']:.3f}  "
      f"TTFT median {r['ttft_median_ms']:.1f} ms")
PY
}

# KV in fp8 beside bfloat16, where a step reads more KV than weights; prompts' KV is taken as given.
bench_fp8() {
    all_hbm= bounded=
    for dtype in bfloat16 fp8; do
        bench_one kv-$dtype 8,64 4096 24 --given-context --kv-cache-dtype $dtype "$half_the_layers"
    done
}

bench_prefill() {
    bench_mfu 1 2048
    bench_mfu 8 2048
    bench_mfu 1 8192
    bench_mfu 1 32768
}

# bench_arrivals NAME INPUT RATE PROMPTS FLAGS...: prompts that arrive beside 32 sequences that decode.
bench_arrivals() {
    name=$1 input=$2 rate=$3 prompts=$4
    shift 4
    run "$dir/dakd" bench $model --load-format dummy --dtype bfloat16 --device cuda --log-level warn --batch 32 \
        --input-len "$input" --output-len 32 --request-rate "$rate" --num-prompts "$prompts" \
        --json "$results/$stamp-bench-8b-mixed-$name.json" "$@"
}

bench_mixed() {
    bench_arrivals 2048 2048 8 16 --sweep-batched-tokens 256,512,1024,2048,4096,8192
    bench_arrivals 2048-target 2048 8 16 --sweep-batched-tokens 2048,8192 --sweep-itl-target-ms 8,15,30
    bench_arrivals 8192 8192 2 6 --sweep-batched-tokens 256,512,1024,2048,4096,8192
    bench_arrivals 8192-target 8192 2 6 --sweep-batched-tokens 2048,8192 --sweep-itl-target-ms 8,15,30
}

# Slow steps are few: a steady TPOT needs eight.
remote_tokens() {
    case $1 in
    0 | 0.4 | 1 | 4 | 7) echo 32 ;;
    5) echo 16 ;;
    *) echo 10 ;;
    esac
}

share_of() {
    python3 -c 'import sys; print(float(sys.argv[1]) / 100)' "$1"
}

# bench_remote NAME TIER BATCHES RATIO...: none remote, then each ratio, with windows and without.
bench_remote() {
    link=$1 tier=$2 batches=$3
    shift 3
    all_hbm= bounded=
    bench_one "${link}0" "$batches" 8 32 --max-num-batched-tokens 2048
    for ratio in "$@"; do
        all_hbm=${link}0
        for control in static off; do
            [ $control = static ] && bounded= || bounded=$link$ratio
            bench_one "$link$ratio$([ $control = static ] || echo -control-off)" "$batches" 8 "$(remote_tokens "$ratio")" \
                --max-num-batched-tokens 2048 --placement even --remote "$tier" --offload "$(share_of "$ratio")" \
                --force-offload --congestion-control $control
        done
    done
    all_hbm= bounded=
}

# bench_prompts LINK TIER RATIO...: a prompt in steps of 512 and of 2,048 tokens, none of the weights
# remote, then each ratio.  Of two measurements of one loading the second counts.
bench_prompts() {
    link=$1 tier=$2
    shift 2
    bounded=
    for tokens in 512 2048; do
        all_hbm=
        bench_one "$link-prompt$tokens-0" 1,1 8192 10 --max-num-batched-tokens $tokens
        all_hbm=$link-prompt$tokens-0
        for ratio in "$@"; do
            bench_one "$link-prompt$tokens-$ratio" 1,1 8192 10 --max-num-batched-tokens $tokens --placement even \
                --remote "$tier" --offload "$(share_of "$ratio")" --force-offload
        done
    done
    all_hbm=
}

bench_pcie() {
    run "$dir/gpu_gemm" --windows
    bench_prompts pcie host:9GiB 10 30
    bench_remote pcie host:9GiB 1,32,128 ${RATIOS:-0.4 1 5 10 30 50}
}

bench_peer() {
    if [ "$gpus" -lt 2 ]; then
        echo "one GPU: no tier in a peer's memory was measured"
        return
    fi
    run "$dir/gpu_gemm" --windows --peer
    bench_prompts peer peer:1:9GiB 10 50
    bench_remote peer peer:1:9GiB 1,32,128 ${RATIOS:-4 7 10 30 50}
    # Three tiers at once: the peer's is filled first where shares are not planned.
    all_hbm=peer0
    bench_one peer+host8 1,32,128 8 32 --max-num-batched-tokens 2048 --remote peer:1:1GiB,host:4GiB --offload 0.08 --force-offload
    all_hbm=
}

# bench_sweep NAME TIER SHARE BATCHES OUTPUT CONTROLS FLAGS...: static windows, adaptive and off beside each
# other, of one loading: times over the best static one's.
bench_sweep() {
    name=$1 tier=$2 share=$3 batches=$4 output=$5 controls=$6
    shift 6
    echo "-- $name: $share of the weights of half the layers in $tier $*"
    bench_shown "$name" $model "$half_the_layers" --batch "$batches" --input-len 8 --output-len "$output" \
        --max-num-batched-tokens 2048 --placement even --remote "$tier" --offload "$share" --force-offload \
        --control-sweep "$controls" --json "$results/$stamp-bench-8b-windows-$name.json" "$@"
}

bench_windows() {
    pcie=8x1,16x1,16x2,16x3,16x4,32x4,64x4,off,adaptive peer=8x4,16x3,16x4,16x6,32x4,64x4,off,adaptive
    for case in ${WINDOWS:-pcie5 pcie10 pcie5+copy peer10 peer30 peer10+copy}; do
        case $case in
        peer*) [ "$gpus" -gt 1 ] || { echo "one GPU: $case was not measured"; continue; } ;;
        esac
        case $case in
        pcie5) bench_sweep $case host:2GiB 0.05 1,32,128 16 $pcie ;;
        pcie10) bench_sweep $case host:2GiB 0.1 1,32,128 10 $pcie ;;
        pcie5+copy) bench_sweep $case host:2GiB 0.05 1,32,128 16 $pcie --background-copy host:25GB/s ;;
        peer10) bench_sweep $case peer:1:4GiB 0.1 1,32,128 32 $peer ;;
        peer30) bench_sweep $case peer:1:4GiB 0.3 1,32,128 24 $peer ;;
        peer10+copy) bench_sweep $case peer:1:4GiB 0.1 1,32,128 32 $peer --background-copy peer1:100GB/s ;;
        *) echo "FAILED: WINDOWS has no case $case"; failed ;;
        esac
    done
}

# bench_foretold NAME MODEL BATCHES INPUT OUTPUT FLAGS...: predicted against measured, a line a batch.
bench_foretold() {
    name=$1 shape=$2 batches=$3 input=$4 output=$5
    shift 5
    json=$results/$stamp-bench-predict-$name.json
    bench_quiet "$name" "$shape" --batch "$batches" --input-len "$input" --output-len "$output" \
        --max-num-batched-tokens 16384 --json "$json" "$@" || return
    python3 - "$name" "$json" "$work/foretold" <<'PY'
import json, sys
for r in json.load(open(sys.argv[2])):
    ratio = r["predicted_over_tpot_ratio"]
    print(f"{sys.argv[1]:16} {100 * r['offload_ratio']:5.1f} % remote"
          f"  {r['batch_sequences']:4.0f} x {r['steady_context_mean_tokens']:5.0f} tokens"
          f"  floor {r['floor_per_step_ms']:8.3f}  predicted {r['predicted_per_step_ms']:8.3f}"
          f"  measured {r['tpot_steady_median_ms']:8.3f} ms  predicted/measured {ratio:.3f}"
          f"{' beyond 7 %' if abs(ratio - 1) > 0.07 else ''}")
    print(ratio, file=open(sys.argv[3], "a"))
PY
}

# Shapes, contexts and numbers of sequences that no constant of engine/predict.c was taken from.
bench_predict() {
    flags="--placement even --force-offload --congestion-control static"
    opt=config/models/OPT-6.7B llama=config/models/Llama-3.1-70B qwen=config/models/Qwen2.5-7B
    eight='--hf-overrides={"num_hidden_layers":8}' six='--hf-overrides={"num_hidden_layers":6}'
    ten='--hf-overrides={"num_hidden_layers":10}'
    : >"$work/foretold"
    for half in ${PREDICT:-hbm pcie peer}; do
        case $half in
        hbm)
            bench_foretold 8b-hbm $model 1,2,12,24,48,100 180 32
            bench_foretold qwen7b-hbm config/models/Qwen2.5-7B 1,8,32,64,128 700 32
            bench_foretold opt-8-hbm $opt 2,16,32,100 1100 32 $eight
            bench_foretold 70b-6-hbm $llama 1,8,24,64 1900 32 $six
            ;;
        pcie)
            bench_foretold 8b-pcie1 $model 2,12,32,64,128 300 24 $flags --remote host:2GiB --offload 0.01
            bench_foretold opt-8-pcie5 $opt 1,12,48,128 150 16 $eight $flags --remote host:2GiB --offload 0.05
            bench_foretold qwen7b-10-pcie10 $qwen 1,8,32,64 400 16 $ten $flags --remote host:2GiB --offload 0.1
            bench_foretold 70b-6-pcie30 $llama 1,16,64 64 12 $six $flags --remote host:5GiB --offload 0.3
            ;;
        peer)
            [ "$gpus" -gt 1 ] || { echo "one GPU: no tier in a peer's memory was measured"; continue; }
            bench_foretold opt-8-peer5 $opt 1,12,48,128 150 24 $eight $flags --remote peer:1:2GiB --offload 0.05
            bench_foretold qwen7b-10-peer10 $qwen 1,8,32,64,128 400 24 $ten $flags --remote peer:1:2GiB --offload 0.1
            bench_foretold 70b-6-peer30 $llama 1,16,64 64 16 $six $flags --remote peer:1:5GiB --offload 0.3
            ;;
        *) echo "FAILED: PREDICT has no part $half"; failed ;;
        esac
    done
    python3 - "$work/foretold" <<'PY'
import sys
errors = [abs(float(line) - 1) for line in open(sys.argv[1])]
if errors:
    print(f"{len(errors)} steps: predicted within {100 * max(errors):.1f} % of measured, "
          f"{100 * sum(errors) / len(errors):.1f} % on average, {sum(e <= 0.07 for e in errors)} within 7 %")
PY
}

# compare_one NAME MODEL LAYERS TIER SECONDS: every mode at every share and batch, contexts of 32 and of 1,024 tokens,
# of one loading each; what is not begun after so many seconds is named.  Rows are in the CSV as they come.
compare_one() {
    name=$1 shape=$2 layers=$3 tier=$4 seconds=$5
    for prompt in ${PROMPTS:-32 1024}; do
        file=$results/$stamp-compare-$name-context$prompt
        echo "-- $name-context$prompt: $layers layers of $shape, remote in $tier"
        bench_shown "$name-context$prompt" config/models/$shape --hf-overrides "{\"num_hidden_layers\": $layers}" --compare \
            --compare-offload "${SHARES:-0,free,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1}" --compare-seconds 0.05 \
            --compare-limit-seconds "$seconds" --batch "${BATCHES:-8,64,512}" --input-len "$prompt" --given-context \
            --output-len 12 --remote "$tier" --congestion-control static --csv "$file.csv" --json "$file.json" \
            --svg "$file"
    done
}

compare_case() {
    case $1 in
    *-peer) [ "$gpus" -gt 1 ] || { echo "one GPU: $1 was not measured"; return; } ;;
    esac
    case $1 in
    8b-pcie) compare_one "$1" Llama-3.1-8B "${LAYERS:-6}" host:64GiB 70 ;;
    30b-pcie) compare_one "$1" OPT-30B "${LAYERS:-4}" host:64GiB 85 ;;
    70b-pcie) compare_one "$1" Llama-3.1-70B "${LAYERS:-3}" host:64GiB 105 ;;
    8b-peer) compare_one "$1" Llama-3.1-8B "${LAYERS:-6}" peer:1:64GiB 45 ;;
    30b-peer) compare_one "$1" OPT-30B "${LAYERS:-4}" peer:1:64GiB 45 ;;
    70b-peer) compare_one "$1" Llama-3.1-70B "${LAYERS:-3}" peer:1:64GiB 45 ;;
    *) echo "FAILED: COMPARE has no case $1"; failed ;;
    esac
}

# One after another: two GPUs' links to the host are not as independent as they look (steps of 2 ms took up to a
# third longer with a program on the other GPU).
bench_compare() {
    for case in ${COMPARE:-pcie peer}; do
        case $case in
        pcie | peer) for shape in 8b 30b 70b; do compare_case $shape-$case; done ;;
        *) compare_case "$case" ;;
        esac
    done
}

# shellcheck source=scripts/gpu_kv.sh
. "$(dirname "$0")/gpu_kv.sh"

# bench_part NAME FLAGS...: one loading, its runs in a JSON file.
bench_part() {
    name=$1
    shift
    bench_shown "parts-$name" $model "$half_the_layers" --batch 1,32 --input-len 512 --offload-mode direct \
        --json "$results/$stamp-bench-8b-parts-$name.json" "$@"
}

# What each part is worth: a step, or a prompt, without it over the same with it, each left out alone.  Windows: static
# ones, none and adaptive ones of one loading; placements: greedy's.
bench_parts() {
    for case in ${PARTS:-hbm pcie peer greedy}; do
        case $case in
        hbm)
            bench_part hbm --output-len 64 --without dependent-launch,split-k
            continue
            ;;
        pcie) tier=host:2GiB output=24 bounded_share=0.05 ;;
        peer)
            tier=peer:1:2GiB output=40 bounded_share=0.1
            [ "$gpus" -gt 1 ] || { echo "one GPU: no tier in a peer's memory was measured"; continue; }
            ;;
        greedy)
            bench_greedy
            continue
            ;;
        *) echo "FAILED: PARTS has no case $case"; failed; continue ;;
        esac
        bench_part $case-even --output-len $output --remote $tier --offload 0.1 --force-offload --placement even \
            --congestion-control static --without dependent-launch,split-k,multicast
        bench_part $case-control --output-len $output --remote $tier --offload $bounded_share --force-offload \
            --placement even --given-context --control-sweep static,off,adaptive
    done
    python3 scripts/tables.py --parts "$(dirname "$report")"
}

# read_share JSON: of all weights, what a step of that run reads over the link.
read_share() {
    python3 -c '
import json, sys
tiers = json.load(open(sys.argv[1]))["tiers"]
print(tiers[1]["step_weight_bytes"] / sum(t["step_weight_bytes"] for t in tiers))' "$1"
}

# bench_greedy: 512 sequences, a share of the weights outside HBM: of each weight alike, where the planner puts
# it, and of each weight alike as much as the planner has a step read.
bench_greedy() {
    all_hbm= bounded=
    bench_one greedy-0 512 32 14 --max-num-batched-tokens 4096
    all_hbm=greedy-0
    for case in ${GREEDY:-pcie10 peer30}; do
        case $case in
        peer*) tier=peer:1:8GiB ratio=${case#peer} ;;
        *) tier=host:8GiB ratio=${case#pcie} ;;
        esac
        [ "$tier" = host:8GiB ] || [ "$gpus" -gt 1 ] || { echo "one GPU: $case was not measured"; continue; }
        share=$(share_of "$ratio")
        for placement in even planned even-as-read; do
            bench_one "greedy-$case-$placement" 512 32 14 --max-num-batched-tokens 4096 \
                --placement "${placement%-as-read}" --remote "$tier" --offload "$share" --force-offload
            [ $placement != planned ] || share=$(read_share "$json") || break
        done
    done
    all_hbm=
}

bench_kernels() {
    # What there is of CUDA's own products, to be held against.
    cublas=$(ls /usr/local/cuda*/targets/x86_64-linux/lib/libcublas.so.1[0-9] 2>/dev/null | tail -n 1)
    for program in "$dir"/gpu_*; do
        grep -q -- --bench "$program" || continue
        case ${cublas:+${program##*/}} in
        gpu_gemm) run "$program" --bench --cublas "$cublas" ;;
        gpu_prefill) run "$program" --bench --cublaslt "${cublas%/*}/libcublasLt.so.${cublas##*.so.}" ;;
        *) run "$program" --bench ;;
        esac
    done
    run "$dir/gpu_profile"
    if python3 -c 'import torch' 2>/dev/null; then
        run python3 tests/gpu_cudnn.py
        run python3 tests/gpu_cudnn_prefill.py
    else
        echo "no torch here: nothing to compare attention with"
    fi
}

# Measured anew, and kept beside the other results.
bench_probe() {
    run "$dir/dakd" probe --reprobe --json "$results/$stamp-probe.json" --svg "$results/$stamp-probe.svg"
}

bench_streams() {
    run python3 tests/gpu_streams.py "$dir/dakd" $model --streams 256 --prompt 128 --output 128 \
        --json "$results/$stamp-streams-8b-256.json" -- --device cuda
}

# 200 conversations of 8 turns, of which HBM holds a third; with the prefix cache and without.
bench_chat() {
    run python3 scripts/chat.py "$dir/dakd" $model --json "$results/$stamp-chat-8b.json" -- --load-format dummy \
        --dtype bfloat16 --device cuda --log-level warn --kv-cache-memory-bytes 4GiB --kv-remote host:16GiB
}

# --- soak -------------------------------------------------------------------------------------------

soak() {
    limit=$((${SOAK:-420} + 120))
    run python3 scripts/soak.py "$dir/dakd" config/demo-model --seconds "${SOAK:-420}" --clients 24 --growth 64 \
        --reference told -- --device cuda
}

# ----------------------------------------------------------------------------------------------------

all() {
    began=$(date +%s)
    if [ "$mode" = bench ]; then echo "mode:    bench:$parts"; else echo "mode:    $mode"; fi
    echo "commit:  $commit"
    echo "date:    $(date -u +%Y-%m-%dT%H:%M:%SZ)"
    echo "device:  $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | paste -sd ';')"
    echo "machine: $(uname -sr), $(nproc) cores"
    [ "$mode" != bench ] || mkdir -p "$results"
    case $mode in
    test) test_all ;;
    soak) soak ;;
    quick) quick_all ;;
    profile) run "$dir/gpu_profile" ;;
    bench) for part in $parts; do
        echo "== $part"
        "bench_$part"
    done ;;
    esac
    echo "took $(($(date +%s) - began)) s"
    count=$(wc -l <"$work/failures")
    echo "programs that failed: $((count))"
}

all 2>&1 | tee "$report"
# The pipe's status is tee's: the report's last line has the verdict.
tail -n 1 "$report" | grep -qx 'programs that failed: 0'
