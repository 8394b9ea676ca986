#!/usr/bin/env bash
# Runs the tests of the CUDA back end under compute-sanitizer (memcheck, racecheck, initcheck) on a
# machine with an NVIDIA GPU, and fails where a tool finds anything or a test fails.
#
# Usage: tools/sanitize_cuda.sh FOLDER [PATTERN]
#
# FOLDER has the test programs (build/cuda/tests); PATTERN: only runs ("racecheck backend_test")
# that match this regular expression. COMPUTE_SANITIZER names the tool, of which 2026.4 is known to
# do (Python package nvidia-cuda-sanitizer-api 13.5); JOBS: runs at a time on each GPU (4), of which
# all are used, each with up to 50 GB of the host's memory; LOGS: a folder that keeps what each run
# said; LIMIT: seconds that a run may take (3600). What takes all of a GPU's memory comes last, alone
# there: the tools need some of it, and end without a word where they get none.
#
# What is left out, and why:
# - Racecheck looks at wick's kernels alone. It reports cuBLASLt's own, which are not ours to mend.
# - It wants a thread that has read shared memory to fence before copies into it are asked for. In
#   programs of one row the thread that asks does so for all, which is what PTX's memory model wants
#   (weight_ring.cuh). They are looked at apart, without that one check, in the cases that are there
#   for it (`brief`).
# - Racecheck takes minutes for a second, so launches that another test makes in fewer rounds are not
#   repeated under it: SamplingConformance's draws (BriefDraws makes one of each kind),
#   TenTrainingSteps (the steps of TheSameSeed), one f32 token behind thousands
#   (BehindManyOthers: the loop over tiles of keys that SeenInSeveralParts goes through).
# - models_bf16_cuda_test and train_bf16{,_shapes}_cuda_test are not run: they compare the losses of
#   thousands of launches of the kernels that models_cuda_test launches on the same models.
# - Memcheck does not report errors of calls: wick checks each, and tests ask for too much memory.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '5,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
folder=$(realpath "$1")
pattern=${2:-.}
sanitizer=${COMPUTE_SANITIZER:-compute-sanitizer}
logs=${LOGS:-$(mktemp -d)}
mkdir -p "$logs"

version=$("$sanitizer" --version | sed -n 's/^Version \([0-9]*\).*/\1/p')
if [ "${version:-0}" -lt 2026 ]; then
  echo "sanitize_cuda: $sanitizer is of ${version:-no known year}, and those before 2026 report what" \
    "is in order (docs/performance.md, Sanitizers)" >&2
  exit 2
fi

# CHECK PROGRAM FILTER SHARDS, the longest first; gtest deals a program's tests out to its shards,
# `each`: a shard a test.
table() {
  local check program
  echo "racecheck models_recorded_cuda_test * each"
  echo "racecheck models_cuda_test *-*TenTrainingSteps* each"
  echo "racecheck backend_attention_test *cuda*-*BehindManyOthers/cuda each"
  echo "memcheck row_program_cuda_test * each"
  echo "racecheck backend_linears_test *cuda* each"
  echo "racecheck backend_lora_test *cuda* 6"
  echo "racecheck backend_norm_test *cuda* 4"
  echo "racecheck backend_test *cuda* 4"
  echo "racecheck backend_lora_product_cuda_test * each"
  echo "racecheck backend_attention_cuda_test * each"
  echo "racecheck backend_rowwise_test *cuda*-*.DrawsFromTheKept* each"
  echo "memcheck models_cuda_test * 8"
  echo "initcheck row_program_cuda_test * each"
  echo "racecheck backend_linears_rows_test *cuda* 2"
  echo "memcheck backend_rowwise_test *cuda* 12"
  echo "initcheck models_cuda_test * 8"
  echo "rowcheck row_program_cuda_test *brief* each"
  echo "initcheck backend_rowwise_test *cuda* 12"
  echo "racecheck models_dropout_cuda_test * 2"
  for program in backend_{adamw,precision,recorder}_test; do
    echo "racecheck $program *cuda* 1"
  done
  echo "racecheck backend_cuda_test * 1"
  for check in memcheck initcheck; do
    echo "$check backend_linears_test *cuda* 4"
    echo "$check backend_test *cuda* 2"
    for program in backend_{attention,adamw,linears_rows,lora,norm,precision,recorder}_test; do
      echo "$check $program *cuda* 1"
    done
    for program in models_recorded backend{,_attention,_lora_product} models_dropout; do
      echo "$check ${program}_cuda_test * 1"
    done
  done
}

# CHECK PROGRAM FILTER SHARD SHARDS, a run a line.
runs() {
  local check program filter shards shard
  while read -r check program filter shards; do
    if [ "$shards" = each ]; then
      shards=$(tests_of "$program" "$filter") ||
        { echo "sanitize_cuda: $program has no tests $filter" >&2; exit 2; }
    fi
    for ((shard = 0; shard < shards; ++shard)); do
      echo "$check $program $filter $shard $shards"
    done
  done < <(table)
}

tests_of() {
  "$folder/$1" --gtest_list_tests "--gtest_filter=$2" | grep -c '^  '
}

# No program that has tests of CUDA may be missing above.
nothing_forgotten() {
  local program name
  for program in "$folder"/*_test; do
    name=$(basename "$program")
    case $name in
      models_bf16_cuda_test | train_bf16_cuda_test | train_bf16_shapes_cuda_test) continue ;;
    esac
    if ! table | grep -q " $name " &&
      { [[ $name == *_cuda_test ]] || [ "$(tests_of "$name" '*/cuda*')" -gt 0 ]; }; then
      echo "sanitize_cuda: $name has tests of CUDA but no line in the table of runs" >&2
      exit 2
    fi
  done
}

run() {
  local check=$1 program=$2 filter=$3 status=0 begin=$SECONDS flags verdict
  local log="$logs/$check-$program-$4.txt"
  case $check in
    racecheck)
      flags=(--tool racecheck --kernel-name kernel_substring=wick
        --kernel-name-exclude kernel_substring=run_row_program) ;;
    rowcheck)
      flags=(--tool racecheck --kernel-name kernel_substring=run_row_program
        --racecheck-fence-proxy-async no) ;;
    memcheck) flags=(--tool memcheck --report-api-errors no) ;;
    *) flags=(--tool "$check") ;;
  esac
  CUDA_VISIBLE_DEVICES=$((SLOT % gpus)) GTEST_SHARD_INDEX=$4 GTEST_TOTAL_SHARDS=$5 timeout "${LIMIT:-3600}" \
    "$sanitizer" "${flags[@]}" --error-exitcode 3 \
    "$folder/$program" "--gtest_filter=$filter" --gtest_brief=1 >"$log" 2>&1 || status=$?
  case $status in
    0) verdict=clean ;;
    124) verdict="FAILED: not done in ${LIMIT:-3600} s" ;;
    *) verdict="FAILED: status $status" ;;
  esac
  echo "$check $program, $(($4 + 1)) of $5: $verdict, $((SECONDS - begin)) s;" \
    "$(grep SUMMARY "$log" | tail -n 1)"
  [ "$status" = 0 ]
}

# Runs those that standard input names, so many at a time.
deal_out() {
  xargs -r -P "$1" --process-slot-var=SLOT -L 1 bash -c 'set -f; run "$@"' run
}

gpus=$(nvidia-smi -L | wc -l)
export -f run
export sanitizer folder logs gpus
set -f
nothing_forgotten
nvidia-smi -L
runs >"$logs/all"
grep -E "$pattern" "$logs/all" >"$logs/runs" ||
  { echo "sanitize_cuda: no run matches $pattern" >&2; exit 2; }
status=0
sed '/ backend_cuda_test /d' "$logs/runs" | deal_out "$((${JOBS:-4} * gpus))" || status=$?
sed -n '/ backend_cuda_test /p' "$logs/runs" | deal_out "$gpus" || status=$?
[ "$status" = 0 ] || exit "$status"
echo "all clean; what was said: $logs"
