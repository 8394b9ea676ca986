// Files and folders for tests.
#include "tests/support/test_data.h"

#include <cstdlib>
#include <stdexcept>

namespace wick::test {

std::filesystem::path data_folder() {
  const char* folder = std::getenv("WICK_TEST_DATA");
  return folder != nullptr ? folder : WICK_TEST_DATA_DEFAULT;
}

TemporaryFolder::TemporaryFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "wick-test-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) {
    throw std::runtime_error("cannot create a temporary folder");
  }
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace wick::test
