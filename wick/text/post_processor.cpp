// Templates and the two fixed forms.
#include "wick/text/post_processor.h"

#include <nlohmann/json.hpp>

#include "wick/base/error.h"
#include "wick/text/component.h"

namespace wick {

namespace {

int32_t checked_id(const Component& component, std::string_view key, const nlohmann::json& id,
                   int32_t id_bound) {
  const bool fits = id.is_number_unsigned() && id.get<uint64_t>() < static_cast<uint64_t>(id_bound);
  check(fits, "{}: \"{}\" must name ids of the vocabulary (0 to {}), names {}", component.where(),
        key, id_bound - 1, id.dump());
  return id.get<int32_t>();
}

// ["[SEP]", 102]
int32_t parse_named_id(const Component& component, std::string_view key, int32_t id_bound) {
  const nlohmann::json& pair = component.raw(key);
  check(pair.is_array() && pair.size() == 2, "{}: \"{}\" must be [token, id]", component.where(),
        key);
  return checked_id(component, key, pair[1], id_bound);
}

Frame parse_template(const Component& component, int32_t id_bound) {
  Frame frame;
  bool text_seen = false;
  for (const Component& item : component.objects("single")) {
    if (item.has("Sequence")) {
      check(!text_seen && item.object("Sequence").string("id") == "A",
            "{}: the single template must hold the sequence A once, and no other",
            component.where());
      text_seen = true;
      continue;
    }
    const std::string name = item.object("SpecialToken").string("id");
    const Component token = component.object("special_tokens").object(name);
    const nlohmann::json& ids = token.raw("ids");
    check(ids.is_array(), "{}: \"ids\" must be an array", token.where());
    for (const nlohmann::json& id : ids) {
      (text_seen ? frame.behind : frame.before).push_back(checked_id(token, "ids", id, id_bound));
    }
  }
  check(text_seen, "{}: the single template must hold the sequence A", component.where());
  return frame;
}

}  // namespace

Frame parse_post_processor(const Component& component, int32_t id_bound) {
  const std::string type = component.type();
  if (type == "TemplateProcessing") {
    return parse_template(component, id_bound);
  }
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    return {{parse_named_id(component, "cls", id_bound)},
            {parse_named_id(component, "sep", id_bound)}};
  }
  if (type == "ByteLevel") {
    return {};
  }
  if (type == "Sequence") {
    Frame frame;
    for (const Component& part : component.objects("processors")) {
      const Frame outer = parse_post_processor(part, id_bound);
      frame.before.insert(frame.before.begin(), outer.before.begin(), outer.before.end());
      frame.behind.insert(frame.behind.end(), outer.behind.begin(), outer.behind.end());
    }
    return frame;
  }
  component.fail_unknown(
      "post-processor",
      "TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel, Sequence");
}

}  // namespace wick
