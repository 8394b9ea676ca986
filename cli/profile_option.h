// --profile: time a kernel, as a table and as a trace.
#pragma once

#include <CLI/CLI.hpp>

#include <memory>
#include <string>

#include "wick/backend/profile.h"
#include "wick/core/backend.h"

namespace wick {

struct ProfileFlags {
  std::string file;  // of the trace; empty: no profile

  void add_to(CLI::App& verb);
};

// A back end, profiled if the flags ask for it.
class ProfiledDevice {
 public:
  ProfiledDevice(std::unique_ptr<Backend> backend, ProfileFlags flags);
  ~ProfiledDevice();

  Backend& backend();
  // The one that is profiled.
  Backend& inner() { return *inner_; }
  // Null without --profile.
  Profile* profile() { return flags_.file.empty() ? nullptr : &profile_; }

  // What is called from here on counts, up to `report`.
  void start();
  // Prints the table and writes the trace.
  void report();

 private:
  ProfileFlags flags_;
  Profile profile_;
  std::unique_ptr<Backend> inner_;
  std::unique_ptr<Backend> profiling_;  // null without --profile
};

}  // namespace wick
