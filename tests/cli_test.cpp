// The program as a person meets it: help, usage errors, streams, and what it says of bad input.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "cli/exit_status.h"
#include "tests/support/program.h"
#include "tests/support/test_data.h"
#include "tests/support/tiny_model.h"
#include "wick/backend/registry.h"
#include "wick/base/file.h"
#include "wick/infer/generator.h"
#include "wick/io/npy.h"
#include "wick/lora/attach.h"
#include "wick/lora/peft_io.h"
#include "wick/models/bundle.h"

namespace wick {
namespace {

namespace fs = std::filesystem;
using test::ProgramResult;
using test::run_wick;
using test::run_wick_in_shell;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// The verbs that `wick --help` lists.
std::vector<std::string> listed_verbs() {
  std::istringstream help(run_wick({"--help"}).out);
  std::vector<std::string> verbs;
  std::string line;
  while (std::getline(help, line) && line != "Subcommands:") {
  }
  while (std::getline(help, line) && line.starts_with("  ")) {
    verbs.push_back(line.substr(2, line.find(' ', 2) - 2));
  }
  return verbs;
}

class CliTest : public testing::Test {
 protected:
  test::TemporaryFolder folder_;

  std::string path(const std::string& name) const { return (folder_.path() / name).string(); }
  std::string tiny(const std::string& name, const test::TinyModelOptions& options = {}) const {
    return test::write_tiny_model(folder_.path() / name, options).string();
  }
  std::string file(const std::string& name, const std::string& text) const {
    write_text_atomically(folder_.path() / name, text);
    return path(name);
  }
  // Trains an adapter for the model in a step and returns its folder.
  std::string trained(const std::string& model, const std::string& name) const {
    const std::string data = file(name + ".jsonl", "{\"text\": \"hello world\"}\n");
    const ProgramResult run = run_wick({"train", "--model", model, "--data", data, "--output",
                                        path(name), "--steps", "1", "--learning-rate", "0.05"});
    EXPECT_EQ(run.status, 0) << run.err;
    return path(name);
  }
  // The one line of an error: exit status 1, nothing on standard output.
  static std::string error_of(const std::vector<std::string>& arguments) {
    const ProgramResult run = run_wick(arguments);
    EXPECT_EQ(run.status, 1) << run.err;
    EXPECT_EQ(run.out, "");
    const size_t begin = run.err.rfind("error: ");
    EXPECT_NE(begin, std::string::npos) << run.err;
    std::string message = run.err.substr(begin);
    EXPECT_EQ(message.find('\n'), message.size() - 1) << "more than one line: " << run.err;
    return message;
  }
  std::string generate_error(const std::string& model) const {
    return error_of({"generate", "--model", model, "--prompt", "hi"});
  }
};

// ---- help and usage

TEST_F(CliTest, AloneItShowsHelpWithTheQuickStart) {
  const ProgramResult run = run_wick({});
  EXPECT_EQ(run.status, 0);
  EXPECT_TRUE(contains(run.out, "Quick start:\n  wick train --model"));
  EXPECT_TRUE(contains(run.out, "\n  wick generate --model"));
  EXPECT_EQ(run.err, "");
}

TEST_F(CliTest, EveryVerbHasHelp) {
  const std::vector<std::string> verbs = listed_verbs();
  for (const char* verb : {"train", "evaluate", "generate", "merge", "logits", "tokenize"}) {
    EXPECT_NE(std::find(verbs.begin(), verbs.end(), verb), verbs.end()) << verb;
  }
  for (const std::string& verb : verbs) {
    const ProgramResult run = run_wick({verb, "--help"});
    EXPECT_EQ(run.status, 0) << verb;
    EXPECT_TRUE(contains(run.out, "Usage: wick " + verb)) << run.out;
    EXPECT_TRUE(contains(run.out, "Example")) << run.out;
    // The benchmarks bring models of their own.
    EXPECT_TRUE(contains(run.out, "--model") || verb == "bench" || verb == "devices") << run.out;
  }
}

TEST(ExitStatus, ALostDeviceHasItsOwn) {
  EXPECT_EQ(exit_status_of(DeviceLost("gone")), 3);
  EXPECT_EQ(exit_status_of(Error("wrong")), 1);
  EXPECT_EQ(exit_status_of(std::runtime_error("wrong")), 1);
}

TEST_F(CliTest, DevicesListsTheCpuFirst) {
  const ProgramResult run = run_wick({"devices"});
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_TRUE(run.out.starts_with("cpu     ")) << run.out;
  EXPECT_TRUE(contains(run.out, " thread")) << run.out;
}

TEST_F(CliTest, VersionIsOneLine) {
  const ProgramResult run = run_wick({"--version"});
  EXPECT_EQ(run.status, 0);
  EXPECT_TRUE(run.out.starts_with("wick 0.")) << run.out;
  EXPECT_EQ(run.out.find('\n'), run.out.size() - 1);
}

TEST_F(CliTest, WrongUsageExitsWithTwo) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"fly"}, "fly"},
      {{"--wings"}, "--wings"},
      {{"generate", "--prompt", "x"}, "--model is required"},
      {{"generate", "--model", "m", "--wings"}, "--wings"},
      {{"generate", "--model", "m", "--prompt", "x", "--top-k", "many"}, "--top-k"},
      {{"generate", "--model", "m", "--max-tokens", "-1"}, "--max-tokens"},
      {{"generate", "--model", "m", "--prompt", "x", "--prompt-file", "y"}, "--prompt-file"},
      {{"logits", "--model", "m", "--ids", "1,two", "--output", "x"}, "--ids"},
      {{"train", "--model", "m", "--data", "d"}, "--output is required"},
      {{"train", "--model", "m", "--data", "d", "--output", "o", "--schedule", "zigzag"}, "zigzag"},
  };
  for (const auto& [arguments, named] : cases) {
    const ProgramResult run = run_wick(arguments);
    EXPECT_EQ(run.status, 2) << run.err;
    EXPECT_EQ(run.out, "");
    EXPECT_TRUE(contains(run.err, named)) << run.err;
  }
}

// ---- generate and logits

TEST_F(CliTest, GenerateWritesTheTextAloneToStandardOutput) {
  const std::string model = tiny("model");
  const auto backend = make_backend("cpu");
  const Bundle bundle = open_bundle(*backend, model);
  const std::string text =
      generate_text(*bundle.decoder, bundle.tokenizer, "Hi\n", {.max_tokens = 9}).text;
  const std::vector<std::string> arguments = {"generate", "--model", model, "--max-tokens", "9"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), arguments.begin(), arguments.end());
    return more;
  };
  const ProgramResult direct = run_wick(with({"--prompt", "Hi\n"}));
  EXPECT_EQ(direct.out, text + "\n") << direct.err;
  EXPECT_TRUE(contains(direct.err, "tok/s"));
  EXPECT_EQ(run_wick(with({"--prompt-file", "-"}), "Hi\n").out, text + "\n");
  EXPECT_EQ(run_wick(with({"--prompt-file", file("prompt.txt", "Hi\n")})).out, text + "\n");
  EXPECT_EQ(error_of(arguments),
            "error: no prompt: give --prompt TEXT, or --prompt-file FILE (- reads standard "
            "input)\n");
}

TEST_F(CliTest, WithoutMaxTokensTheContextIsFilledAndNoMore) {
  const std::string model = tiny("model", {.max_positions = 12});
  const ProgramResult run =
      run_wick({"generate", "--model", model, "--prompt", "12345678", "--seed", "3"});
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_TRUE(contains(run.err, "generated 4 tokens")) << run.err;
  EXPECT_EQ(error_of({"generate", "--model", model, "--prompt", "12345678", "--max-tokens", "5"}),
            "error: generate: a prompt of 8 tokens and 5 new ones exceed the model's context of "
            "12\n");
}

TEST_F(CliTest, ALogitsFileHoldsTheLibrarysLogits) {
  const std::string model = tiny("model");
  const std::string output = path("x.npy");
  const ProgramResult run = run_wick(
      {"logits", "--model", model, "--ids", "5,9,200", "--output", output, "--device", "cpu"});
  ASSERT_EQ(run.status, 0) << run.err;
  EXPECT_EQ(run.out, "");
  const auto backend = make_backend("cpu");
  const auto decoder = open_decoder(*backend, model);
  const std::vector<int32_t> ids = {5, 9, 200};
  const TokenBatch batch = make_token_batch(*backend, std::span(&ids, 1));
  const Tensor logits = decoder->logits(decoder->hidden(nullptr, batch, {}).value);
  std::vector<float> expected(static_cast<size_t>(logits.elements()));
  backend->download(logits, std::as_writable_bytes(std::span(expected)));
  const NpyArray written = read_npy(output);
  EXPECT_EQ(written.shape, (Shape{3, test::kTinyVocabulary}));
  EXPECT_EQ(written.values, expected);
  EXPECT_EQ(error_of({"logits", "--model", model, "--ids", "5,259", "--output", output}),
            "error: --ids: 259 is not in the model's vocabulary of 259\n");
}

TEST_F(CliTest, AnAdapterChangesWhatIsGenerated) {
  const std::string model = tiny("model");
  const std::string adapter = trained(model, "adapter");
  const std::string plain = path("plain.npy");
  const std::string adapted = path("adapted.npy");
  EXPECT_EQ(run_wick({"logits", "--model", model, "--ids", "1,2", "--output", plain}).status, 0);
  const ProgramResult run = run_wick(
      {"logits", "--model", model, "--adapter", adapter, "--ids", "1,2", "--output", adapted});
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_FALSE(contains(run.err, "warning")) << run.err;
  EXPECT_NE(read_npy(plain).values, read_npy(adapted).values);
}

TEST_F(CliTest, AnAdapterThatChangesNothingIsReported) {
  const std::string model = tiny("model");
  const auto backend = make_backend("cpu");
  const auto decoder = open_decoder(*backend, model);
  AdapterConfig config;
  config.target_modules = ModuleSelection::all_linear();
  const AttachedAdapter fresh = attach_new(*backend, decoder->linears(), config, 1);
  fs::create_directory(path("adapter"));
  write_peft(path("adapter"), fresh.to_adapter(*backend));  // B is zero before any step
  const ProgramResult run = run_wick({"generate", "--model", model, "--adapter", path("adapter"),
                                      "--prompt", "hi", "--max-tokens", "2"});
  EXPECT_EQ(run.status, 0);
  EXPECT_TRUE(contains(run.err, "warning: ")) << run.err;
  EXPECT_TRUE(contains(run.err, "changes nothing")) << run.err;
}

TEST_F(CliTest, AReaderWhoLeavesEndsTheProgramQuietly) {
  const std::string model = tiny("model");
  const ProgramResult run = run_wick_in_shell(
      {"generate", "--model", model, "--prompt", "hi", "--max-tokens", "100"}, "| true");
  EXPECT_EQ(run.status, 128 + 13) << run.err;  // as if SIGPIPE had ended it
  EXPECT_EQ(run.err, "");
}

TEST_F(CliTest, AFullDeviceIsAnError) {
  const std::string model = tiny("model");
  const ProgramResult run =
      run_wick_in_shell({"generate", "--model", model, "--prompt", "hi"}, "> /dev/full");
  EXPECT_EQ(run.status, 1);
  EXPECT_EQ(run.err, "error: standard output: No space left on device\n");
}

// ---- bad input

TEST_F(CliTest, BadModelFoldersAreNamed) {
  EXPECT_EQ(generate_error(path("nowhere")), "error: " + path("nowhere") + ": no such folder\n");
  fs::create_directory(path("empty"));
  EXPECT_EQ(generate_error(path("empty")), "error: " + path("empty") +
                                               ": has no config.json: not a Hugging Face model "
                                               "folder\n");
  const std::string model = tiny("model");
  file("model/config.json", "{\"model_type\": ");
  EXPECT_TRUE(contains(generate_error(model), "config.json: not JSON")) << generate_error(model);
  file("model/config.json", "{\"model_type\": \"gpt5\"}");
  EXPECT_TRUE(contains(generate_error(model), "gpt5")) << generate_error(model);
}

TEST_F(CliTest, BadWeightsAreNamed) {
  const std::string model = tiny("model");
  const fs::path weights = fs::path(model) / "model.safetensors";
  fs::resize_file(weights, fs::file_size(weights) - 100);
  const std::string cut = generate_error(model);
  EXPECT_TRUE(contains(cut, weights.string())) << cut;
  EXPECT_TRUE(contains(cut, "was the file cut off?")) << cut;
  fs::resize_file(weights, 4);
  EXPECT_TRUE(contains(generate_error(model), weights.string()));
  fs::remove(weights);
  EXPECT_TRUE(contains(generate_error(model), "model.safetensors"));

  const std::string other = tiny("other", {.family = "qwen3"});
  fs::copy_file(fs::path(tiny("llama")) / "model.safetensors",
                fs::path(other) / "model.safetensors", fs::copy_options::overwrite_existing);
  const std::string missing = generate_error(other);
  EXPECT_TRUE(contains(missing, "q_norm.weight")) << missing;
}

TEST_F(CliTest, BadTokenizersAreNamed) {
  const std::string model = tiny("model");
  file("model/tokenizer.json", "{\"model\"");
  EXPECT_TRUE(contains(generate_error(model), "tokenizer.json")) << generate_error(model);
  file("model/tokenizer.json", R"({"model": {"type": "Runes", "vocab": {}}})");
  const std::string unknown = generate_error(model);
  EXPECT_TRUE(contains(unknown, "tokenizer.json")) << unknown;
  EXPECT_TRUE(contains(unknown, "Runes")) << unknown;
}

TEST_F(CliTest, AnAdapterOfAnotherBaseIsRefused) {
  const std::string adapter = trained(tiny("model"), "adapter");
  const std::string other = tiny("other", {.hidden_size = 16});
  const std::string message =
      error_of({"generate", "--model", other, "--adapter", adapter, "--prompt", "hi"});
  EXPECT_TRUE(contains(message, "model.layers.0.mlp.down_proj (adapter 48 to 32, model 48 to 16)"))
      << message;
  EXPECT_EQ(error_of({"generate", "--model", other, "--adapter", path("no"), "--prompt", "hi"}),
            "error: " + path("no") +
                ": no such folder; an adapter is a folder with adapter_config.json and "
                "adapter_model.safetensors\n");
}

TEST_F(CliTest, BadTrainingDataIsNamedByFileAndLine) {
  const std::string model = tiny("model");
  const auto train_error = [&](const std::string& data) {
    return error_of({"train", "--model", model, "--data", data, "--output", path("out")});
  };
  EXPECT_EQ(train_error(path("no.jsonl")).find("error: " + path("no.jsonl")), 0U);
  const std::string bad = file("bad.jsonl", "{\"text\": \"fine\"}\n{\"text\": \n");
  EXPECT_TRUE(contains(train_error(bad), bad + ":2: ")) << train_error(bad);
  const std::string bytes = file("bytes.jsonl", "{\"text\": \"\xFF\"}\n");
  EXPECT_TRUE(contains(train_error(bytes), bytes + ":1: not UTF-8")) << train_error(bytes);
  const std::string empty = file("empty.jsonl", "");
  EXPECT_TRUE(contains(train_error(empty), empty + ": no records")) << train_error(empty);
}

TEST_F(CliTest, BadTrainingOptionsAreNamed) {
  const std::string model = tiny("model");
  const std::string data = file("data.jsonl", "{\"text\": \"hello world\"}\n");
  const auto train_error = [&](const std::string& option, const std::string& value) {
    return error_of(
        {"train", "--model", model, "--data", data, "--output", path("out"), option, value});
  };
  EXPECT_TRUE(contains(train_error("--rank", "0"), "rank (r) is 0"));
  EXPECT_TRUE(contains(train_error("--alpha", "nan"), "alpha (lora_alpha) is nan"));
  EXPECT_TRUE(contains(train_error("--targets", "wings"), "no linear layer is named wings"));
  EXPECT_TRUE(contains(train_error("--device", "tpu"),
                       "error: unknown device \"tpu\": this build has cpu"));
}

TEST_F(CliTest, AnAdapterIsNotOverwrittenUnasked) {
  const std::string model = tiny("model");
  const std::string adapter = trained(model, "adapter");
  const std::string before = read_text(adapter + "/adapter_model.safetensors");
  const std::vector<std::string> again = {
      "train",   "--model", model,    "--data", path("adapter.jsonl"), "--output", adapter,
      "--steps", "1",       "--seed", "9"};
  EXPECT_TRUE(contains(error_of(again), "--overwrite"));
  EXPECT_EQ(read_text(adapter + "/adapter_model.safetensors"), before);
  std::vector<std::string> asked = again;
  asked.emplace_back("--overwrite");
  EXPECT_EQ(run_wick(asked).status, 0);
  EXPECT_NE(read_text(adapter + "/adapter_model.safetensors"), before);
}

}  // namespace
}  // namespace wick
