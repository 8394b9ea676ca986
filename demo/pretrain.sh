#!/usr/bin/env bash
# Trains the demo's base model from random weights with wick itself. Called again with the same
# arguments, it goes on from the last checkpoint.
#
# usage: demo/pretrain.sh CORPUS.jsonl OUTPUT_FOLDER [more flags of `wick train`]
#
# WICK names the program (build/release/wick if unset). The corpus comes from make_corpus.py; shape
# and tokenizer of the model are those in demo/base.
set -euo pipefail

if (($# < 2)); then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
wick=${WICK:-$here/../build/release/wick}
corpus=$1
output=$2
shift 2

exec "$wick" train --type full --init random --model "$here/base" --data "$corpus" \
  --output "$output" --resume \
  --steps 1420 --batch-tokens 8192 --max-length 512 --valid-fraction 0.01 \
  --learning-rate 3e-3 --schedule cosine --warmup-steps 100 --weight-decay 0.1 --beta2 0.95 \
  --max-grad-norm 1 --seed 1 --report-every 20 --save-every 100 --dtype bf16 "$@"
