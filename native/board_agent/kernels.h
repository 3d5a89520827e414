// Calls of single kernels with tensors of the host's choosing, timed or counted: what a search for
// schedules asks for.
#ifndef BOARD_AGENT_KERNELS_H_
#define BOARD_AGENT_KERNELS_H_

#include <stdint.h>
#include <tvm/ffi/c_api.h>

// time_calls(library, program, batch, repeat, tensors...): bytes of `repeat` 64-bit nanoseconds, each
// of `batch` runs; by the OpenCL device's clock where the session uses one.
int kernels_time(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result);

// count_calls(library, program, tensors...): JSON, {"classes": [...], "counts": [...], "runs": n}: what
// one run retires once two in a row retire the same; an error where none do.
int kernels_count(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result);

// A program is text: a line for each call, the kernel's symbol and the numbers of its tensors, and an
// empty line after the calls of each variant. A run is one variant, the next run the next one: variants
// differ in where their weights lie.

#endif  // BOARD_AGENT_KERNELS_H_
