// The processes that train one adapter together, and what they tell each other.
//
// All of them call the exchanges (`gather`, `broadcast`, `sum`) in the same order; each waits for
// the others. A process that fails says so in place of its next exchange, and the exchange fails in
// all: see `together`. A process that ends without a word is lost: exchanges throw RankLost. After
// either nothing is exchanged any more. One thread at a time may call a communicator.
#pragma once

#include <cstddef>
#include <exception>
#include <span>
#include <string>
#include <vector>

#include "wick/base/error.h"
#include "wick/core/backend.h"

namespace wick {

// Where this process stands among the others.
struct Place {
  int rank = 0;
  int size = 1;
  int local_rank = 0;    // among the processes of this machine
  int core_sharers = 1;  // those that may run on the same cores, this one included
};

// A process ended without a word.
class RankLost : public Error {
 public:
  using Error::Error;
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual const Place& place() const = 0;
  // The value of each process, by rank.
  virtual std::vector<double> gather(double value) = 0;
  // Everyone has the bytes of rank 0 afterwards; the length is the same everywhere.
  virtual void broadcast(std::span<std::byte> bytes) = 0;
  // The tensor (f32, of `backend`) becomes the sum over all processes: the same bits in each of
  // them and on every run.
  virtual void sum(Backend& backend, Out tensor) = 0;
  // In place of the next exchange, which then throws Error with this message in the others. Does
  // nothing where the exchanges are over, or one was broken off halfway.
  virtual void tell_failure(const std::string& message) = 0;
  // After a failure: whether this process is the one to say what it was. Of a failure that all know
  // that is rank 0; of a lost process, the first that is left.
  virtual bool speaks() const = 0;
  // Throws RankLost where a process is known to be gone.
  virtual void check_alive() = 0;
};

// The only process there is.
class Alone final : public Communicator {
 public:
  const Place& place() const override { return place_; }
  std::vector<double> gather(double value) override { return {value}; }
  void broadcast(std::span<std::byte>) override {}
  void sum(Backend&, Out) override {}
  void tell_failure(const std::string&) override {}
  bool speaks() const override { return true; }
  void check_alive() override {}

 private:
  Place place_;
};

double sum_of(const std::vector<double>& values);
// The text of rank 0.
std::string broadcast_text(Communicator& ranks, std::string text);

// Does `work`, in which the processes exchange; where it fails in one, it fails in all.
template <class Work>
auto together(Communicator& ranks, const Work& work) {
  try {
    return work();
  } catch (const std::exception& error) {
    ranks.tell_failure(error.what());
    throw;
  }
}

}  // namespace wick
