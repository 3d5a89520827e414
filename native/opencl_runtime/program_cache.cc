#include "program_cache.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "environment.h"

extern "C" {
#include "../board_agent/sha256.h"
}

namespace tvm_mobilenet::opencl {

namespace {

// Boards' C++ libraries are older than std::filesystem, their C libraries than a `stat` that can be
// linked with by name: this is plain POSIX and statx, of glibc 2.28.

// A file is this line, the SHA-256 of all that follows, the SHA-256 of the key, the binary.
constexpr char kMagic[] = "tvm-mobilenet OpenCL program 1\n";
constexpr std::size_t kMagicSize = sizeof kMagic - 1;
constexpr std::size_t kHeaderSize = kMagicSize + 2 * SHA256_SIZE;
constexpr const char* kSuffix = ".clbin";
// A MobileNet takes 1 to 5 MB, by the driver.
constexpr uint64_t kFolderMax = uint64_t{256} << 20;
constexpr std::size_t kFileMax = std::size_t{64} << 20;

std::string Digest(const std::string& bytes) {
  uint8_t digest[SHA256_SIZE];
  const Span span = {bytes.data(), bytes.size()};
  sha256(&span, 1, digest);
  return std::string(reinterpret_cast<const char*>(digest), sizeof digest);
}

std::string KeyDigest(const ProgramKey& key) {
  std::string text;
  for (const std::string* part :
       {&key.platform, &key.device, &key.driver, &key.options, &key.source}) {
    text += std::to_string(part->size()) + ":" + *part;
  }
  return Digest(text);
}

std::string Hex(const std::string& bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (unsigned char byte : bytes) {
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

std::string PathOf(const std::string& folder, const std::string& key_digest) {
  return folder + "/" + Hex(key_digest).substr(0, 40) + kSuffix;
}

class File {
 public:
  File(const std::string& path, int flags, mode_t mode = 0)
      : descriptor_(open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, mode)) {}
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  bool is_open() const { return descriptor_ >= 0; }

  // The content of an ordinary file of this user's that others cannot write.
  std::optional<std::string> ReadAll() const {
    struct statx status;
    if (statx(descriptor_, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &status) != 0 ||
        !S_ISREG(status.stx_mode) || status.stx_uid != geteuid() ||
        (status.stx_mode & (S_IWGRP | S_IWOTH)) != 0 || status.stx_size > kFileMax) {
      return std::nullopt;
    }
    std::string content(static_cast<std::size_t>(status.stx_size), '\0');
    for (std::size_t done = 0; done < content.size();) {
      const ssize_t got = read(descriptor_, content.data() + done, content.size() - done);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return std::nullopt;
      done += static_cast<std::size_t>(got);
    }
    return content;
  }

  bool WriteAll(const std::string& content) const {
    for (std::size_t done = 0; done < content.size();) {
      const ssize_t put = write(descriptor_, content.data() + done, content.size() - done);
      if (put < 0 && errno == EINTR) continue;
      if (put <= 0) return false;
      done += static_cast<std::size_t>(put);
    }
    return true;
  }

 private:
  int descriptor_;
};

// Makes a folder and those above it, readable by this user alone.
bool MakeFolder(const std::string& path) {
  for (std::size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
    const std::string part = path.substr(0, end);
    if (mkdir(part.c_str(), S_IRWXU) != 0 && errno != EEXIST) return false;
    if (end == std::string::npos) return true;
  }
}

bool HasSuffix(const std::string& name) {
  const std::size_t size = std::strlen(kSuffix);
  return name.size() > size && name.compare(name.size() - size, size, kSuffix) == 0;
}

// Removes the oldest files once all together are too large.
void Prune(const std::string& folder) {
  struct Entry {
    int64_t time;
    uint64_t size;
    std::string path;
  };
  std::vector<Entry> entries;
  uint64_t total = 0;
  const auto close_folder = [](DIR* open) { closedir(open); };
  const std::unique_ptr<DIR, decltype(close_folder)> open(opendir(folder.c_str()), close_folder);
  while (const dirent* found = open != nullptr ? readdir(open.get()) : nullptr) {
    if (!HasSuffix(found->d_name)) continue;
    Entry entry;
    entry.path = folder + "/" + found->d_name;
    struct statx status;
    if (statx(AT_FDCWD, entry.path.c_str(), AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &status) != 0) {
      continue;
    }
    entry.time = status.stx_mtime.tv_sec;
    entry.size = status.stx_size;
    total += entry.size;
    entries.push_back(std::move(entry));
  }
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.time < b.time; });
  for (const Entry& entry : entries) {
    if (total <= kFolderMax) return;
    std::remove(entry.path.c_str());
    total -= entry.size;
  }
}

// Two threads of a process write under two names, whatever the file system's clock.
std::string TemporaryName() {
  static std::atomic<unsigned> number{0};
  return ".new." + std::to_string(getpid()) + "." + std::to_string(number++);
}

}  // namespace

std::string CacheFolder() {
  if (std::getenv(kCacheVariable) != nullptr) return Environment(kCacheVariable);
  const std::string base = Environment("XDG_CACHE_HOME");
  if (!base.empty()) return base + "/tvm-mobilenet/opencl";
  const std::string home = Environment("HOME");
  return home.empty() ? "" : home + "/.cache/tvm-mobilenet/opencl";
}

std::optional<std::string> LoadProgram(const ProgramKey& key) {
  const std::string folder = CacheFolder();
  if (folder.empty()) return std::nullopt;
  const std::string key_digest = KeyDigest(key);
  const File file(PathOf(folder, key_digest), O_RDONLY);
  if (!file.is_open()) return std::nullopt;
  const std::optional<std::string> content = file.ReadAll();
  if (!content || content->size() <= kHeaderSize ||
      content->compare(0, kMagicSize, kMagic, kMagicSize) != 0) {
    return std::nullopt;
  }
  const std::string body = content->substr(kMagicSize + SHA256_SIZE);
  if (content->compare(kMagicSize, SHA256_SIZE, Digest(body)) != 0 ||
      body.compare(0, SHA256_SIZE, key_digest) != 0) {
    return std::nullopt;
  }
  return body.substr(SHA256_SIZE);
}

void StoreProgram(const ProgramKey& key, const std::string& binary) {
  const std::string folder = CacheFolder();
  if (folder.empty() || binary.size() > kFileMax - kHeaderSize) return;
  if (!MakeFolder(folder)) return;
  const std::string body = KeyDigest(key) + binary;
  const std::string path = PathOf(folder, body.substr(0, SHA256_SIZE));
  const std::string temporary = folder + "/" + TemporaryName();
  bool written = false;
  {
    const File file(temporary, O_WRONLY | O_CREAT | O_EXCL, S_IRUSR | S_IWUSR);
    if (!file.is_open()) return;
    written = file.WriteAll(kMagic + Digest(body) + body);
  }
  if (!written || std::rename(temporary.c_str(), path.c_str()) != 0) {
    std::remove(temporary.c_str());
    return;
  }
  static std::once_flag pruned;
  std::call_once(pruned, [&folder] { Prune(folder); });
}

}  // namespace tvm_mobilenet::opencl
