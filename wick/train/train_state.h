// All that a run needs to go on as if it had never stopped: trained values, both moments of the
// optimiser, and where the data stand. One safetensors file, replaced whole.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "wick/core/communicator.h"
#include "wick/data/batcher.h"

namespace wick {

struct TrainState {
  int64_t step = 0;  // steps done
  Cursor cursor;
  int64_t tokens = 0;
  int64_t target_tokens = 0;
  // Since the last report.
  double window_loss_sum = 0;
  int64_t window_target_tokens = 0;
  // What the run depends on, by name ("rank" -> "16"): a state is not used for another run.
  std::map<std::string, std::string> identity;
};

// The flat f32 arenas, all of one length.
struct StateTensors {
  Tensor values;
  Tensor first_moment;
  Tensor second_moment;
};

void save_train_state(Backend& backend, const std::filesystem::path& file, const TrainState& state,
                      const StateTensors& tensors);

// Fills the tensors. Errors: the file is damaged or of another size; its identity differs from
// `identity` (the names and both values are said).
TrainState load_train_state(Backend& backend, const std::filesystem::path& file,
                            const std::map<std::string, std::string>& identity,
                            const StateTensors& tensors);

// Throws Error, with the differences, where this process trains something else than rank 0.
void check_same_run(Communicator& ranks, const std::map<std::string, std::string>& identity);
// Gives every process the state and tensors of rank 0.
void share_train_state(Communicator& ranks, Backend& backend, TrainState& state,
                       const StateTensors& tensors);

}  // namespace wick
