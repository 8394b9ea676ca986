// Processes that mpirun started, over MPI (the standard, version 3).
//
// Each exchange begins with a small one in which every process says whether it is well; there a
// process waits for slower ones, asleep most of the time. A lost process of this machine is found
// by its process id; of one on another machine MPI or the launcher tells, which then ends the job.
#pragma once

#include <mpi.h>
#include <sys/types.h>

#include <chrono>
#include <cstdint>

#include "wick/core/communicator.h"

namespace wick::mpi {

class MpiCommunicator final : public Communicator {
 public:
  // Initialises MPI, which can be done once in a process. Waits for all.
  MpiCommunicator();
  // Waits for all to get here, unless some may not: after a lost process, and where this one fails
  // without having told it.
  ~MpiCommunicator() override;
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  const Place& place() const override { return place_; }
  std::vector<double> gather(double value) override;
  void broadcast(std::span<std::byte> bytes) override;
  // By way of host memory. Each process adds one slice, in the order of ranks, and gives it to all.
  void sum(Backend& backend, Out tensor) override;
  void tell_failure(const std::string& message) override;
  bool speaks() const override { return speaks_; }
  void check_alive() override;

 private:
  using Clock = std::chrono::steady_clock;
  enum class Wait : uint8_t {
    patient,  // for a process that may still have much to do
    busy      // for bytes that are on their way
  };
  struct Peer {
    int rank;
    pid_t pid;
  };

  void find_place();
  void find_peers(MPI_Comm machine);
  // `failure`: why this process fails, if it does.
  std::vector<double> exchange(double value, const std::string* failure = nullptr);
  std::string end_by_failure(int rank, const std::string* failure);
  void sum_on_host(std::span<float> values);
  void check_mpi(int status, const char* what);
  void wait_for(MPI_Request& request, Wait wait);
  // Those of this machine that are gone.
  std::vector<int> lost_ranks() const;
  [[noreturn]] void fail_for(const std::vector<int>& lost);

  MPI_Comm ranks_ = MPI_COMM_NULL;
  Place place_;
  std::vector<Peer> peers_;  // of this machine
  bool over_ = false;
  bool all_know_ = false;  // that one has failed
  bool speaks_ = true;
  std::vector<float> host_;    // a part of what is summed
  std::vector<float> slices_;  // of each process, the slice that this one adds
};

}  // namespace wick::mpi
