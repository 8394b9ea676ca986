// Opening what --model and --adapter name.
#include "cli/open_model.h"

#include "wick/base/log.h"
#include "wick/lora/peft_io.h"

namespace wick {

AttachedAdapter attach_adapter(Backend& backend, std::span<LinearLayer* const> layers,
                               const ModelFlags& flags) {
  if (flags.adapter.empty()) {
    return {};
  }
  const Adapter adapter = read_peft(flags.adapter);
  const std::string warning = base_warning(adapter, flags.model);
  if (!warning.empty()) {
    log_message(LogLevel::warning, warning);
  }
  AttachedAdapter attached = attach(backend, layers, adapter, Trainable::no);
  attached.keep_for_inference(backend);
  return attached;
}

}  // namespace wick
