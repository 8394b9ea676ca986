// Flags that several verbs share, so that they have one name and one meaning everywhere.
//
// A verb holds these structures in its own flags, which must outlive the parse.
#pragma once

#include <CLI/CLI.hpp>

#include <filesystem>
#include <memory>
#include <string>

#include "wick/backend/registry.h"
#include "wick/core/backend.h"
#include "wick/core/communicator.h"

namespace wick {

// --device and --threads, and for verbs that are to be fast --matmul-precision.
struct DeviceFlags {
  std::string device = "auto";
  int threads = 0;
  std::string matmul_precision = "highest";

  void add_to(CLI::App& verb);
  void add_matmul_precision_to(CLI::App& verb);  // its default is auto
  // Throws Error where the products of a model at `precision` are not what the flag asks for; warns
  // where it asks for medium and that is no faster, or changes nothing.
  void check_matmul_precision(const Backend& backend, MatmulPrecision precision) const;
  // `options`: what the flags do not say.
  std::unique_ptr<Backend> make(BackendOptions options = {}) const;
};

// --model, and for verbs that can use one --adapter.
struct ModelFlags {
  std::filesystem::path model;
  std::filesystem::path adapter;  // empty: none

  void add_model_to(CLI::App& verb);
  void add_adapter_to(CLI::App& verb);
};

}  // namespace wick
