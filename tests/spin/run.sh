#!/bin/sh
# run.sh [LOADS [WORKERS]] - searches all of lease.pml, and with two workers shows that the search
# finds each planted bug; LEASE_BY_EXPERT needs three loads.
# Exit 77 when spin is not installed.
set -eu
model=$(cd "$(dirname "$0")" && pwd)/lease.pml
loads=${1:-3}
workers=${2:-2}
if ! command -v spin >/dev/null; then
    echo "spin is not installed: skipped"
    exit 77
fi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

# search [-DBUG]: what pan says
search() {
    spin -a "-DLOADS=$loads" "-DWORKERS=$workers" "$@" "$model"
    ${CC:-cc} -w -O2 -DSAFETY -DCOLLAPSE -DMEMLIM=4000 -o pan pan.c
    ./pan -m400000
}

search >correct.txt
grep -E 'errors:|states, stored|elapsed' correct.txt
if ! grep -q 'errors: 0' correct.txt || grep -qE 'max search depth too small|memory limit|Search not completed' correct.txt; then
    cat correct.txt
    echo "FAILED: the protocol is wrong, or was not searched whole"
    exit 1
fi
if grep -E 'lease\.pml:[0-9]+' correct.txt | grep -v -- '"-end-"'; then
    echo "FAILED: these lines of the model were never reached"
    exit 1
fi

[ "$workers" = 2 ] || exit 0
for bug in NO_RECHECK LEASE_BY_EXPERT NO_EVICTING ADOPT_WITHOUT_LEASES; do
    search "-D$bug" >bug.txt
    if ! grep -q 'assertion violated' bug.txt; then
        cat bug.txt
        echo "FAILED: $bug was not found"
        exit 1
    fi
    echo "found $bug, $(grep -o 'at depth [0-9]*' bug.txt)"
done
