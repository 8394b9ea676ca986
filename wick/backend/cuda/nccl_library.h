// NCCL's functions, loaded when several processes train on GPUs: a program that has no use for the
// library needs not have it.
#pragma once

#include <nccl.h>

#include <memory>

namespace wick::cuda {

struct NcclLibrary {
  decltype(&ncclGetUniqueId) get_unique_id;
  decltype(&ncclCommInitRank) init_rank;
  decltype(&ncclAllReduce) all_reduce;
  decltype(&ncclCommGetAsyncError) async_error;
  decltype(&ncclCommDestroy) destroy;
  decltype(&ncclCommAbort) abort;
  decltype(&ncclGetErrorString) error_string;
};

// Null where there is none. It stays loaded to the end of the process.
std::unique_ptr<const NcclLibrary> load_nccl();

}  // namespace wick::cuda
