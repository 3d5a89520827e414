#define _GNU_SOURCE
#include "ffi.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

TVMFFIAny ffi_int(int64_t value) {
  return (TVMFFIAny){.type_index = kTVMFFIInt, .v_int64 = value};
}

TVMFFIAny ffi_text(const char* text) {
  return (TVMFFIAny){.type_index = kTVMFFIRawStr, .v_c_str = text};
}

TVMFFIAny ffi_object(TVMFFIObjectHandle object, int32_t type_index) {
  return (TVMFFIAny){.type_index = type_index, .v_obj = object};
}

void ffi_release(TVMFFIAny* value) {
  if (value->type_index >= kTVMFFIStaticObjectBegin) TVMFFIObjectDecRef(value->v_obj);
  *value = FFI_NONE;
}

static TVMFFIByteArray span_of(const char* text) {
  return (TVMFFIByteArray){.data = text, .size = strlen(text)};
}

bool ffi_register(const char* name, TVMFFISafeCallType function) {
  TVMFFIObjectHandle handle = NULL;
  TVMFFIByteArray span = span_of(name);
  if (TVMFFIFunctionCreate(NULL, function, NULL, &handle) != 0) return false;
  int failed = TVMFFIFunctionSetGlobal(&span, handle, 1);
  TVMFFIObjectDecRef(handle);
  return !failed;
}

int ffi_call_global(const char* name, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  TVMFFIObjectHandle function = NULL;
  TVMFFIByteArray span = span_of(name);
  *result = FFI_NONE;
  if (TVMFFIFunctionGetGlobal(&span, &function) != 0) return -1;
  if (function == NULL) return ffi_fail("RuntimeError", "TVM's runtime has no function %s", name);
  int failed = TVMFFIFunctionCall(function, (TVMFFIAny*)args, count, result);
  TVMFFIObjectDecRef(function);
  return failed;
}

int ffi_call_method(TVMFFIObjectHandle module, const char* name, const TVMFFIAny* args,
                    int32_t count, TVMFFIAny* result) {
  TVMFFIAny found;
  *result = FFI_NONE;
  TVMFFIAny query[] = {ffi_object(module, kTVMFFIModule), ffi_text(name),
                       {.type_index = kTVMFFIBool, .v_int64 = 0}};
  if (ffi_call_global("ffi.ModuleGetFunction", query, 3, &found) != 0) return -1;
  if (found.type_index != kTVMFFIFunction) {
    ffi_release(&found);
    return ffi_fail("ValueError", "the module has no function %s; give the virtual machine", name);
  }
  int failed = TVMFFIFunctionCall(found.v_obj, (TVMFFIAny*)args, count, result);
  ffi_release(&found);
  return failed;
}

int ffi_fail(const char* kind, const char* format, ...) {
  char message[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(message, sizeof message, format, args);
  va_end(args);
  TVMFFIErrorSetRaisedFromCStr(kind, message);
  return -1;
}

void ffi_take_error(char* message, size_t capacity) {
  TVMFFIObjectHandle error = NULL;
  snprintf(message, capacity, "unknown error");
  TVMFFIErrorMoveFromRaised(&error);
  if (error == NULL) return;
  const TVMFFIErrorCell* cell = (const void*)((const char*)error + sizeof(TVMFFIObject));
  snprintf(message, capacity, "%.*s", (int)(cell->message.size < 600 ? cell->message.size : 600),
           cell->message.data);
  message[strcspn(message, "\n")] = '\0';
  TVMFFIObjectDecRef(error);
}

bool ffi_arg_count(const char* function, int32_t count, int32_t expected) {
  if (count == expected) return true;
  ffi_fail("TypeError", "%s: %d arguments were given, it takes %d", function, count, expected);
  return false;
}

bool ffi_arg_int(const TVMFFIAny* arg, const char* name, int64_t low, int64_t high,
                 int64_t* value) {
  if (arg->type_index != kTVMFFIInt && arg->type_index != kTVMFFIBool) {
    ffi_fail("TypeError", "%s: give a whole number", name);
    return false;
  }
  if (arg->v_int64 < low || arg->v_int64 > high) {
    ffi_fail("ValueError", "%s is %" PRId64 "; give %" PRId64 " to %" PRId64, name, arg->v_int64,
             low, high);
    return false;
  }
  *value = arg->v_int64;
  return true;
}

bool ffi_arg_bytes(const TVMFFIAny* arg, const char* name, const char** data, size_t* size) {
  const TVMFFIByteArray* span;
  switch (arg->type_index) {
    case kTVMFFIRawStr:
      *data = arg->v_c_str;
      *size = strlen(arg->v_c_str);
      return true;
    case kTVMFFISmallStr:
    case kTVMFFISmallBytes:
      *data = arg->v_bytes;
      *size = arg->small_str_len;
      return true;
    case kTVMFFIByteArrayPtr:
      span = arg->v_ptr;
      break;
    case kTVMFFIStr:
    case kTVMFFIBytes:
      span = (const void*)((const char*)arg->v_obj + sizeof(TVMFFIObject));
      break;
    default:
      ffi_fail("TypeError", "%s: give a string or bytes", name);
      return false;
  }
  *data = span->data;
  *size = span->size;
  return true;
}

bool ffi_arg_text(const TVMFFIAny* arg, const char* name, char* text, size_t capacity) {
  const char* data;
  size_t size;
  if (!ffi_arg_bytes(arg, name, &data, &size)) return false;
  if (size >= capacity || memchr(data, 0, size) != NULL) {
    ffi_fail("ValueError", "%s: holds a zero byte, or is longer than %zu bytes", name, capacity - 1);
    return false;
  }
  memcpy(text, data, size);
  text[size] = '\0';
  return true;
}

bool ffi_arg_module(const TVMFFIAny* arg, const char* name, TVMFFIObjectHandle* module) {
  if (arg->type_index != kTVMFFIModule || arg->v_obj == NULL) {
    ffi_fail("TypeError", "%s: give a module that was loaded on this board", name);
    return false;
  }
  *module = arg->v_obj;
  return true;
}

int ffi_return_bytes(const void* data, size_t size, TVMFFIAny* result) {
  TVMFFIByteArray span = {.data = data, .size = size};
  return TVMFFIBytesFromByteArray(&span, result);
}

int ffi_return_text(const Text* text, TVMFFIAny* result) {
  if (text->failed) return ffi_fail("MemoryError", "the answer does not fit into memory");
  TVMFFIByteArray span = {.data = text->data ? text->data : "", .size = text->size};
  return TVMFFIStringFromByteArray(&span, result);
}
