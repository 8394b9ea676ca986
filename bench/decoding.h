// What an adapter costs while decoding, and which share of the memory's bandwidth decoding takes:
// everything in turns of one token.
//
// Both are ratios of a few percent on machines whose memory gets a third faster and slower within
// minutes. So one text is continued with and without the adapter in turns, a token each, and the
// memory is read before and after each token: a ratio is of neighbours in time.
#pragma once

#include <iosfwd>
#include <nlohmann/json.hpp>

#include "bench/models.h"
#include "wick/core/backend.h"

namespace wick {
class ThreadPool;
}

namespace wick::bench {

// Weights in bf16, an adapter of rank 16 in f32 on all linear layers. Prints medians to `out`;
// returns {"case", "bytes_of_token", "adapter_bytes_of_token", and a value a pair of tokens:
// "base_seconds", "adapted_seconds" and, of the passes over memory around each, "base_read_gbs",
// "adapted_read_gbs"}. For a back end that computes a token when it is asked for.
nlohmann::ordered_json run_decoding(Backend& backend, ThreadPool& readers, const NamedShape& shape,
                                    int pairs, std::ostream& out);

}  // namespace wick::bench
