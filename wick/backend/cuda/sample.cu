// Drawing one token without sorting the vocabulary, in two to four launches.
//
// 1. The largest logit of each chunk of the vocabulary. Greedy: the largest of those, and done.
// 2. With top-k or top-p: a histogram of the logits by their distance from the largest, with the
//    number and the mass of tokens in each bin.
// 3. The border bin is where the number or the mass that is to be kept is reached. Tokens whose
// rank
//    is not settled by it are listed; the mass of those in better bins is summed by chunks.
// 4. One block finds the rank down to which listed tokens are kept, then the chunk and the token at
//    which the running mass, in the order of ids, passes the random number.
#include "wick/backend/cuda/sample.h"

#include "wick/backend/cuda/rows.cuh"
#include "wick/backend/cuda/select.cuh"

namespace wick::cuda {

namespace {

constexpr int kChunkThreads = 256;
constexpr int kChunk = 8 * kChunkThreads;  // logits of a block
constexpr int kBins = 2048;
constexpr float kBinsPerUnit = 72.0F;  // what is further than 2047 / 72 weighs nothing
constexpr int kIds = 960;              // seen tokens of one launch: they travel with its parameters

struct SeenIds {
  int32_t ids[kIds];
  int count;
};

// In scratch memory; all of one call.
struct Workspace {
  Mass* largest;     // [chunks] keys
  Mass* chunk_mass;  // [chunks] of tokens that are surely kept
  Mass* bin_mass;    // [kBins]
  int* bin_count;    // [kBins]
  int* listed;       // number of keys in `list`
  Mass* wanted;      // mass that listed tokens are to reach, where top-p is alone
  Mass* list;        // [V] keys
  int chunks;
};

struct Rule {
  float scale;  // 1 / temperature
  int top_k;    // 0: all
  float top_p;  // 1: all
  float uniform;

  __host__ __device__ bool selects() const { return top_k > 0 || top_p < 1; }
};

template <class T>
struct Logits {
  const T* values;
  int64_t count;
  bool aligned;

  // Those of this thread in its block's chunk; NaN past the end.
  __device__ __forceinline__ int64_t load(float (&own)[8]) const {
    const int64_t first = int64_t{blockIdx.x} * kChunk + threadIdx.x * 8;
    if (aligned && first + 8 <= count) {
      load8(values + first, own);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        own[i] = first + i < count ? to_float(values[first + i]) : NAN;
      }
    }
    return first;
  }
};

template <class T>
__global__ void __launch_bounds__(kChunkThreads)
    penalize_kernel(const __grid_constant__ SeenIds seen, float penalty, T* logits) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < seen.count) {
    T& logit = logits[seen.ids[i]];
    const float value = to_float(logit);
    logit = from_float<T>(value > 0 ? value / penalty : value * penalty);
  }
}

template <class T>
__global__ void __launch_bounds__(kChunkThreads) largest_kernel(Logits<T> logits, Workspace space) {
  __shared__ Mass parts[32];
  for (int bin = static_cast<int>(blockIdx.x) * kChunkThreads + static_cast<int>(threadIdx.x);
       bin < kBins; bin += static_cast<int>(gridDim.x) * kChunkThreads) {
    space.bin_mass[bin] = 0;
    space.bin_count[bin] = 0;
    if (bin == 0) {
      *space.listed = 0;
    }
  }
  float own[8];
  const int64_t first = logits.load(own);
  Mass largest = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    largest = max(largest, first + i < logits.count ? key_of(own[i], first + i) : 0);
  }
  largest = largest_of_block(largest, parts);
  if (threadIdx.x == 0) {
    space.largest[blockIdx.x] = largest;
  }
}

// The key of the largest logit of all; `parts` as of largest_of_block.
__device__ __forceinline__ Mass largest_key(const Workspace& space, Mass* parts) {
  Mass largest = 0;
  for (int chunk = threadIdx.x; chunk < space.chunks; chunk += blockDim.x) {
    largest = max(largest, space.largest[chunk]);
  }
  return largest_of_block(largest, parts);
}

__global__ void __launch_bounds__(kChunkThreads) greedy_kernel(Workspace space, int32_t* id) {
  __shared__ Mass parts[32];
  const Mass largest = largest_key(space, parts);
  if (threadIdx.x == 0) {
    *id = static_cast<int32_t>(id_of(largest));
  }
}

__device__ __forceinline__ int bin_of(const Likelihood& likelihood, float logit) {
  return min(kBins - 1, static_cast<int>(likelihood.drop(logit) * kBinsPerUnit));
}

// Masses are added as two halves of 20 bits, since shared memory adds 32-bit words alone by itself:
// the halves of a chunk's 2^11 masses of up to 2^40 stay below 2^32.
template <class T>
__global__ void __launch_bounds__(kChunkThreads)
    histogram_kernel(Logits<T> logits, float scale, Workspace space) {
  __shared__ unsigned low[kBins];
  __shared__ unsigned high[kBins];
  __shared__ int counts[kBins];
  __shared__ Mass parts[32];
  float own[8];
  logits.load(own);
  for (int bin = threadIdx.x; bin < kBins; bin += kChunkThreads) {
    low[bin] = 0;
    high[bin] = 0;
    counts[bin] = 0;
  }
  // The barrier inside stands between the zeros and the sums.
  const Likelihood likelihood{logit_of(largest_key(space, parts)), scale};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const Mass mass = likelihood.mass(own[i]);
    if (mass > 0) {
      const int bin = bin_of(likelihood, own[i]);
      atomicAdd(&low[bin], static_cast<unsigned>(mass & 0xFFFFF));
      atomicAdd(&high[bin], static_cast<unsigned>(mass >> 20));
      atomicAdd(&counts[bin], 1);
    }
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBins; bin += kChunkThreads) {
    if (counts[bin] > 0) {
      atomicAdd(&space.bin_mass[bin], (Mass{high[bin]} << 20) + low[bin]);
      atomicAdd(&space.bin_count[bin], counts[bin]);
    }
  }
}

struct Border {
  int bin;      // kBins: all tokens are in better bins
  Mass wanted;  // what is left to reach in the border bin
};

// Where the sum of numbers (top-k) or masses (top-p) over the bins reaches what is to be kept.
__device__ __forceinline__ void find_border(const Workspace& space, const Rule& rule, Mass* parts,
                                            Border& border) {
  constexpr int kOwn = kBins / kChunkThreads;
  const int first = static_cast<int>(threadIdx.x) * kOwn;
  Mass own[kOwn];
  Mass sum = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    own[i] = rule.top_k > 0 ? Mass(space.bin_count[first + i]) : space.bin_mass[first + i];
    sum += own[i];
  }
  Mass total = 0;
  Mass reached = scan_block(sum, parts, total) - sum;
  const Mass wanted = rule.top_k > 0 ? min(Mass(rule.top_k), total) : part_of(total, rule.top_p);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (reached < wanted && wanted <= reached + own[i]) {
      border = {first + i, wanted - reached};
    }
    reached += own[i];
  }
}

// Sums the chunk's surely kept masses, and lists the keys whose rank is to be found: with top-k
// those of the better bins too, since top-p may cut among them.
template <class T>
__global__ void __launch_bounds__(kChunkThreads)
    collect_kernel(Logits<T> logits, Rule rule, Workspace space) {
  __shared__ Mass parts[3][32];
  __shared__ Border border;
  __shared__ int found;
  __shared__ int place;
  float own[8];
  const int64_t first = logits.load(own);
  if (threadIdx.x == 0) {
    border = {kBins, 0};
    found = 0;
  }
  const Likelihood likelihood{logit_of(largest_key(space, parts[0])), rule.scale};
  if (rule.selects()) {
    find_border(space, rule, parts[1], border);
    __syncthreads();
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      *space.wanted = border.wanted;
    }
  }
  const int border_bin = border.bin;
  Mass sum = 0;
  int slots[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const Mass mass = likelihood.mass(own[i]);
    const int bin = mass > 0 ? bin_of(likelihood, own[i]) : kBins;
    const bool listed = bin == border_bin ? mass > 0 : rule.top_k > 0 && bin < border_bin;
    slots[i] = listed ? atomicAdd(&found, 1) : -1;
    sum += !listed && bin < border_bin ? mass : 0;
  }
  Mass chunk_mass = 0;
  scan_block(sum, parts[2], chunk_mass);
  if (threadIdx.x == 0) {
    space.chunk_mass[blockIdx.x] = chunk_mass;
    place = found > 0 ? atomicAdd(space.listed, found) : 0;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (slots[i] >= 0) {
      space.list[place + slots[i]] = key_of(own[i], first + i);
    }
  }
}

// The key down to which tokens are kept.
__device__ __forceinline__ Mass find_threshold(const Workspace& space, const Rule& rule,
                                               const Likelihood& likelihood, SelectMemory& memory) {
  const int count = *space.listed;
  if (count == 0) {
    return 0;
  }
  const auto mass_of_key = [&](Mass key) { return likelihood.mass(logit_of(key)); };
  if (rule.top_k == 0) {
    return select_key(space.list, count, 0, *space.wanted, mass_of_key, memory);
  }
  const Mass threshold = select_key(
      space.list, count, 0, Mass(min(rule.top_k, count)), [](Mass) { return Mass{1}; }, memory);
  if (rule.top_p >= 1) {
    return threshold;
  }
  Mass sum = 0;
  for (int i = threadIdx.x; i < count; i += kSelectThreads) {
    sum += space.list[i] >= threshold ? mass_of_key(space.list[i]) : 0;
  }
  __syncthreads();  // `memory` is free again
  Mass total = 0;
  scan_block(sum, memory.parts[2], total);
  return select_key(space.list, count, threshold, part_of(total, rule.top_p), mass_of_key, memory);
}

struct Place {
  int64_t chunk;
  Mass target;  // the token is where the running mass of the chunk passes it
};

// The chunk in which the running mass passes uniform * total; -1 if there is no mass.
__device__ __forceinline__ void find_chunk(const Workspace& space, float uniform, Mass* parts,
                                           Place& place) {
  const int each = (space.chunks + kSelectThreads - 1) / kSelectThreads;
  const int first = static_cast<int>(threadIdx.x) * each;
  const int end = min(first + each, space.chunks);
  Mass sum = 0;
  for (int chunk = first; chunk < end; ++chunk) {
    sum += __ldcg(&space.chunk_mass[chunk]);
  }
  Mass total = 0;
  Mass running = scan_block(sum, parts, total) - sum;
  if (total == 0) {
    return;
  }
  const auto wanted = static_cast<Mass>(double{uniform} * static_cast<double>(total));
  const Mass target = min(wanted, total - 1);
  for (int chunk = first; chunk < end; ++chunk) {
    const Mass own = __ldcg(&space.chunk_mass[chunk]);
    if (running <= target && target < running + own) {
      place = {chunk, target - running};
    }
    running += own;
  }
}

template <class T>
__global__ void __launch_bounds__(kSelectThreads)
    draw_kernel(Logits<T> logits, Rule rule, Workspace space, int32_t* id) {
  __shared__ SelectMemory memory;
  __shared__ Mass parts[3][32];
  __shared__ Place place;
  const Mass best = largest_key(space, parts[0]);
  const Likelihood likelihood{logit_of(best), rule.scale};
  Mass threshold = 0;
  if (rule.selects()) {
    threshold = find_threshold(space, rule, likelihood, memory);
    for (int i = threadIdx.x; i < *space.listed; i += kSelectThreads) {
      const Mass key = space.list[i];
      if (key >= threshold) {
        atomicAdd(&space.chunk_mass[id_of(key) / kChunk], likelihood.mass(logit_of(key)));
      }
    }
  }
  if (threadIdx.x == 0) {
    place = {-1, 0};
  }
  __syncthreads();
  find_chunk(space, rule.uniform, parts[1], place);
  __syncthreads();
  if (place.chunk < 0) {
    if (threadIdx.x == 0) {
      *id = static_cast<int32_t>(id_of(best));
    }
    return;
  }
  constexpr int kOwn = kChunk / kSelectThreads;
  const int64_t first = place.chunk * kChunk + threadIdx.x * kOwn;
  Mass own[kOwn];
  Mass sum = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const float logit = first + i < logits.count ? to_float(logits.values[first + i]) : NAN;
    own[i] = key_of(logit, first + i) >= threshold ? likelihood.mass(logit) : 0;
    sum += own[i];
  }
  Mass total = 0;
  Mass running = scan_block(sum, parts[2], total) - sum;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (running <= place.target && place.target < running + own[i]) {
      *id = static_cast<int32_t>(first + i);
    }
    running += own[i];
  }
}

template <class T>
void penalize(const Context& context, const SampleArgs& args, T* logits) {
  for (size_t begin = 0; begin < args.seen.size(); begin += kIds) {
    SeenIds seen{};
    seen.count = static_cast<int>(std::min<size_t>(kIds, args.seen.size() - begin));
    std::copy_n(args.seen.data() + begin, seen.count, seen.ids);
    penalize_kernel<<<static_cast<unsigned>(ceil_div(seen.count, kChunkThreads)), kChunkThreads, 0,
                      context.stream>>>(seen, args.repetition_penalty, logits);
    check_launch("penalize");
  }
}

// Lays the workspace out over `scratch`, or counts its bytes where that is null.
size_t lay_out(std::byte* scratch, int64_t V, Workspace& space) {
  size_t bytes = 0;
  const auto take = [&]<class Part>(Part*& part, size_t count) {
    part = reinterpret_cast<Part*>(scratch + bytes);
    bytes += ceil_div(static_cast<int64_t>(count * sizeof(Part)), 8) * 8;
  };
  space.chunks = static_cast<int>(ceil_div(V, kChunk));
  take(space.largest, space.chunks);
  take(space.chunk_mass, space.chunks);
  take(space.bin_mass, kBins);
  take(space.bin_count, kBins);
  take(space.listed, 1);
  take(space.wanted, 1);
  take(space.list, V);
  return bytes;
}

}  // namespace

void sample(const Context& context, const SampleArgs& args, const Tensor& logits,
            const Tensor& id) {
  const int64_t V = logits.elements();
  if (V == 0) {
    return;
  }
  Workspace space{};
  const Scratch scratch(context, lay_out(nullptr, V, space));
  lay_out(scratch.as<std::byte>(), V, space);
  const auto chunks = static_cast<unsigned>(space.chunks);
  const Rule rule{1.0F / args.temperature, args.top_k < V ? std::max(args.top_k, 0) : 0, args.top_p,
                  args.uniform};
  with_activation(logits, [&]<class T>(T* values) {
    penalize(context, args, values);
    const Logits<T> row{values, V, in_runs(0, {values})};
    largest_kernel<<<chunks, kChunkThreads, 0, context.stream>>>(row, space);
    check_launch("sample_largest");
    if (args.temperature <= 0) {
      greedy_kernel<<<1, kChunkThreads, 0, context.stream>>>(space, id.data<int32_t>());
      check_launch("sample_greedy");
      return;
    }
    if (rule.selects()) {
      histogram_kernel<<<chunks, kChunkThreads, 0, context.stream>>>(row, rule.scale, space);
      check_launch("sample_histogram");
    }
    collect_kernel<<<chunks, kChunkThreads, 0, context.stream>>>(row, rule, space);
    check_launch("sample_collect");
    draw_kernel<<<1, kSelectThreads, 0, context.stream>>>(row, rule, space, id.data<int32_t>());
    check_launch("sample_draw");
  });
}

}  // namespace wick::cuda
