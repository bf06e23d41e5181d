#!/usr/bin/env bash
# table.sh - the runs behind the question "what does pre-gating cost?", on one GPU in a given time.
#   tests/accuracy/table.sh TEXT.txt[.xz] DEV.txt OUT_DIR START_DIR [SECONDS, default 530]
# START_DIR: an ordinary checkpoint with 8 experts (demo.sh leaves one in base-8). Grown from it, and
# trained on: bases with 32 and 64 experts, and one whose every layer has experts, for lookahead to 4.
# All runs of one base start from it with the same steps, data order and learning rate; the seed sets
# data and dropout. JOBS run side by side, the most important first; what is left when time is short is
# skipped and named. One JSON line a run in OUT_DIR/table.jsonl; a run that is there is not repeated.
set -euo pipefail
export text=$1 dev=$2 out=$3 start=$4
export here=$(cd "$(dirname "$0")" && pwd) end=$(($(date +%s) + ${5:-530}))
export steps=${STEPS:-300} grow_steps=${GROW_STEPS:-500} longest=${RUN_SECONDS:-70} python=${PYTHON:-python3}
export OMP_NUM_THREADS=1
mkdir -p "$out"
if [[ $text == *.xz ]]; then
    xz -dc "$text" >"$out/text.txt"
    text=$out/text.txt
fi
touch "$out/table.jsonl"
ln -sfn "$(realpath "$start")" "$out/base-8"

run() { # run "NAME BASE COMMAND ARGS...": once BASE is there, if there is time
    local name base args
    read -r name base args <<<"$1"
    if grep -q "\"name\": \"$name\"" "$out/table.jsonl" && [[ $name != base-* || -e $out/$name/config.json ]]; then
        return 0
    fi
    until [ -e "$out/$base/config.json" ] || [ "$(date +%s)" -ge "$end" ]; do
        sleep 1
    done
    if [ $(($(date +%s) + longest)) -gt "$end" ]; then
        echo "$name: skipped, no time is left"
        return 0
    fi
    # shellcheck disable=SC2086 # args are words
    "$python" "$here/train.py" $args --name "$name" --from "$out/$base" --text "$text" --dev "$dev" \
        --result "$out/table.jsonl" --lr "${LR:-1e-3}" --warmup 20 --rows "${ROWS:-172}" --workers 1 \
        --dev-passes "${PASSES:-2}" >/dev/null || echo "$name: failed"
}
export -f run

plan() {
    local grow="grow --steps $grow_steps --cool 0 --ema 0.99" tune="tune --steps $steps"
    local both="--encoder-lookahead 1 --decoder-lookahead 1" experts seed n
    echo "base-32 base-8 $grow --set num_experts=32 --out $out/base-32"
    echo "base-64 base-8 $grow --set num_experts=64 --out $out/base-64"
    for experts in 8 32 64; do
        for seed in 1 2 3; do
            echo "ordinary-$experts-$seed base-$experts $tune --seed $seed"
            echo "both-$experts-$seed base-$experts $tune --seed $seed $both"
            echo "decoder-$experts-$seed base-$experts $tune --seed $seed --decoder-lookahead 1"
        done
        [ "$experts" != 8 ] || echo "base-deep base-8 $grow --set num_sparse_encoder_layers=6" \
            "--set num_sparse_decoder_layers=8 --out $out/base-deep"
    done
    for seed in 1 2 3; do
        for n in 0 1 2 3 4; do
            echo "deep-both$n-8-$seed base-deep $tune --seed $seed --encoder-lookahead $n --decoder-lookahead $n"
        done
        echo "vowels-ordinary-8-$seed base-8 $tune --seed $seed --task vowels"
        echo "vowels-both-8-$seed base-8 $tune --seed $seed --task vowels $both"
        echo "hash-8-$seed base-8 $tune --seed $seed --routing hash"
        echo "random-8-$seed base-8 $tune --seed $seed --routing random"
        echo "frozen-8-$seed base-8 $tune --seed $seed $both --freeze-experts --distil 1"
    done
    for seed in 1 2 3; do
        for n in 1 2 3 4; do
            echo "deep-decoder$n-8-$seed base-deep $tune --seed $seed --decoder-lookahead $n"
        done
        echo "vowels-decoder-8-$seed base-8 $tune --seed $seed --task vowels --decoder-lookahead 1"
    done
    for seed in 1 2 3; do # long: RUN_SECONDS=300
        echo "vowels-1000-ordinary-8-$seed base-8 tune --steps 1000 --seed $seed --task vowels"
        echo "vowels-1000-both-8-$seed base-8 tune --steps 1000 --seed $seed --task vowels $both"
        echo "vowels-1000-decoder-8-$seed base-8 tune --steps 1000 --seed $seed --task vowels --decoder-lookahead 1"
    done
}

plan | xargs -d '\n' -P "${JOBS:-8}" -I LINE bash -c 'run "$1"' run LINE
