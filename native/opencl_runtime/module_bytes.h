// The bytes that an OpenCL module is saved as inside a compiled library.
#ifndef OPENCL_RUNTIME_MODULE_BYTES_H_
#define OPENCL_RUNTIME_MODULE_BYTES_H_

#include <dlpack/dlpack.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace tvm_mobilenet::opencl {

// What TVM knows of a kernel: how it is called.
struct KernelInfo {
  std::vector<DLDataType> arguments;
  // In the order in which the launch's sizes follow the arguments: `blockIdx.x`, `threadIdx.y`.
  std::vector<std::string> launch_tags;
  std::vector<int32_t> extra_tags;
};

// A module's content.
struct ModuleContent {
  std::string format;  // `cl`: OpenCL C
  std::map<std::string, KernelInfo> kernels;
  std::string code;
};

// Writes and reads what TVM 0.27's OpenCLModuleNode::SaveToBytes does: the format, the kernels, the
// code; little-endian, lengths of 64 bits before texts and lists. Reading fails on anything left
// over or missing, as with the bytes of another version.
std::string SaveModule(const ModuleContent& content);
ModuleContent LoadModule(const char* data, std::size_t size);

}  // namespace tvm_mobilenet::opencl

#endif  // OPENCL_RUNTIME_MODULE_BYTES_H_
