#!/usr/bin/env bash
# demo.sh - trains the two demo models on one GPU in a given time, side by side: the same budget, data,
# seed and settings, the learning rate falling to zero.
#   tests/accuracy/demo.sh TEXT.txt[.xz] DEV.txt OUT_DIR SECONDS START_DIR [PREGATED_START_DIR]
# OUT_DIR/restore-base goes on from START_DIR, an ordinary checkpoint (train.py base makes one);
# OUT_DIR/restore-pregated from PREGATED_START_DIR, else from START_DIR with its gates rewired. Scores
# and settings: OUT_DIR/demo.jsonl. MORE: more text (texts.py), of which SHARE of the pairs come. CARDS:
# where each of the two trains, "0 0" unless said.
set -euo pipefail
text=$1 dev=$2 out=$3 end=$(($(date +%s) + $4)) start=$5 pregated=${6:-$5}
here=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=1
read -r card pregated_card <<<"${CARDS:-0 0}"
mkdir -p "$out"
if [[ $text == *.xz ]]; then
    xz -dc "$text" >"$out/text.txt"
    text=$out/text.txt
fi

train() { # train NAME START ARGS...
    local name=$1 from=$2
    shift 2
    "${PYTHON:-python3}" "$here/train.py" tune --name "$name" --from "$from" --text "$text" --dev "$dev" \
        --out "$out/$name" --result "$out/demo.jsonl" --until $((end - ${EVAL_SECONDS:-25})) --compile \
        --rows "${ROWS:-256}" --max-tokens 128 --lr "${LR:-1e-3}" --warmup 100 --ema 0.998 --weight-decay 0.1 \
        --set dropout_rate="${DROPOUT:-0.2}" ${MORE:+--more "$MORE" --more-share "${SHARE:-0.4}"} --sample 0.4 --workers "${WORKERS:-6}" --dev-passes "${PASSES:-4}" "$@"
}

CUDA_VISIBLE_DEVICES=$card train restore-base "$start" &
CUDA_VISIBLE_DEVICES=$pregated_card train restore-pregated "$pregated" --encoder-lookahead 1 --decoder-lookahead 1 &
wait -n
wait -n
