#define _GNU_SOURCE
#include "board_functions.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "counting.h"
#include "facts.h"
#include "ffi.h"
#include "kernels.h"
#include "layers.h"
#include "opencl.h"
#include "threads.h"

enum { RUNS_MAX = 1000000, TIMES_MAX = 4 << 20, ALIGNMENT = 64 };

static int64_t clock_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int facts(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  (void)args;
  if (!ffi_arg_count("facts", count, 0)) return -1;
  Text json = {0};
  facts_json(&json);
  int failed = ffi_return_text(&json, result);
  text_free(&json);
  return failed;
}

static int configure_threads(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  int64_t threads;
  char cpus[1024];
  if (!ffi_arg_count("configure_threads", count, 2)) return -1;
  if (!ffi_arg_int(&args[0], "threads", 0, CPUS_MAX, &threads)) return -1;
  if (!ffi_arg_text(&args[1], "cpus", cpus, sizeof cpus)) return -1;
  Text json = {0};
  int failed = threads_configure(threads, cpus, &json);
  if (!failed) failed = ffi_return_text(&json, result);
  text_free(&json);
  return failed;
}

static int use_opencl(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  (void)result;
  int64_t index;
  if (!ffi_arg_count("use_opencl", count, 1)) return -1;
  if (!ffi_arg_int(&args[0], "index", 0, 255, &index)) return -1;
  return opencl_use(index);
}

static int64_t status_bytes(const char* content, const char* name) {
  const char* row = content ? strstr(content, name) : NULL;
  return row ? strtoll(row + strlen(name), NULL, 10) * 1024 : -1;
}

// The peak is what the kernel has seen since the session began or since the last reset.
static int memory(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  int64_t reset;
  if (!ffi_arg_count("memory", count, 1)) return -1;
  if (!ffi_arg_int(&args[0], "reset", 0, 1, &reset)) return -1;
  Text status = {0};
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/status", (int)getpid());
  read_file(path, &status, 65536);
  int64_t rss = status_bytes(status.data, "VmRSS:");
  int64_t peak = status_bytes(status.data, "VmHWM:");
  text_free(&status);
  if (rss < 0 || peak < 0) {
    return ffi_fail("OSError", "board: the kernel does not tell what this process holds");
  }
  if (reset) {
    int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
    bool good = fd >= 0 && write(fd, "5", 1) == 1;
    int code = errno;
    if (fd >= 0) close(fd);
    if (!good) {
      return ffi_fail("OSError", "board: the peak cannot be reset here: %s", strerror(code));
    }
  }
  Text json = {0};
  text_addf(&json, "{\"rss_bytes\":%" PRId64 ",\"peak_bytes\":%" PRId64 "}", rss, peak);
  int failed = ffi_return_text(&json, result);
  text_free(&json);
  return failed;
}

static bool take_run(const TVMFFIAny* args, TVMFFIObjectHandle* vm, char function[NAME_CAPACITY]) {
  return ffi_arg_module(&args[0], "vm", vm) &&
         ffi_arg_text(&args[1], "function", function, NAME_CAPACITY);
}

static int time_runs(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  TVMFFIObjectHandle vm;
  char function[NAME_CAPACITY];
  int64_t runs;
  if (!ffi_arg_count("time_runs", count, 3) || !take_run(args, &vm, function)) return -1;
  if (!ffi_arg_int(&args[2], "count", 1, RUNS_MAX, &runs)) return -1;
  int64_t* times = malloc((size_t)runs * sizeof *times);
  if (times == NULL) return ffi_fail("MemoryError", "board: no memory for the times");
  TVMFFIAny query[] = {ffi_object(vm, kTVMFFIModule), ffi_text("invoke_stateful"),
                       {.type_index = kTVMFFIBool}};
  TVMFFIAny invoke = FFI_NONE;
  TVMFFIAny name = ffi_text(function);
  int failed = ffi_call_global("ffi.ModuleGetFunction", query, 3, &invoke);
  if (!failed && invoke.type_index != kTVMFFIFunction) {
    failed = ffi_fail("ValueError", "board: time_runs: give the virtual machine, not its library");
  }
  for (int64_t i = 0; i < runs && !failed; ++i) {
    TVMFFIAny nothing = FFI_NONE;
    int64_t begin = clock_ns();
    failed = TVMFFIFunctionCall(invoke.v_obj, &name, 1, &nothing);
    if (!failed) failed = opencl_wait();
    times[i] = clock_ns() - begin;
  }
  ffi_release(&invoke);
  if (!failed) failed = ffi_return_bytes(times, (size_t)runs * sizeof *times, result);
  free(times);
  return failed;
}

typedef struct {
  int64_t* next;
} Times;

typedef struct {
  TVMFFIObjectHandle kernel;
  TVMFFIAny* args;
  int32_t count;
} KernelCall;

static int call_kernel(void* context) {
  const KernelCall* call = context;
  TVMFFIAny nothing = FFI_NONE;
  int failed = TVMFFIFunctionCall(call->kernel, call->args, call->count, &nothing);
  if (!failed) ffi_release(&nothing);
  return failed;
}

static int time_layer(void* context, int layer, TVMFFIObjectHandle kernel, TVMFFIAny* args,
                      int32_t count) {
  (void)layer;
  Times* times = context;
  KernelCall call = {.kernel = kernel, .args = args, .count = count};
  return opencl_time(call_kernel, &call, times->next++);
}

static int take_symbols(const TVMFFIAny* arg, char** symbols) {
  const char* data;
  size_t size;
  if (!ffi_arg_bytes(arg, "symbols", &data, &size)) return -1;
  *symbols = strndup(data, size);
  return *symbols ? 0 : ffi_fail("MemoryError", "board: no memory for the names of the kernels");
}

static int time_layers(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  TVMFFIObjectHandle vm;
  char function[NAME_CAPACITY];
  char* symbols;
  int64_t repeat;
  if (!ffi_arg_count("time_layers", count, 4) || !take_run(args, &vm, function)) return -1;
  if (!ffi_arg_int(&args[3], "repeat", 1, RUNS_MAX, &repeat)) return -1;
  if (take_symbols(&args[2], &symbols) != 0) return -1;
  int64_t total = repeat * layers_count(symbols);
  int64_t* times = NULL;
  int failed;
  if (total > TIMES_MAX) {
    failed = ffi_fail("ValueError", "board: time_layers: %" PRId64 " times; at most %d at once",
                      total, TIMES_MAX);
  } else if ((times = malloc((size_t)total * sizeof *times + 1)) == NULL) {
    failed = ffi_fail("MemoryError", "board: no memory for the times");
  } else {
    Times context = {times};
    failed = layers_run(vm, function, symbols, repeat, time_layer, &context);
    if (!failed) {
      failed = ffi_return_bytes(times, (size_t)(context.next - times) * sizeof *times, result);
    }
  }
  free(times);
  free(symbols);
  return failed;
}

// What `capture_layers` has kept: tensors, in the order of the kernel calls.
static struct {
  TVMFFIObjectHandle* tensors;
  int count;
} g_captured;

static void forget_captured(void) {
  for (int i = 0; i < g_captured.count; ++i) TVMFFIObjectDecRef(g_captured.tensors[i]);
  free(g_captured.tensors);
  g_captured.tensors = NULL;
  g_captured.count = 0;
}

static void delete_copy(DLManagedTensor* copy) {
  free(copy->dl_tensor.data);
  free(copy->dl_tensor.shape);
  free(copy);
}

static int copy_tensor(const DLTensor* from, TVMFFIObjectHandle* out) {
  size_t size = ((size_t)from->dtype.bits * from->dtype.lanes + 7) / 8;
  for (int i = 0; i < from->ndim; ++i) size *= (size_t)from->shape[i];
  DLManagedTensor* copy = calloc(1, sizeof *copy);
  int64_t* shape = malloc((size_t)from->ndim * sizeof *shape + 1);
  size_t rounded = (size + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
  void* data = aligned_alloc(ALIGNMENT, rounded);
  if (copy == NULL || shape == NULL || data == NULL) {
    free(copy);
    free(shape);
    free(data);
    return ffi_fail("MemoryError", "board: no memory for a copy of %zu bytes", size);
  }
  memcpy(shape, from->shape, (size_t)from->ndim * sizeof *shape);
  int failed = 0;
  if (from->device.device_type == kDLCPU) {
    memcpy(data, (const char*)from->data + from->byte_offset, size);
  } else {
    failed = opencl_fetch(from, data, size);
  }
  copy->dl_tensor = (DLTensor){.data = data,
                               .device = {kDLCPU, 0},
                               .ndim = from->ndim,
                               .dtype = from->dtype,
                               .shape = shape};
  copy->deleter = delete_copy;
  if (!failed && TVMFFITensorFromDLPack(copy, ALIGNMENT, 1, out) == 0) return 0;
  delete_copy(copy);
  return -1;
}

static int capture_layer(void* context, int layer, TVMFFIObjectHandle kernel, TVMFFIAny* args,
                         int32_t count) {
  (void)context;
  TVMFFIAny nothing = FFI_NONE;
  if (TVMFFIFunctionCall(kernel, args, count, &nothing) != 0) return -1;
  ffi_release(&nothing);
  const DLTensor* written = NULL;
  if (count && args[count - 1].type_index == kTVMFFITensor) {
    written = (const void*)((const char*)args[count - 1].v_obj + sizeof(TVMFFIObject));
  } else if (count && args[count - 1].type_index == kTVMFFIDLTensorPtr) {
    written = args[count - 1].v_ptr;
  }
  if (written == NULL) {
    return ffi_fail("ValueError", "board: kernel call %d does not write a tensor", layer);
  }
  if (copy_tensor(written, &g_captured.tensors[layer]) != 0) return -1;
  g_captured.count = layer + 1;
  return 0;
}

static int capture_layers(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  TVMFFIObjectHandle vm;
  char function[NAME_CAPACITY];
  char* symbols;
  if (!ffi_arg_count("capture_layers", count, 3) || !take_run(args, &vm, function)) return -1;
  if (take_symbols(&args[2], &symbols) != 0) return -1;
  forget_captured();
  g_captured.tensors = calloc((size_t)layers_count(symbols) + 1, sizeof *g_captured.tensors);
  int failed = g_captured.tensors ? 0 : ffi_fail("MemoryError", "board: no memory for the copies");
  if (!failed) failed = layers_run(vm, function, symbols, 1, capture_layer, NULL);
  if (failed) forget_captured();
  free(symbols);
  *result = ffi_int(g_captured.count);
  return failed;
}

static int captured(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  int64_t index;
  if (!ffi_arg_count("captured", count, 1)) return -1;
  if (g_captured.count == 0) {
    return ffi_fail("ValueError", "board: nothing is captured; call capture_layers first");
  }
  if (!ffi_arg_int(&args[0], "index", 0, g_captured.count - 1, &index)) return -1;
  TVMFFIObjectHandle tensor = g_captured.tensors[index];
  if (TVMFFIObjectIncRef(tensor) != 0) return -1;
  *result = ffi_object(tensor, kTVMFFITensor);
  return 0;
}

enum { COUNTED_MAX = 1000, WARM_UPS = 4 };

static int count_layer(void* context, int layer, TVMFFIObjectHandle kernel, TVMFFIAny* args,
                       int32_t count) {
  (void)context;
  TVMFFIAny nothing = FFI_NONE;
  count_begin((uint64_t)layer);
  int failed = TVMFFIFunctionCall(kernel, args, count, &nothing);
  count_end((uint64_t)layer);
  ffi_release(&nothing);
  return failed;
}

// Writes the entries since the last reset as a list of lists, but for the first `skipped`.
static int add_counts(Text* json, const char* name, int skipped, int expected) {
  struct count_entry* entries = NULL;
  char reason[256];
  int found = count_collect(&entries, reason, sizeof reason);
  if (found != expected) {
    free(entries);
    if (found < 0) return ffi_fail("RuntimeError", "board: count_instructions: %s", reason);
    return ffi_fail("RuntimeError", "board: count_instructions: %d entries, %d were marked", found,
                    expected);
  }
  text_addf(json, ",\"%s\":[", name);
  for (int i = skipped; i < found; ++i) {
    text_add(json, i > skipped ? ",[" : "[");
    for (int class = 0; class < COUNT_CLASSES; ++class) {
      text_addf(json, "%s%" PRIu64, class ? "," : "", entries[i].classes[class]);
    }
    text_add(json, "]");
  }
  text_add(json, "]");
  free(entries);
  return 0;
}

static int count_all(TVMFFIObjectHandle vm, const char* function, const char* symbols,
                     int64_t repeat, Text* json) {
  // The first ones are marked like the others and left out: the heap takes up to three inferences to
  // come to rest (seen: the third frees one list of chunks more than those after it).
  int64_t runs = WARM_UPS + repeat;
  count_reset();
  for (int64_t run = 0; run < runs; ++run) {
    count_begin((uint64_t)run);
    int failed = layers_invoke(vm, function);
    count_end((uint64_t)run);
    if (failed) return failed;
  }
  text_add(json, "{\"classes\":[");
  for (int class = 0; class < COUNT_CLASSES; ++class) {
    text_addf(json, "%s\"%s\"", class ? "," : "", count_class_names[class]);
  }
  text_add(json, "]");
  if (add_counts(json, "runs", WARM_UPS, (int)runs) != 0) return -1;
  count_reset();
  int layers = layers_run(vm, function, symbols, 1, count_layer, NULL);
  if (layers != 0 || add_counts(json, "layers", 0, layers_count(symbols)) != 0) return -1;
  text_add(json, "}");
  return 0;
}

static int count_instructions(void* self, const TVMFFIAny* args, int32_t count,
                              TVMFFIAny* result) {
  (void)self;
  TVMFFIObjectHandle vm;
  char function[NAME_CAPACITY];
  char* symbols;
  int64_t repeat;
  if (!ffi_arg_count("count_instructions", count, 4) || !take_run(args, &vm, function)) return -1;
  if (!ffi_arg_int(&args[3], "repeat", 1, COUNTED_MAX, &repeat)) return -1;
  if (!count_available()) {
    return ffi_fail("RuntimeError",
                    "board: count_instructions: this board has no instruction counter; an emulated "
                    "one has");
  }
  if (take_symbols(&args[2], &symbols) != 0) return -1;
  Text json = {0};
  int failed = count_all(vm, function, symbols, repeat, &json);
  if (!failed) failed = ffi_return_text(&json, result);
  text_free(&json);
  free(symbols);
  return failed;
}

bool board_functions_register(void) {
  return ffi_register("tvm_mobilenet.board.facts", facts) &&
         ffi_register("tvm_mobilenet.board.configure_threads", configure_threads) &&
         ffi_register("tvm_mobilenet.board.use_opencl", use_opencl) &&
         ffi_register("tvm_mobilenet.board.memory", memory) &&
         ffi_register("tvm_mobilenet.board.time_runs", time_runs) &&
         ffi_register("tvm_mobilenet.board.time_layers", time_layers) &&
         ffi_register("tvm_mobilenet.board.capture_layers", capture_layers) &&
         ffi_register("tvm_mobilenet.board.captured", captured) &&
         ffi_register("tvm_mobilenet.board.count_instructions", count_instructions) &&
         ffi_register("tvm_mobilenet.board.time_calls", kernels_time) &&
         ffi_register("tvm_mobilenet.board.count_calls", kernels_count);
}
