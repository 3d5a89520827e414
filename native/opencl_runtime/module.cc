#include "module.h"

#include <tvm/ffi/function.h>

#include <map>
#include <memory>

#include "kernel.h"

namespace tvm_mobilenet::opencl {

namespace {

namespace ffi = tvm::ffi;

using Kernels = std::map<std::string, std::shared_ptr<Kernel>>;

// TVM writes all kernels into one text, each behind a line with its name. Built one by one, a model
// starts with those it needs, and a changed kernel leaves the others in the cache.
std::map<std::string, std::string> SplitSource(const std::string& code) {
  static const std::string kMark = "// Function: ";
  std::map<std::string, std::string> sources;
  std::size_t begin = code.find(kMark);
  while (begin != std::string::npos) {
    const std::size_t name = begin + kMark.size();
    const std::size_t line_end = std::min(code.find('\n', name), code.size());
    const std::size_t next = code.find("\n" + kMark, line_end);
    const std::size_t end = next == std::string::npos ? code.size() : next + 1;
    sources[code.substr(name, line_end - name)] = code.substr(begin, end - begin);
    begin = next == std::string::npos ? next : next + 1;
  }
  return sources;
}

Kernels MakeKernels(const ModuleContent& content) {
  if (content.format != "cl") {
    OPENCL_RUNTIME_FAIL << "a module of format " << content.format
                        << " cannot be run; OpenCL C source (cl) can";
  }
  const std::map<std::string, std::string> sources = SplitSource(content.code);
  Kernels kernels;
  for (const auto& [name, info] : content.kernels) {
    const auto source = sources.find(name);
    if (source == sources.end()) {
      OPENCL_RUNTIME_FAIL << "the source of kernel " << name
                          << " is not in the library; compile the model again";
    }
    kernels[name] = std::make_shared<Kernel>(name, info, source->second);
  }
  return kernels;
}

class OpenCLModule final : public ffi::ModuleObj {
 public:
  explicit OpenCLModule(ModuleContent content)
      : content_(std::move(content)), kernels_(MakeKernels(content_)) {}

  const char* kind() const final { return "opencl"; }

  int GetPropertyMask() const final {
    return ffi::Module::kBinarySerializable | ffi::Module::kRunnable;
  }

  // The functions hold their kernels, not the module: they may outlive it.
  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    if (name == kBuildAll) {
      return ffi::Function::FromTyped([kernels = kernels_](int device) {
        for (const auto& entry : kernels) entry.second->Build(device);
        return static_cast<int64_t>(kernels.size());
      });
    }
    const auto found = kernels_.find(name);
    if (found == kernels_.end()) return std::nullopt;
    return ffi::Function::FromPacked(
        [kernel = found->second](ffi::PackedArgs args, ffi::Any*) { kernel->Launch(args); });
  }

  ffi::Bytes SaveToBytes() const final { return ffi::Bytes(SaveModule(content_)); }

  ffi::String InspectSource(const ffi::String& format) const final {
    return format.empty() || format == content_.format ? ffi::String(content_.code) : ffi::String();
  }

 private:
  ModuleContent content_;
  Kernels kernels_;
};

}  // namespace

ffi::Module MakeModule(ModuleContent content) {
  return ffi::Module(ffi::make_object<OpenCLModule>(std::move(content)));
}

}  // namespace tvm_mobilenet::opencl
