#!/bin/sh
# drive.sh - how much of the drive the extent reader gets: random experts of a store through
# bench_reader beside fio on the same segments, in turns.
#
# usage: drive.sh BENCH_READER STORE [ROUNDS [WHOLE_SECONDS]]
# Prints one JSON object: the median of every size and depth fio tried, and of the reader with many
# experts in flight, with one, and with one beside one or two speculative ones. Aims: many of fio's
# best at least 0.95; under_1 at most 2.
# Exit: 0, also below the aims; 77 without fio or jq; 1 when something failed.
# A store to measure on: expert-pack --synthetic switch-base-64 --out bench.store
set -eu

if [ $# -lt 2 ]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 1
fi
bench=$1
store=$2
rounds=${3:-7}
seconds=${4:-1}

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

# The tunable asks for huge pages behind fio's buffers, as the slots have them.
run_fio() { # SIZE:DEPTH
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \
        fio --name="$1" --filename="$segments" --readonly --rw=randread --bs="${1%:*}" \
        --ioengine=io_uring --direct=1 --iodepth="${1#*:}" --fixedbufs=1 --registerfiles=1 \
        --time_based --runtime="$seconds" --output-format=json --output="$work/fio"
    jq -c '{what: "fio", how: .jobs[0].jobname, gb_per_s: (.jobs[0].read.bw_bytes / 1e9)}' \
        "$work/fio" >>"$work/rows"
}
run_reader() { # NAME DEMAND SPECULATIVE
    "$bench" --store "$store" --demand "$2" --speculative "$3" --seconds "$seconds" \
        >"$work/reader"
    jq -c --arg how "$1" '. + {what: "reader", how: $how}' "$work/reader" >>"$work/rows"
}
run_step() {
    case $1 in
        many) run_reader many 0 0 ;;
        one) run_reader one 1 0 ;;
        under_1) run_reader under_1 1 1 ;;
        under_2) run_reader under_2 1 2 ;;
        *) run_fio "$1" ;;
    esac
}

# Many short rounds, every other one backwards: shared drives drift.
forth='256k:32 many 256k:128 one 512k:64 under_1 1m:32 under_2 1m:128 many 4m:16'
back='4m:16 many 1m:128 under_2 1m:32 under_1 512k:64 one 256k:128 many 256k:32'
round=0
while [ "$round" -lt "$rounds" ]; do
    if [ $((round % 2)) -eq 0 ]; then steps=$forth; else steps=$back; fi
    for step in $steps; do
        run_step "$step"
    done
    round=$((round + 1))
done

jq -s '
    def median: sort | .[length / 2 | floor];
    def rounded: . * 1000 | round / 1000;
    (map(select(.what == "fio")) | group_by(.how) |
     map({key: .[0].how, value: (map(.gb_per_s) | median | rounded)}) | from_entries) as $fio |
    (map(select(.what == "reader")) | group_by(.how) |
     map({key: .[0].how, value: {gb_per_s: (map(.gb_per_s) | median),
          p50_us: (map(.p50_us) | median), p99_us: (map(.p99_us) | median),
          cpu_seconds_per_gb: (map(.cpu_seconds_per_gb) | median)}}) | from_entries) as $ours |
    (map(select(.what == "reader")) | .[0]) as $any |
    ($fio | to_entries | max_by(.value)) as $best |
    {bench: "drive", engine: $any.engine, direct: $any.direct, note: $any.note,
     registered_buffers: $any.registered_buffers, depth: $any.depth,
     split_bytes: $any.split_bytes, slot_bytes: $any.slot_bytes, huge_bytes: $any.huge_bytes,
     fio_gb_per_s: $fio, fio_best: $best.key, reader: $ours,
     many_of_fio_best: ($ours.many.gb_per_s / $best.value | rounded),
     one_of_fio_best: ($ours.one.gb_per_s / $best.value | rounded),
     under_1: ($ours.under_1.p50_us / $ours.one.p50_us | rounded),
     under_2: ($ours.under_2.p50_us / $ours.one.p50_us | rounded),
     under_1_p99: ($ours.under_1.p99_us / $ours.one.p99_us | rounded),
     under_2_p99: ($ours.under_2.p99_us / $ours.one.p99_us | rounded)}' "$work/rows"
