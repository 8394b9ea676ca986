// The verbs of the program. Each has a file `cmd_<verb>.cpp`, whose one function adds a subcommand
// with its flags and a callback that does the work; main.cpp lists them in one table.
//
// A callback throws wick::Error for what went wrong; main prints it and sets the exit status.
#pragma once

#include <CLI/CLI.hpp>

namespace wick {

// A signal asked the verb to end, and it has ended in good order: main exits with 128 + signal, as
// shells do.
struct Interrupted {
  int signal = 0;
};

void add_train(CLI::App& app);
void add_evaluate(CLI::App& app);
void add_generate(CLI::App& app);
void add_merge(CLI::App& app);
void add_logits(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_bench(CLI::App& app);
void add_devices(CLI::App& app);

}  // namespace wick
