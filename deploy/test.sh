#!/usr/bin/env bash
# test.sh - packages, builds, all tests. Every stage prints one line with its time; the first that
# fails ends the run with the log of what failed.
#   --werror      warnings are errors (CI)
#   --only STAGE  one stage: lint debug asan tsan clang cuda release
set -euo pipefail
. "$(dirname "$0")/lib.sh"

werror=OFF
only=''
while [ $# -gt 0 ]; do
    case $1 in
        --werror) werror=ON; shift ;;
        --only) only=${2:?--only needs a stage}; shift 2 ;;
        -h | --help) sed -n '2,/^set /s/^# *//p' "$0"; exit 0 ;;
        *) fail "unknown option '$1'; see --help" ;;
    esac
done

stages=(lint debug asan tsan clang cuda release)
case " ${stages[*]} " in
    *" ${only:-lint} "*) ;;
    *) fail "no stage '$only'; there are: ${stages[*]}" ;;
esac

stage() {
    local name=$1 begin=$SECONDS
    [ -z "$only" ] || [ "$only" = "$name" ] || return 0
    say "== $name"
    "stage_$name"
    say "== $name: $((SECONDS - begin)) s"
}

run_ctest() {
    local preset=$1
    shift
    (cd "$root" && ctest --test-dir "build/$preset" --output-on-failure --no-tests=error -j 2 "$@")
}

stage_lint() {
    local sources
    mapfile -t sources < <(cd "$root" && git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.cc')
    [ ${#sources[@]} -gt 0 ] || fail "git lists no sources in $root: run this in a clone of your own"
    (cd "$root" && clang-format --dry-run --Werror "${sources[@]}")
    "$root/tests/lint/units.sh"
    "$root/tests/lint/tree.sh"
}

# Every test runs once where it says most: small ones under address and undefined-behaviour
# sanitizers, threads under the thread sanitizer, whole models and processes in release.

stage_debug() {
    build_preset debug -DPREGATE_WERROR=$werror
    run_ctest debug -L '^(lint|spin)$'
}

stage_asan() {
    build_preset asan
    run_ctest asan -L '^(unit|fault|kernels|integration|stress)$' \
        -E '^integration\.(bench|bundle|predictors)$'
    run_ctest asan -R '^golden\.(relu|gelu|capacity)'
}

stage_tsan() {
    build_preset tsan
    run_ctest tsan -L '^stress$'
    run_ctest tsan -R '^(unit\.(lock|metrics|socket|lease|engine|http)|kernels\.backend|integration\.(store|store_client|dma|pipeline|engine))$'
}

stage_clang() {
    build_preset clang -DPREGATE_WERROR=$werror
    run_ctest clang -L '^fuzz$'
}

stage_cuda() {
    if [ -z "$(find_nvcc)" ]; then
        say "skipped: no nvcc on PATH or in /usr/local/cuda, so the CUDA presets are not built"
        return 0
    fi
    build_preset cuda-release
    run_ctest cuda-release -L '^kernels$'
}

stage_release() {
    build_preset release
    run_ctest release -L '^(golden|e2e|accuracy|integration)$'
}

install_packages "${packages_build[@]}" "${packages_run[@]}" "${packages_test[@]}"
for name in "${stages[@]}"; do
    stage "$name"
done
say "all stages passed in $SECONDS s"
