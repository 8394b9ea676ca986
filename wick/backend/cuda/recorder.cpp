// Captures, replays, and forgets what was not used for long.
#include "wick/backend/cuda/recorder.h"

#include <algorithm>

#include "wick/base/error.h"

namespace wick::cuda {

namespace {

// A graph of a training step holds some ten MiB of host and device memory.
constexpr size_t kMostEntries = 64;

// A capture of the stream, which ends with this object at the latest.
class Capture {
 public:
  explicit Capture(cudaStream_t stream) : stream_(stream) {
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    capturing_ = true;
  }
  ~Capture() {
    if (capturing_) {
      end();
      cudaGetLastError();
    }
    if (graph_ != nullptr) {
      cudaGraphDestroy(graph_);
    }
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  cudaError_t end() {
    capturing_ = false;
    return cudaStreamEndCapture(stream_, &graph_);
  }
  cudaGraph_t graph() const { return graph_; }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  bool capturing_ = false;
};

}  // namespace

GraphRecorder::GraphRecorder(const Context& context, RowProgram& rows, int& living)
    : context_(context), rows_(rows), living_(living) {
  ++living_;
}

GraphRecorder::~GraphRecorder() {
  entries_.clear();
  if (--living_ == 0 && cudaStreamSynchronize(context_.stream) == cudaSuccess) {
    context_.memory->forget_recorded();
  }
}

void GraphRecorder::run(uint64_t key, const std::function<void()>& work) {
  const auto found = entries_.find(key);
  if (found == entries_.end()) {
    {
      const RecordedScope scope(*context_.memory, ScopeMode::running);
      run_work(work);
      context_.memory->keep_scope();
    }
    if (entries_.size() >= kMostEntries) {
      drop_oldest();
    }
    entries_[key].last_used = ++runs_;
    return;
  }
  Entry& entry = found->second;
  entry.last_used = ++runs_;
  if (entry.graph == nullptr) {
    entry.graph = capture(work);
    entry.peak_bytes = context_.memory->scope_peak_bytes();
  }
  check_cuda(cudaGraphLaunch(entry.graph.get(), context_.stream), "replay");
  context_.memory->note_replay(entry.peak_bytes);
}

void GraphRecorder::run_work(const std::function<void()>& work) {
  const RowProgram::Waiting waiting(rows_);
  work();
  rows_.flush();
}

GraphRecorder::GraphExec GraphRecorder::capture(const std::function<void()>& work) {
  Capture capture(context_.stream);
  {
    const RecordedScope scope(*context_.memory, ScopeMode::capturing);
    run_work(work);
  }
  check_cuda(capture.end(), "capture");
  cudaGraphExec_t graph = nullptr;
  check_cuda(cudaGraphInstantiate(&graph, capture.graph(), 0), "making a graph");
  return GraphExec(graph);
}

void GraphRecorder::drop_oldest() {
  entries_.erase(std::ranges::min_element(
      entries_, {}, [](const auto& entry) { return entry.second.last_used; }));
}

}  // namespace wick::cuda
