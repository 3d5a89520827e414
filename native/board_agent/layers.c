#define _GNU_SOURCE
#include "layers.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "ffi.h"

enum { NO_OP = 0, SKIP_RUN = 1 };  // VMInstrumentReturnKind of TVM's vm.h

typedef struct {
  char* names;  // a copy of the symbols, each terminated
  const char** symbols;
  int count;
  int position;
  LayerVisit visit;
  void* context;
} Run;

int layers_count(const char* symbols) {
  int count = 0;
  char before = '\n';
  for (const char* c = symbols; *c; before = *c++) count += before == '\n' && *c != '\n';
  return count;
}

static bool is_kernel(const Run* run, const char* name) {
  for (int i = 0; i < run->count; ++i) {
    if (strcmp(run->symbols[i], name) == 0) return true;
  }
  return false;
}

static int mismatch(const Run* run, const char* found) {
  const char* expected = run->position < run->count ? run->symbols[run->position] : "the end";
  return ffi_fail("ValueError",
                  "board: kernel call %d is %.100s, where %.100s was expected; the list and the "
                  "library do not belong together",
                  run->position, found, expected);
}

// Called before and after every call of the virtual machine: the callee, its name, whether this is
// before, its result, and the arguments.
static int instrument(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  Run* run = self;
  char name[NAME_CAPACITY];
  *result = ffi_int(NO_OP);
  if (count < 4) return ffi_fail("TypeError", "board: TVM's instrument has another form");
  if (!args[2].v_int64 || args[0].type_index != kTVMFFIFunction) return 0;
  const char* data;
  size_t size;
  if (!ffi_arg_bytes(&args[1], "name", &data, &size)) return -1;
  if (size >= sizeof name) return 0;
  memcpy(name, data, size);
  name[size] = '\0';
  bool next = run->position < run->count && strcmp(run->symbols[run->position], name) == 0;
  if (!next) return is_kernel(run, name) ? mismatch(run, name) : 0;
  if (run->visit(run->context, run->position, args[0].v_obj, (TVMFFIAny*)args + 4, count - 4)) {
    return -1;
  }
  ++run->position;
  *result = ffi_int(SKIP_RUN);
  return 0;
}

int layers_invoke(TVMFFIObjectHandle vm, const char* function) {
  TVMFFIAny name = ffi_text(function);
  TVMFFIAny result;
  int failed = ffi_call_method(vm, "invoke_stateful", &name, 1, &result);
  if (!failed) ffi_release(&result);
  return failed;
}

static int set_instrument(TVMFFIObjectHandle vm, TVMFFIAny instrument_or_none) {
  TVMFFIAny result;
  return ffi_call_method(vm, "set_instrument", &instrument_or_none, 1, &result);
}

static bool split(Run* run, const char* symbols) {
  run->count = layers_count(symbols);
  if (run->count < 1 || run->count > LAYERS_MAX) {
    ffi_fail("ValueError", "board: symbols: %d kernels; give 1 to %d", run->count, LAYERS_MAX);
    return false;
  }
  run->names = strdup(symbols);
  run->symbols = calloc((size_t)run->count, sizeof *run->symbols);
  if (run->names == NULL || run->symbols == NULL) {
    ffi_fail("MemoryError", "board: no memory for the names of the kernels");
    return false;
  }
  char* state = NULL;
  int found = 0;
  for (char* name = strtok_r(run->names, "\n", &state); name; name = strtok_r(NULL, "\n", &state)) {
    if (found < run->count) run->symbols[found++] = name;
  }
  run->count = found;
  return true;
}

static int run_all(Run* run, TVMFFIObjectHandle vm, const char* function, int64_t repeat) {
  for (int64_t i = 0; i < repeat; ++i) {
    run->position = 0;
    if (layers_invoke(vm, function) != 0) return -1;
    if (run->position != run->count) return mismatch(run, "the end");
  }
  return 0;
}

int layers_run(TVMFFIObjectHandle vm, const char* function, const char* symbols, int64_t repeat,
               LayerVisit visit, void* context) {
  Run run = {.visit = visit, .context = context};
  TVMFFIObjectHandle callback = NULL;
  int failed = -1;
  if (split(&run, symbols) && TVMFFIFunctionCreate(&run, instrument, NULL, &callback) == 0) {
    failed = set_instrument(vm, ffi_object(callback, kTVMFFIFunction));
    if (!failed) {
      failed = run_all(&run, vm, function, repeat);
      TVMFFIObjectHandle error = NULL;
      if (failed) TVMFFIErrorMoveFromRaised(&error);
      if (set_instrument(vm, FFI_NONE) != 0) failed = -1;
      if (error != NULL) {
        TVMFFIErrorSetRaised(error);
        TVMFFIObjectDecRef(error);
      }
    }
    TVMFFIObjectDecRef(callback);
  }
  free(run.names);
  free((void*)run.symbols);
  return failed;
}
