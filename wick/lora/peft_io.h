// Adapters as PEFT folders: `adapter_config.json` and `adapter_model.safetensors`.
//
// Tensor names are "base_model.model." + module path + ".lora_A.weight" [r, in] or ".lora_B.weight"
// [out, r]; f32, f16 or bf16 when reading, f32 when writing. Source: PEFT,
// src/peft/utils/save_and_load.py.
//
// Reading is strict: every tensor must be half of a pair whose module the config targets and whose
// rank the config states. Errors name the folder, the tensors (some, and how many more) and what to
// do. Whether the adapter fits a base is checked by `attach`.
#pragma once

#include <filesystem>
#include <string>

#include "wick/lora/adapter.h"

namespace wick {

Adapter read_peft(const std::filesystem::path& folder);

// Replaces both files, each whole or not at all; with a full disk both old ones stay. The header of
// the weights repeats rank, alpha and scaling, so that a pair torn by a crash between the two
// renames is found by read_peft.
void write_peft(const std::filesystem::path& folder, const Adapter& adapter);

// Whether the folder has either file of an adapter.
bool holds_adapter(const std::filesystem::path& folder);

// Tells one base from another of the same shapes: a hash of its `config.json`.
std::string base_config_hash(const std::filesystem::path& model_folder);
// A warning where the adapter was trained on a base with another `config.json`; else empty.
std::string base_warning(const Adapter& adapter, const std::filesystem::path& model_folder);

}  // namespace wick
