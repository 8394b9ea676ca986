// Folders that transformers writes open here with its logits, for every setting that changes what
// is computed; saved again here, they open there with the same ones. Runs where the Python of
// support/python.h has torch and transformers: ./run peft sees to it.
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/support/host_tensor.h"
#include "tests/support/python.h"
#include "tests/support/test_data.h"
#include "wick/backend/registry.h"
#include "wick/base/file.h"
#include "wick/io/npy.h"
#include "wick/models/bundle.h"

namespace wick {
namespace {

int check_models(const char* verb, const std::filesystem::path& folder) {
  return std::system((test::python() + " '" WICK_SOURCE_DIR "/tools/check_models.py' " + verb +
                      " '" + folder.string() + "' > '" +
                      (folder / (verb + std::string(".log"))).string() + "' 2>&1")
                         .c_str());
}

// As IDS of check_models.py.
std::vector<int32_t> fixed_ids() {
  std::vector<int32_t> ids;
  ids.reserve(40);
  for (int32_t i = 0; i < 40; ++i) {
    ids.push_back((i * 37 + 11) % 256);
  }
  return ids;
}

TEST(ModelsPython, FoldersGoBothWays) {
  if (!test::python_has("torch, transformers")) {
    GTEST_SKIP() << test::python() << " lacks one of torch, transformers: ./run peft installs them";
  }
  const test::TemporaryFolder folder;
  ASSERT_EQ(check_models("write", folder.path()), 0);
  const auto backend = make_backend("cpu", {.threads = 2});
  const std::vector<std::vector<int32_t>> ids = {fixed_ids()};
  int cases = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    if (!entry.is_directory()) {
      continue;
    }
    const auto decoder = open_decoder(*backend, entry.path());
    const Var hidden = decoder->hidden(nullptr, make_token_batch(*backend, ids), {});
    const std::vector<float> ours = test::to_host(*backend, decoder->logits(hidden.value));
    const NpyArray theirs = read_npy(entry.path() / "logits.npy");
    EXPECT_LT(test::relative_difference(ours, theirs.values), 1e-5) << entry.path();
    save_model_folder(entry.path() / "saved", entry.path(), *decoder, {.max_shard_bytes = 40'000});
    ++cases;
  }
  EXPECT_EQ(cases, 10);
  EXPECT_EQ(check_models("read", folder.path()), 0) << read_text(folder.path() / "read.log");
}

}  // namespace
}  // namespace wick
