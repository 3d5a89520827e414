#include "kernel.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "device_api.h"
#include "environment.h"
#include "half.h"
#include "program_cache.h"
#include "recording.h"

namespace tvm_mobilenet::opencl {

namespace {

constexpr std::size_t kLogMax = 600;

// Compiler output on one line, its beginning.
std::string OneLine(const std::string& text) {
  std::string line;
  bool space = false;
  for (char c : text) {
    if (c == '\n' || c == '\r' || c == '\t' || c == ' ' || c == '\0') {
      space = !line.empty();
      continue;
    }
    if (space) line += ' ';
    space = false;
    line += c;
  }
  return line.size() > kLogMax ? line.substr(0, kLogMax) + " ..." : line;
}

std::string BuildLog(cl_program program, cl_device_id device) {
  std::size_t size = 0;
  if (cl.clGetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, 0, nullptr, &size) !=
      CL_SUCCESS) {
    return "it gives no log";
  }
  std::string log(size, '\0');
  cl.clGetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, size, log.data(), nullptr);
  log = OneLine(log);
  return log.empty() ? "its log is empty" : log;
}

std::string Binary(cl_program program) {
  std::size_t size = 0;
  CL_CALL(clGetProgramInfo, program, CL_PROGRAM_BINARY_SIZES, sizeof size, &size, nullptr);
  std::string binary(size, '\0');
  unsigned char* place = reinterpret_cast<unsigned char*>(binary.data());
  if (size != 0) {
    CL_CALL(clGetProgramInfo, program, CL_PROGRAM_BINARIES, sizeof place, &place, nullptr);
  }
  return binary;
}

// A program from the driver's own binary; none where the driver does not take it any more.
ProgramHandle FromBinary(Device& device, const std::string& binary, const std::string& options) {
  const std::size_t size = binary.size();
  const auto* data = reinterpret_cast<const unsigned char*>(binary.data());
  const cl_device_id id = device.id();
  cl_int loaded = CL_SUCCESS;
  cl_int status = CL_SUCCESS;
  ProgramHandle program(
      cl.clCreateProgramWithBinary(device.context(), 1, &id, &size, &data, &loaded, &status));
  if (status != CL_SUCCESS || loaded != CL_SUCCESS ||
      cl.clBuildProgram(program.get(), 1, &id, options.c_str(), nullptr, nullptr) != CL_SUCCESS) {
    return ProgramHandle();
  }
  return program;
}

int Axis(const std::string& kernel, const std::string& tag) {
  for (int axis = 0; axis < 3; ++axis) {
    const char letter = static_cast<char>('x' + axis);
    if (tag == std::string("blockIdx.") + letter) return axis;
    if (tag == std::string("threadIdx.") + letter) return 3 + axis;
  }
  OPENCL_RUNTIME_FAIL << "kernel " << kernel << " is launched with " << tag
                      << ", which OpenCL does not have";
  TVM_FFI_UNREACHABLE();
}

std::string TypeName(DLDataType type) {
  static constexpr const char* kCodes[] = {"int",    "uint",    "float", "handle",
                                           "bfloat", "complex", "bool"};
  const std::string code = type.code < std::size(kCodes) ? kCodes[type.code] : "type code";
  const std::string lanes = type.lanes > 1 ? "x" + std::to_string(type.lanes) : "";
  return code + std::to_string(type.bits) + lanes;
}

bool IsArgument(DLDataType type) {
  if (type.lanes != 1) return false;
  const int bits = type.bits;
  switch (type.code) {
    case kDLOpaqueHandle:
      return true;
    case kDLInt:
    case kDLUInt:
      return bits == 8 || bits == 16 || bits == 32 || bits == 64;
    case kDLFloat:
      return bits == 16 || bits == 32 || bits == 64;
    default:
      return false;
  }
}

template <typename T>
void Set(cl_kernel kernel, cl_uint index, T value) {
  CL_CALL(clSetKernelArg, kernel, index, sizeof value, &value);
}

int64_t Whole(const tvm::ffi::AnyView& value) { return value.cast<int64_t>(); }

void SetInteger(cl_kernel kernel, cl_uint index, int bits, int64_t value) {
  switch (bits) {  // two's complement: signed and unsigned are the same bytes
    case 8:
      return Set(kernel, index, static_cast<uint8_t>(value));
    case 16:
      return Set(kernel, index, static_cast<uint16_t>(value));
    case 32:
      return Set(kernel, index, static_cast<uint32_t>(value));
    default:
      return Set(kernel, index, static_cast<uint64_t>(value));
  }
}

void SetFloat(cl_kernel kernel, cl_uint index, int bits, double value) {
  switch (bits) {
    case 16:
      return Set(kernel, index, HalfBits(value));
    case 32:
      return Set(kernel, index, static_cast<float>(value));
    default:
      return Set(kernel, index, value);
  }
}

std::string Shape(const std::array<std::size_t, 3>& sizes) {
  return std::to_string(sizes[0]) + "x" + std::to_string(sizes[1]) + "x" + std::to_string(sizes[2]);
}

}  // namespace

Kernel::Kernel(std::string name, KernelInfo info, std::string source)
    : name_(std::move(name)), info_(std::move(info)), source_(std::move(source)) {
  for (std::size_t i = 0; i < info_.arguments.size(); ++i) {
    if (!IsArgument(info_.arguments[i])) {
      OPENCL_RUNTIME_FAIL << "kernel " << name_ << ": argument " << i << " is "
                          << TypeName(info_.arguments[i])
                          << ", which no OpenCL kernel can take; compile the model again with an "
                             "integer or a float there";
    }
  }
  for (const std::string& tag : info_.launch_tags) {
    axes_.push_back(Axis(name_, tag));
    dimensions_ = std::max<cl_uint>(dimensions_, static_cast<cl_uint>(axes_.back() % 3 + 1));
  }
}

void Kernel::Build(int device) { BuiltFor(device); }

Kernel::Built& Kernel::BuiltFor(int device) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::unique_ptr<Built>& built = built_[device];
  if (built == nullptr) built = MakeBuilt(DeviceList::Get().At(device));
  return *built;
}

std::unique_ptr<Kernel::Built> Kernel::MakeBuilt(Device& device) const {
  const DeviceProperties& known = device.properties();
  CheckExtensions(known);
  const std::string options = Environment(kOptionsVariable);
  const ProgramKey key{known.platform, known.name + "|" + known.version, known.driver, options,
                       source_};
  auto built = std::make_unique<Built>();
  if (const std::optional<std::string> binary = LoadProgram(key)) {
    built->program = FromBinary(device, *binary, options);
  }
  if (!built->program) {
    built->program = BuildFromSource(device, options);
    StoreProgram(key, Binary(built->program.get()));
  }
  cl_int status = CL_SUCCESS;
  built->kernel = KernelHandle(cl.clCreateKernel(built->program.get(), name_.c_str(), &status));
  if (status != CL_SUCCESS) {
    OPENCL_RUNTIME_FAIL << "kernel " << name_ << " is not in its program: " << StatusName(status);
  }
  CL_CALL(clGetKernelWorkGroupInfo, built->kernel.get(), device.id(), CL_KERNEL_WORK_GROUP_SIZE,
          sizeof built->max_group_size, &built->max_group_size, nullptr);
  cl_ulong local = 0;
  CL_CALL(clGetKernelWorkGroupInfo, built->kernel.get(), device.id(), CL_KERNEL_LOCAL_MEM_SIZE,
          sizeof local, &local, nullptr);
  if (local > known.local_memory) {
    OPENCL_RUNTIME_FAIL << "kernel " << name_ << " needs " << local
                        << " bytes of local memory, device " << known.name << " has "
                        << known.local_memory << "; compile for a target with that limit";
  }
  return built;
}

// TVM enables an extension in the source of a kernel that needs it.
void Kernel::CheckExtensions(const DeviceProperties& device) const {
  struct Need {
    const char* extension;
    const char* type;
    bool there;
  };
  for (const Need& need : {Need{"cl_khr_fp16", "float16", device.half},
                           Need{"cl_khr_fp64", "float64", device.doubles}}) {
    if (!need.there && source_.find(need.extension) != std::string::npos) {
      OPENCL_RUNTIME_FAIL << "kernel " << name_ << " computes in " << need.type << ", which device "
                          << device.name << " does not have (no " << need.extension
                          << "); compile the model for float32";
    }
  }
}

ProgramHandle Kernel::BuildFromSource(Device& device, const std::string& options) const {
  const char* text = source_.data();
  const std::size_t size = source_.size();
  const cl_device_id id = device.id();
  cl_int status = CL_SUCCESS;
  ProgramHandle program(cl.clCreateProgramWithSource(device.context(), 1, &text, &size, &status));
  if (status == CL_SUCCESS) {
    status = cl.clBuildProgram(program.get(), 1, &id, options.c_str(), nullptr, nullptr);
  }
  if (status != CL_SUCCESS) {
    OPENCL_RUNTIME_FAIL << "kernel " << name_ << " cannot be built by the driver of device "
                        << device.properties().name << " (" << StatusName(status)
                        << "): " << BuildLog(program.get(), id);
  }
  return program;
}

void Kernel::SetArguments(Built& built, tvm::ffi::PackedArgs args, int device) const {
  for (std::size_t i = 0; i < info_.arguments.size(); ++i) {
    const DLDataType type = info_.arguments[i];
    const auto index = static_cast<cl_uint>(i);
    const tvm::ffi::AnyView& value = args[static_cast<int>(i)];
    if (type.code == kDLOpaqueHandle) {
      const auto* buffer = static_cast<const Buffer*>(value.cast<void*>());
      if (buffer == nullptr) {
        OPENCL_RUNTIME_FAIL << "kernel " << name_ << ": argument " << i << " is no buffer";
      }
      if (buffer->device != device) {
        OPENCL_RUNTIME_FAIL << "kernel " << name_ << " runs on device " << device << ", argument "
                            << i << " lies on device " << buffer->device;
      }
      Set(built.kernel.get(), index, buffer->memory.get());
    } else if (type.code == kDLFloat) {
      SetFloat(built.kernel.get(), index, type.bits, value.cast<double>());
    } else {
      SetInteger(built.kernel.get(), index, type.bits, Whole(value));
    }
  }
}

Kernel::Sizes Kernel::LaunchSizes(tvm::ffi::PackedArgs args) const {
  const std::size_t expected = info_.arguments.size() + axes_.size();
  if (static_cast<std::size_t>(args.size()) != expected) {
    OPENCL_RUNTIME_FAIL << "kernel " << name_ << " takes " << expected << " values, " << args.size()
                        << " were given";
  }
  Sizes sizes;
  for (std::size_t i = 0; i < axes_.size(); ++i) {
    const int64_t size = Whole(args[static_cast<int>(info_.arguments.size() + i)]);
    if (size < 0) {
      OPENCL_RUNTIME_FAIL << "kernel " << name_ << ": " << info_.launch_tags[i] << " is " << size;
    }
    const auto axis = static_cast<std::size_t>(axes_[i]);
    (axis < 3 ? sizes.groups[axis] : sizes.items[axis - 3]) = static_cast<std::size_t>(size);
  }
  return sizes;
}

void Kernel::CheckSizes(const Sizes& sizes, const Built& built,
                        const DeviceProperties& device) const {
  const std::size_t total = sizes.items[0] * sizes.items[1] * sizes.items[2];
  if (total > built.max_group_size) {
    OPENCL_RUNTIME_FAIL << "kernel " << name_ << " needs work-groups of " << Shape(sizes.items)
                        << " = " << total << " items, device " << device.name << " takes "
                        << built.max_group_size << " for it; compile for a target with that limit";
  }
  for (std::size_t axis = 0; axis < 3; ++axis) {
    if (sizes.items[axis] > device.max_item_sizes[axis]) {
      OPENCL_RUNTIME_FAIL << "kernel " << name_ << " needs work-groups of " << Shape(sizes.items)
                          << " items, device " << device.name << " takes "
                          << Shape(device.max_item_sizes)
                          << "; compile for a target with that limit";
    }
  }
}

void Kernel::Launch(tvm::ffi::PackedArgs args) {
  const Sizes sizes = LaunchSizes(args);
  const int number = OpenCLDeviceAPI::CurrentDevice();
  Device& device = DeviceList::Get().At(number);
  Built& built = BuiltFor(number);
  std::array<std::size_t, 3> global;
  for (std::size_t axis = 0; axis < 3; ++axis) {
    global[axis] = sizes.groups[axis] * sizes.items[axis];
    if (global[axis] == 0) return;  // nothing to compute, and OpenCL takes no empty launch
  }
  CheckSizes(sizes, built, device.properties());
  const bool recorded = Recording::IsActive();
  const cl_command_queue queue = device.queue();
  cl_event event = nullptr;
  {
    std::lock_guard<std::mutex> lock(built.mutex);
    SetArguments(built, args, number);
    const cl_int status =
        cl.clEnqueueNDRangeKernel(queue, built.kernel.get(), dimensions_, nullptr, global.data(),
                                  sizes.items.data(), 0, nullptr, recorded ? &event : nullptr);
    if (status != CL_SUCCESS) {
      OPENCL_RUNTIME_FAIL << "kernel " << name_ << " cannot be launched on device "
                          << device.properties().name << " in groups of " << Shape(sizes.items)
                          << ": " << StatusName(status);
    }
  }
  if (recorded) Recording::Add(EventHandle(event).get());
}

}  // namespace tvm_mobilenet::opencl
