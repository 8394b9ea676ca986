// The program: a table of verbs, and the only place where errors are caught.
//
// Exit status: 0 done; 1 something failed (one line on stderr says what); 2 wrong usage; 3 the
// device was lost, so starting again may help; 128 + n ended in good order by signal n.
#include <csignal>
#include <exception>
#include <new>
#include <vector>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/output.h"
#include "wick/base/log.h"

namespace wick {

namespace {

using AddVerb = void (*)(CLI::App&);

// The verbs, in the order of `wick --help`.
const std::vector<AddVerb> kVerbs = {add_train,  add_evaluate, add_generate, add_merge,
                                     add_logits, add_tokenize, add_bench,    add_devices};

constexpr const char* kQuickStart =
    "Quick start:\n"
    "  wick train --model MODEL_FOLDER --data DATA.jsonl --output ADAPTER_FOLDER\n"
    "  wick generate --model MODEL_FOLDER --adapter ADAPTER_FOLDER --prompt \"...\"\n"
    "\n"
    "Exit status: 0 done, 1 failed, 2 wrong usage, 3 the device was lost (start again),\n"
    "128 + n ended by signal n.";

int run(int argc, char** argv) {
  CLI::App app("wick: fine-tunes and runs LoRA adapters on language models", "wick");
  app.set_version_flag("--version", "wick " WICK_VERSION);
  app.require_subcommand(0, 1);
  for (const AddVerb add_verb : kVerbs) {
    add_verb(app);
  }
  app.footer(kQuickStart);  // after the verbs, which would inherit it
  try {
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) {
      print(app.help());
    }
    return 0;
  } catch (const CLI::ParseError& error) {
    // Help and version are "errors" of status 0 to CLI11.
    return app.exit(error) == 0 ? 0 : kWrongUsage;
  } catch (const Interrupted& interrupted) {
    return 128 + interrupted.signal;
  } catch (const OutputClosed&) {
    static_cast<void>(std::signal(SIGPIPE, SIG_DFL));
    static_cast<void>(std::raise(SIGPIPE));
  } catch (const std::bad_alloc&) {
    log_message(LogLevel::error, "out of memory");
  } catch (const std::exception& error) {
    log_message(LogLevel::error, error.what());
    return exit_status_of(error);
  }
  return kFailed;
}

}  // namespace

}  // namespace wick

int main(int argc, char** argv) {
  // A closed pipe is an error of the write that meets it, so that nobody who stops reading the log
  // of a training ends the training.
  static_cast<void>(std::signal(SIGPIPE, SIG_IGN));
  return wick::run(argc, argv);
}
