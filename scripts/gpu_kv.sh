# The part kv of scripts/gpu.sh bench, which reads this file: live KV beyond HBM.  It uses gpu.sh's bench_one, bench_shown,
# bench_quiet, failed, and variables.

# bench_live LINK LAYERS TIER NEAR SEQUENCES CONTEXT STEPS: as many live sequences, with NEAR of their KV in HBM.
bench_live() {
    all_hbm= bounded=
    bench_one "kv-$1-$5x$6" "$5" "$6" "$7" --hf-overrides "{\"num_hidden_layers\":$2}" --given-context --kv-remote "$3" \
        --kv-cache-memory-bytes "$4" --congestion-control static
}

# bench_short NAME LAYERS NEAR TIER SEQUENCES CONTEXT ANSWER FLAGS...: the same until all are done, by what is done about
# the KV that HBM has no room for.
bench_short() {
    name=$1 layers=$2 near=$3 tier=$4 sequences=$5 context=$6 answer=$7
    shift 7
    bench_shown "kv-short-$name" $model --hf-overrides "{\"num_hidden_layers\":$layers}" --given-context \
        --batch "$sequences" --input-len "$context" --output-len "$answer" --kv-cache-memory-bytes "$near" \
        --kv-remote "$tier" --congestion-control static --kv-sweep all,throughput,swap,recompute \
        --json "$results/$stamp-bench-8b-kv-short-$name.json" "$@"
}

# opt_one NAME BATCH FLAGS...: a step of OPT-30B's shape, six layers of it.
opt_one() {
    name=$1 batch=$2
    shift 2
    json=$results/$stamp-kv-$name.json
    bench_quiet "$name" config/models/OPT-30B --hf-overrides '{"num_hidden_layers":6}' --given-context --batch "$batch" \
        --input-len 1024 --output-len 16 --congestion-control static --json "$json" "$@" || return 1
    python3 - "$name" "$json" <<'PY'
import json, sys
r = json.load(open(sys.argv[2]))
near, far = r["tiers"]
print(f"{sys.argv[1]:22} over the link: weights {far['step_weight_bytes'] / 1e9:6.3f} GB, KV {far['step_kv_bytes'] / 1e9:6.3f}"
      f" of {(near['step_bytes'] + far['step_bytes']) / 1e9:.2f} GB a step  floor {r['floor_per_step_ms']:7.3f} ms"
      f"  TPOT {r['tpot_steady_median_ms']:7.3f} ms  floor/TPOT {r['floor_over_tpot_ratio']:.3f}"
      f"  predicted {r.get('predicted_per_step_ms', float('nan')):7.3f}  {r['decode_tokens_per_s']:7.1f} tokens/s")
PY
}

# bench_opt LINK TIER BATCH HBM: what does not fit in HBM of that size, as the planner shares it out between weights and
# KV; then as many bytes of a step's KV alone over the link, and of its weights alone.
bench_opt() {
    opt_one "opt-$1-$3-mix" "$3" --gpu-memory-utilization 1 --hbm-size "$4" --remote "$2" --kv-remote "$2" || return
    set -- "$1" "$2" "$3" $(python3 - "$json" <<'PY'
import json, sys
r = json.load(open(sys.argv[1]))
near, far = r["tiers"]
page = (near["step_kv_bytes"] + far["step_kv_bytes"]) / (r["batch_sequences"] * r["steady_context_mean_tokens"]) * 64
pages = r["batch_sequences"] * -(-(r["input_tokens_per_sequence"] + r["output_tokens_per_sequence"]) // 64)
print(f"{int(pages * page - far['step_bytes'])}B", far["step_bytes"] / (near["step_weight_bytes"] + far["step_weight_bytes"]))
PY
    )
    opt_one "opt-$1-$3-kv" "$3" --kv-cache-memory-bytes "$4" --kv-remote "$2"
    if python3 -c "import sys; sys.exit($5 > 1)"; then
        opt_one "opt-$1-$3-weights" "$3" --remote "$2" --offload "$5" --force-offload
    else
        echo "opt-$1-$3-weights: all weights together are fewer bytes than that"
    fi
}

# Live KV beyond HBM.  8B: an eighth of it in HBM, 8 GiB of 64 where all layers are there.
bench_kv() {
    for case in ${KV:-steady-peer short-peer opt-peer steady-pcie short-pcie short-both opt-pcie opt512-peer}; do
        case $case in
        *-peer) [ "$gpus" -gt 1 ] || { echo "one GPU: $case was not measured"; continue; } ;;
        esac
        case $case in
        steady-peer)
            bench_live peer 32 peer:1:64GiB 8GiB 64 8192 12
            bench_live peer 32 peer:1:64GiB 8GiB 8 65536 12
            ;;
        steady-pcie)
            bench_live pcie 16 host:32GiB 4GiB 64 8192 9
            bench_live pcie 8 host:16GiB 2GiB 8 65536 9
            ;;
        # Eight sequences have room in HBM, and a page each to grow.
        short-peer) bench_short peer 4 1040MiB peer:1:8GiB 64 8192 48 ;;
        short-pcie) bench_short pcie 4 1040MiB host:8GiB 64 8192 24 ;;
        # Weights behind the same link make steps long, which more sequences share.
        short-both) bench_short both 8 288MiB host:2GiB 32 1024 32 --remote host:4GiB --offload 0.3 --force-offload ;;
        opt-peer) bench_opt peer peer:1:8GiB 128 32500MB ;;
        opt-pcie) bench_opt pcie host:4GiB 128 34000MB ;;
        opt512-peer) bench_opt peer peer:1:16GiB 512 102GB ;;
        *) echo "FAILED: KV has no case $case"; failed ;;
        esac
    done
}
