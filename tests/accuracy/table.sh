#!/usr/bin/env bash
# table.sh - the runs behind the question "what does pre-gating cost?": ordinary and pre-gated
# fine-tuned from the same start with the same budget and data, three seeds each; lookahead 0 to 4,
# decoder only and both stacks; hash and random routing; gates alone, distilled, with frozen experts.
#   tests/accuracy/table.sh TEXT.txt DEV.txt OUT_DIR [EXPERTS...]     (default 8 32 64; one GPU)
# Appends one JSON line a run to OUT_DIR/table.jsonl; a run that is there already is not repeated.
set -euo pipefail
text=$1 dev=$2 out=$3
shift 3
here=$(cd "$(dirname "$0")" && pwd)
config=$here/../golden/restore-base
python=${PYTHON:-python3}
mkdir -p "$out"

run() { # run NAME ARGS...: once
    local name=$1
    shift
    [ ! -f "$out/$name.done" ] || return 0
    "$python" "$here/train.py" "$@" --text "$text" --dev "$dev" --result "$out/table.jsonl"
    touch "$out/$name.done"
}

[ $# -gt 0 ] || set -- 8 32 64
for experts in "$@"; do
    for seed in 1 2 3; do
        start=$out/base-$experts-$seed
        run "base-$experts-$seed" base --config "$config" --experts "$experts" --seed "$seed" \
            --steps "${BASE_STEPS:-20000}" --out "$start"
        tune() { # tune NAME ARGS...
            local name=$1
            shift
            run "$name-$experts-$seed" tune --from "$start" --seed "$seed" --lr 1e-4 --warmup 0 "$@"
        }
        tune ordinary
        for n in 1 2 3 4; do
            tune "both-$n" --encoder-lookahead "$n" --decoder-lookahead "$n"
            tune "decoder-$n" --decoder-lookahead "$n"
        done
        tune hash --routing hash
        tune random --routing random
        tune frozen --encoder-lookahead 1 --decoder-lookahead 1 --freeze-experts --distil 1.0
    done
done
