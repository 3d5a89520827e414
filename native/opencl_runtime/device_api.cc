#include "device_api.h"

#include <tvm/ffi/string.h>

#include <cstring>
#include <vector>

#include "workspace_pool.h"

namespace tvm_mobilenet::opencl {

namespace {

using tvm::runtime::DeviceAttrKind;

thread_local int current_device = 0;

Device& DeviceOf(DLDevice device) { return DeviceList::Get().At(device.device_id); }

tvm::runtime::WorkspacePool& ThreadWorkspace() {
  thread_local tvm::runtime::WorkspacePool pool(kDLOpenCL, OpenCLDeviceAPI::Get());
  return pool;
}

const Buffer& Checked(const void* data, std::size_t offset, std::size_t bytes) {
  const Buffer& buffer = *static_cast<const Buffer*>(data);
  if (offset > buffer.size || bytes > buffer.size - offset) {
    OPENCL_RUNTIME_FAIL << "a copy of " << bytes << " bytes at byte " << offset
                        << " does not fit a buffer of " << buffer.size << " bytes";
  }
  return buffer;
}

// A part of a buffer as host memory, for as long as this lives.
class Mapping {
 public:
  Mapping(cl_command_queue queue, const Buffer& buffer, cl_map_flags flags, std::size_t offset,
          std::size_t bytes)
      : queue_(queue), memory_(buffer.memory.get()) {
    cl_int status = CL_SUCCESS;
    data_ = cl.clEnqueueMapBuffer(queue, memory_, CL_TRUE, flags, offset, bytes, 0, nullptr,
                                  nullptr, &status);
    if (status != CL_SUCCESS) {
      OPENCL_RUNTIME_FAIL << "clEnqueueMapBuffer failed with " << StatusName(status);
    }
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (data_ != nullptr) {
      cl.clEnqueueUnmapMemObject(queue_, memory_, data_, 0, nullptr, nullptr);
    }
  }

  void* data() const { return data_; }

  // Hands the memory back to the device.
  void Unmap() {
    void* data = data_;
    data_ = nullptr;
    CL_CALL(clEnqueueUnmapMemObject, queue_, memory_, data, 0, nullptr, nullptr);
  }

 private:
  cl_command_queue queue_;
  cl_mem memory_;
  void* data_ = nullptr;
};

void Read(Device& device, const Buffer& from, std::size_t offset, void* to, std::size_t bytes) {
  const cl_command_queue queue = device.queue();
  if (device.maps_buffers()) {
    Mapping mapping(queue, from, CL_MAP_READ, offset, bytes);
    std::memcpy(to, mapping.data(), bytes);
    mapping.Unmap();
    return;
  }
  CL_CALL(clEnqueueReadBuffer, queue, from.memory.get(), CL_TRUE, offset, bytes, to, 0, nullptr,
          nullptr);
}

// Returns when `from` may be used for something else.
void Write(Device& device, const void* from, const Buffer& to, std::size_t offset,
           std::size_t bytes) {
  const cl_command_queue queue = device.queue();
  if (device.maps_buffers()) {
    Mapping mapping(queue, to, CL_MAP_WRITE_INVALIDATE_REGION, offset, bytes);
    std::memcpy(mapping.data(), from, bytes);
    mapping.Unmap();
    return;
  }
  CL_CALL(clEnqueueWriteBuffer, queue, to.memory.get(), CL_TRUE, offset, bytes, from, 0, nullptr,
          nullptr);
}

void CopyOnDevice(const Buffer& from, std::size_t from_offset, const Buffer& to,
                  std::size_t to_offset, std::size_t bytes) {
  Device& source = DeviceList::Get().At(from.device);
  Device& sink = DeviceList::Get().At(to.device);
  const bool overlap = from.memory.get() == to.memory.get() && from_offset < to_offset + bytes &&
                       to_offset < from_offset + bytes;
  if (from.device == to.device && !overlap) {
    CL_CALL(clEnqueueCopyBuffer, source.queue(), from.memory.get(), to.memory.get(), from_offset,
            to_offset, bytes, 0, nullptr, nullptr);
    return;
  }
  // Two devices have two contexts, which share no memory; and OpenCL refuses to copy within a
  // buffer to where it overlaps.
  std::vector<char> staged(bytes);
  Read(source, from, from_offset, staged.data(), bytes);
  Write(sink, staged.data(), to, to_offset, bytes);
}

std::string Dimensions(const std::array<std::size_t, 3>& sizes) {
  return "[" + std::to_string(sizes[0]) + ", " + std::to_string(sizes[1]) + ", " +
         std::to_string(sizes[2]) + "]";
}

}  // namespace

OpenCLDeviceAPI* OpenCLDeviceAPI::Get() {
  // Never destroyed: TVM frees tensors through it until the process ends.
  static OpenCLDeviceAPI* api = new OpenCLDeviceAPI();
  return api;
}

int OpenCLDeviceAPI::CurrentDevice() { return current_device; }

void OpenCLDeviceAPI::SetDevice(DLDevice device) { current_device = device.device_id; }

void OpenCLDeviceAPI::GetAttr(DLDevice device, DeviceAttrKind kind, tvm::ffi::Any* value) {
  if (kind == tvm::runtime::kExist) {
    *value = device.device_id >= 0 && device.device_id < DeviceList::Get().size();
    return;
  }
  const DeviceProperties& known = DeviceOf(device).properties();
  switch (kind) {
    case tvm::runtime::kMaxThreadsPerBlock:
      *value = static_cast<int64_t>(known.max_group_size);
      break;
    case tvm::runtime::kWarpSize:
      // With more, TVM places barriers where only a part of the group arrives.
      *value = 1;
      break;
    case tvm::runtime::kMaxSharedMemoryPerBlock:
      *value = static_cast<int64_t>(known.local_memory);
      break;
    case tvm::runtime::kComputeVersion:
      *value = tvm::ffi::String(known.version);
      break;
    case tvm::runtime::kDeviceName:
      *value = tvm::ffi::String(known.name);
      break;
    case tvm::runtime::kMaxClockRate:
      *value = static_cast<int64_t>(known.clock_mhz) * 1000;  // TVM asks for kHz
      break;
    case tvm::runtime::kMultiProcessorCount:
      *value = static_cast<int64_t>(known.compute_units);
      break;
    case tvm::runtime::kMaxThreadDimensions:
      *value = tvm::ffi::String(Dimensions(known.max_item_sizes));
      break;
    case tvm::runtime::kApiVersion:
      *value = CL_TARGET_OPENCL_VERSION;
      break;
    case tvm::runtime::kDriverVersion:
      *value = tvm::ffi::String(known.driver);
      break;
    case tvm::runtime::kL2CacheSizeBytes:
      *value = static_cast<int64_t>(known.global_cache);
      break;
    case tvm::runtime::kTotalGlobalMemory:
      *value = static_cast<int64_t>(known.global_memory);
      break;
    case tvm::runtime::kImagePitchAlignment:
      *value = static_cast<int64_t>(known.image_pitch_alignment);
      break;
    default:  // OpenCL does not tell the others
      *value = nullptr;
      break;
  }
}

void OpenCLDeviceAPI::GetTargetProperty(DLDevice device, const std::string& property,
                                        tvm::ffi::Any* value) {
  const DeviceProperties& known = DeviceOf(device).properties();
  if (property == "max_threads_per_block" || property == "max_num_threads") {
    *value = static_cast<int64_t>(known.max_group_size);
  } else if (property == "max_shared_memory_per_block") {
    *value = static_cast<int64_t>(known.local_memory);
  } else if (property == "thread_warp_size") {
    *value = int64_t{1};
  } else if (property == "texture_spatial_limit") {
    *value = static_cast<int64_t>(std::min(known.image2d_max[0], known.image2d_max[1]));
  } else if (property == "supports_float16") {
    *value = known.half;
  } else if (property == "supports_float64") {
    *value = known.doubles;
  } else if (property == "device_name") {
    *value = tvm::ffi::String(known.name);
  } else if (property == "driver_version") {
    *value = tvm::ffi::String(known.driver);
  }
}

void* OpenCLDeviceAPI::AllocDataSpace(DLDevice device, std::size_t bytes, std::size_t alignment,
                                      DLDataType) {
  Device& place = DeviceOf(device);
  const DeviceProperties& known = place.properties();
  // The standard aligns buffers for the largest of its types, 16 values of 64 bits.
  if (alignment > 128) {
    OPENCL_RUNTIME_FAIL << "a buffer aligned to " << alignment << " bytes was asked for, 128 is "
                        << "what OpenCL promises";
  }
  cl_int status = CL_SUCCESS;
  const cl_mem_flags host = place.maps_buffers() ? CL_MEM_ALLOC_HOST_PTR : 0;
  MemoryHandle memory(cl.clCreateBuffer(place.context(), CL_MEM_READ_WRITE | host,
                                        bytes > 0 ? bytes : 1, nullptr, &status));
  if (status != CL_SUCCESS) {
    OPENCL_RUNTIME_FAIL << "device " << known.name << " has no memory for " << bytes << " bytes ("
                        << StatusName(status) << "): " << place.allocated.load()
                        << " are in use here, " << known.global_memory << " are there in all, "
                        << known.max_allocation << " are the most for one buffer";
  }
  place.allocated += bytes;
  return new Buffer{std::move(memory), bytes, device.device_id};
}

void OpenCLDeviceAPI::FreeDataSpace(DLDevice, void* data) {
  if (data == nullptr || IsExiting()) return;
  Buffer* buffer = static_cast<Buffer*>(data);
  Device& place = DeviceList::Get().At(buffer->device);
  place.allocated -= buffer->size;
  // Waiting first is more than the standard asks for; there are drivers that need it. A failure is
  // that of an earlier command, and is met again at the next synchronisation.
  try {
    place.Finish();
  } catch (const tvm::ffi::Error&) {
  }
  delete buffer;
}

void* OpenCLDeviceAPI::AllocWorkspace(DLDevice device, std::size_t bytes, DLDataType) {
  return ThreadWorkspace().AllocWorkspace(device, bytes);
}

void OpenCLDeviceAPI::FreeWorkspace(DLDevice device, void* data) {
  ThreadWorkspace().FreeWorkspace(device, data);
}

void OpenCLDeviceAPI::StreamSync(DLDevice device, TVMStreamHandle) { DeviceOf(device).Finish(); }

void OpenCLDeviceAPI::CopyDataFromTo(const void* from, std::size_t from_offset, void* to,
                                     std::size_t to_offset, std::size_t bytes, DLDevice device_from,
                                     DLDevice device_to, DLDataType, TVMStreamHandle) {
  if (bytes == 0) return;
  if (device_from.device_type == kDLOpenCL && device_to.device_type == kDLOpenCL) {
    CopyOnDevice(Checked(from, from_offset, bytes), from_offset, Checked(to, to_offset, bytes),
                 to_offset, bytes);
  } else if (device_from.device_type == kDLOpenCL && device_to.device_type == kDLCPU) {
    const Buffer& buffer = Checked(from, from_offset, bytes);
    Read(DeviceList::Get().At(buffer.device), buffer, from_offset,
         static_cast<char*>(to) + to_offset, bytes);
  } else if (device_from.device_type == kDLCPU && device_to.device_type == kDLOpenCL) {
    const Buffer& buffer = Checked(to, to_offset, bytes);
    Write(DeviceList::Get().At(buffer.device), static_cast<const char*>(from) + from_offset, buffer,
          to_offset, bytes);
  } else {
    OPENCL_RUNTIME_FAIL << "copies go between OpenCL devices and the host, not to device kind "
                        << static_cast<int>(device_to.device_type);
  }
}

}  // namespace tvm_mobilenet::opencl
