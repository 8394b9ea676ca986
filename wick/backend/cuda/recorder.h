// Records work of the stream as CUDA graphs: the cost of asking for each kernel is paid twice a
// key.
//
// The first run of a key does the work as it is, which loads kernels, chooses algorithms and maps
// memory; the second captures it; later ones replay the graph. Source: CUDA programming guide,
// stream capture.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>

#include "wick/backend/cuda/context.h"
#include "wick/backend/cuda/memory.h"
#include "wick/backend/cuda/row_program.h"
#include "wick/core/backend.h"

namespace wick::cuda {

// Those of one back end share the memory of their work. It must not outlive the back end.
class GraphRecorder final : public Recorder {
 public:
  // `living` counts the recorders of the back end.
  GraphRecorder(const Context& context, RowProgram& rows, int& living);
  ~GraphRecorder() override;
  GraphRecorder(const GraphRecorder&) = delete;
  GraphRecorder& operator=(const GraphRecorder&) = delete;

  void run(uint64_t key, const std::function<void()>& work) override;
  bool replays() const override { return true; }

 private:
  struct DropGraph {
    void operator()(CUgraphExec_st* graph) const { cudaGraphExecDestroy(graph); }
  };
  using GraphExec = std::unique_ptr<CUgraphExec_st, DropGraph>;
  struct Entry {
    GraphExec graph;  // none before the second run
    size_t peak_bytes = 0;
    uint64_t last_used = 0;
  };

  void run_work(const std::function<void()>& work);
  GraphExec capture(const std::function<void()>& work);
  void drop_oldest();

  const Context& context_;
  RowProgram& rows_;
  int& living_;
  std::unordered_map<uint64_t, Entry> entries_;
  uint64_t runs_ = 0;
};

}  // namespace wick::cuda
