// The message that an action fails with, so that a test can show it.
#pragma once

#include <string>

#include "wick/base/error.h"

namespace wick::test {

template <class Action>
std::string message_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "(no error)";
}

}  // namespace wick::test
