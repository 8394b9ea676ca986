#!/usr/bin/env bash
# The demo: measures the bundled base model on requests it has never seen, trains an adapter, and
# measures again. Fails unless exact match is below 5 % before and above 90 % after.
#
# usage: demo/run.sh WICK_PROGRAM [OUTPUT_FOLDER]      (build/demo if no folder is named)
set -euo pipefail

if (($# < 1 || $# > 2)); then
  sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
wick=$1
here=$(dirname "${BASH_SOURCE[0]}")
output=${2:-$here/../build/demo}
mkdir -p "$output"
output=$(realpath --relative-to=. "$output")
base=$(realpath --relative-to=. "$here/base")
data=$(realpath --relative-to=. "$here/data")

say() { printf '\n== %s\n' "$*"; }

# measure FILE [flags]: shows what `wick evaluate` finds on the test records and keeps it in FILE.
measure() {
  local file=$1
  shift
  "$wick" evaluate --model "$base" --data "$data/test.jsonl" --exact-match "$@" | tee "$file"
}

# The right answers of the last model in a file that `measure` wrote.
right_answers() { sed -nE 's/^exact match .*[^0-9]([0-9]+) of [0-9]+ \([^)]*\)$/\1/p' "$1"; }

begin=$SECONDS
say "1/3  Before: the base model answers 200 requests that it will not see in training"
measure "$output/before.txt" --samples 0

say "2/3  Training an adapter on 4000 other requests"
"$wick" train --model "$base" --data "$data/train.jsonl" --output "$output/adapter" --overwrite \
  --rank 16 --epochs 3 --batch-tokens 640 --learning-rate 4e-3 --seed 1 --report-every 100 \
  --save-every 0

say "3/3  After: the same 200 requests without and with the adapter"
measure "$output/after.txt" --adapter "$output/adapter" --compare --samples 4
seconds=$((SECONDS - begin))

total=$(grep -c '' "$data/test.jsonl")
before=$(right_answers "$output/before.txt")
after=$(right_answers "$output/after.txt")
say "Result"
printf '  exact match  %d of %d before, %d of %d after\n' "$before" "$total" "$after" "$total"
printf '  time         %d s on %d cores\n' "$seconds" "$(nproc)"
printf '  adapter      %s\n' "$output/adapter"
printf '  metrics      %s, %s\n' "$output/adapter/metrics.jsonl" "$output/adapter/loss.svg"
printf '  try it       %s generate --model %s --adapter %s \\\n' "$wick" "$base" "$output/adapter"
printf '                 --prompt $'\''%s\\nSQL:'\''\n' "List all employees in Oslo, oldest first."

if ((before * 100 >= 5 * total || after * 100 <= 90 * total)); then
  printf '\nThe demo fails: exact match must be below 5 %% before and above 90 %% after.\n' >&2
  exit 1
fi
