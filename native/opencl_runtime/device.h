// The OpenCL devices of this machine, and what each can do.
#ifndef OPENCL_RUNTIME_DEVICE_H_
#define OPENCL_RUNTIME_DEVICE_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "handle.h"

namespace tvm_mobilenet::opencl {

// What a device says of itself. Sizes in bytes.
struct DeviceProperties {
  std::string platform, name, vendor, version, driver, extensions, kind;
  uint32_t compute_units = 0;
  uint32_t clock_mhz = 0;
  uint32_t image_pitch_alignment = 0;
  std::size_t max_group_size = 0;
  std::array<std::size_t, 3> max_item_sizes{};
  std::array<std::size_t, 2> image2d_max{};
  uint64_t local_memory = 0;
  uint64_t global_memory = 0;
  uint64_t global_cache = 0;
  uint64_t max_allocation = 0;
  bool half = false;     // cl_khr_fp16
  bool doubles = false;  // cl_khr_fp64
  bool images = false;
  bool unified = false;  // host and device share their memory
};

// A device with its context and queue, which are made when first asked for. Safe to use from
// several threads.
class Device {
 public:
  Device(cl_platform_id platform, cl_device_id id);

  const DeviceProperties& properties() const { return properties_; }
  cl_device_id id() const { return id_; }
  cl_context context();

  // The queue that the calling thread enqueues to. It takes the times of what runs where the thread
  // is being recorded (recording.h): that is a queue of its own, since it costs every kernel a
  // little. Commands of one queue run in order; whoever begins or ends a recording waits for all.
  cl_command_queue queue();

  // Waits for everything that was enqueued.
  void Finish();

  // Whether copies between host and device map the buffer.
  bool maps_buffers() const { return maps_; }

  // Bytes that this process holds of the device.
  std::atomic<uint64_t> allocated{0};

 private:
  QueueHandle MakeQueue(cl_command_queue_properties properties);

  cl_platform_id platform_;
  cl_device_id id_;
  DeviceProperties properties_;
  bool maps_;
  std::mutex mutex_;  // guards the making of what follows
  ContextHandle context_;
  QueueHandle queue_, timed_queue_;
};

// All devices of OpenCL 1.2 and newer, GPUs first, in the order of their platforms. They are looked
// for at the first call, never while this library is being loaded: a server forks after that.
class DeviceList {
 public:
  static DeviceList& Get();

  // The device of that number.
  Device& At(int index);

  int size() const { return static_cast<int>(devices_.size()); }
  // The library in use; empty where there is none.
  const std::string& library() const { return library_; }
  // Why there is no device; empty where there is one.
  const std::string& reason() const { return reason_; }

  void FinishAll();

 private:
  DeviceList();
  void Enumerate(std::string* problem);

  std::string library_, reason_;
  std::vector<std::unique_ptr<Device>> devices_;
};

}  // namespace tvm_mobilenet::opencl

#endif  // OPENCL_RUNTIME_DEVICE_H_
