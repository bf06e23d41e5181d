#!/usr/bin/env bash
# soak.sh [--quick] [--out DIR] [--bin DIR] [--fuzz DIR] - everything that tries to break pregate, for
# long: hours. With --quick some minutes, one of them fuzzing.
#
#   --out DIR   where results go, one JSON file each (default build/soak)
#   --bin DIR   build of preset release (default build/release, made if it is missing)
#   --fuzz DIR  build of preset clang, with fuzz targets (default build/clang, made if it is missing)
#
# Each stage writes its file whether or not it passed; the table at the end is made of those files.
# Exit status 1 when any stage failed. Needs jq and python3; skips Spin where it is not installed.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=$root/build/soak
release=$root/build/release
clang=$root/build/clang
runs=10000000 kills=1000 hostile_s=60 loads=4 fuzz_s=0 models=spin
while [ $# -gt 0 ]; do
    case $1 in
        --quick) runs=-1 kills=30 hostile_s=2.5 loads=3 fuzz_s=12 ;;
        --out) out=$2 && shift ;;
        --bin) release=$2 && shift ;;
        --fuzz) clang=$2 && shift ;;
        *) sed -n '2,10s/^# \{0,1\}//p' "$0" && exit 2 ;;
    esac
    shift
done
mkdir -p "$out" && out=$(cd "$out" && pwd)
rm -f "$out"/*.json

build() { # preset directory target...
    local preset=$1 dir=$2
    shift 2
    [ -f "$dir/build.ninja" ] || (cd "$root" && cmake --preset "$preset" -B "$dir") || return 1
    cmake --build "$dir" --target "$@"
}


keep() { # name, then arguments of jq -n
    local name=$1
    shift
    jq -n "$@" >"$out/$name.json"
}

spin_stage() { # name, loads, workers
    local name=$1 loads=$2 workers=$3 begin=$SECONDS rc=0
    local log=$out/$name.log
    "$root/tests/spin/run.sh" "$loads" "$workers" >"$log" 2>&1 || rc=$?
    keep "$name" --argjson passed "$([ $rc = 0 ] && echo true || { [ $rc = 77 ] && echo null || echo false; })" \
        --argjson loads "$loads" --argjson workers "$workers" \
        --argjson states "$(grep -oE '[0-9.e+]+ states, stored' "$log" | grep -oE '^[^ ]+' | head -1 | grep . || echo 0)" \
        --argjson bugs "$(grep -c '^found ' "$log")" --argjson seconds $((SECONDS - begin)) \
        '{passed: $passed, workers: $workers, loads: $loads, states: $states, planted_bugs_found: $bugs, seconds: $seconds}'
}

last_number() { # of the lines that match a pattern
    grep -oE "$1" "$2" | tail -1 | grep -oE '[0-9]+$' || echo 0
}

fuzz_stage() { # one target
    local target=$1 log=$out/fuzz_$1.log begin=$SECONDS rc=0
    local found=$out/corpus/$target
    local stop="-runs=$runs"
    [ "$fuzz_s" = 0 ] || stop="-max_total_time=$fuzz_s"
    mkdir -p "$found"
    "$clang/tests/fuzz_$target" "$stop" -print_final_stats=1 -artifact_prefix="$out/fuzz_$target-" \
        "$found" "$root/tests/fuzz/corpus/$target" >"$log" 2>&1 || rc=$?
    keep "fuzz_$target" --argjson passed "$([ $rc = 0 ] && echo true || echo false)" \
        --argjson executions "$(last_number 'number_of_executed_units: [0-9]+' "$log")" \
        --argjson edges "$(last_number 'cov: [0-9]+' "$log")" \
        --argjson features "$(last_number 'ft: [0-9]+' "$log")" \
        --argjson counters "$(sed -nE 's/.*Loaded 1 modules +\(([0-9]+) inline.*/\1/p' "$log" | tail -1 | grep . || echo 0)" \
        --argjson new_inputs "$(last_number 'new_units_added: +[0-9]+' "$log")" \
        --argjson peak_mb "$(last_number 'peak_rss_mb: +[0-9]+' "$log")" \
        --argjson seconds $((SECONDS - begin)) \
        '{passed: $passed, executions: $executions, edges_covered: $edges,
          edges_of_program: $counters, features: $features, new_inputs: $new_inputs,
          peak_rss_mb: $peak_mb, seconds: $seconds}'
}

e2e_stage() { # test file, unittest's arguments...
    local name=$1 begin=$SECONDS rc=0
    shift
    PREGATE_E2E_RESULTS=$out PREGATE_E2E_KILLS=$kills PREGATE_E2E_HOSTILE_S=$hostile_s \
        python3 "$root/tests/e2e/test_$name.py" "$release/bin" "$@" >"$out/e2e_$name.log" 2>&1 || rc=$?
    keep "e2e_$name" --argjson seconds $((SECONDS - begin)) \
        --argjson passed "$([ $rc = 0 ] && echo true || { [ $rc = 77 ] && echo null || echo false; })" \
        '{passed: $passed, seconds: $seconds}'
}

row() { # name, file of the verdict, file and jq expression of the figures
    local verdict figures=''
    verdict=$(jq -r '{"true": "passed", "false": "FAILED", "null": "skipped"}[.passed | tostring]' "$out/$2.json")
    [ ! -f "$out/$3.json" ] || figures=$(jq -r "$4" "$out/$3.json")
    printf '%-18s %-8s %s\n' "$1" "$verdict" "$figures"
}

table() {
    local name
    for name in $models; do
        row "$name" "$name" "$name" '"\(.states) states: \(.workers) workers, \(.loads) loads; planted bugs found: \(.planted_bugs_found)"'
    done
    for name in $targets; do
        row "fuzz $name" "fuzz_$name" "fuzz_$name" '"\(.executions) executions in \(.seconds) s, \(.edges_covered) edges"'
    done
    row kill e2e_kill kill '"\(.deaths.store) deaths of the store, \(.deaths.worker) of the worker; \(.answers_compared) answers compared, \(.answers_wrong) wrong; left in /dev/shm: \(.left_in_shm)"'
    row hostile e2e_hostile hostile '. as $all | "p50 of a good worker, ms: \(to_entries | map("\(.key) \(.value.p50_ms)") | join(", "))"'
    row 'two users' e2e_two_users e2e_two_users '"\(.seconds) s"'
    row 'many workers' e2e_many_workers many_workers '"answers \(.answers | map(tostring) | join(" ")); want p99 \(.want_p99_s | map(. * 1000 | floor | tostring) | join(" ")) ms"'
}

targets=$(cd "$root/tests/fuzz" && printf '%s\n' fuzz_*.c | sed 's/^fuzz_//; s/\.c$//')
# shellcheck disable=SC2046,SC2086 # words are wanted
build clang "$clang" $(printf 'fuzz_%s ' $targets) >"$out/build.log" 2>&1 &&
    build release "$release" expert-store expert-pack expert-stat gpu-worker hostile_client >>"$out/build.log" 2>&1 ||
    { tail -20 "$out/build.log" && exit 1; }
spin_stage spin "$loads" 2
if [ "$loads" -gt 3 ]; then
    models="spin spin_three"
    spin_stage spin_three 2 3
fi
for target in $targets; do
    fuzz_stage "$target"
done
if [ "$kills" -gt 30 ]; then
    e2e_stage kill
else
    e2e_stage kill Kill.test_random_moments_under_load
fi
for test in hostile two_users many_workers; do
    e2e_stage "$test"
done
table
! grep -l '"passed": false' "$out"/*.json
