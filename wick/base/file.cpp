// POSIX files behind file.h.
#include "wick/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "wick/base/error.h"

namespace wick {

namespace {

std::string system_message() {
  return std::strerror(errno);
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

size_t regular_file_size(int fd, const std::filesystem::path& path) {
  struct stat info {};
  check(::fstat(fd, &info) == 0, "{}: {}", path.string(), system_message());
  check(S_ISREG(info.st_mode), "{}: not a regular file", path.string());
  return static_cast<size_t>(info.st_size);
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  check(fd.get() >= 0, "{}: cannot open: {}", path.string(), system_message());
  size_ = regular_file_size(fd.get(), path);
  if (size_ == 0) {
    return;
  }
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  check(address != MAP_FAILED, "{}: cannot map {} bytes: {}", path.string(), size_,
        system_message());
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) {
    ::munmap(const_cast<std::byte*>(data_), size_);
  }
}

void MappedFile::forget(std::span<const std::byte> part) const {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<uintptr_t>(part.data());
  const auto begin = (first + page - 1) / page * page;
  const auto end = (first + part.size()) / page * page;
  if (begin < end) {
    auto* address = const_cast<std::byte*>(part.data()) + (begin - first);
    ::madvise(address, end - begin, MADV_DONTNEED);  // only advice
  }
}

std::string read_text(const std::filesystem::path& path, size_t max_bytes) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  check(fd.get() >= 0, "{}: cannot open: {}", path.string(), system_message());
  const size_t size = regular_file_size(fd.get(), path);
  check(size <= max_bytes, "{}: {} bytes long, at most {} are read", path.string(), size,
        max_bytes);
  std::string text(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t got = ::read(fd.get(), text.data() + done, size - done);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    check(got >= 0, "{}: cannot read: {}", path.string(), system_message());
    if (got == 0) {
      break;
    }
    done += static_cast<size_t>(got);
  }
  text.resize(done);
  return text;
}

AtomicFile::AtomicFile(const std::filesystem::path& target) : target_(target) {
  std::string name =
      (target.parent_path() / ("." + target.filename().string() + ".XXXXXX")).string();
  descriptor_ = ::mkostemp(name.data(), O_CLOEXEC);
  check(descriptor_ >= 0, "{}: cannot create: {}", target.string(), system_message());
  temporary_ = name;
  ::fchmod(descriptor_, 0644);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
  }
  if (!committed_) {
    ::unlink(temporary_.c_str());
  }
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::write(descriptor_, bytes.data(), bytes.size());
    if (put < 0 && errno == EINTR) {
      continue;
    }
    check(put >= 0, "{}: cannot write: {}", target_.string(), system_message());
    bytes = bytes.subspan(static_cast<size_t>(put));
  }
}

void AtomicFile::write(std::string_view text) {
  write(std::as_bytes(std::span(text)));
}

void AtomicFile::finish() {
  if (descriptor_ < 0) {
    return;
  }
  check(::fsync(descriptor_) == 0, "{}: cannot sync: {}", target_.string(), system_message());
  const int status = ::close(descriptor_);
  descriptor_ = -1;
  check(status == 0, "{}: cannot close: {}", target_.string(), system_message());
}

void AtomicFile::commit() {
  finish();
  check(::rename(temporary_.c_str(), target_.c_str()) == 0, "{}: cannot rename into place: {}",
        target_.string(), system_message());
  committed_ = true;
  const std::filesystem::path folder = target_.has_parent_path() ? target_.parent_path() : ".";
  const Descriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  check(fd.get() >= 0 && ::fsync(fd.get()) == 0, "{}: cannot sync the folder: {}", folder.string(),
        system_message());
}

void write_text_atomically(const std::filesystem::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

}  // namespace wick
