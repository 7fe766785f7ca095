#!/usr/bin/env bash
# Hold instruction sets and compilers to the same bits: the kernels of this x86 machine, built by GCC
# and by clang, and those of ARM (NEON), cross-compiled by both and run under an emulator. All that
# have a fused multiply-add must agree with AVX2; those without, with the portable path; those that
# multiply in integers (vnni) or by tiles (amx), which round elsewhere, with themselves.
# Needs Debian packages and kernels built in the tree; --install fetches the packages (as root).
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
export PYTHONPATH=$PWD:$PWD/tests # the kernels that were built in this tree; strategies.py
packages=(gcc clang gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)

if [ "${1:-}" = --install ]; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}"
fi
for command in gcc clang aarch64-linux-gnu-gcc qemu-aarch64; do
    command -v "$command" >/dev/null || {
        echo "check_neon: there is no $command; apt-get install ${packages[*]}, or run with --install"
        exit 2
    }
done

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
failed=0

# Compile the driver with the flags of setup.py: NAME, COMPILER and its own flags.
build() {
    local name=$1
    shift
    "$@" -O3 -std=gnu11 -ffp-contract=fast -Wall -Wextra -Wno-psabi -Wno-unused-function \
        -Wno-unused-parameter -Wno-unused-local-typedefs -Wno-unknown-pragmas \
        tests/native/kernel_driver.c -o "$place/$name" -lm 2>"$place/log" \
        || { cat "$place/log"; echo "check_neon: $name does not compile"; exit 1; }
    # Of a static program the linker says that dlopen in libgomp needs the shared libraries.
    if grep -q 'warning:.*\[-W' "$place/log"; then cat "$place/log"; failed=1; fi
}

# Run a driver and compare: NAME, PATH, EXPECTED, and the emulator if it needs one.
check() {
    local name=$1 path=$2 expected=$3
    shift 3
    printf '%-26s %-9s ' "$name" "$path"
    "$@" "$place/$name" "$path" 2 "$place/cases" "$place/results" || { failed=1; return; }
    "$python" tests/native/kernel_cases.py compare "$place/$expected.npz" "$place/results" || failed=1
}

own=
if grep -qw avx512_vnni /proc/cpuinfo; then own="vnni"; fi
if grep -qw amx_bf16 /proc/cpuinfo; then own="$own amx"; fi
for path in avx2 portable $own; do
    K2REF_KERNELS=$path "$python" tests/native/kernel_cases.py write "$place/cases" "$place/$path.npz"
done
paths="avx2"
if grep -qw avx512bw /proc/cpuinfo; then paths="avx2 avx512"; fi

build gcc gcc
build gcc-openmp gcc -fopenmp
build clang clang
for name in gcc gcc-openmp clang; do
    for path in $paths; do check $name "$path" avx2; done
    for path in portable $own; do check $name "$path" "$path"; done
done
build aarch64-gcc aarch64-linux-gnu-gcc -static
build aarch64-gcc-openmp aarch64-linux-gnu-gcc -static -fopenmp
build aarch64-clang clang --target=aarch64-linux-gnu -static
for name in aarch64-gcc aarch64-gcc-openmp aarch64-clang; do check $name neon avx2 qemu-aarch64; done
exit $failed
