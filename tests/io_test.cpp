// Safetensors, sharded folders, and .npy: what is read and written, and what is refused in which
// words.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <nlohmann/json.hpp>

#include "tests/support/message_of.h"
#include "tests/support/test_data.h"
#include "tests/support/tiny_model.h"
#include "wick/backend/registry.h"
#include "wick/base/file.h"
#include "wick/io/json_file.h"
#include "wick/io/npy.h"
#include "wick/io/safetensors.h"
#include "wick/io/weight_source.h"

namespace wick {
namespace {

using test::message_of;

// The bytes of a file with this header text and `data_bytes` of zeros after it.
std::string file_bytes(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + header + std::string(data_bytes, '\0');
}

std::string header_error(const std::string& header, size_t data_bytes) {
  const std::string bytes = file_bytes(header, data_bytes);
  return message_of([&] { parse_safetensors_header(std::as_bytes(std::span(bytes)), "f"); });
}

std::string raw_error(const std::string& bytes) {
  return message_of([&] { parse_safetensors_header(std::as_bytes(std::span(bytes)), "f"); });
}

// ---- what is read

TEST(SafetensorsHeader, ReadsNamesShapesAndSpans) {
  const std::string bytes = file_bytes(
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
      R"("a":{"extra":{"x":[1,{}]},"data_offsets":[0,4],"dtype":"F32","shape":[]}}  )",
      16);
  const SafetensorsHeader header = parse_safetensors_header(std::as_bytes(std::span(bytes)), "f");
  ASSERT_EQ(header.entries.size(), 2U);
  const SafetensorsEntry& b = header.entries.at("b");
  EXPECT_EQ(b.dtype, "BF16");
  EXPECT_EQ(b.extents, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b.begin, bytes.size() - 12);
  EXPECT_EQ(b.bytes, 12U);
  EXPECT_TRUE(header.entries.at("a").extents.empty());
  EXPECT_EQ(header.metadata.at("format"), "pt");
}

TEST(SafetensorsHeader, AllowsNullMetadataAndEmptyTensors) {
  // Some converters write null; empty tensors may stand anywhere, also between others.
  const std::string bytes =
      file_bytes(R"({"__metadata__":null,"e":{"dtype":"F32","shape":[0,9],"data_offsets":[4,4]},)"
                 R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                 R"("b":{"dtype":"I64","shape":[1],"data_offsets":[4,12]}})",
                 12);
  const SafetensorsHeader header = parse_safetensors_header(std::as_bytes(std::span(bytes)), "f");
  EXPECT_EQ(header.entries.size(), 3U);
  EXPECT_TRUE(header.metadata.empty());
}

TEST(SafetensorsFile, ReadsRealFiles) {
  WICK_REQUIRE_DATA("models/tiny-random-hf/tiny_llama3/model.safetensors");
  const SafetensorsFile file(test::data_folder() /
                             "models/tiny-random-hf/tiny_llama3/model.safetensors");
  EXPECT_EQ(file.dtype("lm_head.weight"), DType::bf16);
  EXPECT_EQ(file.shape("lm_head.weight"), (Shape{256, 64}));
  EXPECT_EQ(file.bytes("lm_head.weight").size(), 32768U);
}

TEST(SafetensorsFile, ComesBackAsWritten) {
  const test::TemporaryFolder folder;
  const std::unique_ptr<Backend> backend = make_backend("cpu", {.threads = 1});
  const std::vector<float> values = {1.5F, -2.0F, 0.25F, 3e38F, 5.0F, -0.0F};
  const Tensor half = backend->allocate({3}, DType::bf16);
  const std::vector<uint16_t> bits = {0x3F80, 0xC000, 0x7F80};
  backend->upload(std::as_bytes(std::span(bits)), half);
  const auto path = folder.path() / "x.safetensors";
  write_safetensors(
      path,
      {safetensors_item("a.half", *backend, half), safetensors_item("z", {2, 3}, values),
       safetensors_item("none", {0}, std::span<const float>())},
      {{"k", "v \"q\" \n"}});
  const SafetensorsFile file(path);
  EXPECT_EQ(file.floats("z"), values);
  EXPECT_EQ(file.shape("z"), (Shape{2, 3}));
  EXPECT_EQ(file.floats("a.half"),
            (std::vector<float>{1.0F, -2.0F, std::numeric_limits<float>::infinity()}));
  EXPECT_EQ(file.entry("none").bytes, 0U);
  EXPECT_EQ(file.metadata().at("k"), "v \"q\" \n");
  // Wide types lie first and the header is padded, so each tensor is aligned for its type.
  EXPECT_EQ(file.entry("z").begin % 8, 0U);
  EXPECT_LT(file.entry("z").begin, file.entry("a.half").begin);

  const Tensor loaded = file.load(*backend, "z");
  std::vector<float> back(6);
  backend->download(loaded, std::as_writable_bytes(std::span(back)));
  EXPECT_EQ(back, values);
}

TEST(SafetensorsFile, LoadsTensorsThatLieUnaligned) {
  // Older writers do not pad the header: here the data begin at an odd address.
  const test::TemporaryFolder folder;
  std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  header.resize(header.size() + (header.size() % 2 == 0 ? 1 : 2), ' ');
  std::string bytes = file_bytes(header, 8);
  const float values[2] = {1.25F, -7.0F};
  std::memcpy(bytes.data() + bytes.size() - 8, values, 8);
  write_text_atomically(folder.path() / "x", bytes);
  const SafetensorsFile file(folder.path() / "x");
  const std::unique_ptr<Backend> backend = make_backend("cpu", {.threads = 1});
  const Tensor tensor = file.load(*backend, "a");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.address()) % alignof(float), 0U);
  EXPECT_EQ(tensor.data<float>()[0], 1.25F);
  EXPECT_EQ(tensor.data<float>()[1], -7.0F);
}

TEST(SafetensorsFile, TensorsOutliveTheFileObject) {
  const test::TemporaryFolder folder;
  const std::unique_ptr<Backend> backend = make_backend("cpu", {.threads = 1});
  const std::vector<float> values(1000, 2.5F);
  write_safetensors(folder.path() / "x", {safetensors_item("a", {1000}, values)});
  Tensor tensor;
  {
    const SafetensorsFile file(folder.path() / "x");
    tensor = file.load(*backend, "a");
  }
  std::filesystem::remove(folder.path() / "x");
  EXPECT_EQ(tensor.data<float>()[999], 2.5F);
}

// ---- what is refused

TEST(SafetensorsHeader, RefusesFilesThatAreCutOff) {
  EXPECT_EQ(raw_error(""), "f: 0 bytes long, too short for a safetensors file; was it cut off?");
  EXPECT_EQ(raw_error("1234567"),
            "f: 7 bytes long, too short for a safetensors file; was it cut off?");
  const std::string whole =
      file_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  EXPECT_EQ(raw_error(whole), "(no error)");
  EXPECT_EQ(raw_error(whole.substr(0, 20)),
            "f: the header length 54 reaches beyond the file's 20 bytes; was it cut off?");
  EXPECT_EQ(raw_error(whole.substr(0, whole.size() - 3)),
            "f: tensor \"a\": data_offsets [0, 8] reach beyond the 5 bytes of data; was the file "
            "cut off?");
}

TEST(SafetensorsHeader, RefusesAHeaderLengthBeyondTheLimit) {
  EXPECT_EQ(raw_error(std::string("\x01\xE1\xF5\x05\x00\x00\x00\x00{}", 10)),
            "f: the header length 100000001 is over the format's limit of 100000000 bytes; is it a "
            "safetensors file?");
  EXPECT_EQ(raw_error(std::string(8, '\xFF')),
            "f: the header length 18446744073709551615 is over the format's limit of 100000000 "
            "bytes; is it a safetensors file?");
}

struct BadHeader {
  const char* header;
  size_t data_bytes;
  const char* message;
};

TEST(SafetensorsHeader, RefusesWhatIsNotAHeader) {
  const BadHeader cases[] = {
      {"", 0, "f: the header is not JSON: error at offset 9"},
      {"{\"a\":}", 0, "f: the header is not JSON: error at offset 14"},
      {"{}x", 0, "f: the header is not JSON: error at offset 11"},
      {"{\"\xFF\":1}", 0, "f: the header is not JSON: error at offset 11"},
      {"[]", 0, "f: the header is an array, not a JSON object"},
      {"7", 0, "f: the header is 7, not a JSON object"},
      {"null", 0, "f: the header is null, not a JSON object"},
      {R"({"a":1e999})", 0, "f: the header holds a number that is out of range, near offset 18"},
      {R"({"__metadata__":[]})", 0, "f: \"__metadata__\" is an array, not an object or null"},
      {R"({"__metadata__":{"k":1}})", 0, "f: \"__metadata__\" entry \"k\" is 1, not a string"},
      {R"({"__metadata__":{"k":{}}})", 0,
       "f: \"__metadata__\" entry \"k\" is an object, not a string"},
      {R"({"a":{},"a":{}})", 0, "f: the header names \"a\" twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "f: the header names \"__metadata__\" twice"},
      {R"({"a":3})", 0, "f: tensor \"a\" is 3, not an object"},
      {R"({"a":null})", 0, "f: tensor \"a\" is null, not an object"},
      {R"({"a\u001b[2J":[]})", 0, "f: tensor \"a\\u001b[2J\" is an array, not an object"},
  };
  for (const BadHeader& bad : cases) {
    EXPECT_EQ(header_error(bad.header, bad.data_bytes), bad.message) << bad.header;
  }
}

TEST(SafetensorsHeader, RefusesBadTensors) {
  const BadHeader cases[] = {
      {R"({"a":{}})", 0, "f: tensor \"a\": \"dtype\" is missing"},
      {R"({"a":{"dtype":"F32"}})", 0, "f: tensor \"a\": \"shape\" is missing"},
      {R"({"a":{"dtype":"F32","shape":[1]}})", 0, "f: tensor \"a\": \"data_offsets\" is missing"},
      {R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4,
       "f: tensor \"a\": unknown dtype \"F33\""},
      {R"({"a":{"dtype":32}})", 0, "f: tensor \"a\": \"dtype\" is 32, not a string"},
      {R"({"a":{"shape":4}})", 0, "f: tensor \"a\": \"shape\" is 4, not an array"},
      {R"({"a":{"shape":[-1]}})", 0,
       "f: tensor \"a\": \"shape\" holds -1, not a whole number from 0 up"},
      {R"({"a":{"shape":[1.0]}})", 0,
       "f: tensor \"a\": \"shape\" holds 1.0, not a whole number from 0 up"},
      {R"({"a":{"shape":[18446744073709551616]}})", 0,
       "f: tensor \"a\": \"shape\" holds 18446744073709551616, not a whole number from 0 up"},
      {R"({"a":{"shape":[[1]]}})", 0,
       "f: tensor \"a\": \"shape\" holds an array, not a whole number from 0 up"},
      {R"({"a":{"shape":[1],"shape":[1]}})", 0, "f: tensor \"a\": \"shape\" stands twice"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4,
       "f: tensor \"a\": \"data_offsets\" has 1 entries, not 2"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4,
       "f: tensor \"a\": data_offsets [4, 0] run backward"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}})", 4,
       "f: tensor \"a\": data_offsets [0, 18446744073709551615] reach beyond the 4 bytes of data; "
       "was the file cut off?"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8,
       "f: tensor \"a\": shape [3] of F32 is 12 bytes, but data_offsets [0, 8] span 8"},
      {R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", 2,
       "f: tensor \"a\": shape [3] of F4 is not a whole number of bytes"},
  };
  for (const BadHeader& bad : cases) {
    EXPECT_EQ(header_error(bad.header, bad.data_bytes), bad.message) << bad.header;
  }
}

TEST(SafetensorsHeader, RefusesShapesWhoseSizeOverflows) {
  // 2^62 elements of four bytes are 2^64, which wraps to nothing.
  EXPECT_EQ(header_error(R"({"a":{"dtype":"F32","shape":[4611686018427387904],)"
                         R"("data_offsets":[0,0]}})",
                         0),
            "f: tensor \"a\": shape [4611686018427387904] of F32 overflows");
  EXPECT_EQ(header_error(R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],)"
                         R"("data_offsets":[0,0]}})",
                         0),
            "f: tensor \"a\": shape [4294967296, 4294967296] of U8 overflows");
  EXPECT_EQ(header_error(R"({"a":{"dtype":"U8","shape":[0,18446744073709551615],)"
                         R"("data_offsets":[0,0]}})",
                         0),
            "f: tensor \"a\": shape [0, 18446744073709551615] of U8 overflows");
}

TEST(SafetensorsHeader, RefusesOverlapsHolesAndRests) {
  const auto two = [](const char* a, const char* b) {
    return std::string(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":)") + a +
           R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":)" + b + "}}";
  };
  EXPECT_EQ(header_error(two("[0,8]", "[8,12]"), 12), "(no error)");
  EXPECT_EQ(header_error(two("[0,8]", "[4,8]"), 8),
            "f: tensors \"a\" and \"b\" overlap: one ends at data offset 8, the other begins at 4");
  EXPECT_EQ(header_error(two("[0,8]", "[0,4]"), 8),
            "f: tensors \"b\" and \"a\" overlap: one ends at data offset 4, the other begins at 0");
  EXPECT_EQ(header_error(two("[0,8]", "[10,14]"), 14),
            "f: 2 bytes before tensor \"b\" at data offset 10 belong to no tensor");
  EXPECT_EQ(header_error(two("[0,8]", "[8,12]"), 15),
            "f: 3 bytes at the end belong to no tensor, from offset 128");
}

TEST(SafetensorsHeader, BoundsItsOwnCost) {
  const std::string brackets(1000, '[');
  EXPECT_EQ(header_error(R"({"a":{"extra":)" + brackets, 0),
            "f: tensor \"a\": nested more than 64 levels deep");
  EXPECT_EQ(header_error(brackets, 0), "f: the header is an array, not a JSON object");
  std::string shape = "1";
  for (int i = 0; i < 100; ++i) {
    shape += ",1";
  }
  EXPECT_EQ(header_error(R"({"a":{"shape":[)" + shape + "]}}", 0),
            "f: tensor \"a\": \"shape\" has more than 64 entries");
  EXPECT_EQ(header_error("{\"" + std::string(200, 'n') + "\":1}", 0),
            "f: tensor \"" + std::string(120, 'n') + "\"... is 1, not an object");
}

TEST(SafetensorsFile, RefusesTypesAndShapesThatWickCannotHold) {
  const test::TemporaryFolder folder;
  const auto path = folder.path() / "x.safetensors";
  write_text_atomically(
      path, file_bytes(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                       R"("b":{"dtype":"F32","shape":[1,1,1,1,1],"data_offsets":[4,8]},)"
                       R"("c":{"dtype":"I32","shape":[1],"data_offsets":[8,12]}})",
                       12));
  const SafetensorsFile file(path);
  const std::string name = path.string();
  EXPECT_EQ(message_of([&] { file.dtype("a"); }),
            name + ": tensor \"a\" has dtype U8; wick knows F32, F16, BF16 and I32");
  EXPECT_EQ(message_of([&] { file.shape("b"); }),
            name + ": tensor \"b\" has 5 dimensions, at most 4 are read");
  EXPECT_EQ(message_of([&] { file.floats("c"); }),
            name + ": tensor \"c\" has dtype I32, not a floating-point one");
  EXPECT_EQ(message_of([&] { file.bytes("d"); }), name + ": has no tensor \"d\"");
}

TEST(WriteSafetensors, RefusesANameThatIsTaken) {
  const test::TemporaryFolder folder;
  const float value = 1;
  const auto item = [&](const char* name) { return safetensors_item(name, {1}, {&value, 1}); };
  EXPECT_EQ(message_of([&] {
              write_safetensors(folder.path() / "x", {item("a"), item("a")});
            }),
            "safetensors: the tensor name \"a\" is taken");
  EXPECT_EQ(message_of([&] { write_safetensors(folder.path() / "x", {item("__metadata__")}); }),
            "safetensors: the tensor name \"__metadata__\" is taken");
  EXPECT_EQ(message_of([&] {
              safetensors_item("a", {2}, {&value, 1});
            }),
            "safetensors: tensor \"a\": shape [2] needs 2 values, got 1");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(WriteSafetensors, AFullDiskLeavesTheOldFileWhole) {
  const test::TemporaryFolder folder;
  const auto path = folder.path() / "x.safetensors";
  const std::vector<float> values(4000, 1.0F);
  write_safetensors(path, {safetensors_item("old", {4}, std::span(values).first(4))});
  // A file size limit in a child process stands in for the full disk.
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit limit{8000, 8000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    static_cast<void>(::signal(SIGXFSZ, SIG_IGN));
    const std::string message =
        message_of([&] { write_safetensors(path, {safetensors_item("new", {4000}, values)}); });
    ::_exit(message == path.string() + ": cannot write: File too large" ? 7 : 8);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_TRUE(SafetensorsFile(path).has("old"));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

// ---- weight sources

TEST(WeightSource, ShardsAreOneNameSpace) {
  const test::TemporaryFolder folder;
  test::TinyModelOptions options;
  write_tiny_model(folder.path() / "whole", options);
  options.shards = 3;
  write_tiny_model(folder.path() / "shards", options);
  const std::unique_ptr<Backend> backend = make_backend("cpu", {.threads = 1});
  const auto whole = open_weights(folder.path() / "whole");
  const auto shards = open_weights(folder.path() / "shards");
  ASSERT_EQ(whole->names(), shards->names());
  for (const std::string& name : whole->names()) {
    const WeightInfo info = whole->info(name);
    const Tensor a = whole->load(*backend, name, info.shape);
    const Tensor b = shards->load(*backend, name, info.shape);
    ASSERT_EQ(std::memcmp(a.address(), b.address(), a.bytes()), 0) << name;
  }
}

TEST(WeightSource, ReadsRealShards) {
  WICK_REQUIRE_DATA("models/tiny-random-hf/tiny_qwen3_sharded");
  const auto weights =
      open_weights(test::data_folder() / "models/tiny-random-hf/tiny_qwen3_sharded");
  EXPECT_EQ(weights->info("model.norm.weight").shape, (Shape{64}));
  EXPECT_EQ(weights->info("lm_head.weight").shape, (Shape{256, 64}));
  EXPECT_EQ(weights->names().size(), 25U);
}

TEST(WeightSource, NamesWhatIsMissingOrShapedOtherwise) {
  const test::TemporaryFolder folder;
  test::write_tiny_model(folder.path(), "llama", 1);
  const std::unique_ptr<Backend> backend = make_backend("cpu", {.threads = 1});
  const auto weights = open_weights(folder.path());
  const std::string file = (folder.path() / "model.safetensors").string();
  EXPECT_EQ(message_of([&] {
              weights->load(*backend, "model.layers.7.x.weight", {2, 3});
            }),
            file + ": the tensor \"model.layers.7.x.weight\" [2, 3] is missing");
  EXPECT_EQ(message_of([&] { weights->load(*backend, "model.norm.weight", {33}); }),
            file + ": tensor \"model.norm.weight\" has shape [32], the model needs [33]");
  EXPECT_EQ(message_of([&] { weights->info("x"); }), file + ": has no tensor \"x\"");
}

TEST(WeightSource, MemoryHoldsTensors) {
  const std::unique_ptr<Backend> backend = make_backend("cpu", {.threads = 1});
  MemoryWeights weights;
  weights.put("a", backend->allocate({2, 2}, DType::bf16));
  weights.put("ids", backend->allocate({2}, DType::i32));
  EXPECT_EQ(weights.load(*backend, "a", {2, 2}).dtype(), DType::bf16);
  EXPECT_EQ(message_of([&] { weights.load(*backend, "b", {1}); }),
            "weights in memory: the tensor \"b\" [1] is missing");
  EXPECT_EQ(message_of([&] { weights.load(*backend, "ids", {2}); }),
            "weights in memory: tensor \"ids\" has dtype i32, not a floating-point one");
}

TEST(WeightSource, RefusesFoldersWithoutWeights) {
  const test::TemporaryFolder folder;
  const std::string name = folder.path().string();
  EXPECT_EQ(message_of([&] { open_weights(folder.path()); }),
            name +
                ": no weights: neither model.safetensors nor model.safetensors.index.json is "
                "there");
  write_text_atomically(folder.path() / "pytorch_model.bin", "x");
  EXPECT_EQ(message_of([&] { open_weights(folder.path()); }),
            name +
                ": holds pytorch_model.bin only; wick reads safetensors: convert the weights to "
                "model.safetensors");
}

TEST(WeightSource, ChecksTheIndexWhenItIsOpened) {
  const test::TemporaryFolder folder;
  const float value = 1;
  write_safetensors(folder.path() / "s1", {safetensors_item("a", {1}, {&value, 1})});
  const auto index = folder.path() / "model.safetensors.index.json";
  const auto error_with = [&](const char* text) {
    write_text_atomically(index, text);
    return message_of([&] { open_weights(folder.path()); });
  };
  const std::string name = index.string();
  EXPECT_EQ(error_with(R"({"weight_map":{"a":"s1"}})"), "(no error)");
  EXPECT_EQ(error_with(R"({"weight_map":{"a":"s1","b":"s1"}})"),
            name + ": tensor \"b\" should be in shard s1, which does not hold it");
  EXPECT_EQ(error_with(R"({"weight_map":{"a":"s2"}})"),
            name + ": tensor \"a\" should be in shard s2, which is not there");
  EXPECT_EQ(error_with(R"({"weight_map":{"a":"../s1"}})"),
            name + ": tensor \"a\": \"../s1\" is not the name of a file in the same folder");
  EXPECT_EQ(error_with(R"({"weight_map":{"a":1}})"),
            name + ": \"weight_map\" gives no file name for tensor \"a\"");
  EXPECT_EQ(error_with(R"({"weight_map":[]})"), name + ": has no object \"weight_map\"");
  EXPECT_EQ(error_with("{"), name + ": not JSON: error at byte 2");
  EXPECT_EQ(error_with("[]"), name + ": holds an array, not a JSON object");
}

// ---- JSON and npy

TEST(JsonFile, BoundsDepthAndNumbers) {
  EXPECT_EQ(message_of([] { parse_json_object("{\"a\":1e999}", "f"); }),
            "f: not JSON: a number is out of range");
  EXPECT_EQ(message_of([] { parse_json_object("{\"a\":" + std::string(5000, '['), "f"); }),
            "f: nested more than 64 levels deep");
  EXPECT_EQ(message_of([] { parse_json_object("\"" + std::string(100, 'x') + "\"", "f"); }),
            "f: holds \"" + std::string(59, 'x') + "..., not a JSON object");
}

TEST(Npy, ComesBackAsWritten) {
  const test::TemporaryFolder folder;
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  for (const Shape& shape : {Shape{6}, Shape{2, 3}, Shape{1, 2, 3}, Shape{1, 3, 1, 2}}) {
    write_npy(folder.path() / "x.npy", shape, values);
    const NpyArray array = read_npy(folder.path() / "x.npy");
    EXPECT_EQ(array.shape, shape);
    EXPECT_EQ(array.values, values);
  }
  EXPECT_EQ(message_of([&] { write_npy(folder.path() / "y.npy", {7}, values); }),
            (folder.path() / "y.npy").string() + ": shape [7] needs 7 values, got 6");
}

TEST(Npy, WritesTheBytesThatNumpyWrites) {
  const test::TemporaryFolder folder;
  write_npy(folder.path() / "x.npy", {1}, std::vector<float>{1.0F});
  const std::string text = read_text(folder.path() / "x.npy");
  EXPECT_EQ(text.substr(0, 10), std::string("\x93NUMPY\x01\x00\x76\x00", 10));
  EXPECT_EQ(text.substr(10, 57), "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }");
  EXPECT_EQ(text[127], '\n');
  EXPECT_EQ(text.substr(128), std::string("\x00\x00\x80\x3F", 4));
}

TEST(Npy, RefusesWhatItDoesNotRead) {
  const test::TemporaryFolder folder;
  const auto path = folder.path() / "x.npy";
  const auto error_with = [&](const std::string& dict, size_t data_bytes, size_t length) {
    std::string text("\x93NUMPY\x01\x00", 8);
    text += static_cast<char>(length & 0xFF);
    text += static_cast<char>(length >> 8);
    write_text_atomically(path, text + dict + std::string(data_bytes, '\0'));
    return message_of([&] { read_npy(path); });
  };
  const std::string begin = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  const std::string name = path.string();
  const std::string unreadable =
      name + ": not a row-major array of little-endian f32 with at most 4 dimensions";
  for (const char* extents : {"1, 1, 1, 1, 1", "-1", "x", "1 1", "99999999999999999999"}) {
    const std::string dict = begin + extents + "), }";
    EXPECT_EQ(error_with(dict, 4, dict.size()), unreadable) << extents;
  }
  const std::string huge = begin + "4611686018427387904, 4), }";
  EXPECT_EQ(error_with(huge, 0, huge.size()),
            name + ": shape [4611686018427387904, 4] does not fit the 0 bytes of data");
  const std::string fine = begin + "1,), }";
  EXPECT_EQ(error_with(fine, 4, fine.size()), "(no error)");
  EXPECT_EQ(error_with(fine, 5, fine.size()),
            name + ": shape [1] does not fit the 5 bytes of data");
  EXPECT_EQ(error_with(fine, 0, 60000),
            name + ": the header length 60000 reaches beyond the file's 67 bytes");
  write_text_atomically(path, "PK\x03\x04 an archive");
  EXPECT_EQ(message_of([&] { read_npy(path); }), name + ": not a .npy file of version 1.0");
}

}  // namespace
}  // namespace wick
