// OpenCL objects that release themselves.
#ifndef OPENCL_RUNTIME_HANDLE_H_
#define OPENCL_RUNTIME_HANDLE_H_

#include <utility>

#include "opencl_api.h"

namespace tvm_mobilenet::opencl {

// Owns one reference of an OpenCL object. `Release` is the member of `OpenCLApi` that drops it.
template <typename Object, auto Release>
class Handle {
 public:
  Handle() = default;
  explicit Handle(Object object) : object_(object) {}
  Handle(Handle&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  // A destructor has nobody to tell of a failure.
  ~Handle() {
    if (object_ != nullptr && !IsExiting()) (cl.*Release)(object_);
  }

  Object get() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  Object object_ = nullptr;
};

using ContextHandle = Handle<cl_context, &OpenCLApi::clReleaseContext>;
using EventHandle = Handle<cl_event, &OpenCLApi::clReleaseEvent>;
using KernelHandle = Handle<cl_kernel, &OpenCLApi::clReleaseKernel>;
using MemoryHandle = Handle<cl_mem, &OpenCLApi::clReleaseMemObject>;
using ProgramHandle = Handle<cl_program, &OpenCLApi::clReleaseProgram>;
using QueueHandle = Handle<cl_command_queue, &OpenCLApi::clReleaseCommandQueue>;

}  // namespace tvm_mobilenet::opencl

#endif  // OPENCL_RUNTIME_HANDLE_H_
