// A session's use of an OpenCL device, through the runtime that the agent loads beside TVM's.
#ifndef BOARD_AGENT_OPENCL_H_
#define BOARD_AGENT_OPENCL_H_

#include <stdint.h>
#include <tvm/ffi/c_api.h>

// Lets the session's times be those of the OpenCL device of that number. Returns -1, with an error
// raised, where there is no such device.
int opencl_use(int64_t index);

// Waits until the device has done everything; does nothing where the session uses none.
int opencl_wait(void);

// Kernel calls to be timed; returns -1, with an error raised, where one fails.
typedef int (*OpenCLWork)(void* context);

// Does the work and finds how long it computed: by the device's own clock where the session uses one,
// else by this processor's.
int opencl_time(OpenCLWork work, void* context, int64_t* nanoseconds);

// Copies what a tensor of a device holds to this processor.
int opencl_fetch(const DLTensor* from, void* to, size_t size);

#endif  // BOARD_AGENT_OPENCL_H_
