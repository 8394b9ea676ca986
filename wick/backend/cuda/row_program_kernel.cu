// The kernel of programs of one row, and its launch.
#include <algorithm>
#include <cstdio>
#include <vector>
#include "wick/backend/cuda/early_launch.cuh"
#include "wick/backend/cuda/row_attention.cuh"
#include "wick/backend/cuda/row_program_launch.h"
#include "wick/backend/cuda/row_shrink.cuh"

namespace wick::cuda {
namespace {

// A function of its own: what it keeps in registers is not to push out what the others keep.
template <int kD, int kHalves>
__device__ __noinline__ void attend(const RowWords words, const RowPhase& phase,
                                    const HeadShare& share, unsigned char* work, int p) {
  run_attention<kD, kHalves>(phase, share, words, work, p);
}

// kD: 64 or 128, at least the channels of a head; kHalves: of 16 queries a key head.
template <int kD, int kHalves>
__global__ void __launch_bounds__(kProgramThreads, 1)
    run_row_program(const __grid_constant__ RowProgramArgs program) {
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ RowShared shared;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const bool fetches = warp == kProgramWarps + 1;
  if (fetches) {
    start_row_shared(shared);
  }
  __syncthreads();
  let_next_start();
  uint32_t first_tag = 0;
  if (fetches) {
    fetch_program(program, shared_address(memory), shared,
                  [](const AttentionPhase& phase, const HeadShare& share) {
                    prefetch_cache(phase, share);
                  });
  } else {
    wait_for_previous();
    first_tag = program.exchange.state->tag;
    RingPlace ring_place;
    uint64_t* rows = program.exchange.rows;
    unsigned char* work = memory + program.work_at;
    auto* sum = reinterpret_cast<__nv_bfloat16*>(memory + program.sum_at);
    hold(rows);
    hold(work);
    hold(sum);
#pragma unroll 1
    for (int p = 0; p < program.phases; ++p) {
      const RowPhase& phase = described_phase(shared, p);
      const int slot = p % kDescribedPhases;
      const RowWords words{program.exchange, rows, first_tag + static_cast<uint32_t>(p), p};
      if (warp < kProgramWarps) {
        if (phase.attends) {
          attend<kD, kHalves>(words, phase, shared.head[slot], work, p);
        } else {
          run_linears(program, p, phase, {words, work, sum, shared_address(memory)}, shared,
                      ring_place);
        }
      } else if (!phase.attends && phase.linears.tasks > 0) {
        run_shrink(words, phase.linears, shared.share[slot], work, shared, p);
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

#ifdef WICK_ROW_CLOCKS
void dump_row_clocks() {
  static long long host[132][kMostRowPhases][kStamps];
  cudaDeviceSynchronize();
  if (cudaMemcpyFromSymbol(host, g_stamps, sizeof(host)) != cudaSuccess) return;
  // mean over layers and blocks, phases 10.. by p % 5
  for (int kind = 0; kind < 5; ++kind) {
    double d[kStamps] = {};
    double whole = 0, slowest = 0, first = 0;
    int n = 0, np = 0;
    for (int p = 10 + kind; p + 5 < kMostRowPhases; p += 5) {
      double most = 0;
      for (int b = 0; b < 132; ++b) {
        const long long* t = host[b][p];
        if (t[4] == 0 || host[b][p + 5][0] == 0) continue;
        d[7] += double(t[7] - t[1]);
        for (int i = 1; i < 7; ++i) d[i] += double(t[i] - t[i == 5 ? 1 : i - 1 - (i == 6 ? 0 : 0)]);
        whole += double(host[b][p + 5][0] - t[0]);
        most = std::max(most, double(t[4] - t[1]));
        ++n;
      }
      slowest += most; ++np;
    }
    if (n == 0) continue;
    for (int p = 20 + kind; p < 30; p += 5) {
      std::vector<std::pair<double,int>> order;
      for (int b = 0; b < 132; ++b) if (host[b][p][4]) order.push_back({double(host[b][p][4] - host[b][p][1]), b});
      std::sort(order.begin(), order.end());
      for (size_t i : {size_t(0), order.size()/2, order.size()-3, order.size()-2, order.size()-1}) {
        if (i >= order.size()) continue;
        const long long* t = host[order[i].second][p];
        const long long z = t[1];
        fprintf(stderr, "  p %d block %d: start %lld | first there %lld multiplied %lld met %lld end %lld | shrink %lld %lld | fetch: enter %lld described %lld share %lld first %lld last %lld\n", p, order[i].second, t[0]-z, t[7]-z, t[2]-z, t[3]-z, t[4]-z, t[5]-z, t[6]-z, t[8]-z, t[9]-z, t[10]-z, t[11]-z, t[12]-z);
      }
    }
    fprintf(stderr, "kind %d n %d: await %.0f multiply %.0f (first there %.0f) meet %.0f end %.0f | shrink posted %.0f gathered %.0f | layer %.0f slowest block x..end %.0f\n", kind, n, d[1]/n, d[2]/n, d[7]/n, d[3]/n, d[4]/n, d[5]/n, d[6]/n, whole/n, slowest/np);
  }
}
#endif

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
