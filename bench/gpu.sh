#!/usr/bin/env bash
# Times wick beside PyTorch on a machine with an NVIDIA GPU, and prints the medians: needs nothing but
# the program, Python 3 with torch, transformers and peft, and the libraries that the program loads.
#
# Usage: bench/gpu.sh WICK OUTPUT.json [flags of bench/compare.py, such as --filter]
#
# Libraries may lie beside the program in a folder `lib`; cuBLASLt may also be the one that PyTorch
# brings. PYTHON names another Python than `python3`.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '5,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
wick=$(realpath "$1") output=$2
shift 2
python=${PYTHON:-python3}

# For wick alone: PyTorch is to keep the libraries that it was built with.
libraries=$(dirname "$wick")/lib
if ! LD_LIBRARY_PATH=$libraries ldd "$wick" | grep -q 'libcublasLt.*=> /'; then
  of_torch=$("$python" -c 'import glob, os, torch
root = os.path.dirname(os.path.dirname(torch.__file__))
found = glob.glob(root + "/nvidia/**/libcublasLt.so*", recursive=True) + glob.glob(root + "/torch/lib/libcublasLt.so*")
print(os.path.dirname(found[0]) if found else "")')
  libraries=$libraries:$of_torch
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/wick" <<WRAPPER
#!/bin/sh
LD_LIBRARY_PATH='$libraries'\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH} exec '$wick' "\$@"
WRAPPER
chmod +x "$folder/wick"

"$folder/wick" devices
status=0
PYTORCH_ALLOC_CONF=expandable_segments:True "$python" "$here/compare.py" --device cuda \
  --wick "$folder/wick" --torch-python "$python" --output "$output" \
  --rounds 4 --heavy-rounds 3 --samples 10 --budget 0.3 --deadline 420 "$@" 2>"$folder/progress" || status=$?
grep -E '^(FAILED|no |torch: not)' "$folder/progress" || true
[ "$status" = 0 ] || tail -n 5 "$folder/progress"
"$python" "$here/print_samples.py" "$output"
exit "$status"
