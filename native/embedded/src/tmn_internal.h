/* What the parts of the implementation know of each other; not for programs that use it. */
#ifndef TMN_INTERNAL_H
#define TMN_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tvm_mobilenet.h"

/* tmn_error.c: a status and the sentence that goes with it. */

typedef struct tmn_error {
    tmn_status status;
    char text[512];
} tmn_error;

#if defined(__GNUC__)
#define TMN_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define TMN_PRINTF(text, first)
#endif

/* Fill in `error` and return `status`. A text too long is cut, at a whole UTF-8 character. */
tmn_status tmn_fail(tmn_error *error, tmn_status status, const char *format, ...) TMN_PRINTF(3, 4);
tmn_status tmn_fail_memory(tmn_error *error);

/* tmn_file.c: files on disk, and what can be known of a library without loading it. */

#define TMN_SHA256_HEX 65 /* 64 digits and the end */

void tmn_sha256_hex(const void *data, size_t size, char hex[TMN_SHA256_HEX]);

/* Read a whole file of at most `limit` bytes; the caller frees *data, which has a 0 at its end. */
tmn_status tmn_read_file(const char *path, size_t limit, char **data, size_t *size,
                         tmn_error *error);

/* Check machine, size and hash of the library before it is loaded; `sha256` may be NULL. */
tmn_status tmn_check_library(const char *path, uint64_t size, const char *sha256,
                             tmn_error *error);

/* tmn_description.c: model.txt. */

typedef struct tmn_model_file {
    tmn_description description;
    const char *library;
    const char *library_sha256;
    uint64_t library_size;
    /* What the description's pointers point into. */
    char *text;
    tmn_tensor_info *tensors;
    const char **class_names;
    tmn_preprocessing preprocessing;
} tmn_model_file;

tmn_status tmn_read_model_file(const char *path, tmn_model_file *file, tmn_error *error);
void tmn_free_model_file(tmn_model_file *file);

/* tmn_thread.c: a thread of its own to compute on. */

typedef struct tmn_thread tmn_thread;

/* `threads` and `cpus` as in tmn_options; where the caller leaves them open they are chosen. */
tmn_status tmn_thread_start(const tmn_options *options, tmn_thread **thread, tmn_error *error);
/* Run `function` on the thread and wait for it. */
void tmn_thread_call(tmn_thread *thread, void (*function)(void *), void *argument);
/* The processors that were chosen, as many as there are threads. */
const int *tmn_thread_cpus(const tmn_thread *thread, int *count);
/* Called on the thread itself, after TVM has pinned it wherever it pleased. */
tmn_status tmn_thread_settle(const tmn_thread *thread, tmn_error *error);
void tmn_thread_stop(tmn_thread *thread);

/* tmn_tvm.c: the calls into TVM's runtime. All of these run on the model's thread. */

typedef struct tmn_vm tmn_vm;

tmn_status tmn_vm_open(const char *library, const tmn_thread *thread,
                       const tmn_description *description, tmn_vm **vm, tmn_error *error);
void tmn_vm_close(tmn_vm *vm);
void *tmn_vm_input(const tmn_vm *vm, size_t index);
const void *tmn_vm_output(const tmn_vm *vm, size_t index);
tmn_status tmn_vm_run(tmn_vm *vm, tmn_error *error);

/* tmn_picture.c: a picture to the values that a model wants. */

typedef struct tmn_picture {
    const uint8_t *rgb;
    size_t width;
    size_t height;
    size_t stride_bytes;
} tmn_picture;

tmn_status tmn_prepare_picture(const tmn_preprocessing *how, bool is_nhwc,
                               const tmn_picture *picture, float *values, tmn_error *error);

#endif
