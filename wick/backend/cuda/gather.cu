// Rows picked from a table, and rows added to those of a table in the order they come.
#include "wick/backend/cuda/rows.cuh"
#include "wick/backend/cuda/rowwise.h"

namespace wick::cuda {

namespace {

template <int kWidth, class Table, class T>
__global__ void __launch_bounds__(kRowThreads)
    gather_rows_kernel(const Table* __restrict__ table, const int32_t* __restrict__ ids,
                       int64_t rows, int C, T* y) {
  const int64_t t = row_of_thread();
  if (t >= rows) {
    return;
  }
  const Table* from = table + int64_t{ids[t]} * C;
  for (int c = static_cast<int>(threadIdx.x) * kWidth; c < C; c += blockDim.x * kWidth) {
    float values[kWidth];
    load_run(from + c, values);
    store_run(values, y + t * C + c);
  }
}

// Of a row of the table: rows - 1 - the first t that goes to it, and the last one; -1 where none.
struct Visits {
  int32_t first, last;
};

__global__ void __launch_bounds__(128)
    note_visits_kernel(const int32_t* __restrict__ ids, int rows, Visits* visits) {
  const int t = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (t < rows) {
    atomicMax(&visits[ids[t]].first, rows - 1 - t);
    atomicMax(&visits[ids[t]].last, t);
  }
}

struct ScatterRows {
  const int32_t* ids;
  const Visits* visits;  // null: each block looks through all ids
  int rows, C;
};

// True in all threads if row t is the first of its id; `last` becomes the last that can have it.
__device__ __forceinline__ bool is_first(const ScatterRows& of, int t, int id, int& last) {
  if (of.visits != nullptr) {
    const Visits seen = of.visits[id];
    last = seen.last;
    return of.rows - 1 - seen.first == t;
  }
  last = of.rows - 1;
  bool earlier = false;
  for (int i = threadIdx.x; i < t; i += blockDim.x) {
    earlier = earlier || of.ids[i] == id;
  }
  return __syncthreads_or(earlier) == 0;
}

// Block t adds all rows with the id of row t if it is the first of them. They are found a block's
// width of ids at a time, and listed in order.
template <int kWidth, class T, class Table>
__global__ void __launch_bounds__(kRowThreads)
    scatter_add_rows_kernel(const T* x, ScatterRows of, Table* table) {
  __shared__ int hits[kRowThreads];
  __shared__ int warp_hits[kRowWarps];
  const int t = static_cast<int>(blockIdx.x);
  const int id = of.ids[t];
  int last = 0;
  if (!is_first(of, t, id, last)) {
    return;
  }
  const unsigned lane = threadIdx.x % 32;
  const unsigned warp = threadIdx.x / 32;
  Table* sums = table + int64_t{id} * of.C;
  for (int begin = t; begin <= last; begin += blockDim.x) {
    const int i = begin + static_cast<int>(threadIdx.x);
    const bool hit = i <= last && of.ids[i] == id;
    const unsigned ballot = __ballot_sync(~0U, hit);
    if (lane == 0) {
      warp_hits[warp] = __popc(ballot);
    }
    const int count = __syncthreads_count(hit);
    if (count == 0) {
      continue;
    }
    int place = __popc(ballot & ((1U << lane) - 1));
    for (unsigned before = 0; before < warp; ++before) {
      place += warp_hits[before];
    }
    if (hit) {
      hits[place] = i;
    }
    __syncthreads();
    for (int c = static_cast<int>(threadIdx.x) * kWidth; c < of.C; c += blockDim.x * kWidth) {
      float sum[kWidth];
      load_run(sums + c, sum);
#pragma unroll 4
      for (int k = 0; k < count; ++k) {
        float values[kWidth];
        load_run(x + int64_t{hits[k]} * of.C + c, values);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          sum[j] += values[j];
        }
      }
      store_run(sum, sums + c);
    }
    __syncthreads();  // the next width of ids overwrites the list
  }
}

template <class T, class Table>
void scatter(const Context& context, const T* x, const ScatterRows& of, Table* table) {
  const bool runs = in_runs(of.C, {x, table});
  const int64_t wanted = ceil_div(of.C, runs ? 8 : 1);
  const auto threads =
      static_cast<unsigned>(std::min<int64_t>(ceil_div(wanted, 32) * 32, kRowThreads));
  const auto blocks = static_cast<unsigned>(of.rows);
  if (runs) {
    scatter_add_rows_kernel<8><<<blocks, threads, 0, context.stream>>>(x, of, table);
  } else {
    scatter_add_rows_kernel<1><<<blocks, threads, 0, context.stream>>>(x, of, table);
  }
  check_launch("scatter_add_rows");
}

}  // namespace

void gather_rows(const Context& context, const Tensor& table, const Tensor& ids, const Tensor& y) {
  const int64_t rows = ids.elements();
  const int64_t C = table.columns();
  if (rows == 0 || C == 0) {
    return;
  }
  with_weight(table, [&](const auto* from) {
    with_activation(y, [&](auto* to) {
      const bool runs = in_runs(C, {from, to});
      const RowPlan plan = plan_rows(rows, C, runs);
      const auto* picked = ids.data<int32_t>();
      const auto columns = static_cast<int>(C);
      if (runs) {
        gather_rows_kernel<8>
            <<<plan.grid, plan.block, 0, context.stream>>>(from, picked, rows, columns, to);
      } else {
        gather_rows_kernel<1>
            <<<plan.grid, plan.block, 0, context.stream>>>(from, picked, rows, columns, to);
      }
      check_launch("gather_rows");
    });
  });
}

void scatter_add_rows(const Context& context, const Tensor& x, const Tensor& ids,
                      const Tensor& table) {
  constexpr int64_t kFew = 1024;  // ids that each block may as well look through
  const int64_t rows = ids.elements();
  if (rows == 0 || table.columns() == 0) {
    return;
  }
  const size_t visit_bytes = rows <= kFew ? 0 : table.rows() * sizeof(Visits);
  const Scratch scratch(context, std::max(visit_bytes, sizeof(Visits)));
  ScatterRows of{ids.data<int32_t>(), nullptr, static_cast<int>(rows),
                 static_cast<int>(table.columns())};
  if (rows > kFew) {
    auto* visits = scratch.as<Visits>();
    check_cuda(cudaMemsetAsync(visits, 0xFF, visit_bytes, context.stream), "scatter_add_rows");
    note_visits_kernel<<<static_cast<unsigned>(ceil_div(rows, 128)), 128, 0, context.stream>>>(
        of.ids, of.rows, visits);
    check_launch("note_visits");
    of.visits = visits;
  }
  with_activation(x, [&](const auto* from) {
    with_activation(table, [&](auto* to) { scatter(context, from, of, to); });
  });
}

}  // namespace wick::cuda
