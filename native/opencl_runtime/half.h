// A number as IEEE 754 binary16.
#ifndef OPENCL_RUNTIME_HALF_H_
#define OPENCL_RUNTIME_HALF_H_

#include <CL/cl_half.h>

#include <cstdint>

namespace tvm_mobilenet::opencl {

// The nearest half; too large becomes infinite.
inline uint16_t HalfBits(double value) { return cl_half_from_double(value, CL_HALF_RTE); }

}  // namespace tvm_mobilenet::opencl

#endif  // OPENCL_RUNTIME_HALF_H_
