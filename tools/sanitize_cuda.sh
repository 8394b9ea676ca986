#!/usr/bin/env bash
# Runs the tests of the CUDA back end under compute-sanitizer (memcheck, racecheck, initcheck) on a
# machine with an NVIDIA GPU, and fails where a tool finds anything or a test fails.
#
# Usage: tools/sanitize_cuda.sh FOLDER [PATTERN]
#
# FOLDER has the test programs (build/cuda/tests); PATTERN: only runs ("racecheck backend_test")
# that match this regular expression. COMPUTE_SANITIZER names the tool, of which 2026.4 is known to
# do (Python package nvidia-cuda-sanitizer-api 13.5); JOBS: runs at a time (4); LOGS: a folder that
# keeps what each run said; LIMIT: seconds that a run may take (3600).
#
# What is left out, and why:
# - Racecheck looks at wick's kernels alone. It reports cuBLASLt's own, which are not ours to mend.
# - It wants a thread that has read shared memory to fence before copies into it are asked for. In
#   programs of one row the thread that asks does so for all, which is what PTX's memory model wants
#   (weight_ring.cuh). They are looked at apart, without that one check, in cases of a few tokens.
# - Tests that repeat the same launches (training steps, thousands of draws or tokens) are not run
#   under racecheck, which takes minutes for a second.
# - Memcheck does not report errors of calls: wick checks each, and tests ask for too much memory.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '5,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
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

# CHECK PROGRAM FILTER SHARD SHARDS, a run a line; gtest deals a program's tests out to its shards.
runs() {
  local check program filter shards shard
  while read -r check program filter shards; do
    for ((shard = 0; shard < shards; ++shard)); do
      echo "$check $program $filter $shard $shards"
    done
  done < <(
    echo "racecheck backend_attention_test *cuda* 8"
    echo "racecheck backend_rowwise_test *cuda*-*ByTheirShares* 8"
    echo "racecheck models_cuda_test *-*TenTrainingSteps* 8"
    echo "rowcheck row_program_cuda_test *brief* 3"
    for check in memcheck initcheck; do
      echo "$check backend_attention_test *cuda* 1"
      echo "$check backend_rowwise_test *cuda* 8"
      echo "$check models_cuda_test * 2"
      echo "$check models_recorded_cuda_test * 1"
      echo "$check row_program_cuda_test * 6"
    done
    for check in racecheck memcheck initcheck; do
      echo "$check backend_linears_test *cuda* 4"
      for program in backend_{,adamw_,linears_rows_,lora_,norm_,precision_,recorder_}test; do
        echo "$check $program *cuda* 1"
      done
      for program in backend backend_lora_product models_dropout; do
        echo "$check ${program}_cuda_test * 1"
      done
    done
  )
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
  GTEST_SHARD_INDEX=$4 GTEST_TOTAL_SHARDS=$5 timeout "${LIMIT:-3600}" \
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

export -f run
export sanitizer folder logs
set -f
nvidia-smi -L
runs | grep -E "$pattern" | xargs -P "${JOBS:-4}" -L 1 bash -c 'set -f; run "$@"' run
echo "all clean; what was said: $logs"
