// TVM's C ABI, in the few calls that a session makes. Failures are return codes; the error that
// belongs to one is kept by TVM until `ffi_take_error` or the next return to TVM.
#ifndef BOARD_AGENT_FFI_H_
#define BOARD_AGENT_FFI_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <tvm/ffi/c_api.h>

#include "text.h"

#define FFI_NONE ((TVMFFIAny){.type_index = kTVMFFINone})

TVMFFIAny ffi_int(int64_t value);
TVMFFIAny ffi_text(const char* text);  // not copied
TVMFFIAny ffi_object(TVMFFIObjectHandle object, int32_t type_index);

// Gives back what a call returned.
void ffi_release(TVMFFIAny* value);

// Registers a global function, in place of one that already has the name.
bool ffi_register(const char* name, TVMFFISafeCallType function);

// Calls a global function; `result` is the caller's to release.
int ffi_call_global(const char* name, const TVMFFIAny* args, int32_t count, TVMFFIAny* result);

// Calls a function of a module.
int ffi_call_method(TVMFFIObjectHandle module, const char* name, const TVMFFIAny* args,
                    int32_t count, TVMFFIAny* result);

// Raises an error, with a message in printf's format; always returns -1.
__attribute__((format(printf, 2, 3))) int ffi_fail(const char* kind, const char* format, ...);

// Moves the message of the raised error into `message`, one line of it.
void ffi_take_error(char* message, size_t capacity);

// Arguments of a registered function. They return false, with an error raised, on another type.
bool ffi_arg_count(const char* function, int32_t count, int32_t expected);
bool ffi_arg_int(const TVMFFIAny* arg, const char* name, int64_t low, int64_t high, int64_t* value);
bool ffi_arg_bytes(const TVMFFIAny* arg, const char* name, const char** data, size_t* size);
bool ffi_arg_module(const TVMFFIAny* arg, const char* name, TVMFFIObjectHandle* module);
// Copies a string, which must be shorter than `capacity` and hold no zero byte.
bool ffi_arg_text(const TVMFFIAny* arg, const char* name, char* text, size_t capacity);

int ffi_return_text(const Text* text, TVMFFIAny* result);
int ffi_return_bytes(const void* data, size_t size, TVMFFIAny* result);

#endif  // BOARD_AGENT_FFI_H_
