/*
 * A picture to the values that a model wants: resize the short side, cut the centre, normalise.
 *
 * The resampling is the separable, antialiased one that Pillow does on bytes, rounded the same way:
 * weights in double, normalised to sum 1, stored with 22 fractional bits, one pass across and one
 * down with bytes in between. Where a picture is made smaller the filter is stretched by the same
 * factor. Only what the crop keeps is computed; its values do not depend on the rest.
 *
 * Which pass comes first shows in the last bit, since there are bytes in between. Up to version 12
 * Pillow goes across first; from 13 on, down first where the picture loses more than twice as many
 * rows as columns (found by comparing its results with both orders). This is version 13's way.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tmn_internal.h"

#if defined(__clang__)
/* A fused multiply-add rounds once where Pillow rounds twice. GCC leaves it alone in C11. */
#pragma STDC FP_CONTRACT OFF
#endif

enum { CHANNELS = 3, FRACTION_BITS = 22 };
static const size_t MAX_SIDE = 1u << 16; /* of the resized picture: 16 bits of pixels are plenty */

static double triangle(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

/* Keys's cubic convolution with a = -1/2. */
static double cubic(double x) {
    static const double A = -0.5;
    x = fabs(x);
    if (x < 1.0) {
        return ((A + 2.0) * x - (A + 3.0)) * x * x + 1;
    }
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * A : 0.0;
}

static double sinc(double x) {
    static const double PI = 3.14159265358979323846;
    if (x == 0.0) {
        return 1.0;
    }
    x *= PI;
    return sin(x) / x;
}

static double lanczos3(double x) {
    return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
}

static const struct {
    double (*weight)(double);
    double support; /* how far from its centre the filter reaches, in pixels */
} FILTERS[] = {
    [TMN_NEAREST] = {NULL, 0.0},
    [TMN_BILINEAR] = {triangle, 1.0},
    [TMN_BICUBIC] = {cubic, 2.0},
    [TMN_LANCZOS] = {lanczos3, 3.0},
};

/* How the pixels `from`, ... of one axis make each of `count` pixels of the result. */
typedef struct axis {
    size_t count;
    size_t taps;       /* weights kept for each pixel */
    size_t *first;     /* the first source pixel of each */
    size_t *used;      /* how many source pixels each needs, at most `taps` */
    int32_t *weights;  /* count x taps */
} axis;

static void free_axis(axis *a) {
    free(a->first);
    free(a->used);
    free(a->weights);
}

/* The weights of one pixel; `room` has space for a->taps of them. */
static void fill_pixel(axis *a, size_t index, double scale, double center, size_t source,
                       double (*filter)(double), double support, double *room) {
    /* The conversions cut towards zero, so what lies before the first pixel is cut to it. */
    double low = center - support + 0.5;
    double high = center + support + 0.5;
    size_t first = low > 0.0 ? (size_t)low : 0;
    size_t end = high < (double)source ? (size_t)high : source;
    double sum = 0.0;
    size_t count = end - first;
    for (size_t i = 0; i < count; i++) {
        room[i] = filter(((double)(i + first) - center + 0.5) * (1.0 / scale));
        sum += room[i];
    }
    a->first[index] = first;
    a->used[index] = count;
    int32_t *weights = a->weights + index * a->taps;
    for (size_t i = 0; i < count; i++) {
        double weight = sum != 0.0 ? room[i] / sum : room[i];
        double scaled = weight * (double)(1 << FRACTION_BITS);
        weights[i] = (int32_t)(weight < 0 ? scaled - 0.5 : scaled + 0.5);
    }
}

/* Plan pixels from..from+count of an axis of `source` pixels that is resized to `size`. */
static tmn_status plan_axis(axis *a, size_t source, size_t size, size_t from, size_t count,
                            tmn_interpolation interpolation, tmn_error *error) {
    double scale = (double)source / (double)size;
    double stretch = scale < 1.0 ? 1.0 : scale;
    double support = FILTERS[interpolation].support * stretch;
    a->count = count;
    a->taps = (size_t)ceil(support) * 2 + 1;
    a->first = calloc(count, sizeof *a->first);
    a->used = calloc(count, sizeof *a->used);
    a->weights = calloc(count * a->taps, sizeof *a->weights);
    double *room = calloc(a->taps, sizeof *room);
    if (a->first == NULL || a->used == NULL || a->weights == NULL || room == NULL) {
        free(room);
        return tmn_fail_memory(error);
    }
    if (interpolation == TMN_NEAREST) {
        double at = scale * 0.5;
        for (size_t i = 0; i < from + count; i++, at += scale) {
            /* Added up step by step, as Pillow does: a product would round differently. */
            if (i >= from) {
                size_t pixel = (size_t)at;
                a->first[i - from] = pixel < source ? pixel : source - 1;
                a->used[i - from] = 1;
                a->weights[(i - from) * a->taps] = 1 << FRACTION_BITS;
            }
        }
    } else if (source == size) {
        /* An axis that keeps its length is not filtered. */
        for (size_t i = 0; i < count; i++) {
            a->first[i] = from + i;
            a->used[i] = 1;
            a->weights[i * a->taps] = 1 << FRACTION_BITS;
        }
    } else {
        for (size_t i = 0; i < count; i++) {
            double center = ((double)(from + i) + 0.5) * scale;
            fill_pixel(a, i, stretch, center, source, FILTERS[interpolation].weight, support, room);
        }
    }
    free(room);
    return TMN_OK;
}

static uint8_t to_byte(int64_t sum) {
    /* A negative sum is zero anyway, and shifting it is left to the compiler's taste in C11. */
    if (sum < 0) {
        return 0;
    }
    int64_t value = sum >> FRACTION_BITS;
    return value > 255 ? 255 : (uint8_t)value;
}

static const int64_t HALF = INT64_C(1) << (FRACTION_BITS - 1);

/* One row across, from a row that begins with source pixel `base`: a->count pixels of the result. */
static void resample_row(const axis *a, const uint8_t *source, size_t base, uint8_t *row) {
    for (size_t i = 0; i < a->count; i++) {
        const uint8_t *pixel = source + (a->first[i] - base) * CHANNELS;
        const int32_t *weights = a->weights + i * a->taps;
        int64_t sums[CHANNELS] = {HALF, HALF, HALF};
        for (size_t tap = 0; tap < a->used[i]; tap++) {
            for (size_t c = 0; c < CHANNELS; c++) {
                sums[c] += (int64_t)weights[tap] * pixel[tap * CHANNELS + c];
            }
        }
        for (size_t c = 0; c < CHANNELS; c++) {
            row[i * CHANNELS + c] = to_byte(sums[c]);
        }
    }
}

/* Row `index` of the result, down from source rows of `bytes` bytes, `rows` being row `base`. */
static void blend_rows(const axis *a, size_t index, const uint8_t *rows, size_t base, size_t stride,
                       size_t bytes, uint8_t *result) {
    const int32_t *weights = a->weights + index * a->taps;
    const uint8_t *top = rows + (a->first[index] - base) * stride;
    for (size_t i = 0; i < bytes; i++) {
        int64_t sum = HALF;
        for (size_t tap = 0; tap < a->used[index]; tap++) {
            sum += (int64_t)weights[tap] * top[tap * stride + i];
        }
        result[i] = to_byte(sum);
    }
}

/* The end of what the axis takes of its source; it begins at a->first[0]. */
static size_t source_end(const axis *a) {
    size_t end = 0;
    for (size_t i = 0; i < a->count; i++) {
        size_t last = a->first[i] + a->used[i];
        end = last > end ? last : end;
    }
    return end;
}

/* Write a row of the crop as the model wants it: scaled, in its order and layout. */
static void store_row(const uint8_t *bytes, size_t row, size_t side, bool is_nhwc, bool is_bgr,
                      float table[CHANNELS][256], float *values) {
    for (size_t x = 0; x < side; x++) {
        for (size_t c = 0; c < CHANNELS; c++) {
            size_t place = is_bgr ? CHANNELS - 1 - c : c;
            size_t at = is_nhwc ? (row * side + x) * CHANNELS + place
                                : (place * side + row) * side + x;
            values[at] = table[c][bytes[x * CHANNELS + c]];
        }
    }
}

static void fill_table(const tmn_preprocessing *how, float table[CHANNELS][256]) {
    for (size_t c = 0; c < CHANNELS; c++) {
        for (size_t byte = 0; byte < 256; byte++) {
            float value = (float)byte / 255.0f;
            value = value - how->mean[c];
            table[c][byte] = value / how->std[c];
        }
    }
}

/* How the rows of the crop are made, and where they go. */
typedef struct plan {
    axis across;
    axis down;
    bool is_down_first;
    bool is_nhwc;
    bool is_bgr;
    float table[CHANNELS][256];
    float *values;
} plan;

static void store(plan *how, const uint8_t *bytes, size_t row) {
    store_row(bytes, row, how->across.count, how->is_nhwc, how->is_bgr, how->table, how->values);
}

static tmn_status across_then_down(plan *how, const tmn_picture *picture, tmn_error *error) {
    size_t bytes = how->across.count * CHANNELS;
    size_t base = how->down.first[0];
    size_t end = source_end(&how->down);
    /* All rows that are needed, and one for the result. */
    uint8_t *rows = malloc((end - base + 1) * bytes);
    if (rows == NULL) {
        return tmn_fail_memory(error);
    }
    for (size_t y = base; y < end; y++) {
        resample_row(&how->across, picture->rgb + y * picture->stride_bytes, 0,
                     rows + (y - base) * bytes);
    }
    uint8_t *finished = rows + (end - base) * bytes;
    for (size_t y = 0; y < how->down.count; y++) {
        blend_rows(&how->down, y, rows, base, bytes, bytes, finished);
        store(how, finished, y);
    }
    free(rows);
    return TMN_OK;
}

static tmn_status down_then_across(plan *how, const tmn_picture *picture, tmn_error *error) {
    size_t base = how->across.first[0];
    size_t bytes = (source_end(&how->across) - base) * CHANNELS;
    uint8_t *blended = malloc(bytes + how->across.count * CHANNELS);
    if (blended == NULL) {
        return tmn_fail_memory(error);
    }
    uint8_t *finished = blended + bytes;
    for (size_t y = 0; y < how->down.count; y++) {
        blend_rows(&how->down, y, picture->rgb + base * CHANNELS, 0, picture->stride_bytes, bytes,
                   blended);
        resample_row(&how->across, blended, base, finished);
        store(how, finished, y);
    }
    free(blended);
    return TMN_OK;
}

/* The length of a side after resizing; halves go to the even neighbour, as in Python. */
static double resized(size_t side, double scale, int32_t shortest) {
    double length = nearbyint((double)side * scale);
    return length < (double)shortest ? (double)shortest : length;
}

tmn_status tmn_prepare_picture(const tmn_preprocessing *how, bool is_nhwc,
                               const tmn_picture *given, float *values, tmn_error *error) {
    tmn_picture picture = *given;
    if (picture.stride_bytes == 0) {
        picture.stride_bytes = picture.width * CHANNELS;
    }
    if (picture.rgb == NULL || picture.width == 0 || picture.height == 0 ||
        picture.width > SIZE_MAX / 2 / CHANNELS || picture.stride_bytes < picture.width * CHANNELS) {
        return tmn_fail(error, TMN_ERROR_ARGUMENT,
                        "picture of %zu x %zu pixels, a row every %zu bytes: empty, or rows overlap",
                        picture.width, picture.height, picture.stride_bytes);
    }
    size_t shorter = picture.width < picture.height ? picture.width : picture.height;
    double scale = (double)how->resize / (double)shorter;
    double width = resized(picture.width, scale, how->resize);
    double height = resized(picture.height, scale, how->resize);
    if (width > (double)MAX_SIDE || height > (double)MAX_SIDE) {
        return tmn_fail(error, TMN_ERROR_ARGUMENT,
                        "picture of %zu x %zu pixels: too long and narrow to resize to %d",
                        picture.width, picture.height, (int)how->resize);
    }
    /* Two cuts, the square of the short side and the model's: each rounds for itself. */
    size_t crop = (size_t)how->crop;
    size_t margin = ((size_t)how->resize - crop) / 2;
    size_t left = ((size_t)width - (size_t)how->resize) / 2 + margin;
    size_t top = ((size_t)height - (size_t)how->resize) / 2 + margin;
    plan *rows = calloc(1, sizeof *rows);
    if (rows == NULL) {
        return tmn_fail_memory(error);
    }
    rows->is_down_first = (double)picture.height > height &&
                          (double)picture.height - height > 2 * ((double)picture.width - width);
    rows->is_nhwc = is_nhwc;
    rows->is_bgr = how->is_bgr != 0;
    rows->values = values;
    fill_table(how, rows->table);
    tmn_status status = plan_axis(&rows->across, picture.width, (size_t)width, left, crop,
                                  how->interpolation, error);
    if (status == TMN_OK) {
        status = plan_axis(&rows->down, picture.height, (size_t)height, top, crop,
                           how->interpolation, error);
    }
    if (status == TMN_OK) {
        status = rows->is_down_first ? down_then_across(rows, &picture, error)
                                     : across_then_down(rows, &picture, error);
    }
    free_axis(&rows->across);
    free_axis(&rows->down);
    free(rows);
    return status;
}
