// What TVM's runtime finds here, under the names that it looks for.
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include "describe.h"
#include "device_api.h"
#include "metadata.h"
#include "module.h"
#include "recording.h"
#include "timer.h"

namespace tvm_mobilenet::opencl {

namespace {

namespace ffi = tvm::ffi;

using tvm::runtime::FunctionInfo;

ffi::Module CreateModule(ffi::Bytes code, ffi::String format,
                         ffi::Map<ffi::String, FunctionInfo> functions,
                         ffi::Map<ffi::String, ffi::String>) {
  ModuleContent content;
  content.format = format;
  content.code = std::string(code.data(), code.size());
  for (const auto& [name, function] : functions) {
    KernelInfo info;
    for (const DLDataType& type : function->arg_types) info.arguments.push_back(type);
    for (const ffi::String& tag : function->launch_param_tags) info.launch_tags.push_back(tag);
    for (const auto& tag : function->arg_extra_tags) {
      info.extra_tags.push_back(static_cast<int32_t>(tag));
    }
    content.kernels.emplace(name, std::move(info));
  }
  return MakeModule(std::move(content));
}

// The recordings that Python has begun and not ended, of the calling thread.
std::vector<std::shared_ptr<Recording>>& OpenRecordings() {
  thread_local std::vector<std::shared_ptr<Recording>> open;
  return open;
}

int64_t EndRecording() {
  auto& open = OpenRecordings();
  if (open.empty()) OPENCL_RUNTIME_FAIL << "no recording was begun on this thread";
  const std::shared_ptr<Recording> recording = std::move(open.back());
  open.pop_back();
  recording->Stop();
  return recording->nanoseconds();
}

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  // A name that is registered twice ends the process. Where the runtime has OpenCL of its own, or
  // this library is here already from another folder, that one stays in charge.
  if (ffi::Function::GetGlobal("device_api.opencl").has_value()) return;
  refl::GlobalDef()
      .def("device_api.opencl", [] { return static_cast<void*>(OpenCLDeviceAPI::Get()); })
      .def("tvm_mobilenet.opencl.describe", [] { return ffi::String(Describe()); })
      .def("tvm_mobilenet.opencl.begin_recording",
           [] { OpenRecordings().push_back(Recording::Begin()); })
      .def("tvm_mobilenet.opencl.end_recording", EndRecording);
  if (!ffi::Function::GetGlobal("ffi.Module.create.opencl").has_value()) {
    refl::GlobalDef().def("ffi.Module.create.opencl", CreateModule);
  }
  if (!ffi::Function::GetGlobal("ffi.Module.load_from_bytes.opencl").has_value()) {
    refl::GlobalDef().def("ffi.Module.load_from_bytes.opencl", [](ffi::Bytes bytes) {
      return MakeModule(LoadModule(bytes.data(), bytes.size()));
    });
  }
  if (!ffi::Function::GetGlobal("runtime.timer.opencl").has_value()) {
    refl::GlobalDef().def("runtime.timer.opencl", MakeTimer);
  }
}

}  // namespace

}  // namespace tvm_mobilenet::opencl
