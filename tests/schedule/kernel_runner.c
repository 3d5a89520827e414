/* Runs one compiled kernel on arrays from a file, without TVM's runtime.
 *
 *   kernel_runner ARGUMENTS RESULT THREADS
 *
 * ARGUMENTS: int64 count, then for each array int64 type code and bits (DLPack's), int64 rank, rank
 * int64 extents, and the data. The last array is the output, and is written to RESULT. What a kernel asks of the runtime is here: scratch
 * memory, and a parallel loop whose tasks run one after the other. */
#include <dlpack/dlpack.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

enum { MAX_ARRAYS = 8, MAX_RANK = 8 };

typedef struct {
  void *sync_handle;
  int32_t num_task;
} Group;
typedef int (*Task)(int, Group *, void *);

extern int __tvm_ffi_main(void *, const TVMFFIAny *, int32_t, TVMFFIAny *);
/* A kernel defines those that it calls; where it calls none of one, that is ours. */
__attribute__((weak)) void *__TVMBackendAllocWorkspace;
__attribute__((weak)) void *__TVMBackendFreeWorkspace;
__attribute__((weak)) void *__TVMBackendParallelLaunch;

static int32_t threads;

static _Noreturn void fail(const char *what) {
  fprintf(stderr, "kernel_runner: %s\n", what);
  exit(1);
}

static void *aligned(size_t bytes) {
  void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!memory) fail("no memory");
  return memory;
}

static int launch(Task task, void *data, int32_t wanted) {
  Group group = {NULL, wanted > 0 && wanted < threads ? wanted : threads};
  for (int i = 0; i < group.num_task; ++i)
    if (task(i, &group, data)) return -1;
  return 0;
}

static void *take(int type, int device, uint64_t bytes, int code, int bits) {
  (void)type, (void)device, (void)code, (void)bits;
  return aligned(bytes);
}

static int give(int type, int device, void *memory) {
  (void)type, (void)device;
  free(memory);
  return 0;
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) fputs(parts[i], stderr);
  fputc('\n', stderr);
}

static int64_t number(FILE *file) {
  int64_t value;
  if (fread(&value, sizeof value, 1, file) != 1) fail("the arguments end too early");
  return value;
}

int main(int argc, char **argv) {
  static DLTensor tensors[MAX_ARRAYS];
  static TVMFFIAny args[MAX_ARRAYS];
  static int64_t shapes[MAX_ARRAYS][MAX_RANK];
  if (argc != 4) fail("usage: kernel_runner ARGUMENTS RESULT THREADS");
  FILE *file = fopen(argv[1], "rb");
  if (!file) fail("cannot read the arguments");
  threads = atoi(argv[3]);
  __TVMBackendAllocWorkspace = (void *)take;
  __TVMBackendFreeWorkspace = (void *)give;
  __TVMBackendParallelLaunch = (void *)launch;
  int64_t count = number(file);
  size_t bytes = 0;
  if (count < 1 || count > MAX_ARRAYS) fail("too many arguments");
  for (int64_t i = 0; i < count; ++i) {
    int64_t code = number(file), bits = number(file), rank = number(file);
    if (rank < 0 || rank > MAX_RANK) fail("an array has too many dimensions");
    bytes = (size_t)bits / 8;
    for (int64_t d = 0; d < rank; ++d) bytes *= (size_t)(shapes[i][d] = number(file));
    tensors[i].data = aligned(bytes);
    if (fread(tensors[i].data, 1, bytes, file) != bytes) fail("the arguments end too early");
    tensors[i].device.device_type = kDLCPU;
    tensors[i].ndim = (int32_t)rank;
    tensors[i].shape = shapes[i];
    tensors[i].dtype = (DLDataType){(uint8_t)code, (uint8_t)bits, 1};
    args[i].type_index = kTVMFFIDLTensorPtr;
    args[i].v_ptr = &tensors[i];
  }
  fclose(file);
  TVMFFIAny result = {0};
  if (__tvm_ffi_main(NULL, args, (int32_t)count, &result)) fail("the kernel returned an error");
  FILE *out = fopen(argv[2], "wb");
  if (!out || fwrite(tensors[count - 1].data, 1, bytes, out) != bytes || fclose(out))
    fail("cannot write the result");
  return 0;
}
