#!/bin/sh
# pack.sh - how much of the drive expert-pack gets: a synthetic model against dd of random bytes from
# memory, and a checkpoint against dd of its shards, both with O_DIRECT and fsync, in turns.
# (Not zeros: a virtual drive wrote them at 3 GB/s and anything else at 0.7.)
#
# usage: pack.sh BIN_DIR TESTS_DIR WORK_DIR [SYNTHETIC [CHECKPOINT [ROUNDS]]]
#   BIN_DIR has expert-pack, TESTS_DIR has make_checkpoint; WORK_DIR is on the drive to be measured
#   SYNTHETIC, CHECKPOINT: models, by default switch-base-128 (15 GB) and switch-base-32 (4 GB)
# Prints one JSON object: medians in GB/s, ratios (aim: at least 0.8), peak memory, every round.
# Exit: 0, also below the aim; 77 without jq or without the space; 1 when something failed.
set -eu

if [ $# -lt 3 ]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 1
fi
pack=$1/expert-pack
make_checkpoint=$2/make_checkpoint
synthetic=${4:-switch-base-128}
checkpoint=${5:-switch-base-32}
rounds=${6:-3}

if ! command -v jq >/dev/null; then
    echo "pack.sh: skipped: jq is not installed" >&2
    exit 77
fi
work=$(mktemp -d "$3/pack-bench-XXXXXX")
random=$(mktemp /dev/shm/pack-bench-XXXXXX)
trap 'rm -rf "$work" "$random"' EXIT

# Bytes of bf16 weights, generously: 9.44 MB an expert of 12 blocks in base, 16.8 MB of 24 in large.
need_mb() {
    case $1 in
        switch-tiny*) echo 10 ;;
        switch-large-*) echo $((${1##*-} * 24 * 17 + 2000)) ;;
        *) echo $((${1##*-} * 12 * 10 + 1000)) ;;
    esac
}
need=$(($(need_mb "$synthetic") > 2 * $(need_mb "$checkpoint") ? \
    $(need_mb "$synthetic") : 2 * $(need_mb "$checkpoint")))
free=$(df -Pm "$work" | awk 'NR == 2 { print $4 }')
shm_free=$(df -Pm /dev/shm | awk 'NR == 2 { print $4 }')
if [ "$free" -lt "$need" ] || [ "$shm_free" -lt 600 ]; then
    echo "pack.sh: skipped: $3 has $free MB free, $need MB are needed; and 600 MB in /dev/shm" >&2
    exit 77
fi

# seconds COMMAND...: how long it took; dd.bin is removed afterwards
seconds() {
    begin=$(date +%s%N)
    "$@"
    end=$(date +%s%N)
    rm -f "$work/dd.bin"
    awk "BEGIN { print ($end - $begin) / 1e9 }"
}
direct_dd() {
    dd "$@" of="$work/dd.bin" bs=8M oflag=direct conv=notrunc,fsync status=none
}
# write_random N: N x 512 MiB
write_random() {
    i=0
    while [ "$i" -lt "$1" ]; do
        direct_dd if="$random" seek=$((i * 64))
        i=$((i + 1))
    done
}
# Shards must come from the drive, not from memory.
drop_cache() {
    for f in "$work"/checkpoint/*; do
        dd if="$f" iflag=nocache count=0 status=none
    done
}

run_synthetic() {
    "$pack" --synthetic "$synthetic" --out "$work/s.store" --json >"$work/synthetic.pack.$1"
    rm -rf "$work/s.store"
}
run_random() {
    s=$(seconds write_random "$n_random")
    jq -n --argjson s "$s" --argjson n "$n_random" '$n * 536870912 / 1e9 / $s' \
        >"$work/synthetic.dd.$1"
}
run_checkpoint() {
    drop_cache
    "$pack" "$work/checkpoint" --out "$work/c.store" --json >"$work/checkpoint.pack.$1"
    rm -rf "$work/c.store"
}
run_copy() {
    drop_cache
    total=0
    for f in "$work"/checkpoint/*.safetensors; do
        total=$(awk "BEGIN { print $total + $(seconds direct_dd if="$f" iflag=direct) }")
    done
    bytes=$(cat "$work"/checkpoint/*.safetensors | wc -c)
    jq -n --argjson s "$total" --argjson n "$bytes" '$n / 1e9 / $s' >"$work/checkpoint.dd.$1"
}

# Each side first in every other round: shared drives are noisy.
in_turns() {
    round=0
    while [ "$round" -lt "$rounds" ]; do
        if [ $((round % 2)) -eq 0 ]; then
            "$1" "$round"
            "$2" "$round"
        else
            "$2" "$round"
            "$1" "$round"
        fi
        round=$((round + 1))
    done
}

head -c 512M /dev/urandom >"$random"
run_synthetic warm_up
n_random=$(($(jq .total_bytes "$work/synthetic.pack.warm_up") / 536870912 + 1))
rm "$work/synthetic.pack.warm_up"
in_turns run_synthetic run_random
"$make_checkpoint" "$checkpoint" "$work/checkpoint" 4
sync
in_turns run_checkpoint run_copy

# result KIND MODEL
result() {
    jq -n --arg model "$2" --slurpfile pack "$work/all.$1.pack" --slurpfile dd "$work/all.$1.dd" '
        def median: sort | .[length / 2 | floor];
        {model: $model, bytes: $pack[0].total_bytes, direct: $pack[0].direct,
         dd_gb_per_s: ($dd | median), pack_gb_per_s: ($pack | map(.gb_per_s) | median),
         ratio: (($pack | map(.gb_per_s) | median) / ($dd | median)),
         max_rss_bytes: ($pack | map(.max_rss_bytes) | max),
         dd_rounds: $dd, pack_rounds: ($pack | map(.gb_per_s))}'
}
for kind in synthetic checkpoint; do
    cat "$work/$kind".pack.* >"$work/all.$kind.pack"
    cat "$work/$kind".dd.* >"$work/all.$kind.dd"
done
jq -n --argjson s "$(result synthetic "$synthetic")" --argjson c "$(result checkpoint "$checkpoint")" \
    '{bench: "pack", synthetic: $s, checkpoint: $c}'
