#include "device.h"

#include <algorithm>

#include "environment.h"
#include "recording.h"

namespace tvm_mobilenet::opencl {

namespace {

constexpr const char* kLibraries[] = {"libOpenCL.so.1", "libOpenCL.so", "libmali.so.1",
                                      "libmali.so"};

template <typename T>
T Info(cl_device_id device, cl_device_info name) {
  T value{};
  CL_CALL(clGetDeviceInfo, device, name, sizeof value, &value, nullptr);
  return value;
}

// What a driver may refuse to answer, being younger or older than the question.
template <typename T>
T InfoOr(cl_device_id device, cl_device_info name, T otherwise) {
  T value{};
  return cl.clGetDeviceInfo(device, name, sizeof value, &value, nullptr) == CL_SUCCESS ? value
                                                                                       : otherwise;
}

std::string Text(std::string raw) {
  raw.resize(std::min(raw.size(), raw.find('\0')));
  return raw;
}

std::string TextInfo(cl_device_id device, cl_device_info name) {
  std::size_t size = 0;
  CL_CALL(clGetDeviceInfo, device, name, 0, nullptr, &size);
  std::string raw(size, '\0');
  if (size != 0) CL_CALL(clGetDeviceInfo, device, name, size, raw.data(), nullptr);
  return Text(std::move(raw));
}

std::string PlatformName(cl_platform_id platform) {
  std::size_t size = 0;
  CL_CALL(clGetPlatformInfo, platform, CL_PLATFORM_NAME, 0, nullptr, &size);
  std::string raw(size, '\0');
  if (size != 0) {
    CL_CALL(clGetPlatformInfo, platform, CL_PLATFORM_NAME, size, raw.data(), nullptr);
  }
  return Text(std::move(raw));
}

bool HasWord(const std::string& words, const std::string& word) {
  return (" " + words + " ").find(" " + word + " ") != std::string::npos;
}

// "OpenCL 1.2 v1.r14p0": a driver without 1.2 lacks functions that are called here.
bool IsRecent(const std::string& version) {
  int major = 0;
  int minor = 0;
  if (std::sscanf(version.c_str(), "OpenCL %d.%d", &major, &minor) != 2) return false;
  return major > 1 || (major == 1 && minor >= 2);
}

const char* KindName(cl_device_type type) {
  if (type & CL_DEVICE_TYPE_GPU) return "gpu";
  if (type & CL_DEVICE_TYPE_ACCELERATOR) return "accelerator";
  return type & CL_DEVICE_TYPE_CPU ? "cpu" : "other";
}

int Rank(const Device& device) {
  const std::string& kind = device.properties().kind;
  return kind == "gpu" ? 0 : kind == "accelerator" ? 1 : 2;
}

DeviceProperties Describe(cl_platform_id platform, cl_device_id id) {
  DeviceProperties found;
  found.platform = PlatformName(platform);
  found.name = TextInfo(id, CL_DEVICE_NAME);
  found.vendor = TextInfo(id, CL_DEVICE_VENDOR);
  found.version = TextInfo(id, CL_DEVICE_VERSION);
  found.driver = TextInfo(id, CL_DRIVER_VERSION);
  found.extensions = TextInfo(id, CL_DEVICE_EXTENSIONS);
  found.kind = KindName(Info<cl_device_type>(id, CL_DEVICE_TYPE));
  found.compute_units = Info<cl_uint>(id, CL_DEVICE_MAX_COMPUTE_UNITS);
  found.clock_mhz = InfoOr<cl_uint>(id, CL_DEVICE_MAX_CLOCK_FREQUENCY, 0);
  // OpenCL 2.0's CL_DEVICE_IMAGE_PITCH_ALIGNMENT, an extension's before.
  found.image_pitch_alignment = InfoOr<cl_uint>(id, 0x104A, 0);
  found.max_group_size = Info<std::size_t>(id, CL_DEVICE_MAX_WORK_GROUP_SIZE);
  std::vector<std::size_t> sizes(
      std::max<cl_uint>(3, Info<cl_uint>(id, CL_DEVICE_MAX_WORK_ITEM_DIMENSIONS)));
  CL_CALL(clGetDeviceInfo, id, CL_DEVICE_MAX_WORK_ITEM_SIZES, sizes.size() * sizeof sizes[0],
          sizes.data(), nullptr);
  std::copy_n(sizes.begin(), 3, found.max_item_sizes.begin());
  found.local_memory = Info<cl_ulong>(id, CL_DEVICE_LOCAL_MEM_SIZE);
  found.global_memory = Info<cl_ulong>(id, CL_DEVICE_GLOBAL_MEM_SIZE);
  found.global_cache = InfoOr<cl_ulong>(id, CL_DEVICE_GLOBAL_MEM_CACHE_SIZE, 0);
  found.max_allocation = Info<cl_ulong>(id, CL_DEVICE_MAX_MEM_ALLOC_SIZE);
  found.half = HasWord(found.extensions, "cl_khr_fp16");
  found.doubles = HasWord(found.extensions, "cl_khr_fp64");
  found.images = Info<cl_bool>(id, CL_DEVICE_IMAGE_SUPPORT) != CL_FALSE;
  found.image2d_max = {InfoOr<std::size_t>(id, CL_DEVICE_IMAGE2D_MAX_WIDTH, 0),
                       InfoOr<std::size_t>(id, CL_DEVICE_IMAGE2D_MAX_HEIGHT, 0)};
  found.unified = InfoOr<cl_bool>(id, CL_DEVICE_HOST_UNIFIED_MEMORY, CL_FALSE) != CL_FALSE;
  return found;
}

}  // namespace

Device::Device(cl_platform_id platform, cl_device_id id)
    : platform_(platform), id_(id), properties_(Describe(platform, id)) {
  const std::string asked = Environment(kMapVariable);
  maps_ = asked.empty() ? properties_.unified : asked != "0";
}

cl_context Device::context() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!context_) {
    const cl_context_properties properties[] = {
        CL_CONTEXT_PLATFORM, reinterpret_cast<cl_context_properties>(platform_), 0};
    cl_int status = CL_SUCCESS;
    context_ = ContextHandle(cl.clCreateContext(properties, 1, &id_, nullptr, nullptr, &status));
    if (status != CL_SUCCESS) {
      OPENCL_RUNTIME_FAIL << "device " << properties_.name
                          << " gives no context: " << StatusName(status);
    }
  }
  return context_.get();
}

QueueHandle Device::MakeQueue(cl_command_queue_properties properties) {
  cl_int status = CL_SUCCESS;
  QueueHandle queue(cl.clCreateCommandQueue(context_.get(), id_, properties, &status));
  if (status != CL_SUCCESS) {
    OPENCL_RUNTIME_FAIL << "device " << properties_.name
                        << " gives no command queue: " << StatusName(status);
  }
  return queue;
}

cl_command_queue Device::queue() {
  const bool timed = Recording::IsActive();
  context();
  std::lock_guard<std::mutex> lock(mutex_);
  QueueHandle& chosen = timed ? timed_queue_ : queue_;
  if (!chosen) chosen = MakeQueue(timed ? CL_QUEUE_PROFILING_ENABLE : 0);
  return chosen.get();
}

void Device::Finish() {
  cl_command_queue queues[2];
  {
    std::lock_guard<std::mutex> lock(mutex_);
    queues[0] = queue_.get();
    queues[1] = timed_queue_.get();
  }
  for (cl_command_queue queue : queues) {
    if (queue != nullptr) CL_CALL(clFinish, queue);
  }
}

DeviceList& DeviceList::Get() {
  // Never destroyed: TVM's own singletons may still free tensors while the process ends.
  static DeviceList* list = new DeviceList();
  return *list;
}

DeviceList::DeviceList() {
  const std::string named = Environment(kLibraryVariable);
  std::vector<std::string> candidates(std::begin(kLibraries), std::end(kLibraries));
  if (!named.empty()) candidates = {named};
  std::string tried;
  for (const std::string& candidate : candidates) {
    std::string problem = OpenLibrary(candidate);
    if (problem.empty()) {
      Enumerate(&problem);
      if (!devices_.empty()) {
        library_ = candidate;
        reason_.clear();
        WatchForExit();
        return;
      }
      // A library that answers says more than one that is not there.
      reason_ = candidate + ": " + problem;
    }
    tried += (tried.empty() ? "" : ", ") + candidate;
  }
  if (!reason_.empty()) return;
  reason_ = named.empty()
                ? "no OpenCL library was found (tried " + tried +
                      "); install the device's driver, or name its library with " + kLibraryVariable
                : std::string(kLibraryVariable) + " names " + named +
                      ", which is no OpenCL library that can be opened";
}

void DeviceList::Enumerate(std::string* problem) {
  cl_uint count = 0;
  cl_int status = cl.clGetPlatformIDs(0, nullptr, &count);
  if (status != CL_SUCCESS || count == 0) {
    *problem = "it knows no platform (" +
               (count == 0 && status == CL_SUCCESS ? std::string("none is installed")
                                                   : StatusName(status)) +
               "); install the device's OpenCL driver";
    return;
  }
  std::vector<cl_platform_id> platforms(count);
  CL_CALL(clGetPlatformIDs, count, platforms.data(), nullptr);
  std::string left_out;
  for (cl_platform_id platform : platforms) {
    cl_uint found = 0;
    status = cl.clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 0, nullptr, &found);
    if (status != CL_SUCCESS || found == 0) continue;
    std::vector<cl_device_id> ids(found);
    CL_CALL(clGetDeviceIDs, platform, CL_DEVICE_TYPE_ALL, found, ids.data(), nullptr);
    for (cl_device_id id : ids) {
      try {
        auto device = std::make_unique<Device>(platform, id);
        if (IsRecent(device->properties().version)) {
          devices_.push_back(std::move(device));
        } else {
          left_out = device->properties().name + " has " + device->properties().version +
                     ", 1.2 is the oldest that is served";
        }
      } catch (const std::exception& error) {  // one broken device does not hide the others
        left_out = error.what();
      }
    }
  }
  std::stable_sort(devices_.begin(), devices_.end(),
                   [](const auto& a, const auto& b) { return Rank(*a) < Rank(*b); });
  if (devices_.empty()) {
    *problem = left_out.empty() ? "its platforms have no device; is the device there, and may this "
                                  "user open it (groups render and video)?"
                                : left_out;
  }
}

Device& DeviceList::At(int index) {
  if (devices_.empty()) OPENCL_RUNTIME_FAIL << reason_;
  if (index < 0 || index >= size()) {
    OPENCL_RUNTIME_FAIL << "there is no device " << index << "; this machine has " << size()
                        << ", numbered from 0";
  }
  return *devices_[static_cast<std::size_t>(index)];
}

void DeviceList::FinishAll() {
  for (const auto& device : devices_) device->Finish();
}

}  // namespace tvm_mobilenet::opencl
