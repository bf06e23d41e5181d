#!/usr/bin/env bash
# bundle.sh - a tarball that runs on any x86-64 Linux without a package manager: programs, every
# library they need but glibc, licences, the demo model. With the CUDA Toolkit here it also computes
# on a GPU where it is unpacked (the NVIDIA driver is all that machine needs), and on the CPU where
# there is none.
#
#   deploy/bundle.sh [--slim] [--tests] [--build DIR] [--out FILE]
#     --slim       without the demo model and without cuBLAS: a few MiB, for machines that have CUDA
#     --tests      with the tests of the kernels and the golden tests, for gpu_check.sh
#     --build DIR  bundle this build instead of building a preset (cuda-release, or release)
#     --out FILE   default build/pregate-VERSION[-slim][-tests].tar.gz
set -euo pipefail
. "$(dirname "$0")/lib.sh"

slim='' tests='' build='' out=''
while [ $# -gt 0 ]; do
    case $1 in
        --slim) slim=1; shift ;;
        --tests) tests=1; shift ;;
        --build) build=$(realpath "${2:?--build needs a directory}"); shift 2 ;;
        --out) out=$(realpath -m "${2:?--out needs a file}"); shift 2 ;;
        -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) fail "unknown option '$1'; see the head of deploy/bundle.sh" ;;
    esac
done

# From the machine it runs on: glibc and the loader (all parts of one version), the driver.
from_the_machine='^(linux-vdso|ld-linux-x86-64|libc|libm|libdl|libpthread|librt|libresolv|libanl|libutil|libcuda)\.so'

if [ -z "$build" ]; then
    preset=$([ -n "$(find_nvcc)" ] && echo cuda-release || echo release)
    say "building (preset $preset)"
    build_preset "$preset"
    build=$root/build/$preset
fi
version=$("$build/bin/gpu-worker" --version | sed 's/^gpu-worker //; s/ (/-/; s/)$//')
name=pregate-$version${slim:+-slim}${tests:+-tests}
out=${out:-$root/build/$name.tar.gz}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stage=$work/$name
mkdir -p "$stage/lib" "$stage/licences"

install_component() {
    cmake --install "$build" --prefix "$stage" --component "$1" --strip >"$work/install.log" 2>&1 ||
        { cat "$work/install.log" >&2; fail "cannot install $1 from $build"; }
}

# What the installed programs need and the bundle brings: "soname path", once each. Asked of the
# build, whose programs still find libraries where this machine has them.
needed_libraries() {
    (cd "$stage" && find bin tests -type f 2>/dev/null) | sed "s|^|$build/|" | xargs ldd |
        awk '$2 == "=>" && $3 ~ /^\// { print $1, $3 }' | sort -u |
        grep -vE "$from_the_machine"
}

# The one library that the programs look for when they run (kernels/backend/cublas_lt.cuh).
copy_cublas() {
    local toolkit file
    [ -z "$slim" ] && grep -q '^PREGATE_CUDA:BOOL=ON' "$build/CMakeCache.txt" || return 0
    toolkit=$(dirname "$(dirname "$(realpath "$(find_nvcc)")")")
    file=$(find "$toolkit/" -name 'libcublasLt.so.[0-9]*' -not -path '*/stubs/*' | sort | head -n 1)
    [ -n "$file" ] || fail "no libcublasLt.so in $toolkit: install cuBLAS, or make the --slim form"
    copy_library "$(basename "$file" | grep -oE '^libcublasLt\.so\.[0-9]+')" "$file"
}

package_of() { # of a library file; /lib and /usr/lib are the same on merged systems
    { dpkg-query -S "$1" "${1#/usr}" "/usr$1" 2>/dev/null || true; } | head -n 1 | cut -d: -f1
}

copy_library() {
    local soname=$1 file package
    file=$(realpath "$2")
    cp "$file" "$stage/lib/$soname"
    package=$(package_of "$file")
    if [ -n "$package" ] && [ -f "/usr/share/doc/$package/copyright" ]; then
        cp "/usr/share/doc/$package/copyright" "$stage/licences/$package"
        printf '%s\t%s\t%s\n' "$soname" "$package" \
            "$(dpkg-query -W -f '${Version}' "$package" | head -n 1)" >>"$stage/licences/INDEX"
    else
        say "note: no licence text found here for $soname ($file); see its vendor's terms"
        printf '%s\t%s\t\n' "$soname" "not from a package" >>"$stage/licences/INDEX"
    fi
}

# What is compiled in rather than linked.
copy_built_in_licences() {
    local eula
    cp /usr/share/doc/libxxhash-dev/copyright "$stage/licences/libxxhash-dev"
    printf 'built in\tlibxxhash-dev\t\n' >>"$stage/licences/INDEX"
    grep -q '^PREGATE_CUDA:BOOL=ON' "$build/CMakeCache.txt" || return 0
    printf 'built in\tNVIDIA CUDA runtime, see the CUDA Toolkit EULA\t\n' >>"$stage/licences/INDEX"
    eula=$(dirname "$(dirname "$(realpath "$(find_nvcc)")")")/EULA.txt
    [ ! -f "$eula" ] || cp "$eula" "$stage/licences/CUDA-EULA.txt"
}

newest_glibc_symbol() {
    find "$stage/bin" "$stage/lib" ${tests:+"$stage/tests"} -type f -print0 |
        xargs -0 objdump -T 2>/dev/null | grep -oE 'GLIBC_[0-9]+\.[0-9]+' | sort -uV | tail -n 1 |
        sed 's/GLIBC_//'
}

copy_models() {
    if [ -z "$slim" ]; then
        mkdir -p "$stage/models"
        cp -r "$root/deploy/models/restore-pregated" "$stage/models/"
        cp "$root/deploy/models/README.md" "$stage/models/"
    fi
    if [ -n "$tests" ]; then
        cp -r "$root/tests/golden/fixtures" "$stage/tests/fixtures"
    fi
}

write_readme() {
    local model=models/restore-pregated
    [ -z "$slim" ] || model=DIR
    cat >"$stage/README" <<EOF
pregate $version: Mixture-of-Experts models on a GPU that is too small for them.

Needs: x86-64 Linux with glibc $(newest_glibc_symbol) or newer; for the GPU an NVIDIA driver. Nothing is installed
outside this folder, which may lie anywhere.

  bin/expert-pack $model --out demo.store
  bin/expert-store --store demo.store &
  bin/gpu-worker run --prompt 'call me ishmael some years ago never mind how long precisely'
  ./gpu_check.sh          everything checked and measured, on a machine with a GPU

--help of each program lists its settings; config/pregate.conf shows all of them.
Licence: Apache-2.0 (LICENSE). Libraries in lib/ and their licences: licences/INDEX.
EOF
}

check_self_contained() {
    local outside
    outside=$(cd "$stage" && env -i ldd bin/* ${tests:+tests/test_*} |
        awk '$2 == "=>" { print $1, $3 }' | grep -vE "$from_the_machine" |
        grep -vF " $stage/" || true)
    [ -z "$outside" ] || fail "these libraries would not come from the bundle: $outside"
}

install_component programs
[ -z "$tests" ] || install_component tests
while read -r soname file; do
    copy_library "$soname" "$file"
done < <(needed_libraries)
copy_cublas
copy_built_in_licences
check_self_contained
copy_models
mkdir "$stage/config"
cp "$root/deploy/config/pregate.conf" "$stage/config/"
cp "$root/LICENSE" "$stage/"
cp "$root/deploy/gpu_check.sh" "$stage/"
write_readme
mkdir -p "$(dirname "$out")"
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner -cf - "$name" | gzip -6n >"$out"
say "$out: $(du -h "$out" | cut -f1), $(find "$stage/lib" -type f | wc -l) libraries, glibc $(newest_glibc_symbol)"
