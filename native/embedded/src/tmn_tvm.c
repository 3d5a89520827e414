/* The calls into TVM's runtime, through the stable C ABI of libtvm_ffi alone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <tvm/ffi/c_api.h>

#include "tmn_internal.h"

enum {
    DATA_ALIGNMENT = 64,       /* what TVM's kernels take for granted of a tensor's memory */
    POOLED_ALLOCATOR = 2,      /* tvm/runtime/memory/memory_manager.h, AllocatorType::kPooled */
    ONE_CORE_PER_THREAD = -2,  /* tvm/src/runtime/threading_backend.h, kSpecifyOneCorePerThread */
    MAX_CPU_DIGITS = 12
};

struct tmn_vm {
    const tmn_description *description;
    TVMFFIObjectHandle machine; /* the Relax virtual machine, with the model's constants in it */
    TVMFFIObjectHandle main;    /* its function that computes the outputs */
    TVMFFIAny *inputs;          /* a tensor for each input, as arguments of main */
    void **input_data;
    TVMFFIAny result; /* what main returned last: it owns the outputs' memory */
    const void **output_data;
};

static TVMFFIAny integer(int64_t value) {
    return (TVMFFIAny){.type_index = kTVMFFIInt, .v_int64 = value};
}

static TVMFFIAny text(const char *value) {
    return (TVMFFIAny){.type_index = kTVMFFIRawStr, .v_c_str = value};
}

static TVMFFIAny object(TVMFFIObjectHandle handle, int32_t type) {
    return (TVMFFIAny){.type_index = type, .v_obj = handle};
}

static void release(TVMFFIObjectHandle handle) {
    if (handle != NULL) {
        TVMFFIObjectDecRef(handle);
    }
}

static void release_value(TVMFFIAny *value) {
    if (value->type_index >= kTVMFFIStaticObjectBegin) {
        TVMFFIObjectDecRef(value->v_obj);
    }
    *value = (TVMFFIAny){.type_index = kTVMFFINone};
}

/* What lies behind an object's header. */
static void *cell(TVMFFIObjectHandle handle) {
    return (char *)handle + sizeof(TVMFFIObject);
}

/* Take the error that a call has raised on this thread, as one line. */
static tmn_status raised(const char *what, tmn_error *error) {
    TVMFFIObjectHandle handle = NULL;
    TVMFFIErrorMoveFromRaised(&handle);
    if (handle == NULL) {
        return tmn_fail(error, TMN_ERROR_RUNTIME, "%s: TVM's runtime gives no reason", what);
    }
    const TVMFFIErrorCell *found = cell(handle);
    tmn_fail(error, TMN_ERROR_RUNTIME, "%s: %.*s: %.*s", what, (int)found->kind.size,
             found->kind.data, (int)found->message.size, found->message.data);
    for (char *c = error->text; *c != '\0'; c++) {
        if (*c == '\n') {
            *c = ' ';
        }
    }
    release(handle);
    return TMN_ERROR_RUNTIME;
}

static tmn_status call(TVMFFIObjectHandle function, const char *what, TVMFFIAny *arguments,
                       int32_t count, TVMFFIAny *result, tmn_error *error) {
    *result = (TVMFFIAny){.type_index = kTVMFFINone};
    return TVMFFIFunctionCall(function, arguments, count, result) == 0 ? TMN_OK
                                                                       : raised(what, error);
}

static TVMFFIObjectHandle find_global(const char *name) {
    TVMFFIByteArray key = {name, strlen(name)};
    TVMFFIObjectHandle function = NULL;
    /* A missing function is no failure, it leaves NULL. */
    return TVMFFIFunctionGetGlobal(&key, &function) == 0 ? function : NULL;
}

static tmn_status call_global(const char *name, const char *what, TVMFFIAny *arguments,
                              int32_t count, TVMFFIAny *result, tmn_error *error) {
    TVMFFIObjectHandle function = find_global(name);
    if (function == NULL) {
        return tmn_fail(error, TMN_ERROR_RUNTIME,
                        "%s: TVM's runtime has no %s; link the program with libtvm_runtime.so of "
                        "the bundle (and -Wl,--no-as-needed before it)",
                        what, name);
    }
    tmn_status status = call(function, what, arguments, count, result, error);
    release(function);
    return status;
}

/* Look up a module's function; the caller releases it. */
static tmn_status find(TVMFFIObjectHandle module, const char *name, TVMFFIObjectHandle *function,
                       tmn_error *error) {
    TVMFFIAny arguments[] = {object(module, kTVMFFIModule), text(name),
                             {.type_index = kTVMFFIBool, .v_int64 = 0}};
    TVMFFIAny result = {.type_index = kTVMFFINone};
    tmn_status status =
        call_global("ffi.ModuleGetFunction", name, arguments, 3, &result, error);
    if (status != TMN_OK) {
        return status;
    }
    if (result.type_index != kTVMFFIFunction) {
        release_value(&result);
        return tmn_fail(error, TMN_ERROR_RUNTIME,
                        "the library has no function %s; was it compiled by tvm-mobilenet?", name);
    }
    *function = result.v_obj;
    return TMN_OK;
}

static tmn_status call_method(TVMFFIObjectHandle module, const char *name, TVMFFIAny *arguments,
                              int32_t count, TVMFFIAny *result, tmn_error *error) {
    TVMFFIObjectHandle function = NULL;
    tmn_status status = find(module, name, &function, error);
    if (status == TMN_OK) {
        status = call(function, name, arguments, count, result, error);
        release(function);
    }
    return status;
}

/* Give the calling thread a pool of workers on the processors that were chosen. */
static tmn_status configure_pool(const tmn_thread *thread, tmn_error *error) {
    static const char WHAT[] = "setting up the threads";
    int count;
    const int *cpus = tmn_thread_cpus(thread, &count);
    char(*names)[MAX_CPU_DIGITS] = calloc((size_t)count, sizeof *names);
    TVMFFIAny *items = calloc((size_t)count, sizeof *items);
    TVMFFIAny list = {.type_index = kTVMFFINone};
    tmn_status status = names != NULL && items != NULL ? TMN_OK : tmn_fail_memory(error);
    for (int i = 0; status == TMN_OK && i < count; i++) {
        snprintf(names[i], sizeof names[i], "%d", cpus[i]);
        items[i] = text(names[i]);
    }
    if (status == TMN_OK) {
        status = call_global("ffi.Array", WHAT, items, count, &list, error);
    }
    if (status == TMN_OK) {
        TVMFFIAny arguments[] = {integer(ONE_CORE_PER_THREAD), integer(count), list};
        TVMFFIAny result;
        status = call_global("runtime.config_threadpool", WHAT, arguments, 3, &result, error);
        release_value(&list);
    }
    free(items);
    free(names);
    return status == TMN_OK ? tmn_thread_settle(thread, error) : status;
}

static tmn_status load(tmn_vm *vm, const char *library, tmn_error *error) {
    TVMFFIVersion version;
    TVMFFIGetVersion(&version);
    if (version.major != TVM_FFI_VERSION_MAJOR || version.minor != TVM_FFI_VERSION_MINOR) {
        return tmn_fail(error, TMN_ERROR_RUNTIME,
                        "libtvm_ffi.so is version %u.%u, the program was built for %d.%d; use the "
                        "library of the bundle",
                        version.major, version.minor, TVM_FFI_VERSION_MAJOR,
                        TVM_FFI_VERSION_MINOR);
    }
    TVMFFIAny path = text(library);
    TVMFFIAny executable = {.type_index = kTVMFFINone};
    tmn_status status =
        call_global("ffi.ModuleLoadFromFile", library, &path, 1, &executable, error);
    if (status != TMN_OK) {
        return status;
    }
    TVMFFIAny machine = {.type_index = kTVMFFINone};
    if (executable.type_index == kTVMFFIModule) {
        status = call_method(executable.v_obj, "vm_load_executable", NULL, 0, &machine, error);
    }
    release_value(&executable);
    if (status != TMN_OK) {
        return status;
    }
    if (machine.type_index != kTVMFFIModule) {
        release_value(&machine);
        return tmn_fail(error, TMN_ERROR_RUNTIME, "%s: holds no model of tvm-mobilenet's", library);
    }
    vm->machine = machine.v_obj;
    TVMFFIAny where[] = {integer(kDLCPU), integer(0), integer(POOLED_ALLOCATOR)};
    TVMFFIAny nothing = {.type_index = kTVMFFINone};
    status = call_method(vm->machine, "vm_initialization", where, 3, &nothing, error);
    if (status == TMN_OK) {
        release_value(&nothing);
        status = find(vm->machine, "main", &vm->main, error);
    }
    return status;
}

static DLDataType data_type(tmn_dtype dtype) {
    uint8_t code = dtype <= TMN_FLOAT16  ? kDLFloat
                   : dtype == TMN_UINT8 ? kDLUInt
                   : dtype == TMN_BOOL  ? kDLBool
                                        : kDLInt;
    return (DLDataType){code, (uint8_t)(8 * tmn_dtype_size(dtype)), 1};
}

/* An input's memory: TVM counts the references to it and calls `drop` when the last is gone. */
typedef struct owned_tensor {
    DLManagedTensor managed;
    int64_t shape[TMN_MAX_RANK];
    int64_t strides[TMN_MAX_RANK];
} owned_tensor;

static void drop(DLManagedTensor *managed) {
    owned_tensor *owned = managed->manager_ctx;
    free(owned->managed.dl_tensor.data);
    free(owned);
}

static tmn_status make_input(const tmn_tensor_info *info, TVMFFIAny *value, void **data,
                             tmn_error *error) {
    size_t rounded = (info->size_bytes + DATA_ALIGNMENT - 1) / DATA_ALIGNMENT * DATA_ALIGNMENT;
    owned_tensor *owned = calloc(1, sizeof *owned);
    void *memory = aligned_alloc(DATA_ALIGNMENT, rounded);
    if (owned == NULL || memory == NULL) {
        free(owned);
        free(memory);
        return tmn_fail_memory(error);
    }
    memset(memory, 0, rounded);
    int64_t stride = 1;
    for (size_t i = info->rank; i-- > 0; stride *= info->shape[i]) {
        owned->shape[i] = info->shape[i];
        owned->strides[i] = stride;
    }
    owned->managed = (DLManagedTensor){
        .dl_tensor = {.data = memory,
                      .device = {kDLCPU, 0},
                      .ndim = (int32_t)info->rank,
                      .dtype = data_type(info->dtype),
                      .shape = owned->shape,
                      .strides = owned->strides},
        .manager_ctx = owned,
        .deleter = drop,
    };
    TVMFFIObjectHandle tensor = NULL;
    if (TVMFFITensorFromDLPack(&owned->managed, DATA_ALIGNMENT, 1, &tensor) != 0) {
        drop(&owned->managed);
        return raised(info->name, error);
    }
    *value = object(tensor, kTVMFFITensor);
    *data = memory;
    return TMN_OK;
}

static bool is_as_described(const DLTensor *tensor, const tmn_tensor_info *info) {
    DLDataType dtype = data_type(info->dtype);
    if (tensor->device.device_type != kDLCPU || tensor->ndim != (int32_t)info->rank ||
        tensor->dtype.code != dtype.code || tensor->dtype.bits != dtype.bits ||
        tensor->dtype.lanes != dtype.lanes) {
        return false;
    }
    int64_t stride = 1;
    for (size_t i = info->rank; i-- > 0; stride *= info->shape[i]) {
        bool is_dense = tensor->strides == NULL || tensor->strides[i] == stride;
        if (tensor->shape[i] != info->shape[i] || !(is_dense || info->shape[i] == 1)) {
            return false;
        }
    }
    return true;
}

/* Find the outputs' memory in what main returned: a tensor, or an array of them. */
static tmn_status locate_outputs(tmn_vm *vm, tmn_error *error) {
    const tmn_description *about = vm->description;
    const TVMFFIAny *values = &vm->result;
    int64_t count = 1;
    if (vm->result.type_index == kTVMFFIArray) {
        const TVMFFISeqCell *sequence = cell(vm->result.v_obj);
        values = sequence->data;
        count = sequence->size;
    }
    bool is_good = count == (int64_t)about->output_count;
    for (size_t i = 0; is_good && i < about->output_count; i++) {
        is_good = values[i].type_index == kTVMFFITensor;
        if (is_good) {
            const DLTensor *tensor = cell(values[i].v_obj);
            is_good = is_as_described(tensor, &about->outputs[i]);
            vm->output_data[i] = (const char *)tensor->data + tensor->byte_offset;
        }
    }
    if (is_good) {
        return TMN_OK;
    }
    release_value(&vm->result);
    return tmn_fail(error, TMN_ERROR_DAMAGED,
                    "the library returned other outputs than its description says; bundle the "
                    "model again");
}

tmn_status tmn_vm_run(tmn_vm *vm, tmn_error *error) {
    /* First, so that the memory of the last outputs serves this run. */
    release_value(&vm->result);
    int32_t count = (int32_t)vm->description->input_count;
    tmn_status status = call(vm->main, "running", vm->inputs, count, &vm->result, error);
    return status == TMN_OK ? locate_outputs(vm, error) : status;
}

static tmn_status fill(tmn_vm *vm, const char *library, const tmn_thread *thread,
                       tmn_error *error) {
    const tmn_description *about = vm->description;
    vm->inputs = calloc(about->input_count + 1, sizeof *vm->inputs);
    vm->input_data = calloc(about->input_count + 1, sizeof *vm->input_data);
    vm->output_data = calloc(about->output_count + 1, sizeof *vm->output_data);
    if (vm->inputs == NULL || vm->input_data == NULL || vm->output_data == NULL) {
        return tmn_fail_memory(error);
    }
    tmn_status status = configure_pool(thread, error);
    if (status == TMN_OK) {
        status = load(vm, library, error);
    }
    for (size_t i = 0; status == TMN_OK && i < about->input_count; i++) {
        status = make_input(&about->inputs[i], &vm->inputs[i], &vm->input_data[i], error);
    }
    return status;
}

tmn_status tmn_vm_open(const char *library, const tmn_thread *thread,
                       const tmn_description *description, tmn_vm **result, tmn_error *error) {
    tmn_vm *vm = calloc(1, sizeof *vm);
    if (vm == NULL) {
        return tmn_fail_memory(error);
    }
    vm->description = description;
    tmn_status status = fill(vm, library, thread, error);
    if (status != TMN_OK) {
        tmn_vm_close(vm);
        return status;
    }
    *result = vm;
    return TMN_OK;
}

void tmn_vm_close(tmn_vm *vm) {
    release_value(&vm->result);
    release(vm->main);
    release(vm->machine);
    for (size_t i = 0; vm->inputs != NULL && i < vm->description->input_count; i++) {
        release_value(&vm->inputs[i]);
    }
    free(vm->inputs);
    free(vm->input_data);
    free(vm->output_data);
    free(vm);
    /* TVM keeps freed tensors for the process; give back what no open model is using. */
    TVMFFIAny nothing = {.type_index = kTVMFFINone};
    tmn_error ignored;
    call_global("vm.builtin.memory_manager.clear", "closing", NULL, 0, &nothing, &ignored);
}

void *tmn_vm_input(const tmn_vm *vm, size_t index) {
    return vm->input_data[index];
}

const void *tmn_vm_output(const tmn_vm *vm, size_t index) {
    return vm->result.type_index == kTVMFFINone ? NULL : vm->output_data[index];
}
