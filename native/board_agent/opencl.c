#define _GNU_SOURCE
#include "opencl.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include "ffi.h"

// Functions of native/opencl_runtime/register.cc.
#define BEGIN_RECORDING "tvm_mobilenet.opencl.begin_recording"
#define END_RECORDING "tvm_mobilenet.opencl.end_recording"

static struct {
  bool used;
  TVMFFIAny device;
  TVMFFIObjectHandle begin, end;  // of a recording
} g_opencl;

static int64_t clock_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static TVMFFIObjectHandle find_global(const char* name) {
  TVMFFIByteArray bytes = {name, strlen(name)};
  TVMFFIObjectHandle function = NULL;
  return TVMFFIFunctionGetGlobal(&bytes, &function) == 0 ? function : NULL;
}

int opencl_use(int64_t index) {
  TVMFFIObjectHandle begin = find_global(BEGIN_RECORDING);
  TVMFFIObjectHandle end = find_global(END_RECORDING);
  if (begin == NULL || end == NULL) {
    return ffi_fail("RuntimeError",
                    "OpenCL: the board's agent came without an OpenCL runtime; make its archive for "
                    "a target with a GPU (board bundle --target)");
  }
  TVMFFIAny device = {.type_index = kTVMFFIDevice};
  device.v_device = (DLDevice){.device_type = kDLOpenCL, .device_id = (int32_t)index};
  g_opencl.device = device;
  g_opencl.begin = begin;
  g_opencl.end = end;
  g_opencl.used = true;
  // The first thing that is asked of a device that is not there fails, and says why.
  if (opencl_wait() == 0) return 0;
  g_opencl.used = false;
  return -1;
}

int opencl_wait(void) {
  if (!g_opencl.used) return 0;
  TVMFFIAny args[] = {g_opencl.device, ffi_int(0)};
  TVMFFIAny nothing = FFI_NONE;
  return ffi_call_global("runtime.Device_StreamSync", args, 2, &nothing);
}

static int record(OpenCLWork work, void* context, int64_t* nanoseconds) {
  TVMFFIAny result = FFI_NONE;
  if (TVMFFIFunctionCall(g_opencl.begin, NULL, 0, &result) != 0) return -1;
  TVMFFIObjectHandle error = NULL;
  int failed = work(context);
  if (failed) TVMFFIErrorMoveFromRaised(&error);
  if (TVMFFIFunctionCall(g_opencl.end, NULL, 0, &result) != 0) {
    if (error == NULL) return -1;
    TVMFFIErrorSetRaised(error);  // the first failure is the one to tell
  } else if (error != NULL) {
    TVMFFIErrorSetRaised(error);
  }
  if (error != NULL) TVMFFIObjectDecRef(error);
  *nanoseconds = result.v_int64;
  return failed;
}

int opencl_time(OpenCLWork work, void* context, int64_t* nanoseconds) {
  if (g_opencl.used) return record(work, context, nanoseconds);
  int64_t begin = clock_ns();
  int failed = work(context);
  *nanoseconds = clock_ns() - begin;
  return failed;
}

int opencl_fetch(const DLTensor* from, void* to, size_t size) {
  TVMFFIAny args[] = {{.type_index = kTVMFFIDLTensorPtr, .v_ptr = (void*)from},
                      {.type_index = kTVMFFIOpaquePtr, .v_ptr = to},
                      ffi_int((int64_t)size)};
  TVMFFIAny nothing = FFI_NONE;
  return ffi_call_global("runtime.TVMTensorCopyToBytes", args, 3, &nothing);
}
