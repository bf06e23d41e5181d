#!/usr/bin/env bash
# The bundle of a build, unpacked where nothing else is: a root directory with glibc, /dev, /proc and
# nothing more. Packs the demo model there, serves it, answers a golden prompt, and says what the
# machine's GPU check would say.      bundle.sh BUILD_DIR   (77: bundles or namespaces impossible here)
set -euo pipefail
build=$(realpath "${1:?usage: bundle.sh BUILD_DIR}")
root=$(realpath "$(dirname "$0")/../..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

skip() {
    echo "bundle: skipped: $*"
    exit 77
}
complain() {
    echo "bundle: $*" >&2
    exit 1
}
for tool in ldd objdump dpkg-query unshare python3; do
    command -v "$tool" >/dev/null || skip "no $tool"
done
if ldd "$build/bin/gpu-worker" | grep -qE 'lib(a|t|ub)san'; then
    skip "a build with sanitizers"
fi

"$root/deploy/bundle.sh" --build "$build" --tests --out "$work/full.tar.gz"
"$root/deploy/bundle.sh" --build "$build" --slim --out "$work/slim.tar.gz"
[ "$(stat -c %s "$work/slim.tar.gz")" -lt $((12 << 20)) ] || complain "the slim bundle is over 12 MiB"
! tar tzf "$work/slim.tar.gz" | grep -E 'models/|libcublas|/tests/' || complain "the slim bundle is not slim"

mkdir "$work/root"
tar -C "$work/root" -xzf "$work/full.tar.gz"
bundle=$(cd "$work/root" && echo pregate-*)
[ -s "$work/root/$bundle/licences/libzmq5" ] || complain "no licence of ZeroMQ"
awk -F'\t' '{ print $2 }' "$work/root/$bundle/licences/INDEX" | grep '^lib' | while read -r package; do
    [ -s "$work/root/$bundle/licences/$package" ] || complain "no licence of $package"
done

# Without a variable of ours, every library but glibc comes from the bundle.
outside=$(env -i ldd "$work/root/$bundle"/bin/* "$work/root/$bundle"/tests/test_* |
    awk '$2 == "=>" && $3 !~ /\/pregate-/ { print $1 }' | sort -u |
    grep -vE '^(libc|libm|libdl|libpthread|librt|libresolv)\.so' || true)
[ -z "$outside" ] || complain "from outside the bundle: $outside"

# A root with glibc alone. Each file is found by asking the loader.
for file in /lib64/ld-linux-x86-64.so.2 \
    $(env -i ldd "$work/root/$bundle"/bin/* | awk '$2 == "=>" && $3 !~ /\/pregate-/ { print $3 }' | sort -u); do
    mkdir -p "$work/root$(dirname "$file")"
    cp -L "$file" "$work/root$file"
done
mkdir -p "$work/root"/{dev,proc,tmp}
python3 - "$root/deploy/models/restore-pregated/golden.json" "$work" <<'EOF'
import json, sys
case = min(json.load(open(sys.argv[1])), key=lambda c: len(c["output_ids"]))
open(sys.argv[2] + "/prompt", "w").write(case["text"])
open(sys.argv[2] + "/expected", "w").write(case["output_text"] + "\n")
EOF
unshare -Urm true 2>/dev/null || skip "no user namespaces here; the libraries are complete"

WORK=$work BUNDLE=/$bundle unshare -Urm --propagation private bash -s <<'EOF' || complain "the bundle does not run alone"
set -euo pipefail
mount --rbind /dev "$WORK/root/dev"
mount --rbind /proc "$WORK/root/proc"
alone() { env -i /usr/sbin/chroot "$WORK/root" "$@"; }
for program in expert-pack expert-store expert-stat gpu-worker; do
    alone "$BUNDLE/bin/$program" --version
done
alone "$BUNDLE/bin/expert-pack" "$BUNDLE/models/restore-pregated" --out /tmp/demo.store >/dev/null
env -i /usr/sbin/chroot "$WORK/root" "$BUNDLE/bin/expert-store" --store /tmp/demo.store \
    --endpoint ipc:///tmp/s.sock --log-level warn &
store=$!
status=0
alone "$BUNDLE/bin/gpu-worker" run --endpoint ipc:///tmp/s.sock --backend auto --log-level warn \
    --prompt "$(cat "$WORK/prompt")" >"$WORK/answer" || status=$?
alone "$BUNDLE/tests/test_kernels_matmul" >/dev/null || status=$?
kill "$store"
wait "$store" || status=$?
exit "$status"
EOF
diff "$work/expected" "$work/answer" || complain "another answer than the golden one"

# The script that checks GPU machines: on the CPU, and where there is no GPU.
(cd "$work" && "$work/root/$bundle/gpu_check.sh" --backend cpu --only bench --out "$work/check") ||
    complain "gpu_check.sh --backend cpu failed"
[ "$(wc -l <"$work/check/main.jsonl")" -eq 4 ] || complain "gpu_check.sh wrote no rows"
if ! nvidia-smi -L >/dev/null 2>&1; then
    said=$("$work/root/$bundle/gpu_check.sh") && status=0 || status=$?
    [ "$status" -eq 77 ] && [ -n "$said" ] && [ "$(wc -l <<<"$said")" -eq 1 ] ||
        complain "gpu_check.sh without a GPU: status $status, said: $said"
fi
echo "bundle: complete"
