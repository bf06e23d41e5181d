#!/bin/sh
# drive.sh - how much of the drive the extent reader gets: random experts of a store through
# bench_reader against fio on the same segments, at the same depth and read size, in turns.
#
# usage: drive.sh BENCH_READER STORE [DEPTH [SPLIT_KIB [ROUNDS [WHOLE_SECONDS]]]]
# Prints one JSON object: both medians in GB/s, their ratio (aim: at least 0.95), every round.
# Exit: 0, also below the aim; 77 without fio or jq; 1 when something failed.
# A store to measure on: expert-pack --synthetic switch-base-8 --out bench.store
set -eu

if [ $# -lt 2 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 1
fi
bench=$1
store=$2
depth=${3:-32}
split_kib=${4:-1024}
rounds=${5:-9}
seconds=${6:-2}

for tool in fio jq; do
    if ! command -v "$tool" >/dev/null; then
        echo "drive.sh: skipped: $tool is not installed" >&2
        exit 77
    fi
done

segments=$(find "$store/segments" -name '*.seg' | sort | paste -sd:)
if [ -z "$segments" ]; then
    echo "drive.sh: no segments in $store" >&2
    exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

run_fio() {
    fio --name=raw --filename="$segments" --readonly --rw=randread --bs="${split_kib}k" \
        --ioengine=io_uring --direct=1 --iodepth="$depth" --fixedbufs=1 --registerfiles=1 \
        --time_based --runtime="$seconds" --output-format=json --output="$work/fio.$1"
}
run_reader() {
    "$bench" --store "$store" --depth "$depth" --split-bytes "${split_kib}KiB" \
        --seconds "$seconds" >"$work/reader.$1"
}

# Many short rounds, each side first in every other one: shared drives are noisy.
round=0
while [ "$round" -lt "$rounds" ]; do
    if [ $((round % 2)) -eq 0 ]; then
        run_fio "$round"
        run_reader "$round"
    else
        run_reader "$round"
        run_fio "$round"
    fi
    round=$((round + 1))
done

# slurped: first the fio results, then the reader's
jq -s '
    def median: sort | .[length / 2 | floor];
    map(select(.jobs)) as $fio | map(select(.bench)) as $reader |
    ($fio | map(.jobs[0].read.bw_bytes / 1e9)) as $raw |
    ($reader | map(.gb_per_s)) as $ours |
    {bench: "drive", depth: $reader[0].depth, split_bytes: $reader[0].split_bytes,
     engine: $reader[0].engine, direct: $reader[0].direct,
     registered_buffers: $reader[0].registered_buffers, note: $reader[0].note,
     fio_gb_per_s: ($raw | median), reader_gb_per_s: ($ours | median),
     ratio: (($ours | median) / ($raw | median)),
     p50_us: ($reader | map(.p50_us) | median), p99_us: ($reader | map(.p99_us) | median),
     cpu_seconds_per_gb: ($reader | map(.cpu_seconds_per_gb) | median),
     fio_rounds: $raw, reader_rounds: $ours}' "$work"/fio.* "$work"/reader.*
