// dlopen and dlsym.
#include "wick/backend/cuda/nccl_library.h"

#include <dlfcn.h>

#include <type_traits>
#include <utility>

namespace wick::cuda {

std::unique_ptr<const NcclLibrary> load_nccl() {
  void* library = ::dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return nullptr;
  }
  auto nccl = std::make_unique<NcclLibrary>();
  bool all = true;
  const auto find = [&](auto& function, const char* name) {
    function =
        reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
    all = all && function != nullptr;
  };
  find(nccl->get_unique_id, "ncclGetUniqueId");
  find(nccl->init_rank, "ncclCommInitRank");
  find(nccl->all_reduce, "ncclAllReduce");
  find(nccl->async_error, "ncclCommGetAsyncError");
  find(nccl->destroy, "ncclCommDestroy");
  find(nccl->abort, "ncclCommAbort");
  find(nccl->error_string, "ncclGetErrorString");
  return all ? std::move(nccl) : nullptr;
}

}  // namespace wick::cuda
