// Where the tests find real files, and a folder of their own to write in.
#pragma once

#include <filesystem>
#include <string>

namespace wick::test {

// The folder named by the environment variable WICK_TEST_DATA, else the configured default; it may
// not exist.
std::filesystem::path data_folder();

// A new empty folder, removed with all its contents by the destructor.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace wick::test

// Skips the test, saying why, where a real file is not there.
#define WICK_REQUIRE_DATA(relative)                                                \
  do {                                                                             \
    if (!std::filesystem::exists(::wick::test::data_folder() / (relative))) {      \
      GTEST_SKIP() << (::wick::test::data_folder() / (relative)).string()          \
                   << " is absent: set WICK_TEST_DATA to the folder of test data"; \
    }                                                                              \
  } while (false)
