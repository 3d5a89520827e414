// What this library finds on a machine, as JSON.
#ifndef OPENCL_RUNTIME_DESCRIBE_H_
#define OPENCL_RUNTIME_DESCRIBE_H_

#include <string>

namespace tvm_mobilenet::opencl {

// {"library": "libOpenCL.so.1" or null, "reason": "..." or null, "cache": "/..." or null,
//  "devices": [{"name": ..., ...}]}. `reason` says why there is no device. Never fails.
std::string Describe();

}  // namespace tvm_mobilenet::opencl

#endif  // OPENCL_RUNTIME_DESCRIBE_H_
