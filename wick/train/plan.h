// What follows from the options of a run before its first step.
#pragma once

#include <map>
#include <string>

#include "wick/train/trainer.h"

namespace wick {

// Throws Error naming the option that cannot be.
void check_options(const TrainOptions& options);

// The same of options that do not fit the model or its data.
void check_run(const Bundle& bundle, const TrainData& data, const TrainOptions& options);

BatchOptions batch_options_of(const TrainOptions& options);

// Steps and warm-up for this data.
Schedule plan_schedule(const TrainOptions& options, const Batcher& batcher);

// All that the course of a run depends on, by name, for TrainState. The length of the run is left
// out, so that a finished run can be given more epochs.
std::map<std::string, std::string> identity_of(const TrainOptions& options, const Dataset& train,
                                               int64_t trained_values);

}  // namespace wick
