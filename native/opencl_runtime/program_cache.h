// Built programs kept on disk, so that a second start does not wait for the driver's compiler.
#ifndef OPENCL_RUNTIME_PROGRAM_CACHE_H_
#define OPENCL_RUNTIME_PROGRAM_CACHE_H_

#include <optional>
#include <string>

namespace tvm_mobilenet::opencl {

// What a built program depends on.
struct ProgramKey {
  std::string platform, device, driver, options, source;
};

// The folder: TVM_MOBILENET_OPENCL_CACHE, else tvm-mobilenet/opencl in the user's cache folder.
// Empty where the cache is switched off or there is no place for it.
std::string CacheFolder();

// Returns the driver's binary that was stored under `key`. A file that is damaged, of another key
// or of another user is as good as none.
std::optional<std::string> LoadProgram(const ProgramKey& key);

// Stores it; where that cannot be done, nothing happens: it is only a cache.
void StoreProgram(const ProgramKey& key, const std::string& binary);

}  // namespace tvm_mobilenet::opencl

#endif  // OPENCL_RUNTIME_PROGRAM_CACHE_H_
