// A kernel of a module: built for a device when it is first used there, and launched.
#ifndef OPENCL_RUNTIME_KERNEL_H_
#define OPENCL_RUNTIME_KERNEL_H_

#include <tvm/ffi/function.h>

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device.h"
#include "module_bytes.h"

namespace tvm_mobilenet::opencl {

// Safe to launch from several threads.
class Kernel {
 public:
  // Takes the kernel's own source, which holds no other kernel. Fails if its arguments or its
  // launch are nothing that OpenCL can take.
  Kernel(std::string name, KernelInfo info, std::string source);

  // Builds it for a device, unless it is built already.
  void Build(int device);

  // Launches it on the device that the calling thread has set. `args` are the kernel's arguments
  // and then a size for each launch tag.
  void Launch(tvm::ffi::PackedArgs args);

 private:
  struct Built {
    ProgramHandle program;
    KernelHandle kernel;
    std::size_t max_group_size = 0;
    std::mutex mutex;  // from setting the arguments to the launch: OpenCL keeps them in the kernel
  };
  struct Sizes {
    std::array<std::size_t, 3> groups{1, 1, 1}, items{1, 1, 1};
  };

  Built& BuiltFor(int device);
  std::unique_ptr<Built> MakeBuilt(Device& device) const;
  void CheckExtensions(const DeviceProperties& device) const;
  ProgramHandle BuildFromSource(Device& device, const std::string& options) const;
  void SetArguments(Built& built, tvm::ffi::PackedArgs args, int device) const;
  Sizes LaunchSizes(tvm::ffi::PackedArgs args) const;
  void CheckSizes(const Sizes& sizes, const Built& built, const DeviceProperties& device) const;

  std::string name_;
  KernelInfo info_;
  std::string source_;
  std::vector<int> axes_;  // of each launch tag: 0 to 2 for groups, 3 to 5 for items
  cl_uint dimensions_ = 1;
  std::mutex mutex_;  // guards the map
  std::map<int, std::unique_ptr<Built>> built_;
};

}  // namespace tvm_mobilenet::opencl

#endif  // OPENCL_RUNTIME_KERNEL_H_
