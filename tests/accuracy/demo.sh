#!/usr/bin/env bash
# demo.sh - trains the two demo models on, on one GPU in a given time.
#   tests/accuracy/demo.sh TEXT.txt[.xz] DEV.txt OUT_DIR [SECONDS, default 545]
# Both go on from golden/restore-base side by side, with the same time, data and seed, while the
# learning rate falls to zero: OUT_DIR/restore-base as it is, OUT_DIR/restore-pregated with its gates
# rewired. Scores and settings: OUT_DIR/demo.jsonl.
set -euo pipefail
text=$1 dev=$2 out=$3 seconds=${4:-545}
here=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=1
end=$(($(date +%s) + seconds))
mkdir -p "$out"
if [[ $text == *.xz ]]; then
    xz -dc "$text" >"$out/text.txt"
    text=$out/text.txt
fi

train() { # train NAME ARGS...
    local name=$1
    shift
    "${PYTHON:-python3}" "$here/train.py" tune --name "$name" --from "$here/../golden/restore-base" --text "$text" \
        --dev "$dev" --out "$out/$name" --result "$out/demo.jsonl" --lr "${LR:-1e-3}" --tokens "${TOKENS:-32768}" \
        --warmup 100 --workers 6 --until $((end - seconds * 7 / 100)) --dev-passes "${PASSES:-4}" "$@"
}

train restore-base &
train restore-pregated --encoder-lookahead 1 --decoder-lookahead 1 &
wait -n
wait -n
