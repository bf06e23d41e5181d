# shellcheck shell=bash
# lib.sh - what the scripts in deploy/ share: where things are, which packages, how to say things.
# Sourced, never run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

packages_build=(build-essential cmake ninja-build pkg-config libzmq3-dev liburing-dev libmsgpack-dev
    liblmdb-dev libmicrohttpd-dev libxxhash-dev libcjson-dev libinih-dev libsentencepiece-dev
    libcmocka-dev)
packages_run=(supervisor curl ca-certificates)
packages_test=(git clang clang-format libclang-rt-14-dev spin systemd python3 python3-numpy procps)

say() {
    printf '%s\n' "$*"
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# install_packages NAME...: installs what is missing. Root or sudo is needed only if something is.
install_packages() {
    local missing=() name
    for name in "$@"; do
        if ! dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed; then
            missing+=("$name")
        fi
    done
    if [ ${#missing[@]} -eq 0 ]; then
        return 0
    fi
    command -v apt-get >/dev/null || fail "these packages are missing, and there is no apt-get to install them: ${missing[*]}"
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "root is needed to install: ${missing[*]}"
        as_root=(sudo)
    fi
    say "installing: ${missing[*]}"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
        --no-install-recommends "${missing[@]}" >/dev/null
}

# Path of nvcc, or nothing.
find_nvcc() {
    command -v nvcc 2>/dev/null || { [ -x /usr/local/cuda/bin/nvcc ] && echo /usr/local/cuda/bin/nvcc; } || true
}

# build_preset PRESET [cmake -D... ]: configures and builds build/PRESET, quietly unless it fails.
build_preset() {
    local preset=$1
    shift
    local log="$root/build/$preset.log"
    mkdir -p "$root/build"
    if ! (cd "$root" && cmake --preset "$preset" "$@" && cmake --build --preset "$preset") >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        fail "building preset $preset failed; the whole log is $log"
    fi
}

# The release preset for this machine: with CUDA where a driver and nvcc are, else without.
release_preset() {
    if [ -n "$(find_nvcc)" ] && nvidia-smi -L >/dev/null 2>&1; then
        echo cuda-release
    else
        echo release
    fi
}
