#!/usr/bin/env bash
# demo.sh - trains the two demo models on one GPU in a given time.
#   tests/accuracy/demo.sh TEXT.txt[.xz] DEV.txt OUT_DIR [SECONDS, default 540]
# One model is trained at a full learning rate for nearly half of the time. From there, side by side,
# with the same budget, data and seed, while the rate falls to zero: OUT_DIR/restore-base goes on as it
# is, OUT_DIR/restore-pregated with its gates rewired. Scores and settings: OUT_DIR/demo.jsonl. The
# common start stays in OUT_DIR/base-8, for table.sh.
set -euo pipefail
text=$1 dev=$2 out=$3 seconds=${4:-540}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
export OMP_NUM_THREADS=1
end=$(($(date +%s) + seconds))
mkdir -p "$out"
if [[ $text == *.xz ]]; then
    xz -dc "$text" >"$out/text.txt"
    text=$out/text.txt
fi

train() { # train NAME COMMAND ARGS...
    local name=$1 command=$2
    shift 2
    "$python" "$here/train.py" "$command" --name "$name" --text "$text" --dev "$dev" --out "$out/$name" \
        --result "$out/demo.jsonl" --lr "${LR:-1.5e-3}" --tokens "${TOKENS:-32768}" --dev-passes "${PASSES:-4}" "$@"
}

# as many layers and experts as golden/restore-base, wider, in no more bytes: 13.0 M parameters, 26 MB
train base-8 base --config "$here/../golden/restore-base" --set d_model=256 --set num_heads=8 --set d_ff=192 \
    --warmup 300 --cool 0 --ema 0.999 --workers 8 --until $((end - seconds * 55 / 100)) --dev-passes 1
train restore-base tune --from "$out/base-8" --warmup 50 --workers 4 --until $((end - seconds * 7 / 100)) &
train restore-pregated tune --from "$out/base-8" --warmup 50 --workers 4 --until $((end - seconds * 7 / 100)) \
    --encoder-lookahead 1 --decoder-lookahead 1 &
wait -n
wait -n
