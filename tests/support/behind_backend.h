// A back end whose results come as a GPU hands them out: while it works on.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "wick/backend/profiling_backend.h"

namespace wick::test {

struct Behaviour {
  bool behind = false;      // says that it still works when `begin` returns, as a GPU does
  int64_t nan_at_step = 0;  // a readback that is not a number; 0: none
};

// The CPU, with results as a GPU hands them out.
class BehindBackend : public ProfilingBackend {
 public:
  BehindBackend(Backend& inner, Profile& profile, Behaviour behaviour)
      : ProfilingBackend(inner, profile), behaviour_(behaviour) {}

  std::unique_ptr<Readback> make_readback(size_t bytes) override {
    return std::make_unique<Late>(*this, bytes);
  }
  int most_begun() const { return most_begun_; }

 private:
  class Late : public Readback {
   public:
    Late(BehindBackend& backend, size_t bytes) : backend_(backend), held_(bytes) {}
    void begin(In from) override {
      EXPECT_FALSE(begun_) << "what was begun before has not been taken";
      begun_ = true;
      backend_.download(from, held_);
      backend_.most_begun_ = std::max(backend_.most_begun_, ++backend_.begun_);
      if (++backend_.steps_ == backend_.behaviour_.nan_at_step) {
        const float nan = std::numeric_limits<float>::quiet_NaN();
        std::memcpy(held_.data(), &nan, sizeof(nan));
      }
    }
    void take(std::span<std::byte> host) override {
      EXPECT_TRUE(begun_);
      begun_ = false;
      --backend_.begun_;
      std::copy_n(held_.begin(), host.size(), host.begin());
    }
    bool runs_behind() const override { return backend_.behaviour_.behind; }

   private:
    BehindBackend& backend_;
    std::vector<std::byte> held_;
    bool begun_ = false;
  };

  Behaviour behaviour_;
  int64_t steps_ = 0;
  int begun_ = 0;
  int most_begun_ = 0;
};

}  // namespace wick::test
