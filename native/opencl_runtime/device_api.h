// OpenCL devices as TVM's runtime asks for them: memory, copies, synchronisation, properties.
#ifndef OPENCL_RUNTIME_DEVICE_API_H_
#define OPENCL_RUNTIME_DEVICE_API_H_

#include <tvm/runtime/device_api.h>

#include <string>

#include "device.h"

namespace tvm_mobilenet::opencl {

// What `AllocDataSpace` returns a pointer to, and what therefore stands in a tensor's `data`.
struct Buffer {
  MemoryHandle memory;
  std::size_t size;  // bytes that were asked for
  int device;
};

class OpenCLDeviceAPI final : public tvm::runtime::DeviceAPI {
 public:
  static OpenCLDeviceAPI* Get();

  // The number of the device that the calling thread has chosen.
  static int CurrentDevice();

  void SetDevice(DLDevice device) final;
  void GetAttr(DLDevice device, tvm::runtime::DeviceAttrKind kind, tvm::ffi::Any* value) final;
  void GetTargetProperty(DLDevice device, const std::string& property, tvm::ffi::Any* value) final;

  using DeviceAPI::AllocDataSpace;
  void* AllocDataSpace(DLDevice device, std::size_t bytes, std::size_t alignment,
                       DLDataType type_hint) final;
  void FreeDataSpace(DLDevice device, void* data) final;
  void* AllocWorkspace(DLDevice device, std::size_t bytes, DLDataType type_hint) final;
  void FreeWorkspace(DLDevice device, void* data) final;
  void StreamSync(DLDevice device, TVMStreamHandle stream) final;

  using DeviceAPI::CopyDataFromTo;

 protected:
  void CopyDataFromTo(const void* from, std::size_t from_offset, void* to, std::size_t to_offset,
                      std::size_t bytes, DLDevice device_from, DLDevice device_to,
                      DLDataType type_hint, TVMStreamHandle stream) final;

 private:
  OpenCLDeviceAPI() = default;
};

}  // namespace tvm_mobilenet::opencl

#endif  // OPENCL_RUNTIME_DEVICE_API_H_
