// Exchanges as nonblocking calls of MPI, which are tested until they are done or a process is lost.
#include "wick/backend/mpi/mpi_communicator.h"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cerrno>
#include <csignal>
#include <thread>

namespace wick::mpi {

namespace {

constexpr auto kLookEvery = std::chrono::milliseconds(5);
// What a process sent before it ended may still arrive.
constexpr auto kGrace = std::chrono::milliseconds(100);
// Counts of MPI are ints, and host memory for a part of a long tensor is bounded.
constexpr int64_t kPartElements = int64_t{1} << 24;
constexpr size_t kPartBytes = size_t{1} << 30;
// Of an error's message: short enough that MPI sends it without waiting for the receiver.
constexpr size_t kMessageBytes = 1024;

// Where the values of each rank begin, and how many they are.
struct Slices {
  std::vector<int> begin;
  std::vector<int> count;

  Slices(int64_t elements, int size) {
    for (int r = 0; r < size; ++r) {
      begin.push_back(static_cast<int>(elements * r / size));
      count.push_back(static_cast<int>(elements * (r + 1) / size) - begin.back());
    }
  }
};

}  // namespace

MpiCommunicator::MpiCommunicator() {
  int threads = 0;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &threads), "start");
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &ranks_), "start");
  check_mpi(MPI_Comm_set_errhandler(ranks_, MPI_ERRORS_RETURN), "start");
  find_place();
}

MpiCommunicator::~MpiCommunicator() {
  if (all_know_ || (!over_ && std::uncaught_exceptions() == 0)) {
    MPI_Comm_free(&ranks_);
    MPI_Finalize();
  }
}

void MpiCommunicator::find_place() {
  check_mpi(MPI_Comm_rank(ranks_, &place_.rank), "rank");
  check_mpi(MPI_Comm_size(ranks_, &place_.size), "size");
  MPI_Comm machine = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(ranks_, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine),
            "processes of this machine");
  check_mpi(MPI_Comm_rank(machine, &place_.local_rank), "local rank");
  find_peers(machine);
  check_mpi(MPI_Comm_free(&machine), "processes of this machine");
}

void MpiCommunicator::find_peers(MPI_Comm machine) {
  struct Card {
    int rank;
    pid_t pid;
    cpu_set_t cores;
  };
  Card mine{place_.rank, ::getpid(), {}};
  CPU_ZERO(&mine.cores);
  ::sched_getaffinity(0, sizeof(mine.cores), &mine.cores);
  int local_size = 0;
  check_mpi(MPI_Comm_size(machine, &local_size), "local size");
  std::vector<Card> cards(static_cast<size_t>(local_size));
  check_mpi(
      MPI_Allgather(&mine, sizeof(Card), MPI_BYTE, cards.data(), sizeof(Card), MPI_BYTE, machine),
      "processes of this machine");
  place_.core_sharers = 0;
  for (const Card& card : cards) {
    cpu_set_t common;
    CPU_AND(&common, &mine.cores, &card.cores);
    place_.core_sharers += card.rank == mine.rank || CPU_COUNT(&common) > 0 ? 1 : 0;
    // In another container the number would name another process, or none.
    if (card.rank != mine.rank && ::kill(card.pid, 0) == 0) {
      peers_.push_back({card.rank, card.pid});
    }
  }
}

std::vector<double> MpiCommunicator::gather(double value) {
  return exchange(value);
}

void MpiCommunicator::broadcast(std::span<std::byte> bytes) {
  exchange(0);
  over_ = true;  // from here to the end a failure shows by the end of the process alone
  while (!bytes.empty()) {
    const size_t count = std::min(bytes.size(), kPartBytes);
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Ibcast(bytes.data(), static_cast<int>(count), MPI_BYTE, 0, ranks_, &request),
              "broadcast");
    wait_for(request, Wait::busy);
    bytes = bytes.subspan(count);
  }
  over_ = false;
}

void MpiCommunicator::sum(Backend& backend, Out tensor) {
  assert(tensor.dtype() == DType::f32);
  exchange(0);
  over_ = true;  // as in broadcast
  for (int64_t begin = 0; begin < tensor.elements(); begin += kPartElements) {
    const int64_t count = std::min(kPartElements, tensor.elements() - begin);
    const Tensor part = tensor.part(begin, {count});
    host_.resize(static_cast<size_t>(count));
    backend.download(part, std::as_writable_bytes(std::span(host_)));
    sum_on_host(host_);
    backend.upload(std::as_bytes(std::span(host_)), part);
  }
  over_ = false;
}

void MpiCommunicator::sum_on_host(std::span<float> values) {
  const Slices slices(static_cast<int64_t>(values.size()), place_.size);
  const auto mine = static_cast<size_t>(place_.rank);
  const int count = slices.count[mine];
  Slices received(0, place_.size);
  for (int r = 0; r < place_.size; ++r) {
    received.begin[static_cast<size_t>(r)] = r * count;
    received.count[static_cast<size_t>(r)] = count;
  }
  slices_.resize(static_cast<size_t>(count) * static_cast<size_t>(place_.size));
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Ialltoallv(values.data(), slices.count.data(), slices.begin.data(), MPI_FLOAT,
                           slices_.data(), received.count.data(), received.begin.data(), MPI_FLOAT,
                           ranks_, &request),
            "sum");
  wait_for(request, Wait::busy);

  float* total = values.data() + slices.begin[mine];
  std::copy_n(slices_.begin(), count, total);
  for (int r = 1; r < place_.size; ++r) {
    const float* addend = slices_.data() + received.begin[static_cast<size_t>(r)];
    for (int i = 0; i < count; ++i) {
      total[i] += addend[i];
    }
  }
  check_mpi(MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, values.data(), slices.count.data(),
                            slices.begin.data(), MPI_FLOAT, ranks_, &request),
            "sum");
  wait_for(request, Wait::busy);
}

void MpiCommunicator::tell_failure(const std::string& message) {
  if (!over_) {
    exchange(0, &message);
  }
}

std::vector<double> MpiCommunicator::exchange(double value, const std::string* failure) {
  assert(!over_);
  const std::array<double, 2> mine = {failure == nullptr ? 0.0 : 1.0, value};
  std::vector<double> all(2 * static_cast<size_t>(place_.size));
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallgather(mine.data(), 2, MPI_DOUBLE, all.data(), 2, MPI_DOUBLE, ranks_, &request),
            "exchange");
  wait_for(request, Wait::patient);
  std::vector<double> values;
  int first_failed = -1;
  for (int r = 0; r < place_.size; ++r) {
    const size_t at = 2 * static_cast<size_t>(r);
    first_failed = first_failed < 0 && all[at] != 0 ? r : first_failed;
    values.push_back(all[at + 1]);
  }
  if (first_failed >= 0) {
    const std::string message = end_by_failure(first_failed, failure);
    if (failure == nullptr) {
      fail("{}", message);
    }
  }
  return values;
}

std::string MpiCommunicator::end_by_failure(int rank, const std::string* failure) {
  std::array<char, kMessageBytes> text{};
  if (failure != nullptr) {
    std::copy_n(failure->begin(), std::min(failure->size(), text.size() - 1), text.begin());
  }
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(
      MPI_Ibcast(text.data(), static_cast<int>(text.size()), MPI_CHAR, rank, ranks_, &request),
      "exchange");
  wait_for(request, Wait::patient);
  over_ = true;
  all_know_ = true;
  speaks_ = place_.rank == 0;
  return rank == 0 ? text.data() : fmt::format("rank {}: {}", rank, text.data());
}

void MpiCommunicator::check_mpi(int status, const char* what) {
  if (status == MPI_SUCCESS) [[likely]] {
    return;
  }
  over_ = true;
  std::array<char, MPI_MAX_ERROR_STRING + 1> text{};
  int length = 0;
  MPI_Error_string(status, text.data(), &length);
  throw RankLost(
      fmt::format("the processes cannot reach each other: mpi: {}: {}", what, text.data()));
}

void MpiCommunicator::wait_for(MPI_Request& request, Wait wait) {
  const Clock::time_point start = Clock::now();
  Clock::time_point looked = start;
  Clock::time_point lost_since{};
  for (int done = 0;;) {
    check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "exchange");
    if (done != 0) {
      return;
    }
    const Clock::time_point now = Clock::now();
    if (wait == Wait::patient && now - start > std::chrono::microseconds(200)) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    } else {
      ::sched_yield();
    }
    if (now - looked < kLookEvery) {
      continue;
    }
    looked = now;
    const std::vector<int> lost = lost_ranks();
    if (lost.empty()) {
      continue;
    }
    if (lost_since == Clock::time_point{}) {
      lost_since = now;
    } else if (now - lost_since > kGrace) {
      fail_for(lost);
    }
  }
}

void MpiCommunicator::check_alive() {
  const std::vector<int> lost = lost_ranks();
  if (!lost.empty()) {
    fail_for(lost);
  }
}

std::vector<int> MpiCommunicator::lost_ranks() const {
  std::vector<int> lost;
  for (const Peer& peer : peers_) {
    if (::kill(peer.pid, 0) != 0 && errno == ESRCH) {
      lost.push_back(peer.rank);
    }
  }
  return lost;
}

void MpiCommunicator::fail_for(const std::vector<int>& lost) {
  over_ = true;
  int first_left = 0;
  while (std::ranges::find(lost, first_left) != lost.end()) {
    ++first_left;
  }
  speaks_ = first_left == place_.rank;
  throw RankLost(fmt::format("rank{} {} {} gone", lost.size() > 1 ? "s" : "", fmt::join(lost, ", "),
                             lost.size() > 1 ? "are" : "is"));
}

}  // namespace wick::mpi
