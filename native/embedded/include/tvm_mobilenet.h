/*
 * A compiled MobileNet inside a product: open, describe, set inputs, run, get outputs, close.
 *
 * Needs libtvm_runtime.so and libtvm_ffi.so beside the program; no Python, no C++ and no network.
 *
 *     tmn_model *model;
 *     if (tmn_open("model", NULL, &model) != TMN_OK) {
 *         fprintf(stderr, "%s\n", tmn_last_error(NULL));
 *     }
 *
 * Threads: every model computes on a thread of its own, with a pool of the size that it was opened
 * with; the caller's thread is neither pinned nor changed. Any thread may use a model, one at a
 * time; different models may be used at the same time. After fork(), only exec() or _exit() is
 * safe in the child of a process that has a model open.
 *
 * Memory: what `tmn_describe` and the functions for names and messages return belongs to the
 * library and is not freed by the caller.
 */
#ifndef TVM_MOBILENET_H
#define TVM_MOBILENET_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TMN_MAX_RANK 8

/* What a call ended with. Every other value than TMN_OK has a message, see `tmn_last_error`. */
typedef enum tmn_status {
    TMN_OK = 0,
    TMN_ERROR_ARGUMENT = 1, /* the call itself is wrong: an index, a number of threads, a NULL */
    TMN_ERROR_TENSOR = 2,   /* a tensor of another shape, dtype or size than the model's */
    TMN_ERROR_STATE = 3,    /* calls in the wrong order: running without inputs, ... */
    TMN_ERROR_FILE = 4,     /* a file is missing or cannot be read */
    TMN_ERROR_DAMAGED = 5,  /* a file is truncated or altered, or files do not belong together */
    TMN_ERROR_MACHINE = 6,  /* the library is for another processor architecture */
    TMN_ERROR_RUNTIME = 7,  /* TVM's runtime refused; the message is its own */
    TMN_ERROR_MEMORY = 8    /* out of memory */
} tmn_status;

typedef enum tmn_dtype {
    TMN_FLOAT32,
    TMN_FLOAT64,
    TMN_FLOAT16,
    TMN_INT8,
    TMN_INT16,
    TMN_INT32,
    TMN_INT64,
    TMN_UINT8,
    TMN_BOOL
} tmn_dtype;

typedef enum tmn_interpolation {
    TMN_NEAREST,
    TMN_BILINEAR,
    TMN_BICUBIC,
    TMN_LANCZOS
} tmn_interpolation;

/* One input or output of a model. Elements lie in row-major order, without gaps. */
typedef struct tmn_tensor_info {
    const char *name;
    const char *layout; /* "NHWC", "NCHW", or "any" where the tensor is no feature map */
    tmn_dtype dtype;
    size_t rank;
    int64_t shape[TMN_MAX_RANK];
    size_t size_bytes;
} tmn_tensor_info;

/* How a picture becomes the input of a model; `tmn_set_picture` does all of it. */
typedef struct tmn_preprocessing {
    int32_t resize; /* length of the short side after resizing, in pixels */
    int32_t crop;   /* side of the central square that is kept, in pixels */
    float mean[3];  /* subtracted, per channel, from values in 0..1 */
    float std[3];   /* then divided by */
    tmn_interpolation interpolation;
    int is_bgr; /* whether blue comes first in the tensor */
} tmn_preprocessing;

typedef struct tmn_description {
    const char *model;
    const char *weights; /* name of the weight file, or "random (seed 0)" */
    int is_random;       /* whether the weights are random numbers and the outputs mean nothing */
    const char *target;  /* what the library was compiled for, "rpi4" */
    const char *tvm;     /* the version of TVM that compiled it */
    size_t input_count;
    const tmn_tensor_info *inputs;
    size_t output_count;
    const tmn_tensor_info *outputs;
    const tmn_preprocessing *preprocessing; /* NULL where the model takes no pictures */
    size_t class_count;                     /* 0 where the classes have no names */
    const char *const *class_names;         /* in the order of the outputs */
} tmn_description;

enum {
    /* Load the library without comparing its SHA-256 with the description's. Its size and its
       header are checked all the same. For read-only file systems that verify themselves. */
    TMN_SKIP_HASH = 1
};

/* How to open a model. All zero, or a NULL pointer, is a good default. */
typedef struct tmn_options {
    int threads;      /* how many threads compute; 0 for one on each fast core */
    const int *cpus;  /* the processors to compute on, one a thread; NULL for the fastest */
    size_t cpu_count; /* how many are in `cpus`; `threads` is then 0 or the same number */
    unsigned flags;   /* TMN_SKIP_HASH or 0 */
} tmn_options;

typedef struct tmn_model tmn_model;

/*
 * Open the model in `folder`, which holds model.txt and the library that it names. The library is
 * checked (machine, size, SHA-256) before any of its code is loaded. On failure *model is NULL and
 * tmn_last_error(NULL) says why.
 */
tmn_status tmn_open(const char *folder, const tmn_options *options, tmn_model **model);

/*
 * End a model's threads and free what it holds. NULL is allowed. With more than one thread it may
 * take some tenths of a second: TVM's workers do not look up before they have spun for a while.
 */
void tmn_close(tmn_model *model);

/* What the model is; valid until tmn_close. */
const tmn_description *tmn_describe(const tmn_model *model);

/* How many threads the model computes with. */
int tmn_threads(const tmn_model *model);

/* A tensor of the caller's, for tmn_set_input. */
typedef struct tmn_tensor {
    tmn_dtype dtype;
    size_t rank;
    const int64_t *shape;
    const void *data;
    size_t size_bytes; /* of data, checked against shape and dtype */
} tmn_tensor;

/* Copy `tensor` into input `index`. Inputs keep their values from one run to the next. */
tmn_status tmn_set_input(tmn_model *model, size_t index, const tmn_tensor *tensor);

/*
 * Resize, crop and normalise a picture into place `slot` of the batch (0 for a batch of one), as
 * the model's preprocessing says; bit for bit what the compiler's own tools do with Pillow 13.
 * `rgb` holds `height` rows of `width` pixels, three bytes each, a row every `stride_bytes` bytes
 * (0 for rows without gaps).
 */
tmn_status tmn_set_picture(tmn_model *model, size_t slot, const uint8_t *rgb, size_t width,
                           size_t height, size_t stride_bytes);

/*
 * The memory of input `index`, to be filled in place instead of copied into; counts as set from
 * now on. Valid until tmn_close; not to be written while tmn_run runs.
 */
tmn_status tmn_input_data(tmn_model *model, size_t index, void **data);

/* Compute the outputs from the inputs, all of which must have been set. */
tmn_status tmn_run(tmn_model *model);

/* Copy output `index` of the last run to `data`, `size_bytes` exactly as in its description. */
tmn_status tmn_get_output(tmn_model *model, size_t index, void *data, size_t size_bytes);

/* The memory of output `index`, without a copy; valid until the next tmn_run or tmn_close. */
tmn_status tmn_output_data(tmn_model *model, size_t index, const void **data);

/*
 * The message of the model's last call that failed, "" where none has. NULL asks for the last
 * failure of the calling thread where there was no model: in tmn_open, or a NULL model. The text
 * stays until the next failure of the same model or thread.
 */
const char *tmn_last_error(const tmn_model *model);

/* What a status means, in a few words. */
const char *tmn_strerror(tmn_status status);

/* "float32", ... */
const char *tmn_dtype_name(tmn_dtype dtype);

/* Bytes of one element. */
size_t tmn_dtype_size(tmn_dtype dtype);

#ifdef __cplusplus
}
#endif

#endif
