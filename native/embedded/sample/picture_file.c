/* PPM, PGM and BMP, and the choice of decoder for the others. */
#include "picture_file.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const size_t MAX_FILE_BYTES = (size_t)1 << 29;

const char *picture_allocate(size_t width, size_t height, picture *result) {
    if (width == 0 || height == 0) {
        return "the picture is empty";
    }
    if (width > PICTURE_MAX_PIXELS / height) {
        return "the picture has too many pixels";
    }
    result->rgb = malloc(width * height * 3);
    result->width = width;
    result->height = height;
    return result->rgb != NULL ? NULL : "out of memory";
}

/* A number of a PPM header: white space and comments, then digits. */
static bool read_number(const uint8_t *data, size_t size, size_t *at, size_t *number) {
    while (*at < size && (data[*at] == '#' || strchr(" \t\r\n\v\f", data[*at]) != NULL)) {
        bool is_comment = data[*at] == '#';
        (*at)++;
        while (is_comment && *at < size && data[*at] != '\n') {
            (*at)++;
        }
    }
    size_t begin = *at;
    *number = 0;
    while (*at < size && data[*at] >= '0' && data[*at] <= '9' && *number < 100000000) {
        *number = *number * 10 + (size_t)(data[(*at)++] - '0');
    }
    return *at > begin;
}

static const char *decode_ppm(const uint8_t *data, size_t size, picture *result) {
    size_t channels = data[1] == '6' ? 3 : 1;
    size_t at = 2;
    size_t width = 0;
    size_t height = 0;
    size_t top = 0;
    if (!read_number(data, size, &at, &width) || !read_number(data, size, &at, &height) ||
        !read_number(data, size, &at, &top) || at == size) {
        return "its header is damaged";
    }
    if (top == 0 || top > 255) {
        return "it has more than 8 bits a value; convert it to 8";
    }
    at++; /* one white space ends the header */
    const char *problem = picture_allocate(width, height, result);
    if (problem != NULL) {
        return problem;
    }
    if (size - at < width * height * channels) {
        return "it is truncated";
    }
    for (size_t i = 0; i < width * height * 3; i++) {
        double value = data[at + (channels == 3 ? i : i / 3)];
        value = nearbyint(value / (double)top * 255);
        result->rgb[i] = value > 255 ? 255 : (uint8_t)value;
    }
    return NULL;
}

static uint32_t little(const uint8_t *data, size_t bytes) {
    uint32_t value = 0;
    for (size_t i = 0; i < bytes; i++) {
        value |= (uint32_t)data[i] << 8 * i;
    }
    return value;
}

/* What the rows of a BMP are made of. */
typedef struct bmp {
    size_t bits;
    const uint8_t *pixels;
    size_t row_bytes;
    bool is_top_down;
    const uint8_t *palette; /* four bytes a colour: blue, green, red, nothing */
    size_t colors;
} bmp;

static const char *read_bmp_header(const uint8_t *data, size_t size, size_t *width, size_t *height,
                                   bmp *file) {
    static const size_t FILE_HEADER = 14;
    if (size < FILE_HEADER + 40) {
        return "it is truncated";
    }
    uint32_t start = little(data + 10, 4);
    uint32_t header = little(data + 14, 4);
    int32_t w = (int32_t)little(data + 18, 4);
    int32_t h = (int32_t)little(data + 22, 4);
    uint32_t compression = little(data + 30, 4);
    file->bits = little(data + 28, 2);
    file->is_top_down = h < 0;
    if (header < 40 || header > size - FILE_HEADER || start > size || w <= 0 || h == 0 ||
        h == INT32_MIN) {
        return "its header is damaged";
    }
    bool has_masks = compression == 3 && file->bits == 32;
    if (has_masks && (size < FILE_HEADER + 52 || little(data + 54, 4) != 0xff0000u ||
                      little(data + 58, 4) != 0xff00u || little(data + 62, 4) != 0xffu)) {
        return "its colours lie in an unusual order; save it as a 24-bit BMP";
    }
    if ((compression != 0 && !has_masks) ||
        (file->bits != 1 && file->bits != 4 && file->bits != 8 && file->bits != 24 &&
         file->bits != 32)) {
        return "it is compressed, or of an unusual depth; save it as a 24-bit BMP";
    }
    file->palette = data + FILE_HEADER + header;
    file->colors = 0;
    if (file->bits <= 8) {
        uint32_t used = little(data + 46, 4);
        file->colors = used != 0 && used < 1u << file->bits ? used : 1u << file->bits;
        if (size - FILE_HEADER - header < 4 * file->colors) {
            return "it is truncated";
        }
    }
    *width = (size_t)w;
    *height = (size_t)(h < 0 ? -h : h);
    file->pixels = data + start;
    file->row_bytes = (*width * file->bits + 31) / 32 * 4;
    if (*height > (size - start) / file->row_bytes) {
        return "it is truncated";
    }
    return NULL;
}

static const char *decode_bmp(const uint8_t *data, size_t size, picture *result) {
    bmp file = {0};
    size_t width = 0;
    size_t height = 0;
    const char *problem = read_bmp_header(data, size, &width, &height, &file);
    if (problem == NULL) {
        problem = picture_allocate(width, height, result);
    }
    for (size_t y = 0; problem == NULL && y < height; y++) {
        const uint8_t *row =
            file.pixels + (file.is_top_down ? y : height - 1 - y) * file.row_bytes;
        for (size_t x = 0; x < width; x++) {
            const uint8_t *color;
            if (file.bits > 8) {
                color = row + x * file.bits / 8;
            } else {
                size_t bit = x * file.bits;
                size_t index = row[bit / 8] >> (8 - file.bits - bit % 8) & ((1u << file.bits) - 1);
                if (index >= file.colors) {
                    problem = "a pixel names a colour that is not there";
                    break;
                }
                color = file.palette + 4 * index;
            }
            uint8_t *pixel = result->rgb + (y * width + x) * 3;
            pixel[0] = color[2];
            pixel[1] = color[1];
            pixel[2] = color[0];
        }
    }
    return problem;
}

static const char *decode(const uint8_t *data, size_t size, picture *result) {
    if (size > 3 && data[0] == 'P' && (data[1] == '5' || data[1] == '6')) {
        return decode_ppm(data, size, result);
    }
    if (size > 2 && memcmp(data, "BM", 2) == 0) {
        return decode_bmp(data, size, result);
    }
    if (size > 3 && memcmp(data, "\xff\xd8\xff", 3) == 0) {
        return picture_decode_jpeg(data, size, result);
    }
    if (size > 8 && memcmp(data, "\x89PNG\r\n\x1a\n", 8) == 0) {
        return picture_decode_png(data, size, result);
    }
    return "not a picture of a kind that is known; give a PPM, PGM, BMP, JPEG or PNG file";
}

static const char *read_file(FILE *file, uint8_t **data, size_t *size) {
    size_t capacity = 0;
    *data = NULL;
    *size = 0;
    while (!feof(file)) {
        if (*size == capacity) {
            capacity = capacity == 0 ? 1 << 16 : 2 * capacity;
            uint8_t *larger = capacity <= MAX_FILE_BYTES ? realloc(*data, capacity) : NULL;
            if (larger == NULL) {
                return "it is too large";
            }
            *data = larger;
        }
        *size += fread(*data + *size, 1, capacity - *size, file);
        if (ferror(file)) {
            return "it cannot be read";
        }
    }
    return NULL;
}

const char *picture_read(const char *path, picture *result) {
    *result = (picture){NULL, 0, 0};
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return "it cannot be opened";
    }
    uint8_t *data;
    size_t size;
    const char *problem = read_file(file, &data, &size);
    fclose(file);
    if (problem == NULL) {
        problem = decode(data, size, result);
    }
    free(data);
    if (problem != NULL) {
        free(result->rgb);
        *result = (picture){NULL, 0, 0};
    }
    return problem;
}

#ifndef PICTURE_HAS_JPEG
const char *picture_decode_jpeg(const uint8_t *data, size_t size, picture *result) {
    (void)data;
    (void)size;
    (void)result;
    return "this program was built without libjpeg; give a PPM or BMP file, or build it with CMake";
}
#endif

#ifndef PICTURE_HAS_PNG
const char *picture_decode_png(const uint8_t *data, size_t size, picture *result) {
    (void)data;
    (void)size;
    (void)result;
    return "this program was built without libpng; give a PPM or BMP file, or build it with CMake";
}
#endif
