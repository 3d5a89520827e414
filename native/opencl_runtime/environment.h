// The environment variables that this library reads, each when it is first needed.
#ifndef OPENCL_RUNTIME_ENVIRONMENT_H_
#define OPENCL_RUNTIME_ENVIRONMENT_H_

#include <cstdlib>
#include <string>

namespace tvm_mobilenet::opencl {

// Names the OpenCL library to open, in place of those that are looked for.
constexpr const char* kLibraryVariable = "TVM_MOBILENET_OPENCL_LIBRARY";
// Folder of built programs; empty switches the cache off.
constexpr const char* kCacheVariable = "TVM_MOBILENET_OPENCL_CACHE";
// Options for the driver's compiler, `-cl-fast-relaxed-math`.
constexpr const char* kOptionsVariable = "TVM_MOBILENET_OPENCL_OPTIONS";
// 0: copy to and from unified memory as if it were the device's own. 1: map whatever it is.
constexpr const char* kMapVariable = "TVM_MOBILENET_OPENCL_MAP";

inline std::string Environment(const char* name, const char* otherwise = "") {
  const char* value = std::getenv(name);
  return value != nullptr ? value : otherwise;
}

}  // namespace tvm_mobilenet::opencl

#endif  // OPENCL_RUNTIME_ENVIRONMENT_H_
