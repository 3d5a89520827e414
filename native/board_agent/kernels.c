#define _GNU_SOURCE
#include "kernels.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "counting.h"
#include "ffi.h"
#include "opencl.h"

enum {
  CALLS_MAX = 4096,
  ARGS_MAX = 16,
  RUNS_MAX = 1000000,
  FIRST_TENSOR_TIMED = 4,
  FIRST_TENSOR_COUNTED = 2,
  COUNTED_RUNS_MAX = 8
};

typedef struct {
  TVMFFIAny function;
  TVMFFIAny args[ARGS_MAX];
  int count;
  bool is_last;  // of its variant
} Call;

typedef struct {
  Call* calls;
  int count;
  int next;
} Program;

static void program_free(Program* program) {
  for (int i = 0; i < program->count; ++i) ffi_release(&program->calls[i].function);
  free(program->calls);
  *program = (Program){0};
}

static int find_kernel(TVMFFIObjectHandle library, const char* symbol, TVMFFIAny* function) {
  TVMFFIAny query[] = {ffi_object(library, kTVMFFIModule), ffi_text(symbol),
                       {.type_index = kTVMFFIBool}};
  if (ffi_call_global("ffi.ModuleGetFunction", query, 3, function) != 0) return -1;
  if (function->type_index == kTVMFFIFunction) return 0;
  *function = FFI_NONE;
  return ffi_fail("ValueError", "board: the library has no kernel %.100s", symbol);
}

// Reads one line: a symbol, and numbers of tensors.
static int read_call(char* line, TVMFFIObjectHandle library, const TVMFFIAny* tensors,
                     int32_t tensor_count, Call* call) {
  char* state = NULL;
  const char* symbol = strtok_r(line, " ", &state);
  if (symbol == NULL) return ffi_fail("ValueError", "board: program: a call names no kernel");
  for (char* word = strtok_r(NULL, " ", &state); word; word = strtok_r(NULL, " ", &state)) {
    double number;
    if (call->count == ARGS_MAX || !parse_number(word, 0, tensor_count - 1, &number)) {
      return ffi_fail("ValueError", "board: program: %.100s takes tensor %.20s; there are %d", symbol,
                      word, tensor_count);
    }
    call->args[call->count++] = tensors[(int)number];
  }
  return find_kernel(library, symbol, &call->function);
}

static int program_read(const TVMFFIAny* args, const TVMFFIAny* tensors, int32_t tensor_count,
                        Program* program) {
  TVMFFIObjectHandle library;
  const char* data;
  size_t size;
  *program = (Program){0};
  if (!ffi_arg_module(&args[0], "library", &library)) return -1;
  if (!ffi_arg_bytes(&args[1], "program", &data, &size)) return -1;
  char* text = strndup(data, size);
  program->calls = calloc(CALLS_MAX, sizeof *program->calls);
  int failed = text && program->calls ? 0 : ffi_fail("MemoryError", "board: no memory");
  for (char* line = text; !failed && line && *line;) {
    char* end = strchrnul(line, '\n');
    char* next = *end ? end + 1 : end;
    *end = '\0';
    if (*line == '\0') {
      if (program->count) program->calls[program->count - 1].is_last = true;
    } else if (program->count == CALLS_MAX) {
      failed = ffi_fail("ValueError", "board: program: more than %d calls", CALLS_MAX);
    } else {
      Call* call = &program->calls[program->count++];
      *call = (Call){.function = FFI_NONE};
      failed = read_call(line, library, tensors, tensor_count, call);
    }
    line = next;
  }
  free(text);
  if (!failed && program->count == 0) {
    failed = ffi_fail("ValueError", "board: program: it is empty");
  }
  if (failed) {
    program_free(program);
  } else {
    program->calls[program->count - 1].is_last = true;
  }
  return failed;
}

static int program_run(Program* program) {
  bool is_last;
  do {
    const Call* call = &program->calls[program->next];
    TVMFFIAny nothing = FFI_NONE;
    program->next = (program->next + 1) % program->count;
    if (TVMFFIFunctionCall(call->function.v_obj, (TVMFFIAny*)call->args, call->count, &nothing) != 0) {
      return -1;
    }
    ffi_release(&nothing);
    is_last = call->is_last;
  } while (!is_last);
  return 0;
}

typedef struct {
  Program* program;
  int64_t runs;
} Batch;

static int batch_run(void* context) {
  const Batch* batch = context;
  int failed = 0;
  for (int64_t run = 0; run < batch->runs && !failed; ++run) failed = program_run(batch->program);
  return failed;
}

int kernels_time(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  int64_t batch, repeat;
  Program program;
  if (count < FIRST_TENSOR_TIMED) {
    return ffi_fail("TypeError", "board: time_calls takes a library, a program, two numbers and tensors");
  }
  if (!ffi_arg_int(&args[2], "batch", 1, RUNS_MAX, &batch)) return -1;
  if (!ffi_arg_int(&args[3], "repeat", 1, RUNS_MAX, &repeat)) return -1;
  if (program_read(args, args + FIRST_TENSOR_TIMED, count - FIRST_TENSOR_TIMED, &program) != 0) return -1;
  int64_t* times = malloc((size_t)repeat * sizeof *times);
  int failed = times ? 0 : ffi_fail("MemoryError", "board: no memory for the times");
  Batch work = {.program = &program, .runs = batch};
  for (int64_t i = 0; i < repeat && !failed; ++i) failed = opencl_time(batch_run, &work, &times[i]);
  if (!failed) failed = ffi_return_bytes(times, (size_t)repeat * sizeof *times, result);
  free(times);
  program_free(&program);
  return failed;
}

// Runs once between marks. The first runs bind symbols and fill the heap's lists.
static int count_run(Program* program, uint64_t classes[COUNT_CLASSES]) {
  struct count_entry* entries = NULL;
  char reason[256];
  count_reset();
  count_begin(0);
  int failed = program_run(program);
  count_end(0);
  if (failed) return failed;
  if (count_collect(&entries, reason, sizeof reason) != 1) {
    free(entries);
    return ffi_fail("RuntimeError", "board: count_calls: %s", reason);
  }
  memcpy(classes, entries[0].classes, sizeof entries[0].classes);
  free(entries);
  return 0;
}

int kernels_count(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  Program program;
  if (count < FIRST_TENSOR_COUNTED) {
    return ffi_fail("TypeError", "board: count_calls takes a library, a program and tensors");
  }
  if (!count_available()) {
    return ffi_fail("RuntimeError",
                    "board: count_calls: this board has no instruction counter; an emulated one has");
  }
  if (program_read(args, args + FIRST_TENSOR_COUNTED, count - FIRST_TENSOR_COUNTED, &program) != 0) {
    return -1;
  }
  uint64_t before[COUNT_CLASSES] = {0}, now[COUNT_CLASSES] = {0};
  int failed = 0;
  int runs = 0;
  bool agree = false;
  while (!failed && !agree && runs < COUNTED_RUNS_MAX) {
    memcpy(before, now, sizeof now);
    failed = count_run(&program, now);
    agree = ++runs > 1 && memcmp(before, now, sizeof now) == 0;
  }
  if (!failed && !agree) {
    failed = ffi_fail("RuntimeError", "board: count_calls: no two of %d runs in a row retire the same",
                      runs);
  }
  if (!failed) {
    Text json = {0};
    text_add(&json, "{\"classes\":[");
    for (int kind = 0; kind < COUNT_CLASSES; ++kind) {
      text_addf(&json, "%s\"%s\"", kind ? "," : "", count_class_names[kind]);
    }
    text_add(&json, "],\"counts\":[");
    for (int kind = 0; kind < COUNT_CLASSES; ++kind) {
      text_addf(&json, "%s%" PRIu64, kind ? "," : "", now[kind]);
    }
    text_addf(&json, "],\"runs\":%d}", runs);
    failed = ffi_return_text(&json, result);
    text_free(&json);
  }
  program_free(&program);
  return failed;
}
