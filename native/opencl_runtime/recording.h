// The times that OpenCL's events tell, of what one thread enqueues between two calls.
#ifndef OPENCL_RUNTIME_RECORDING_H_
#define OPENCL_RUNTIME_RECORDING_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "handle.h"

namespace tvm_mobilenet::opencl {

// Sums up how long the device computed for the kernels that this thread launches while it lives and
// has not been stopped. The gaps between kernels, in which the device waits for the host, do not
// count. Several may be active at once, one within the other.
class Recording {
 public:
  // Waits for what the devices are at, and begins.
  static std::shared_ptr<Recording> Begin();

  // Whether a recording of the calling thread is active.
  static bool IsActive();

  // Hands a launched kernel's event to every active recording of this thread.
  static void Add(cl_event event);

  // Ends it and waits for the kernels. May be called once, on the thread that began.
  void Stop();

  // The sum in nanoseconds; where no kernel was launched, what the host's clock says.
  int64_t nanoseconds() const;

  // How many kernels were launched.
  int64_t kernels() const { return kernels_; }

 private:
  void Drain();

  std::vector<EventHandle> pending_;
  int64_t device_ns_ = 0;
  int64_t kernels_ = 0;
  std::chrono::steady_clock::time_point began_;
  std::chrono::nanoseconds host_{0};
};

}  // namespace tvm_mobilenet::opencl

#endif  // OPENCL_RUNTIME_RECORDING_H_
