// Makes back ends by name: the only place that knows the concrete ones.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "wick/core/backend.h"
#include "wick/core/communicator.h"

namespace wick {

struct BackendOptions {
  int threads = 0;  // CPU: 0 takes one a core that this process may use, less what `place` shares
  Place place;      // chooses among several GPUs
  // CPU; empty: medium if that is fastest_matmul_precision(). On CUDA products take activations as
  // they are, and Backend::matmul_precision says what that means.
  std::optional<MatmulPrecision> matmul_precision = MatmulPrecision::highest;
  // CPU: weights that adopt() could read in their file are copied to huge pages, as long as a
  // quarter of the machine's memory stays free. To read them token by token then takes 20 % less
  // time; where they are read once a batch, it is not worth the copy.
  bool copy_adopted = false;
};

// Those that this build has and this machine can use, the best last.
std::vector<std::string_view> backend_names();

// One of backend_names, "auto" (the best there is), or one GPU of several: "cuda:1". Without a
// number, the processes of a machine take its GPUs in turn; one alone takes cuda:0. A back end for
// a GPU belongs to the thread that makes it: two GPUs in one process need a thread each. Throws
// Error naming what this build and this machine have, or why the device cannot be used.
std::unique_ptr<Backend> make_backend(std::string_view device, const BackendOptions& options = {});

// The precision at which the CPU multiplies by bf16 weights fastest: medium where it has
// instructions for products of bf16 numbers. Without them medium gives the same within the rounding
// of f32, and takes longer than highest.
MatmulPrecision fastest_matmul_precision();

// The processes that a launcher such as mpirun started with this one, or this one alone. MPI is
// touched only where there are several, and may be started once in a process. Throws Error where
// this build has no MPI.
std::unique_ptr<Communicator> join_processes();

// The same processes with sums that go from device to device; null where `processes` serve as well.
// Both arguments must outlive it.
std::unique_ptr<Communicator> connect_devices(Communicator& processes, Backend& backend);

struct DeviceDescription {
  std::string name;  // as make_backend takes it: "cpu", "cuda:0"
  std::string text;  // what the device is, in one line
};

// Every device that this build can use on this machine.
std::vector<DeviceDescription> describe_devices();

}  // namespace wick
