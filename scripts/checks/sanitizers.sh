#!/usr/bin/env bash
# Build the compiled modules with bounds checks and with the address and undefined-behaviour sanitizers,
# in a copy of the tree, and run the tests of what they do: any report ends the run with an error.
# Matrix tiles are emulated, on machines that have them too: so their loads and stores are checked.
# Needs GCC with its sanitizers, and $PYTHON (python) with the test dependencies, cython and setuptools.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    if [ -f "$file" ]; then printf '%s\0' "$file"; fi # one that was deleted is still listed
done | tar --null -T - -cf - | tar -xf - -C "$place"
cd "$place"
find k2ref -name '_*.pyx' -exec sed -i 's/boundscheck=False/boundscheck=True/' {} +
grep -q 'boundscheck=True' k2ref/_kernels.pyx || { echo "no bounds checks to switch on"; exit 1; }
# Optimised code merges what a sanitizer would tell apart, and takes minutes to compile with one.
sed -i 's/"-O3"/"-O1", "-g"/' setup.py
sanitize="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
emulate="-DEMULATED_TILES='\"../../../tests/native/emulated_tiles.h\"'"
CC=gcc CFLAGS="$sanitize $emulate" LDFLAGS="$sanitize" "$python" setup.py -q build_ext --inplace

# Python itself has no sanitizer in it, so the library must be there before it; its own leaks are not ours.
export LD_PRELOAD="$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0
export UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$PWD K2REF_EXAMPLES=${K2REF_EXAMPLES:-5}
"$python" -c 'import k2ref; assert k2ref.ops.kernels, "the compiled kernels are missing"'
"$python" -m k2ref --version
"$python" -m pytest -x -p no:cacheprovider -m "not slow" tests/test_ops.py tests/test_attention.py tests/test_attend.py \
    -W error::pytest.PytestUnraisableExceptionWarning \
    tests/test_integers.py tests/test_quant.py tests/test_bpe.py tests/test_tokenizer.py
