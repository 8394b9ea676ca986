// Files: read by memory map, written whole or not at all.
//
// Every error names the path and what the system said. Paths are UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace wick {

// A read-only map of a whole file. The bytes live as long as this object.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }
  // Part of the bytes will not be read again soon: their pages no longer count as this process's.
  void forget(std::span<const std::byte> part) const;

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The whole file as text; an error if it is longer than `max_bytes`.
std::string read_text(const std::filesystem::path& path, size_t max_bytes = size_t{1} << 30);

// A file that appears under its name only when it is complete: written to a temporary name in the
// same folder, synced, then renamed. Without `commit` the destructor removes what was written and
// the old file stays as it was. To replace several files as nearly together as the system allows,
// `finish` each and then `commit` each.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& target);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  // Syncs the temporary file and closes it: after this only the rename can fail.
  void finish();
  // Finishes if that is still to be done, renames, and syncs the folder.
  void commit();

 private:
  std::filesystem::path target_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
  bool committed_ = false;
};

void write_text_atomically(const std::filesystem::path& path, std::string_view text);

}  // namespace wick
