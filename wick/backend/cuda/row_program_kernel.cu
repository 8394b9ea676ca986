// The kernel of programs of one row, and its launch.
#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/row_attention.cuh"
#include "wick/backend/cuda/row_program_launch.h"
#include "wick/backend/cuda/row_shrink.cuh"
#include "wick/backend/cuda/warp_roles.cuh"

namespace wick::cuda {
namespace {

// A function of its own: what it keeps in registers is not to push out what the others keep.
template <int kD, int kHalves>
__device__ __noinline__ void attend(const RowWords words, const RowPhase& phase,
                                    const HeadShare& share, unsigned char* work) {
  run_attention<kD, kHalves>(phase, share, words, work);
}

// A multiprocessor has 96 registers a thread for this many. The warps that ask for weights and find
// s, which with two idle ones are a group of four, give some to those that multiply: what does not
// fit is spilled, and comes back from the L2 where a block takes nearly all of the first cache.
constexpr int kRegisters = 96;
constexpr int kWorkerRegisters = 104;
constexpr int kOtherRegisters = 64;
static_assert(kWorkers * kWorkerRegisters + (kProgramThreads - kWorkers) * kOtherRegisters <=
              kProgramThreads * kRegisters);

// kD: 64 or 128, at least the channels of a head; kHalves: of 16 queries a key head.
template <int kD, int kHalves>
__global__ void __launch_bounds__(kProgramThreads, 1)
    run_row_program(const __grid_constant__ RowProgramArgs program) {
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ RowShared shared;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp == kFetchWarp) {
    start_row_shared(shared);
  }
  __syncthreads();
  let_next_start();
  uint32_t first_tag = 0;
  if (warp >= kProgramWarps) {
    leave_registers<kOtherRegisters>();
    if (warp == kFetchWarp) {
      fetch_program(program, shared_address(memory), shared,
                    [](const AttentionPhase& phase, const HeadShare& share) {
                      prefetch_cache(phase, share);
                    });
    } else if (warp == kShrinkWarp) {
      wait_for_previous();
      first_tag = program.exchange.state->tag;
      uint64_t* rows = program.exchange.rows;
      int work_at = program.work_at;
      hold(rows);
      hold(work_at);
#pragma unroll 1
      for (int p = 0; p < program.phases; ++p) {
        const RowPhase& phase = described_phase(shared, p);
        const RowWords words{program.exchange, rows, first_tag + static_cast<uint32_t>(p), p};
        if (!phase.attends && phase.linears.tasks > 0) {
          run_shrink(words, phase.linears, shared.share[p % kDescribedPhases], memory + work_at,
                     shared);
        }
        finish_phase(shared, p);
      }
    }
  } else {
    take_registers<kWorkerRegisters>();
    wait_for_previous();
    first_tag = program.exchange.state->tag;
    uint64_t* rows = program.exchange.rows;
    int work_at = program.work_at;
    int sum_at = program.sum_at;
    hold(rows);
    hold(work_at);
    hold(sum_at);
#pragma unroll 1
    for (int p = 0; p < program.phases; ++p) {
      const RowPhase& phase = described_phase(shared, p);
      unsigned char* work = memory + work_at;
      auto* sum = reinterpret_cast<__nv_bfloat16*>(memory + sum_at);
      const RowWords words{program.exchange, rows, first_tag + static_cast<uint32_t>(p), p};
      if (phase.attends) {
        attend<kD, kHalves>(words, phase, shared.head[p % kDescribedPhases], work);
      } else {
        run_linears(program, p, phase, {words, work, sum, shared_address(memory)}, shared);
      }
      finish_phase(shared, p);
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    leave_exchange(program.exchange, first_tag, program.phases);
  }
}

template <int kD, int kHalves>
void launch(const Context& context, int blocks, size_t shared_bytes,
            const RowProgramArgs& program) {
  const auto kernel = run_row_program<kD, kHalves>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared_bytes)),
             "shared memory of a row program");
  // No more of the multiprocessor than that, which with the rest has its first cache.
  const size_t whole = context.shared_bytes + 1024;
  const size_t own = shared_bytes + sizeof(RowShared) + 1024;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  static_cast<int>((100 * own + whole - 1) / whole)),
             "shared memory of a row program");
  launch_early(context, true, kernel, static_cast<unsigned>(blocks), kProgramThreads, shared_bytes,
               program);
  check_launch("row program");
}

}  // namespace

int row_shared_bytes() {
  return static_cast<int>(sizeof(RowShared));
}

int attention_work_bytes(bool wide, int writers, int heads) {
  return wide ? attention_work<128>(writers, heads).end : attention_work<64>(writers, heads).end;
}

void launch_row_program(const Context& context, const RowHeads& heads, int blocks,
                        size_t shared_bytes, const RowProgramArgs& program) {
  if (heads.wide) {
    heads.many_queries ? launch<128, 2>(context, blocks, shared_bytes, program)
                       : launch<128, 1>(context, blocks, shared_bytes, program);
  } else {
    heads.many_queries ? launch<64, 2>(context, blocks, shared_bytes, program)
                       : launch<64, 1>(context, blocks, shared_bytes, program);
  }
}

}  // namespace wick::cuda
