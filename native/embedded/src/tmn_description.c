/*
 * model.txt: what the library beside it is, one fact a line, in a fixed order.
 *
 * It is made from the artifact's manifest when the model is bundled. Text runs to the end of its
 * line, with \n, \r and \\ for a line feed, a carriage return and a backslash in it. Numbers that
 * are not whole are the eight hexadecimal digits of a float32, since how strtof reads them depends
 * on the program's locale. The last line is the SHA-256 of all lines before it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tmn_internal.h"

enum { MAX_TENSORS = 64 };
static const size_t MAX_FILE_BYTES = 16u << 20;
static const int64_t MAX_ELEMENTS = INT64_C(1) << 28; /* in bytes it fits 32 bits too */

/* Where in the text the reader is. */
typedef struct reader {
    const char *path;
    char *next;
    char *end;
    size_t line;
    tmn_error *error;
} reader;

static tmn_status damaged(reader *in, const char *what) {
    return tmn_fail(in->error, TMN_ERROR_DAMAGED,
                    "%s: line %zu: %s; copy the model's folder again, or bundle the model again",
                    in->path, in->line, what);
}

/* Take the next line, which has to begin with `key`; hand out what stands behind it. */
static tmn_status take(reader *in, const char *key, char **value) {
    in->line++;
    char *begin = in->next;
    char *stop = memchr(begin, '\n', (size_t)(in->end - begin));
    size_t length = strlen(key);
    if (stop == NULL || (size_t)(stop - begin) < length + 1 || memcmp(begin, key, length) != 0 ||
        begin[length] != ' ') {
        char what[64];
        snprintf(what, sizeof what, "'%s' was expected", key);
        return damaged(in, what);
    }
    *stop = '\0';
    in->next = stop + 1;
    *value = begin + length + 1;
    return TMN_OK;
}

/* Turn the escapes in `text` into what they stand for, in place. */
static tmn_status unescape(reader *in, char *text) {
    char *to = text;
    for (const char *from = text; *from != '\0'; from++) {
        if (*from != '\\') {
            *to++ = *from;
            continue;
        }
        from++;
        if (*from == 'n') {
            *to++ = '\n';
        } else if (*from == 'r') {
            *to++ = '\r';
        } else if (*from == '\\') {
            *to++ = '\\';
        } else {
            return damaged(in, "a backslash with nothing known behind it");
        }
    }
    *to = '\0';
    return TMN_OK;
}

static tmn_status take_text(reader *in, const char *key, const char **text) {
    char *value;
    tmn_status status = take(in, key, &value);
    if (status == TMN_OK) {
        status = unescape(in, value);
        *text = value;
    }
    return status;
}

/* Read decimal digits up to a character that is none, which is left at *text. */
static bool read_number(const char **text, uint64_t limit, uint64_t *number) {
    const char *digit = *text;
    uint64_t value = 0;
    for (; *digit >= '0' && *digit <= '9'; digit++) {
        uint64_t unit = (uint64_t)(*digit - '0');
        if (unit > limit || value > (limit - unit) / 10) {
            return false;
        }
        value = value * 10 + unit;
    }
    bool found = digit != *text;
    *text = digit;
    *number = value;
    return found;
}

static tmn_status take_number(reader *in, const char *key, uint64_t limit, uint64_t *number) {
    char *value;
    tmn_status status = take(in, key, &value);
    const char *text = value;
    if (status == TMN_OK && (!read_number(&text, limit, number) || *text != '\0')) {
        status = damaged(in, "not a number, or too large a one");
    }
    return status;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static tmn_status take_floats(reader *in, const char *key, float values[3]) {
    char *text;
    tmn_status status = take(in, key, &text);
    for (size_t i = 0; status == TMN_OK && i < 3; i++, text += 9) {
        uint32_t bits = 0;
        size_t count = 0;
        for (; count < 8 && hex_digit(text[count]) >= 0; count++) {
            bits = bits << 4 | (uint32_t)hex_digit(text[count]);
        }
        if (count < 8 || text[8] != (i < 2 ? ' ' : '\0')) {
            return damaged(in, "not three floats in hexadecimal");
        }
        memcpy(&values[i], &bits, sizeof bits);
    }
    return status;
}

/* Take a line whose value is one of `names`; its index goes to *index. */
static tmn_status take_choice(reader *in, const char *key, const char *const *names, size_t count,
                              size_t *index) {
    char *value;
    tmn_status status = take(in, key, &value);
    if (status != TMN_OK) {
        return status;
    }
    for (*index = 0; *index < count; (*index)++) {
        if (strcmp(value, names[*index]) == 0) {
            return TMN_OK;
        }
    }
    return damaged(in, "a word that is not known");
}

static const struct {
    const char *name;
    size_t size;
} DTYPES[] = {
    [TMN_FLOAT32] = {"float32", 4}, [TMN_FLOAT64] = {"float64", 8}, [TMN_FLOAT16] = {"float16", 2},
    [TMN_INT8] = {"int8", 1},       [TMN_INT16] = {"int16", 2},     [TMN_INT32] = {"int32", 4},
    [TMN_INT64] = {"int64", 8},     [TMN_UINT8] = {"uint8", 1},     [TMN_BOOL] = {"bool", 1},
};
enum { DTYPE_COUNT = sizeof DTYPES / sizeof DTYPES[0] };

const char *tmn_dtype_name(tmn_dtype dtype) {
    return (size_t)dtype < DTYPE_COUNT ? DTYPES[dtype].name : "unknown dtype";
}

size_t tmn_dtype_size(tmn_dtype dtype) {
    return (size_t)dtype < DTYPE_COUNT ? DTYPES[dtype].size : 0;
}

static bool read_dtype(const char *name, tmn_dtype *dtype) {
    for (size_t i = 0; i < DTYPE_COUNT; i++) {
        if (strcmp(name, DTYPES[i].name) == 0) {
            *dtype = (tmn_dtype)i;
            return true;
        }
    }
    return false;
}

/* Read "1x224x224x3", or "-" for a scalar. */
static bool read_shape(const char *text, tmn_tensor_info *tensor) {
    int64_t elements = 1;
    tensor->rank = 0;
    if (strcmp(text, "-") != 0) {
        for (;; text++) {
            uint64_t side;
            if (tensor->rank == TMN_MAX_RANK ||
                !read_number(&text, (uint64_t)MAX_ELEMENTS, &side) || side == 0 ||
                (int64_t)side > MAX_ELEMENTS / elements) {
                return false;
            }
            elements *= (int64_t)side;
            tensor->shape[tensor->rank++] = (int64_t)side;
            if (*text != 'x') {
                break;
            }
        }
        if (*text != '\0') {
            return false;
        }
    }
    tensor->size_bytes = (size_t)elements * tmn_dtype_size(tensor->dtype);
    return true;
}

/* Cut the word before the first space off *text. */
static char *take_word(char **text) {
    char *word = *text;
    char *space = strchr(word, ' ');
    if (space == NULL) {
        return NULL;
    }
    *space = '\0';
    *text = space + 1;
    return word;
}

/* "tensor DTYPE LAYOUT SHAPE NAME" */
static tmn_status take_tensor(reader *in, tmn_tensor_info *tensor) {
    char *value;
    tmn_status status = take(in, "tensor", &value);
    if (status != TMN_OK) {
        return status;
    }
    const char *dtype = take_word(&value);
    const char *layout = dtype != NULL ? take_word(&value) : NULL;
    const char *shape = layout != NULL ? take_word(&value) : NULL;
    if (shape == NULL || !read_dtype(dtype, &tensor->dtype) || !read_shape(shape, tensor)) {
        return damaged(in, "not a tensor");
    }
    tensor->layout = layout;
    tensor->name = value;
    return unescape(in, value);
}

static tmn_status take_preprocessing(reader *in, tmn_model_file *file) {
    static const char *const INTERPOLATIONS[] = {
        [TMN_NEAREST] = "nearest",
        [TMN_BILINEAR] = "bilinear",
        [TMN_BICUBIC] = "bicubic",
        [TMN_LANCZOS] = "lanczos",
    };
    static const char *const ORDERS[] = {"RGB", "BGR"};
    tmn_preprocessing *how = &file->preprocessing;
    uint64_t given;
    tmn_status status = take_number(in, "preprocessing", 1, &given);
    if (status != TMN_OK || given == 0) {
        return status;
    }
    uint64_t resize = 0;
    uint64_t crop = 0;
    size_t interpolation = 0;
    size_t order = 0;
    if ((status = take_number(in, "resize", 1u << 16, &resize)) != TMN_OK ||
        (status = take_number(in, "crop", 1u << 16, &crop)) != TMN_OK ||
        (status = take_floats(in, "mean", how->mean)) != TMN_OK ||
        (status = take_floats(in, "std", how->std)) != TMN_OK ||
        (status = take_choice(in, "interpolation", INTERPOLATIONS, 4, &interpolation)) != TMN_OK ||
        (status = take_choice(in, "channels", ORDERS, 2, &order)) != TMN_OK) {
        return status;
    }
    if (crop == 0 || resize < crop) {
        return damaged(in, "the crop is empty, or larger than the picture");
    }
    how->resize = (int32_t)resize;
    how->crop = (int32_t)crop;
    how->interpolation = (tmn_interpolation)interpolation;
    how->is_bgr = order == 1;
    file->description.preprocessing = how;
    return TMN_OK;
}

static tmn_status take_tensors(reader *in, tmn_model_file *file) {
    tmn_description *about = &file->description;
    /* Inputs and outputs share one block, made before either is counted. */
    file->tensors = calloc(2 * MAX_TENSORS, sizeof *file->tensors);
    if (file->tensors == NULL) {
        return tmn_fail_memory(in->error);
    }
    const char *const keys[] = {"inputs", "outputs"};
    size_t *const counts[] = {&about->input_count, &about->output_count};
    about->inputs = file->tensors;
    about->outputs = file->tensors + MAX_TENSORS;
    for (size_t kind = 0; kind < 2; kind++) {
        uint64_t count = 0;
        tmn_status status = take_number(in, keys[kind], MAX_TENSORS, &count);
        *counts[kind] = (size_t)count;
        for (size_t i = 0; status == TMN_OK && i < count; i++) {
            status = take_tensor(in, file->tensors + kind * MAX_TENSORS + i);
        }
        if (status != TMN_OK) {
            return status;
        }
    }
    return TMN_OK;
}

static tmn_status take_class_names(reader *in, tmn_model_file *file) {
    uint64_t count = 0;
    /* A class takes a line of eight bytes or more: what the file cannot hold is not allocated. */
    tmn_status status = take_number(in, "classes", MAX_FILE_BYTES / 8, &count);
    if (status != TMN_OK || count == 0) {
        return status;
    }
    file->class_names = calloc((size_t)count, sizeof *file->class_names);
    if (file->class_names == NULL) {
        return tmn_fail_memory(in->error);
    }
    for (size_t i = 0; status == TMN_OK && i < count; i++) {
        status = take_text(in, "class", &file->class_names[i]);
    }
    file->description.class_names = file->class_names;
    file->description.class_count = (size_t)count;
    return status;
}

static tmn_status take_library(reader *in, tmn_model_file *file) {
    tmn_status status;
    if ((status = take_text(in, "library", &file->library)) != TMN_OK ||
        (status = take_number(in, "size", INT64_MAX, &file->library_size)) != TMN_OK ||
        (status = take_text(in, "sha256", &file->library_sha256)) != TMN_OK) {
        return status;
    }
    if (file->library[0] == '\0' || file->library[0] == '.' || strchr(file->library, '/')) {
        return damaged(in, "the library is not in this folder");
    }
    return TMN_OK;
}

/* The last line, "end SHA256": nothing was lost or changed on the way here. */
static tmn_status check_end(const char *path, const char *text, size_t size, tmn_error *error) {
    static const size_t END_BYTES = 4 + 64 + 1;
    const char *end = size >= END_BYTES ? text + size - END_BYTES : NULL;
    if (end == NULL || memcmp(end, "end ", 4) != 0 || text[size - 1] != '\n' ||
        (end > text && end[-1] != '\n')) {
        return tmn_fail(error, TMN_ERROR_DAMAGED,
                        "%s is truncated: it has no last line; copy the model's folder again",
                        path);
    }
    char found[TMN_SHA256_HEX];
    tmn_sha256_hex(text, size - END_BYTES, found);
    if (memcmp(end + 4, found, 64) != 0) {
        return tmn_fail(error, TMN_ERROR_DAMAGED,
                        "%s is altered: its last line is not the hash of the others; copy the "
                        "model's folder again",
                        path);
    }
    return TMN_OK;
}

static tmn_status read_facts(reader *in, tmn_model_file *file) {
    tmn_description *about = &file->description;
    uint64_t version = 0;
    uint64_t is_random = 0;
    tmn_status status = take_number(in, "tvm-mobilenet-model", UINT32_MAX, &version);
    if (status == TMN_OK && version != 1) {
        return damaged(in, "written by another version, this one reads version 1");
    }
    if (status != TMN_OK || (status = take_text(in, "model", &about->model)) != TMN_OK ||
        (status = take_text(in, "weights", &about->weights)) != TMN_OK ||
        (status = take_number(in, "random", 1, &is_random)) != TMN_OK ||
        (status = take_text(in, "target", &about->target)) != TMN_OK ||
        (status = take_text(in, "tvm", &about->tvm)) != TMN_OK ||
        (status = take_library(in, file)) != TMN_OK ||
        (status = take_tensors(in, file)) != TMN_OK ||
        (status = take_preprocessing(in, file)) != TMN_OK ||
        (status = take_class_names(in, file)) != TMN_OK) {
        return status;
    }
    about->is_random = is_random == 1;
    char *end;
    status = take(in, "end", &end);
    if (status == TMN_OK && in->next != in->end) {
        status = damaged(in, "something stands behind the last line");
    }
    return status;
}

tmn_status tmn_read_model_file(const char *path, tmn_model_file *file, tmn_error *error) {
    memset(file, 0, sizeof *file);
    size_t size;
    tmn_status status = tmn_read_file(path, MAX_FILE_BYTES, &file->text, &size, error);
    if (status != TMN_OK) {
        return status;
    }
    status = check_end(path, file->text, size, error);
    if (status == TMN_OK && memchr(file->text, '\0', size) != NULL) {
        status = tmn_fail(error, TMN_ERROR_DAMAGED, "%s: not a text file", path);
    }
    if (status == TMN_OK) {
        reader in = {path, file->text, file->text + size, 0, error};
        status = read_facts(&in, file);
    }
    if (status != TMN_OK) {
        tmn_free_model_file(file);
    }
    return status;
}

void tmn_free_model_file(tmn_model_file *file) {
    free(file->text);
    free(file->tensors);
    free(file->class_names);
    memset(file, 0, sizeof *file);
}
