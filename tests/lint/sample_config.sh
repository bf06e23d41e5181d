#!/usr/bin/env bash
# deploy/config/pregate.conf shows every setting of both programs with its default, and neither
# program minds it as it is.   sample_config.sh BIN_DIR [--write]   (--write makes it anew)
set -euo pipefail
bin=$(realpath "${1:?usage: sample_config.sh BIN_DIR [--write]}")
cd "$(dirname "$0")/../.."
sample=deploy/config/pregate.conf
while IFS='=' read -r name _; do
    [[ $name != PREGATE_* ]] || unset "$name"
done < <(env)

defaults() { # of one program: its section, everything in it commented out; nothing for tests only
    "$bin/$@" --print-config | awk '
        NR == 1 { next }                 # program and build
        /^\[/   { print; next }
        /^#/    { help = $0; next }
        /^test_/ { next }
        NF      { sub(/ +$/, ""); print ""; print help; print "#" $0 }'
}

expected() {
    cat <<'HEAD'
# pregate.conf - every setting of expert-store and gpu-worker with its default, commented out.
# Pass a copy with --config FILE, or deploy/pregate up --config FILE. The environment
# (PREGATE_STORE_RAM_BYTES, PREGATE_WORKER_MAX_BATCH, ...) and the command line override it.
# --help says what each one allows. Made by tests/lint/sample_config.sh BIN_DIR --write.

HEAD
    defaults expert-store
    echo
    defaults gpu-worker serve
}

if [ "${2:-}" = --write ]; then
    expected >"$sample"
fi
if ! diff -u "$sample" <(expected); then
    echo "$sample is stale: run tests/lint/sample_config.sh BIN_DIR --write"
    exit 1
fi
for program in expert-store gpu-worker; do
    diff <("$bin/$program" --print-config) <("$bin/$program" --config "$sample" --print-config)
done
