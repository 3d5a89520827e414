// OpenCL's functions, found at run time: this library links with none of them, so that it also
// loads where there is no OpenCL.
#ifndef OPENCL_RUNTIME_OPENCL_API_H_
#define OPENCL_RUNTIME_OPENCL_API_H_

#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>
#include <tvm/ffi/error.h>

#include <string>

namespace tvm_mobilenet::opencl {

// Everything of OpenCL 1.2 that is called.
#define OPENCL_RUNTIME_FUNCTIONS(X) \
  X(clBuildProgram)                 \
  X(clCreateBuffer)                 \
  X(clCreateCommandQueue)           \
  X(clCreateContext)                \
  X(clCreateKernel)                 \
  X(clCreateProgramWithBinary)      \
  X(clCreateProgramWithSource)      \
  X(clEnqueueCopyBuffer)            \
  X(clEnqueueMapBuffer)             \
  X(clEnqueueNDRangeKernel)         \
  X(clEnqueueReadBuffer)            \
  X(clEnqueueUnmapMemObject)        \
  X(clEnqueueWriteBuffer)           \
  X(clFinish)                       \
  X(clGetDeviceIDs)                 \
  X(clGetDeviceInfo)                \
  X(clGetEventProfilingInfo)        \
  X(clGetKernelWorkGroupInfo)       \
  X(clGetPlatformIDs)               \
  X(clGetPlatformInfo)              \
  X(clGetProgramBuildInfo)          \
  X(clGetProgramInfo)               \
  X(clReleaseCommandQueue)          \
  X(clReleaseContext)               \
  X(clReleaseEvent)                 \
  X(clReleaseKernel)                \
  X(clReleaseMemObject)             \
  X(clReleaseProgram)               \
  X(clRetainEvent)                  \
  X(clSetKernelArg)                 \
  X(clWaitForEvents)

// The functions of one OpenCL library.
struct OpenCLApi {
#define OPENCL_RUNTIME_DECLARE(name) decltype(&::name) name = nullptr;
  OPENCL_RUNTIME_FUNCTIONS(OPENCL_RUNTIME_DECLARE)
#undef OPENCL_RUNTIME_DECLARE
};

// The functions of the library that `OpenLibrary` opened last.
extern OpenCLApi cl;

// Opens the OpenCL library at `path` and fills in `cl`. Returns what is wrong with it, or an empty
// text. A library that has been opened is never closed: drivers leave threads behind.
std::string OpenLibrary(const std::string& path);

// Whether the process is ending: the driver may have taken itself down already, and nothing is
// released any more. The handler behind it is installed by `WatchForExit`, after the driver's own.
bool IsExiting();
void WatchForExit();

// The name of a status, `CL_OUT_OF_RESOURCES`.
std::string StatusName(cl_int status);

// An error that the caller can do something about. Every one begins like this, so that the host can
// tell them from others, also behind an RPC session.
#define OPENCL_RUNTIME_FAIL TVM_FFI_THROW(RuntimeError) << "OpenCL: "

// Calls an OpenCL function that returns a status; fails if that is not success.
#define CL_CALL(function, ...)                                                       \
  do {                                                                               \
    const cl_int cl_call_status = ::tvm_mobilenet::opencl::cl.function(__VA_ARGS__); \
    if (cl_call_status != CL_SUCCESS) {                                              \
      OPENCL_RUNTIME_FAIL << #function << " failed with "                            \
                          << ::tvm_mobilenet::opencl::StatusName(cl_call_status);    \
    }                                                                                \
  } while (false)

}  // namespace tvm_mobilenet::opencl

#endif  // OPENCL_RUNTIME_OPENCL_API_H_
