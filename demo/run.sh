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
here=$(cd "$(dirname "$0")" && pwd)
output=${2:-$here/../build/demo}
base=$here/base
samples=4

mkdir -p "$output"
output=$(cd "$output" && pwd)
adapter=$output/adapter

say() { printf '\n== %s\n' "$*"; }

# measure NAME [--adapter FOLDER]: answers the test prompts; the answers go to $output/NAME.jsonl.
measure() {
  local name=$1
  shift
  "$wick" evaluate --model "$base" --data "$here/data/test.jsonl" --generate --max-tokens 48 \
    --predictions "$output/$name.jsonl" "$@"
}

# Answers of a file that are right, of all.
count_right() { grep -c '"match":true' "$1" || true; }
count_all() { grep -c '' "$1"; }

# field NAME LINE: the text of a field of a JSON line, escapes left as they are.
field() { sed -E "s/.*\"$1\":\"(([^\"\\\\]|\\\\.)*)\".*/\1/" <<<"$2"; }

show_samples() {
  local line before after
  for ((line = 1; line <= samples; ++line)); do
    before=$(sed -n "${line}p" "$output/before.jsonl")
    after=$(sed -n "${line}p" "$output/after.jsonl")
    printf '\n  request  %s\n' "$(field prompt "$after" | sed 's/\\nSQL:$//')"
    printf '  before   %.90s\n' "$(field generated "$before")"
    printf '  after    %s\n' "$(field generated "$after")"
    printf '  wanted   %s\n' "$(field expected "$after")"
  done
}

begin=$SECONDS
say "1/3 The base model, before: 200 requests that are in no training record"
measure before

say "2/3 Training an adapter on 4000 records"
"$wick" train --model "$base" --data "$here/data" --output "$adapter" --overwrite \
  --rank 16 --epochs 3 --batch-tokens 640 --learning-rate 4e-3 --seed 1 --report-every 100 \
  --save-every 0

say "3/3 The base model with the adapter, after"
measure after --adapter "$adapter"
seconds=$((SECONDS - begin))

say "Samples"
show_samples

all=$(count_all "$output/after.jsonl")
right_before=$(count_right "$output/before.jsonl")
right_after=$(count_right "$output/after.jsonl")
say "Result"
printf '  exact match   %d of %d before, %d of %d after\n' \
  "$right_before" "$all" "$right_after" "$all"
printf '  time          %d s in all\n' "$seconds"
printf '  adapter       %s\n' "$adapter"
printf '  metrics       %s\n' "$adapter/metrics.jsonl"
printf '  answers       %s\n' "$output/before.jsonl, $output/after.jsonl"
printf '  try it        %s generate --model %s --adapter %s --prompt $'\''%s\\nSQL:'\''\n' \
  "$wick" "$base" "$adapter" "List all employees in Oslo, oldest first."

if ((right_before * 100 >= 5 * all || right_after * 100 <= 90 * all)); then
  printf '\nThe demo failed: it needs less than 5 %% before and more than 90 %% after.\n' >&2
  exit 1
fi
