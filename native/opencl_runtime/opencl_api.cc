#include "opencl_api.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdlib>

namespace tvm_mobilenet::opencl {

OpenCLApi cl;

namespace {

std::atomic<bool> exiting{false};

template <typename Function>
bool Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

}  // namespace

std::string OpenLibrary(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* reason = dlerror();
    return reason != nullptr ? reason : path + ": cannot be opened";
  }
  OpenCLApi found;
#define OPENCL_RUNTIME_FIND(name) \
  if (!Find(library, #name, &found.name)) return path + ": has no function " #name;
  OPENCL_RUNTIME_FUNCTIONS(OPENCL_RUNTIME_FIND)
#undef OPENCL_RUNTIME_FIND
  cl = found;
  return "";
}

bool IsExiting() { return exiting.load(std::memory_order_acquire); }

void WatchForExit() {
  static const int installed = std::atexit([] { exiting.store(true, std::memory_order_release); });
  (void)installed;
}

std::string StatusName(cl_int status) {
  switch (status) {
#define OPENCL_RUNTIME_STATUS(name) \
  case name:                        \
    return #name;
    OPENCL_RUNTIME_STATUS(CL_BUILD_PROGRAM_FAILURE)
    OPENCL_RUNTIME_STATUS(CL_COMPILER_NOT_AVAILABLE)
    OPENCL_RUNTIME_STATUS(CL_DEVICE_NOT_AVAILABLE)
    OPENCL_RUNTIME_STATUS(CL_DEVICE_NOT_FOUND)
    OPENCL_RUNTIME_STATUS(CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST)
    OPENCL_RUNTIME_STATUS(CL_INVALID_ARG_INDEX)
    OPENCL_RUNTIME_STATUS(CL_INVALID_ARG_SIZE)
    OPENCL_RUNTIME_STATUS(CL_INVALID_ARG_VALUE)
    OPENCL_RUNTIME_STATUS(CL_INVALID_BINARY)
    OPENCL_RUNTIME_STATUS(CL_INVALID_BUFFER_SIZE)
    OPENCL_RUNTIME_STATUS(CL_INVALID_BUILD_OPTIONS)
    OPENCL_RUNTIME_STATUS(CL_INVALID_COMMAND_QUEUE)
    OPENCL_RUNTIME_STATUS(CL_INVALID_CONTEXT)
    OPENCL_RUNTIME_STATUS(CL_INVALID_DEVICE)
    OPENCL_RUNTIME_STATUS(CL_INVALID_EVENT)
    OPENCL_RUNTIME_STATUS(CL_INVALID_GLOBAL_OFFSET)
    OPENCL_RUNTIME_STATUS(CL_INVALID_GLOBAL_WORK_SIZE)
    OPENCL_RUNTIME_STATUS(CL_INVALID_HOST_PTR)
    OPENCL_RUNTIME_STATUS(CL_INVALID_KERNEL)
    OPENCL_RUNTIME_STATUS(CL_INVALID_KERNEL_ARGS)
    OPENCL_RUNTIME_STATUS(CL_INVALID_KERNEL_DEFINITION)
    OPENCL_RUNTIME_STATUS(CL_INVALID_KERNEL_NAME)
    OPENCL_RUNTIME_STATUS(CL_INVALID_MEM_OBJECT)
    OPENCL_RUNTIME_STATUS(CL_INVALID_OPERATION)
    OPENCL_RUNTIME_STATUS(CL_INVALID_PLATFORM)
    OPENCL_RUNTIME_STATUS(CL_INVALID_PROGRAM)
    OPENCL_RUNTIME_STATUS(CL_INVALID_PROGRAM_EXECUTABLE)
    OPENCL_RUNTIME_STATUS(CL_INVALID_QUEUE_PROPERTIES)
    OPENCL_RUNTIME_STATUS(CL_INVALID_VALUE)
    OPENCL_RUNTIME_STATUS(CL_INVALID_WORK_DIMENSION)
    OPENCL_RUNTIME_STATUS(CL_INVALID_WORK_GROUP_SIZE)
    OPENCL_RUNTIME_STATUS(CL_INVALID_WORK_ITEM_SIZE)
    OPENCL_RUNTIME_STATUS(CL_MAP_FAILURE)
    OPENCL_RUNTIME_STATUS(CL_MEM_COPY_OVERLAP)
    OPENCL_RUNTIME_STATUS(CL_MEM_OBJECT_ALLOCATION_FAILURE)
    OPENCL_RUNTIME_STATUS(CL_MISALIGNED_SUB_BUFFER_OFFSET)
    OPENCL_RUNTIME_STATUS(CL_OUT_OF_HOST_MEMORY)
    OPENCL_RUNTIME_STATUS(CL_OUT_OF_RESOURCES)
    OPENCL_RUNTIME_STATUS(CL_PROFILING_INFO_NOT_AVAILABLE)
#undef OPENCL_RUNTIME_STATUS
    case -1001:  // cl_ext.h of OpenCL 1.2 leaves this one to the loader's extension
      return "CL_PLATFORM_NOT_FOUND_KHR";
    default:
      return "status " + std::to_string(status);
  }
}

}  // namespace tvm_mobilenet::opencl
