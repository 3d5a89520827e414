// TVM's timer for OpenCL devices, over the events' own times.
#ifndef OPENCL_RUNTIME_TIMER_H_
#define OPENCL_RUNTIME_TIMER_H_

#include <tvm/runtime/timer.h>

namespace tvm_mobilenet::opencl {

// Makes a timer as TVM's `Timer::Start` asks for it. It tells the time that the device computed;
// see recording.h.
tvm::runtime::Timer MakeTimer(DLDevice device);

}  // namespace tvm_mobilenet::opencl

#endif  // OPENCL_RUNTIME_TIMER_H_
