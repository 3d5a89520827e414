// A compiled library's OpenCL part as TVM's runtime sees it.
#ifndef OPENCL_RUNTIME_MODULE_H_
#define OPENCL_RUNTIME_MODULE_H_

#include <tvm/ffi/extra/module.h>

#include "module_bytes.h"

namespace tvm_mobilenet::opencl {

// A function of every module, which takes a device's number and builds all kernels for it: so that
// a driver's refusal is met when the model is opened, and no inference waits for a compiler.
// Returns how many kernels there are.
constexpr const char* kBuildAll = "tvm_mobilenet.opencl.build_all";

// Makes a module of its content. Fails where that is nothing that can be run.
tvm::ffi::Module MakeModule(ModuleContent content);

}  // namespace tvm_mobilenet::opencl

#endif  // OPENCL_RUNTIME_MODULE_H_
