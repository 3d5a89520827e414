/* Runs a compiled library on an emulated board, its inferences between marks that are counted.
 *
 *   guest_ours LIBRARY INPUT OUTPUT EXTENT...
 *
 * INPUT is one float32 tensor of those extents; OUTPUT takes the result's numbers. Slot 1 is one
 * inference, slot 2 three of them: their difference is two inferences and nothing else. */
#define _GNU_SOURCE
#include <dlpack/dlpack.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>

enum { MARK = 0x7f4d4e, RESET = 0, BEGIN = 1, END = 2, MAX_RANK = 8 };

static _Noreturn void fail(const char *what) {
  TVMFFIObjectHandle error = NULL;
  TVMFFIErrorMoveFromRaised(&error);
  if (error) {
    const TVMFFIErrorCell *cell =
        (const TVMFFIErrorCell *)((const char *)error + sizeof(TVMFFIObject));
    fprintf(stderr, "%s: %.*s\n", what, (int)cell->message.size, cell->message.data);
  } else {
    fprintf(stderr, "%s failed\n", what);
  }
  exit(1);
}

static TVMFFIAny integer(int64_t value) {
  TVMFFIAny any = {0};
  any.type_index = kTVMFFIInt;
  any.v_int64 = value;
  return any;
}

static TVMFFIAny text(const char *value) {
  TVMFFIAny any = {0};
  any.type_index = kTVMFFIRawStr;
  any.v_c_str = value;
  return any;
}

static TVMFFIAny call(TVMFFIObjectHandle function, TVMFFIAny *args, int count, const char *what) {
  TVMFFIAny result = {0};
  if (TVMFFIFunctionCall(function, args, count, &result)) fail(what);
  return result;
}

static TVMFFIObjectHandle global_function(const char *name) {
  TVMFFIByteArray bytes = {name, strlen(name)};
  TVMFFIObjectHandle function = NULL;
  if (TVMFFIFunctionGetGlobal(&bytes, &function) || !function) fail(name);
  return function;
}

static TVMFFIObjectHandle member(TVMFFIAny module, const char *name) {
  TVMFFIAny args[3] = {module, text(name), {0}};
  args[2].type_index = kTVMFFIBool;
  TVMFFIAny found = call(global_function("ffi.ModuleGetFunction"), args, 3, name);
  if (found.type_index != kTVMFFIFunction) fail(name);
  return found.v_obj;
}

static TVMFFIAny read_input(const char *path, int rank, char **extents) {
  static int64_t shape[MAX_RANK], strides[MAX_RANK];
  static DLManagedTensor tensor;
  size_t count = 1;
  for (int i = rank - 1; i >= 0; --i) {
    shape[i] = atoll(extents[i]);
    strides[i] = (int64_t)count;
    count *= (size_t)shape[i];
  }
  float *data = aligned_alloc(64, (count * sizeof *data + 63) / 64 * 64);
  FILE *file = fopen(path, "rb");
  if (!data || !file || fread(data, sizeof *data, count, file) != count) fail(path);
  fclose(file);
  tensor.dl_tensor =
      (DLTensor){data, {kDLCPU, 0}, rank, {kDLFloat, 32, 1}, shape, strides, 0};
  TVMFFIAny any = {0};
  TVMFFIObjectHandle handle;
  if (TVMFFITensorFromDLPack(&tensor, 0, 1, &handle)) fail("the input");
  any.type_index = kTVMFFITensor;
  any.v_obj = handle;
  return any;
}

static void write_output(const char *path, TVMFFIAny result) {
  if (result.type_index != kTVMFFITensor) fail("a result that is one tensor");
  const DLTensor *tensor = (const DLTensor *)((const char *)result.v_obj + sizeof(TVMFFIObject));
  size_t count = 1;
  for (int i = 0; i < tensor->ndim; ++i) count *= (size_t)tensor->shape[i];
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(tensor->data, sizeof(float), count, file) != count || fclose(file)) fail(path);
}

int main(int argc, char **argv) {
  if (argc < 5 || argc - 4 > MAX_RANK) {
    fprintf(stderr, "usage: guest_ours LIBRARY INPUT OUTPUT EXTENT...\n");
    return 2;
  }
  setenv("TVM_NUM_THREADS", "1", 1);
  TVMFFIAny path = text(argv[1]);
  TVMFFIAny library = call(global_function("ffi.ModuleLoadFromFile"), &path, 1, argv[1]);
  TVMFFIAny vm = call(member(library, "vm_load_executable"), NULL, 0, "vm_load_executable");
  TVMFFIAny device[3] = {integer(kDLCPU), integer(0), integer(2)};
  call(member(vm, "vm_initialization"), device, 3, "vm_initialization");
  TVMFFIAny input = read_input(argv[2], argc - 4, argv + 4);
  TVMFFIObjectHandle infer = member(vm, "main");
  TVMFFIAny result = {0};
  const int plan[3][2] = {{0, 2}, {1, 1}, {2, 3}}; /* slot, inferences; the first warm up */
  for (int i = 0; i < 3; ++i) {
    if (i == 1) syscall(MARK, RESET, 0);
    if (i) syscall(MARK, BEGIN, plan[i][0]);
    for (int n = 0; n < plan[i][1]; ++n) {
      if (result.type_index >= kTVMFFIStaticObjectBegin) TVMFFIObjectDecRef(result.v_obj);
      result = call(infer, &input, 1, "main");
    }
    if (i) syscall(MARK, END, plan[i][0]);
  }
  write_output(argv[3], result);
  fflush(NULL);
  _exit(0); /* the pool's threads need not be waited for */
}
