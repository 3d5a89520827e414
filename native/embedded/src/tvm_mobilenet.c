/* The calls of tvm_mobilenet.h: what they check, and what they hand to the model's thread. */
#include "tvm_mobilenet.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "tmn_internal.h"

struct tmn_model {
    tmn_model_file file;
    tmn_thread *thread;
    tmn_vm *vm;
    bool *is_set; /* for each input */
    int threads;
    tmn_error error;
};

/* Of calls that have no model to keep it: one for each thread of the program. */
static _Thread_local tmn_error last_error;

static const char MODEL_FILE[] = "model.txt";

/* What is handed to the model's thread, and what comes back. */
typedef struct task {
    tmn_model *model;
    const char *library;
    tmn_status status;
    tmn_error error;
} task;

static void open_on_thread(void *argument) {
    task *job = argument;
    tmn_model *model = job->model;
    job->status = tmn_vm_open(job->library, model->thread, &model->file.description, &model->vm,
                              &job->error);
}

static void run_on_thread(void *argument) {
    task *job = argument;
    job->status = tmn_vm_run(job->model->vm, &job->error);
}

static void close_on_thread(void *argument) {
    task *job = argument;
    tmn_vm_close(job->model->vm);
    job->model->vm = NULL;
}

/* Give freed memory back: TVM copies the parameters twice on their way out of the library. */
static void trim_memory(void) {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

static char *join(const char *folder, const char *name) {
    size_t size = strlen(folder) + strlen(name) + 2;
    char *path = malloc(size);
    if (path != NULL) {
        snprintf(path, size, "%s/%s", folder, name);
    }
    return path;
}

static tmn_status open_library(tmn_model *model, const char *path, const tmn_options *options,
                               tmn_error *error) {
    const char *sha256 =
        options->flags & TMN_SKIP_HASH ? NULL : model->file.library_sha256;
    tmn_status status = tmn_check_library(path, model->file.library_size, sha256, error);
    if (status == TMN_OK) {
        status = tmn_thread_start(options, &model->thread, error);
    }
    if (status != TMN_OK) {
        return status;
    }
    tmn_thread_cpus(model->thread, &model->threads);
    task job = {.model = model, .library = path};
    tmn_thread_call(model->thread, open_on_thread, &job);
    if (job.status != TMN_OK) {
        *error = job.error;
    }
    return job.status;
}

static tmn_status open_folder(tmn_model *model, const char *folder, const tmn_options *options,
                              tmn_error *error) {
    char *facts = join(folder, MODEL_FILE);
    tmn_status status = facts != NULL ? tmn_read_model_file(facts, &model->file, error)
                                      : tmn_fail_memory(error);
    free(facts);
    if (status != TMN_OK) {
        return status;
    }
    model->is_set = calloc(model->file.description.input_count + 1, sizeof *model->is_set);
    char *library = join(folder, model->file.library);
    status = model->is_set != NULL && library != NULL
                 ? open_library(model, library, options, error)
                 : tmn_fail_memory(error);
    free(library);
    return status;
}

tmn_status tmn_open(const char *folder, const tmn_options *options, tmn_model **result) {
    static const tmn_options DEFAULTS = {0};
    if (folder == NULL || result == NULL) {
        return tmn_fail(&last_error, TMN_ERROR_ARGUMENT, "tmn_open: the folder and the place for "
                                                         "the model are needed");
    }
    *result = NULL;
    tmn_model *model = calloc(1, sizeof *model);
    if (model == NULL) {
        return tmn_fail_memory(&last_error);
    }
    tmn_error error;
    tmn_status status =
        open_folder(model, folder, options != NULL ? options : &DEFAULTS, &error);
    if (status != TMN_OK) {
        tmn_close(model);
        last_error = error;
        return status;
    }
    trim_memory();
    *result = model;
    return TMN_OK;
}

void tmn_close(tmn_model *model) {
    if (model == NULL) {
        return;
    }
    if (model->vm != NULL) {
        task job = {.model = model};
        tmn_thread_call(model->thread, close_on_thread, &job);
    }
    if (model->thread != NULL) {
        tmn_thread_stop(model->thread);
    }
    tmn_free_model_file(&model->file);
    free(model->is_set);
    free(model);
    trim_memory();
}

static tmn_status no_model(const char *call) {
    return tmn_fail(&last_error, TMN_ERROR_ARGUMENT, "%s: the model is NULL; open one first", call);
}

const tmn_description *tmn_describe(const tmn_model *model) {
    if (model == NULL) {
        no_model("tmn_describe");
        return NULL;
    }
    return &model->file.description;
}

int tmn_threads(const tmn_model *model) {
    return model != NULL ? model->threads : 0;
}

const char *tmn_last_error(const tmn_model *model) {
    return model != NULL ? model->error.text : last_error.text;
}

/* Spell a shape as "1x224x224x3". */
static void spell_shape(size_t rank, const int64_t *shape, char *text, size_t size) {
    size_t used = (size_t)snprintf(text, size, "%s", rank == 0 ? "scalar" : "");
    for (size_t i = 0; i < rank && used < size; i++) {
        used += (size_t)snprintf(text + used, size - used, "%s%" PRId64, i > 0 ? "x" : "",
                                 shape[i]);
    }
}

static tmn_status no_such(tmn_model *model, const char *kind, size_t index, size_t count) {
    return tmn_fail(&model->error, TMN_ERROR_ARGUMENT, "%s %zu: the model has %zu, counted from 0",
                    kind, index, count);
}

static tmn_status check_tensor(tmn_model *model, const tmn_tensor_info *info,
                               const tmn_tensor *tensor) {
    bool is_equal = tensor->dtype == info->dtype && tensor->rank == info->rank;
    for (size_t i = 0; is_equal && i < info->rank; i++) {
        is_equal = tensor->shape[i] == info->shape[i];
    }
    char wanted[200];
    spell_shape(info->rank, info->shape, wanted, sizeof wanted);
    if (!is_equal) {
        char given[200];
        spell_shape(tensor->rank < TMN_MAX_RANK ? tensor->rank : TMN_MAX_RANK, tensor->shape,
                    given, sizeof given);
        return tmn_fail(&model->error, TMN_ERROR_TENSOR,
                        "input '%s': %s %s was given, the model takes %s %s (%s)", info->name,
                        tmn_dtype_name(tensor->dtype), given, tmn_dtype_name(info->dtype), wanted,
                        info->layout);
    }
    if (tensor->size_bytes != info->size_bytes) {
        return tmn_fail(&model->error, TMN_ERROR_TENSOR,
                        "input '%s': %zu bytes were given, %s %s takes %zu", info->name,
                        tensor->size_bytes, tmn_dtype_name(info->dtype), wanted,
                        info->size_bytes);
    }
    return TMN_OK;
}

tmn_status tmn_set_input(tmn_model *model, size_t index, const tmn_tensor *tensor) {
    if (model == NULL) {
        return no_model("tmn_set_input");
    }
    const tmn_description *about = &model->file.description;
    if (index >= about->input_count) {
        return no_such(model, "input", index, about->input_count);
    }
    if (tensor == NULL || tensor->data == NULL || (tensor->shape == NULL && tensor->rank > 0)) {
        return tmn_fail(&model->error, TMN_ERROR_ARGUMENT,
                        "input '%s': the tensor, its shape or its data is NULL",
                        about->inputs[index].name);
    }
    tmn_status status = check_tensor(model, &about->inputs[index], tensor);
    if (status == TMN_OK) {
        memcpy(tmn_vm_input(model->vm, index), tensor->data, tensor->size_bytes);
        model->is_set[index] = true;
    }
    return status;
}

tmn_status tmn_input_data(tmn_model *model, size_t index, void **data) {
    if (model == NULL) {
        return no_model("tmn_input_data");
    }
    if (index >= model->file.description.input_count || data == NULL) {
        return no_such(model, "input", index, model->file.description.input_count);
    }
    *data = tmn_vm_input(model->vm, index);
    model->is_set[index] = true;
    return TMN_OK;
}

/* Whether the model takes one picture, or a batch of them, in the size of its preprocessing. */
static bool takes_pictures(const tmn_description *about, bool is_nhwc) {
    const tmn_preprocessing *how = about->preprocessing;
    if (how == NULL || about->input_count != 1) {
        return false;
    }
    const tmn_tensor_info *input = &about->inputs[0];
    const int64_t *picture = input->shape + (is_nhwc ? 1 : 2);
    return input->rank == 4 && input->dtype == TMN_FLOAT32 && picture[0] == how->crop &&
           picture[1] == how->crop && input->shape[is_nhwc ? 3 : 1] == 3;
}

tmn_status tmn_set_picture(tmn_model *model, size_t slot, const uint8_t *rgb, size_t width,
                           size_t height, size_t stride_bytes) {
    if (model == NULL) {
        return no_model("tmn_set_picture");
    }
    const tmn_description *about = &model->file.description;
    bool is_nhwc = about->input_count == 1 && strcmp(about->inputs[0].layout, "NHWC") == 0;
    if (!takes_pictures(about, is_nhwc)) {
        return tmn_fail(&model->error, TMN_ERROR_STATE,
                        "model %s: a picture was given, but its description does not say how to "
                        "prepare one; fill its inputs with tmn_set_input",
                        about->model);
    }
    if (slot >= (size_t)about->inputs[0].shape[0]) {
        return no_such(model, "picture", slot, (size_t)about->inputs[0].shape[0]);
    }
    size_t values = about->inputs[0].size_bytes / sizeof(float) / (size_t)about->inputs[0].shape[0];
    tmn_picture picture = {rgb, width, height, stride_bytes};
    tmn_status status =
        tmn_prepare_picture(about->preprocessing, is_nhwc, &picture,
                            (float *)tmn_vm_input(model->vm, 0) + slot * values, &model->error);
    if (status == TMN_OK) {
        model->is_set[0] = true;
    }
    return status;
}

tmn_status tmn_run(tmn_model *model) {
    if (model == NULL) {
        return no_model("tmn_run");
    }
    const tmn_description *about = &model->file.description;
    for (size_t i = 0; i < about->input_count; i++) {
        if (!model->is_set[i]) {
            return tmn_fail(&model->error, TMN_ERROR_STATE,
                            "input '%s' has not been set; set every input before tmn_run",
                            about->inputs[i].name);
        }
    }
    task job = {.model = model};
    tmn_thread_call(model->thread, run_on_thread, &job);
    if (job.status != TMN_OK) {
        model->error = job.error;
    }
    return job.status;
}

tmn_status tmn_output_data(tmn_model *model, size_t index, const void **data) {
    if (model == NULL) {
        return no_model("tmn_output_data");
    }
    if (index >= model->file.description.output_count || data == NULL) {
        return no_such(model, "output", index, model->file.description.output_count);
    }
    const void *found = tmn_vm_output(model->vm, index);
    if (found == NULL) {
        return tmn_fail(&model->error, TMN_ERROR_STATE,
                        "output '%s': nothing has been computed; call tmn_run first",
                        model->file.description.outputs[index].name);
    }
    *data = found;
    return TMN_OK;
}

tmn_status tmn_get_output(tmn_model *model, size_t index, void *data, size_t size_bytes) {
    const void *found = NULL;
    tmn_status status = tmn_output_data(model, index, &found);
    if (status != TMN_OK) {
        return status;
    }
    const tmn_tensor_info *info = &model->file.description.outputs[index];
    if (data == NULL || size_bytes != info->size_bytes) {
        return tmn_fail(&model->error, TMN_ERROR_TENSOR,
                        "output '%s': room for %zu bytes was given, it has %zu", info->name,
                        data != NULL ? size_bytes : 0, info->size_bytes);
    }
    memcpy(data, found, size_bytes);
    return TMN_OK;
}
