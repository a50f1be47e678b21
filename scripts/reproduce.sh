#!/bin/sh
# Measures everything that README.md tabulates and plots, on a machine with a GPU, and writes it down.
#
#     scripts/reproduce.sh [--only PART[,PART...]] [--programs FOLDER] [FOLDER]
#
#     part      measures                                                      seconds, about
#     test      every test of the GPU; nothing is tabulated if one fails                 180
#     probe     HBM and links, alone and side by side; the plot of the windows            10
#     hbm       whole decode steps, all in HBM                                            30
#     kernels   products and attention alone, beside cuBLAS and cuDNN where there are    240
#     prefill   prompts, and what they reach of the matrix peak                           30
#     mixed     prompts that arrive beside decodes                                       100
#     pcie      a share of the weights in the host's memory                              130
#     peer      a share of them in another GPU's, where there is one                      90
#     windows   how many remote bytes may be in flight                                    90
#     parts     what dependent launch, K cut into parts, multicast, windows and planned
#               placement are worth                                                        80
#     streams   256 streams from the daemon                                               30
#     chat      conversations of many turns, with the prefix cache and without             60
#     predict   predicted steps, beside what they took                                    90
#     kv        live KV beyond HBM                                                       100
#     fp8       steps with KV in fp8, beside bfloat16                                     10
#     compare   every mode of offloading x share x batch x context, with plots           660
#
# All of it takes about 28 minutes on an H200 with a second one beside it; times above are of that
# machine, with weights that are made up, so nothing is downloaded.  FOLDER (build/reproduced) gets
#
#     tables.md      the tables, with commit, device, driver and date
#     PART.txt       what the part said
#     results/       a JSON file a measurement, CSV and SVG of comparisons and of the probe
#
# --programs: what `make gpu` built (build/gpu), which is built first where nvcc is at hand and the
# folder is not there.  Needs sh, python3 without packages and the GPU's driver: nothing is installed.
# The measurements are those of scripts/gpu.sh bench; what a part that failed would have given is
# missing from the tables, and the exit status is 1.
set -u

all="test probe hbm kernels prefill mixed pcie peer windows parts streams chat predict kv fp8 compare"
usage() {
    sed -n '/^[^#]/q; 2,$s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
parts= programs= out=
while [ $# -gt 0 ]; do
    case $1 in
    --only)
        [ $# -gt 1 ] || usage
        for part in $(echo "$2" | tr ',' ' '); do
            case " $all " in
            *" $part "*) parts="$parts $part" ;;
            *)
                echo "reproduce.sh: there is no part '$part': one of $all" >&2
                exit 2
                ;;
            esac
        done
        shift
        ;;
    --programs)
        [ $# -gt 1 ] || usage
        programs=$2
        shift
        ;;
    -*) usage ;;
    *)
        [ -z "$out" ] || usage
        out=$1
        ;;
    esac
    shift
done
parts=${parts:-$all} out=${out:-build/reproduced}
cd "$(dirname "$0")/.." || exit 2

if [ -z "$programs" ]; then
    programs=build/gpu
    if [ ! -x $programs/dakd ]; then
        command -v nvcc >/dev/null || {
            echo "reproduce.sh: $programs is not there and nvcc neither: run make gpu where nvcc is, bring build/gpu here" >&2
            exit 2
        }
        make gpu || exit 1
    fi
fi
mkdir -p "$out" || exit 2

began=$(date +%s) wrong=
for part in $parts; do
    echo "== $part, $(date -u +%H:%M:%S)"
    if [ "$part" = test ]; then
        scripts/gpu.sh test "$programs" "$out/$part.txt" >"$out/$part.log" 2>&1
    else
        scripts/gpu.sh bench "$part" "$programs" "$out/$part.txt" >"$out/$part.log" 2>&1
    fi || wrong="$wrong $part"
    # The report says the same, once there is one.
    [ -s "$out/$part.txt" ] && rm -f "$out/$part.log" || cat "$out/$part.log" >&2
    grep -E '^(FAILED|programs that failed: [1-9])' "$out/$part.txt" 2>/dev/null
    if [ "$part" = test ] && [ -n "$wrong" ]; then
        echo "reproduce.sh: tests failed (see $out/test.txt): figures of what is wrong mean nothing" >&2
        exit 1
    fi
done
python3 scripts/tables.py "$out" >"$out/tables.md.new" && mv "$out/tables.md.new" "$out/tables.md" || wrong="$wrong tables"
echo "== $((($(date +%s) - began + 30) / 60)) minutes; $out/tables.md${wrong:+; failed:$wrong}"
[ -z "$wrong" ]
