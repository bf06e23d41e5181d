#!/usr/bin/env bash
# eviction.sh - hit rates of every eviction policy beside the best static set and Belady's bound:
# on made-up Zipf traces, constant and with changing topics, and on traces recorded from the demo
# models while a worker restores this tree's prose (170 texts, some minutes).
#
# usage: eviction.sh BIN_DIR
# Prints one JSON object a line, each with the command it came from. Exit: 0 when the best policy
# reaches 95 % of the best static set everywhere, 2 when it does not, 1 when something failed.
# Recorded traces differ a little from run to run, as the order of uses within a step does.
set -euo pipefail
bin=$(realpath "${1:?usage: eviction.sh BIN_DIR}")
tree=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
store_pid=
trap '[ -z "$store_pid" ] || kill "$store_pid"; rm -rf "$scratch"' EXIT

replay() { # COMMAND-TO-SHOW expert-replay's options
    local shown=$1
    shift
    "$bin/expert-replay" "$@" --json | jq -c --arg command "$shown" '. + {command: $command}'
}

# The worker has four cells, so nearly every use needs a slot; the store has a quarter of the
# experts in memory. With one sequence at a time, then with four.
record() { # NAME MODEL_DIR POLICY BATCH
    local name=$1 model=$2 policy=$3 batch=$4
    local trace=$scratch/$name.trace endpoint=ipc://$scratch/$name.sock
    [ -d "$scratch/$model.store" ] || "$bin/expert-pack" "$tree/$model" --out "$scratch/$model.store" >/dev/null
    local slot ram
    slot=$("$bin/expert-pack" inspect "$scratch/$model.store" --json | jq .slot_bytes)
    ram=$((slot * 14))
    "$bin/expert-store" --store "$scratch/$model.store" --endpoint "$endpoint" --ram-bytes "${ram}B" \
        --max-workers 1 --record-trace "$trace" 2>"$scratch/store.log" &
    store_pid=$!
    "$bin/gpu-worker" run --endpoint "$endpoint" --file "$scratch/prompts" --backend cpu --cells 4 \
        --fetch-policy "$policy" --max-batch "$batch" >/dev/null 2>"$scratch/worker.log"
    kill "$store_pid"
    wait "$store_pid"
    store_pid=
    replay "expert-store --store $(basename "$model").store --ram-bytes ${ram}B --max-workers 1 --record-trace $name.trace & gpu-worker run --file PROSE --backend cpu --cells 4 --fetch-policy $policy --max-batch $batch; expert-replay $name.trace" "$trace"
}

all() {
    local s topics
    for s in 0.8 1.1; do
        for topics in 1 10; do
            replay "expert-replay --zipf $s --topics $topics" --zipf "$s" --topics "$topics"
        done
    done
    record pregated-1 deploy/models/restore-pregated pregated 1
    record pregated-4 deploy/models/restore-pregated pregated 4
    record ordinary-1 tests/golden/restore-base on-demand 1
}

mkdir -p "$scratch/deploy/models" "$scratch/tests/golden"
(cd "$tree" && cat LICENSE README.md proto/README.md kernels/README.md deploy/models/README.md) |
    tr 'A-Z\n' 'a-z ' | tr -cs 'a-z0-9' ' ' | fold -s -w 240 >"$scratch/prompts"
all | tee "$scratch/rows"
jq -es 'all(.best_over_static >= 0.95)' "$scratch/rows" >/dev/null || exit 2
