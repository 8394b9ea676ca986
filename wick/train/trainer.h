// Trains an adapter, or all weights, of an open model on data in memory.
//
// The loss of a step is the mean over the target tokens of all its micro-batches. The same options,
// data and back end give the same bytes whatever the number of threads, and a resumed run gives the
// same bytes as one that was never stopped. Files appear as run_folder.h says.
//
// Several processes with the same options and data share each step and get the losses of one, but
// for rounding; the same number of processes gives the same bytes. Rank 0 writes all files and
// reports; the state that it saves is that of any number of processes.
#pragma once

#include <filesystem>
#include <optional>

#include "wick/core/communicator.h"
#include "wick/data/batcher.h"
#include "wick/data/dataset.h"
#include "wick/lora/adapter_config.h"
#include "wick/models/bundle.h"
#include "wick/train/optimizer.h"
#include "wick/train/report.h"
#include "wick/train/run_folder.h"
#include "wick/train/schedule.h"

namespace wick {

enum class TrainType : uint8_t { lora, full };

struct TrainOptions {
  TrainType type = TrainType::lora;
  // Of type lora.
  AdapterConfig adapter{.rank = 16, .alpha = 32, .target_modules = ModuleSelection::all_linear()};

  double epochs = 3;         // may be a fraction
  int64_t steps = 0;         // > 0: in place of epochs
  int64_t batch_size = 8;    // sequences in a micro-batch
  int64_t batch_tokens = 0;  // > 0: tokens in a micro-batch, in place of batch_size
  int64_t accumulation = 1;  // micro-batches in a step

  double learning_rate = 2e-4;
  Decay decay = Decay::cosine;
  int64_t warmup_steps = -1;  // < 0: warmup_ratio of all steps
  double warmup_ratio = 0.03;
  double weight_decay = 0.01;  // of matrices; vectors (norms, biases) are not decayed
  AdamWOptions adam;
  double max_gradient_norm = 1.0;  // 0: no clipping
  uint64_t seed = 0;

  std::filesystem::path output;
  StartMode start = StartMode::fresh;
  DType saved_dtype = DType::bf16;  // of type full
  int64_t report_every = 10;        // steps
  int64_t validate_every = 0;       // steps; 0: at the end only
  int64_t save_every = 100;         // steps; 0: at the end only
};

struct TrainData {
  Dataset train;
  std::optional<Dataset> valid;
  std::optional<Dataset> test;
};

struct TrainResult {
  int64_t step = 0;          // steps done, earlier runs included
  bool interrupted = false;  // the reporter asked to stop; all is saved
  double loss = 0;           // of the last step
  std::optional<Validation> valid;
  std::optional<Validation> test;
  double seconds = 0;
  double tokens_per_second = 0;  // over the whole of this run
  uint64_t peak_backend_bytes = 0;
  uint64_t peak_process_bytes = 0;
};

// Errors, beside bad options: a loss or gradient that is not a number (named by its step; what was
// saved before stays); a checkpoint that belongs to other options or data. The bundle's model is
// left with the trained weights or adapter in place.
TrainResult train(Bundle& bundle, const TrainData& data, const TrainOptions& options,
                  Reporter& reporter);
// As one of several processes; all stop when one of their reporters asks to. An error of one is one
// of all; RankLost says at which step, and what is kept.
TrainResult train(Bundle& bundle, const TrainData& data, const TrainOptions& options,
                  Reporter& reporter, Communicator& ranks);

}  // namespace wick
