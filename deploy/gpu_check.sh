#!/usr/bin/env bash
# gpu_check.sh - everything checked and measured on a machine with a GPU, in about ten minutes: the
# kernels against their references, golden answers on `cuda`, compute-sanitizer, then the bench.
# Runs from an unpacked bundle (deploy/bundle.sh --tests) or from the tree (build/cuda-release).
#
#   gpu_check.sh [--out DIR] [--only STAGE] [--seconds N] [--backend cpu]
#     --out DIR      results, default gpu-check-DATE: *.jsonl rows, logs/, trace.json
#     --only STAGE   one of: ops goldens sanitizer bench
#     --seconds N    for the bench, default 600; what did not fit is named
#     --backend cpu  tries this script itself, with a tiny model
# Exit: 0 all passed, 1 something failed, 77 no GPU here (one line says why).
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
if [ -x "$here/bin/gpu-worker" ]; then
    bin=$here/bin tests=$here/tests models=$here/models fixtures=$here/tests/fixtures
else
    root=$(dirname "$here")
    bin=${PREGATE_BIN:-$root/build/cuda-release/bin} tests=${PREGATE_BIN:-$root/build/cuda-release/bin}/../tests
    models=$root/deploy/models fixtures=$root/tests/golden/fixtures
fi

out=gpu-check-$(date +%Y%m%d-%H%M%S) only='' seconds=600 backend=cuda
while [ $# -gt 0 ]; do
    case $1 in
        --out) out=${2:?--out needs a directory}; shift 2 ;;
        --only) only=${2:?--only needs a stage}; shift 2 ;;
        --seconds) seconds=${2:?--seconds needs a number}; shift 2 ;;
        --backend) backend=${2:?--backend needs cuda or cpu}; shift 2 ;;
        -h | --help) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "gpu_check: unknown option '$1'; see --help" >&2; exit 1 ;;
    esac
done
[ -x "$bin/gpu-worker" ] || { echo "gpu_check: no programs in $bin: build the preset cuda-release first" >&2; exit 1; }

while IFS='=' read -r name _; do # settings of the caller do not count
    [[ $name != PREGATE_* ]] || unset "$name"
done < <(env)
if ! why=$("$bin/gpu-worker" plan --synthetic switch-tiny --backend "$backend" --log-level error 2>&1 >/dev/null); then
    echo "gpu_check: skipped, no GPU to compute on: $(sed -n 's/.*error="\(.*\) (MOE_.*/\1/p' <<<"$why" | head -n 1)"
    exit 77
fi

mkdir -p "$out/logs"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
store='' failures=0
end_store() {
    if [ -n "$store" ]; then
        kill "$store" 2>/dev/null || true
        wait "$store" 2>/dev/null || true
        store=''
    fi
}
trap 'end_store; rm -rf "$work"' EXIT

say() { printf '%s\n' "$*"; }
# check NAME COMMAND...: one line with its outcome and time; its output goes to logs/NAME.
check() {
    local name=$1 begin=$SECONDS status=0
    shift
    "$@" >"$out/logs/$name" 2>&1 || status=$?
    if [ $status -eq 0 ]; then
        say "passed  $name ($((SECONDS - begin)) s)"
    else
        say "FAILED  $name (status $status, see $out/logs/$name)"
        failures=$((failures + 1))
    fi
}
stage() { [ -z "$only" ] || [ "$only" = "$1" ]; }

# ---- a store ---------------------------------------------------------------------------------------

endpoint=ipc://$work/store.sock
bench_end=0
seconds_left() { echo $((bench_end - SECONDS)); }

# serve ARGS...: a store, once it answers. Nonzero when it cannot (memory, time).
serve() {
    end_store
    [ "$(seconds_left)" -gt 10 ] || return 1
    "$bin/expert-store" --endpoint "$endpoint" --verify-threads "$(nproc)" "$@" >>"$out/logs/store" 2>&1 &
    store=$!
    for _ in $(seq 600); do
        kill -0 "$store" 2>/dev/null || { store=''; return 1; }
        "$bin/expert-stat" --endpoint "$endpoint" --json >/dev/null 2>&1 && return 0
        sleep 0.2
    done
    return 1
}

# ---- the kernels, the goldens, the sanitizer ------------------------------------------------------

check_ops() {
    local test
    for test in "$tests"/test_kernels_*; do
        check "$(basename "$test")" timeout 300 "$test"
    done
    check test_kernels_ops-own timeout 300 "$tests/test_kernels_ops" own
}

check_goldens() {
    local dir policy
    for dir in "$models"/restore-pregated "$fixtures"/*; do
        [ -f "$dir/golden.json" ] || continue
        for policy in resident on-demand prefetch-all pregated; do
            check "golden-$(basename "$dir")-$policy" timeout 300 "$tests/test_golden" \
                "$bin/expert-pack" "$bin/expert-store" "$dir" "$policy" min "$backend"
        done
    done
    [ -d "$models/restore-pregated" ] || return 0
    for policy in on-demand pregated; do # one expert is corrupt: its sequences fail, and no others
        check "corrupt-expert-$policy" timeout 300 "$tests/test_golden" "$bin/expert-pack" \
            "$bin/expert-store" "$models/restore-pregated" "$policy" min "$backend" corrupt:47
    done
}

# Operations one by one, then whole steps with the host waiting for experts.
check_sanitizer() {
    local tool products sanitizer
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
    if [ -z "$sanitizer" ]; then
        say "skipped sanitizer: no compute-sanitizer on PATH or in /usr/local/cuda/bin"
        return 0
    fi
    bench_end=$((SECONDS + 600))
    serve --synthetic switch-tiny-pregated || say "no store for the sanitizer"
    # With cuBLASLt in the run racecheck reports hazards (its barriers, we believe): our own kernels only.
    for tool in memcheck racecheck; do
        products=$([ "$tool" = racecheck ] && echo own || echo auto)
        check "sanitizer-$tool" timeout 600 "$sanitizer" --tool "$tool" --error-exitcode 9 \
            "$tests/test_kernels_ops" "$products"
        check "sanitizer-$tool-steps" timeout 300 "$sanitizer" --tool "$tool" --error-exitcode 9 \
            "$bin/gpu-worker" bench --endpoint "$endpoint" --backend cuda --sync host --batches 1,3 \
            --policies resident,pregated,on-demand --prompt-tokens 8 --output-tokens 4 --repeats 1 \
            --products "$products"
    done
    end_store
}

# ---- the bench ------------------------------------------------------------------------------------

# bench FILE NAME ARGS...: rows of the running store's model into FILE.jsonl.
bench() {
    local file=$1 name=$2 begin=$SECONDS status=0
    shift 2
    if [ -z "$store" ] || [ "$(seconds_left)" -lt 5 ]; then
        say "no time or memory for bench $name"
        return 0
    fi
    timeout "$(seconds_left)" "$bin/gpu-worker" bench --endpoint "$endpoint" --backend "$backend" \
        --out "$out/$file.jsonl" --bench-name "$name" "$@" >>"$out/logs/bench" 2>&1 || status=$?
    if [ $status -eq 124 ]; then
        say "cut     bench $name: the $seconds s are over"
    elif [ $status -ne 0 ]; then
        say "FAILED  bench $name, at least one case (see $out/logs/bench)"
        failures=$((failures + 1))
    else
        say "done    bench $name ($((SECONDS - begin)) s)"
    fi
}

serve_model() { serve --synthetic "$@" || say "no time or memory to serve $1"; }

# Every part is what one served model is asked: filling a store with 50 GB takes a while.
# main: the shapes of the paper, batch 1. batch: where the authors fall behind on-demand. active: Figure 14.
# guess: the first block's experts guessed by the token before. cache: Figure 15. f32: the paper's own setting. drive: Figure 16.

bench_base_128() {
    serve_model switch-base-128-pregated
    bench main base-128 --routing uniform --policies resident,pregated,on-demand
    for recall in 0.87 1; do # recall of a calibrated predictor, and of a perfect one
        bench guess base-128 --routing uniform --policies pregated --guess-recall $recall
    done
    bench trace trace --routing uniform --policies pregated \
        --output-tokens 32 --repeats 1 --trace "$out/trace.json"
    bench batch base-128 --routing uniform --policies resident,pregated,on-demand \
        --batches 2,4,8,16,32,64 --output-tokens 32 --repeats 1
}

bench_large_128() {
    serve_model switch-large-128-pregated
    bench main large-128 --routing uniform --policies resident,pregated,on-demand \
        --output-tokens 128 --repeats 2
    bench guess large-128 --routing uniform --policies pregated --guess-recall 0.87 \
        --output-tokens 64 --repeats 2
    bench cache large-128 --routing zipf:1.0 --policies pregated,on-demand \
        --cell-sweep 1%,5%,10%,20% --cell-policies lru,lfu,lifo-inactive --output-tokens 128 --repeats 1
    bench batch large-128 --routing uniform --policies pregated,on-demand \
        --batches 2,4,8,16,32,64 --output-tokens 12 --prompt-tokens 64 --repeats 1
}

bench_base_64() {
    serve_model switch-base-64-pregated
    bench main base-64 --routing uniform --policies resident,pregated,on-demand
    bench active base-64 --batches 64 --policies resident,pregated,on-demand --prompt-tokens 64 \
        --routing forced:1,forced:4,forced:16,forced:32,forced:64 --output-tokens 24 --repeats 1
    bench_short_batches base-64
}

bench_base_8() {
    serve_model switch-base-8-pregated
    bench main base-8 --routing uniform --policies resident,pregated,on-demand,prefetch-all
    bench_short_batches base-8
}

bench_base_256() {
    serve_model switch-base-256-pregated
    bench main base-256 --routing uniform --policies resident,pregated,on-demand
    bench_short_batches base-256
}

bench_short_batches() {
    bench batch "$1" --routing uniform --policies pregated,on-demand --batches 2,4,8,16,32,64 \
        --output-tokens 8 --prompt-tokens 32 --repeats 1
}

bench_demo() { # routing as a real model chose it, from a recording of its golden prompts
    local demo=$models/restore-pregated
    [ -f "$demo/golden.json" ] || return 0
    "$bin/expert-pack" "$demo" --out "$work/demo.store" >>"$out/logs/pack" 2>&1
    serve --store "$work/demo.store" || true
    sed -n 's/.*"text":"\([^"]*\)".*/\1/p' "$demo/golden.json" >"$work/texts"
    "$bin/gpu-worker" run --endpoint "$endpoint" --backend "$backend" --file "$work/texts" --max-batch 1 \
        --record-routing "$work/demo.routing" >>"$out/logs/bench" 2>&1 || true
    bench cache demo --routing "trace:$work/demo.routing" --policies pregated,on-demand \
        --cell-sweep 10%,20%,40% --cell-policies lru,lfu,lifo-inactive --output-tokens 64 --repeats 2
}

bench_f32() {
    local model
    for model in base-128 base-8 base-64; do
        serve_model "switch-$model-pregated" --dtype f32
        bench f32 "$model" --routing uniform --policies resident,pregated,on-demand --repeats 2
    done
}

bench_drive() { # most experts on the drive
    local free
    free=$(df --output=avail -B1 "$work" | tail -n 1)
    if [ "$free" -lt $((12 << 30)) ] || [ "$(seconds_left)" -lt 30 ]; then
        say "no time or disk for bench drive"
        return 0
    fi
    "$bin/expert-pack" --synthetic switch-base-64-pregated --out "$work/base-64.store" >>"$out/logs/pack" 2>&1
    dd if="$work/base-64.store/segments/000000.seg" of=/dev/null bs=16M iflag=direct \
        2>"$out/logs/drive-raw" || true
    say "drive, raw: $(tail -n 1 "$out/logs/drive-raw")"
    serve --store "$work/base-64.store" --ram-bytes 1GiB || true
    bench drive base-64 --routing uniform --policies pregated,on-demand \
        --cell-sweep 2,5%,10%,20%,40% --output-tokens 16 --repeats 1
    end_store
    rm -rf "$work/base-64.store"
}

bench_small() { # --backend cpu
    serve_model switch-tiny-pregated
    bench main tiny --routing uniform --policies resident,pregated,on-demand,prefetch-all \
        --threads 1 --prompt-tokens 8 --output-tokens 8 --repeats 1
}

run_bench() {
    local part
    bench_end=$((SECONDS + seconds))
    if [ "$backend" = cpu ]; then
        bench_small
    else
        for part in base_128 base_64 base_8 base_256 large_128 demo drive f32; do
            "bench_$part"
        done
    fi
    end_store
}

# A short table of all rows: value KEY of one JSON row, without a JSON parser on the machine.
table() {
    { cat "$out"/*.jsonl 2>/dev/null || true; } | awk '
        function value(key,   at, rest) {
            at = index($0, "\"" key "\":")
            if (!at) return "-"
            rest = substr($0, at + length(key) + 3)
            if (substr(rest, 1, 1) == "\"") { rest = substr(rest, 2); sub(/".*/, "", rest) }
            else sub(/[,}].*/, "", rest)
            return rest
        }
        BEGIN { printf "%-26s %-5s %-12s %5s %6s %-10s %-14s %9s %9s %9s %8s %6s\n", "model", "dtype", "policy",
                "batch", "cells", "routing", "cell policy", "ms/token", "link", "1st token", "GiB", "hits" }
        { printf "%-26s %-5s %-12s %5s %6s %-10s %-14s %9.3f %9.3f %9.1f %8.2f %6.3f\n", value("model"),
          value("dtype"), value("policy"), value("batch"), value("cells"), value("routing"), value("cell_policy"),
          value("ms_per_token_p50"), value("link_floor_ms"), value("first_token_ms_p50"),
          value("device_bytes_peak") / 1073741824, value("hit_rate") }'
}

say "results: $out"
! stage ops || check_ops
! stage goldens || check_goldens
! stage sanitizer || [ "$backend" = cpu ] || check_sanitizer
! stage bench || run_bench
say
table | tee "$out/table.txt"
say
say "$failures failed; rows, logs and a timeline are in $out"
[ "$failures" -eq 0 ]
