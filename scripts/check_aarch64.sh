#!/usr/bin/env bash
# Builds the workspace for 64-bit ARM on a machine of another kind, and runs tests of the kernels there under QEMU.
#
#   scripts/check_aarch64.sh [check]               cargo check of every crate and target
#   scripts/check_aarch64.sh test [ARGUMENT...]    cargo test with these arguments (-p loam-kernels --lib where none)
#
# Needs the target's standard library: `rustup target add aarch64-unknown-linux-gnu`. Where rustup reaches no server,
# the source of this very version of Rust does, too, in RUST_LIBRARY (its folder `library`): Debian's package rust-src
# holds it, unpacked anywhere with `dpkg -x`, and is built with cargo's -Zbuild-std. Crates that build C and linking need
# Debian's gcc-aarch64-linux-gnu, and `test` its qemu-user.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=aarch64-unknown-linux-gnu
verb="${1:-check}"
[ "$#" -eq 0 ] || shift

command -v aarch64-linux-gnu-gcc >/dev/null || {
    echo "error: no aarch64-linux-gnu-gcc; on Debian: apt-get install gcc-aarch64-linux-gnu" >&2
    exit 1
}
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
export CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"

options=(--target "$target" --locked)
if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
    if [ ! -f "${RUST_LIBRARY:-}/std/Cargo.toml" ]; then
        echo "error: no standard library for $target; run \`rustup target add $target\`, or name Rust's own source:" >&2
        echo "RUST_LIBRARY=.../rustc-$(rustc --version | cut -d ' ' -f 2)/library scripts/check_aarch64.sh" >&2
        exit 1
    fi
    # The variables that cargo itself and its tests use for this; nothing of the toolchain is changed.
    export RUSTC_BOOTSTRAP=1 __CARGO_TESTS_ONLY_SRC_ROOT="$RUST_LIBRARY"
    options+=(-Zbuild-std)
fi

case "$verb" in
check) cargo check --workspace --all-targets "${options[@]}" ;;
test)
    [ "$#" -gt 0 ] || set -- -p loam-kernels --lib
    # With the dot instruction on bytes, and on a core that lacks it.
    for cpu in max cortex-a72; do
        echo "on $cpu:" >&2
        QEMU_CPU="$cpu" cargo test "${options[@]}" "$@"
    done
    ;;
*)
    echo "error: \`check\` or \`test\`, not \`$verb\`" >&2
    exit 2
    ;;
esac
