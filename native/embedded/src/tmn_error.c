/* Statuses and messages. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "tmn_internal.h"

static bool is_continuation(char byte) {
    return ((unsigned char)byte & 0xC0u) == 0x80u;
}

tmn_status tmn_fail(tmn_error *error, tmn_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    if (length < 0) {
        error->text[0] = '\0';
    } else if ((size_t)length >= sizeof error->text) {
        size_t end = sizeof error->text - 1;
        while (end > 0 && is_continuation(error->text[end - 1])) {
            end--;
        }
        /* Here is the character that was cut, or a whole one: leave it out either way. */
        error->text[end > 0 ? end - 1 : 0] = '\0';
    }
    error->status = status;
    return status;
}

tmn_status tmn_fail_memory(tmn_error *error) {
    return tmn_fail(error, TMN_ERROR_MEMORY, "out of memory; close what is not needed");
}

const char *tmn_strerror(tmn_status status) {
    switch (status) {
        case TMN_OK:
            return "success";
        case TMN_ERROR_ARGUMENT:
            return "wrong argument";
        case TMN_ERROR_TENSOR:
            return "tensor of another shape, dtype or size than the model's";
        case TMN_ERROR_STATE:
            return "call in the wrong order";
        case TMN_ERROR_FILE:
            return "file missing or not readable";
        case TMN_ERROR_DAMAGED:
            return "file truncated or altered";
        case TMN_ERROR_MACHINE:
            return "library for another machine";
        case TMN_ERROR_RUNTIME:
            return "error in TVM's runtime";
        case TMN_ERROR_MEMORY:
            return "out of memory";
    }
    return "unknown status";
}
