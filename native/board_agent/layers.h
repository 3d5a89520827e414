// Looking at the single kernel calls of an inference, through the virtual machine's instrument.
#ifndef BOARD_AGENT_LAYERS_H_
#define BOARD_AGENT_LAYERS_H_

#include <stdint.h>
#include <tvm/ffi/c_api.h>

enum { LAYERS_MAX = 65536, NAME_CAPACITY = 256 };

// What is done with one kernel call; it makes the call itself. Returns nonzero with an error raised.
typedef int (*LayerVisit)(void* context, int layer, TVMFFIObjectHandle kernel, TVMFFIAny* args,
                          int32_t count);

// Runs `function`, whose inputs have been set, `repeat` times and hands every kernel call to `visit`.
// `symbols` names the calls one a line in the order they have to come in.
int layers_run(TVMFFIObjectHandle vm, const char* function, const char* symbols, int64_t repeat,
               LayerVisit visit, void* context);

// Counts the lines of `symbols`.
int layers_count(const char* symbols);

// Computes `function` once.
int layers_invoke(TVMFFIObjectHandle vm, const char* function);

#endif  // BOARD_AGENT_LAYERS_H_
