#!/usr/bin/env bash
# The tree as it is checked in: its top level, its size, scripts that parse.
set -euo pipefail
cd "$(dirname "$0")/../.."
problems=0
complain() {
    printf 'tree: %s\n' "$*"
    problems=1
}
allowed=' CMakeLists.txt CMakePresets.json LICENSE README.md .ci .clang-format .clang-tidy .gitignore common deploy expert-store gpu-worker kernels proto tests '
while read -r entry; do
    case $allowed in
        *" $entry "*) ;;
        *) complain "unexpected at the top level: $entry" ;;
    esac
done < <(git ls-files | cut -d/ -f1 | sort -u)
bytes=$(git ls-files -z | xargs -0 stat -c %s | awk '{ sum += $1 } END { print sum }')
[ "$bytes" -le $((57 << 20)) ] || complain "tracked files are $bytes bytes, over 57 MiB"
while read -r script; do
    bash -n "$script" || complain "does not parse: $script"
done < <(git ls-files '*.sh' deploy/pregate .ci/run)
exit $problems
