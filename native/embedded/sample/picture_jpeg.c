/* JPEG by libjpeg, turned the way its EXIF data says. Built where CMake finds the library. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "picture_file.h"

/* libjpeg ends a failed call by a function that must not return. */
typedef struct failure {
    struct jpeg_error_mgr base;
    jmp_buf back;
} failure;

static void give_up(j_common_ptr info) {
    longjmp(((failure *)(void *)info->err)->back, 1);
}

static void say_nothing(j_common_ptr info) {
    (void)info;
}

static unsigned number(const uint8_t *data, size_t bytes, int is_little) {
    unsigned value = 0;
    for (size_t i = 0; i < bytes; i++) {
        value |= (unsigned)data[is_little ? i : bytes - 1 - i] << 8 * i;
    }
    return value;
}

/* The orientation in an EXIF block (TIFF 6.0, section 2; tag 0x112), 1 where there is none. */
static unsigned orientation(const uint8_t *data, size_t size) {
    if (size < 14 || memcmp(data, "Exif\0\0", 6) != 0) {
        return 1;
    }
    data += 6;
    size -= 6;
    int is_little = data[0] == 'I';
    size_t at = number(data + 4, 4, is_little);
    if (at > size - 2) {
        return 1;
    }
    unsigned entries = number(data + at, 2, is_little);
    for (at += 2; entries > 0 && size >= 12 && at <= size - 12; entries--, at += 12) {
        if (number(data + at, 2, is_little) == 0x112) {
            unsigned value = number(data + at + 8, 2, is_little);
            return value >= 1 && value <= 8 ? value : 1;
        }
    }
    return 1;
}

/* Turn or mirror: orientations 5 to 8 exchange the axes, then some run backwards. */
static const char *turn(unsigned how, picture *result) {
    if (how == 1) {
        return NULL;
    }
    picture turned;
    size_t width = result->width;
    size_t height = result->height;
    const char *problem =
        how >= 5 ? picture_allocate(height, width, &turned) : picture_allocate(width, height, &turned);
    if (problem != NULL) {
        return problem;
    }
    int is_mirrored_x = how == 2 || how == 3 || how == 7 || how == 8;
    int is_mirrored_y = how == 3 || how == 4 || how == 6 || how == 7;
    for (size_t y = 0; y < turned.height; y++) {
        for (size_t x = 0; x < turned.width; x++) {
            size_t from_x = how >= 5 ? y : x;
            size_t from_y = how >= 5 ? x : y;
            from_x = is_mirrored_x ? width - 1 - from_x : from_x;
            from_y = is_mirrored_y ? height - 1 - from_y : from_y;
            memcpy(turned.rgb + (y * turned.width + x) * 3,
                   result->rgb + (from_y * width + from_x) * 3, 3);
        }
    }
    free(result->rgb);
    *result = turned;
    return NULL;
}

const char *picture_decode_jpeg(const uint8_t *data, size_t size, picture *result) {
    struct jpeg_decompress_struct info;
    failure handler;
    info.err = jpeg_std_error(&handler.base);
    handler.base.error_exit = give_up;
    handler.base.output_message = say_nothing;
    if (setjmp(handler.back) != 0) {
        jpeg_destroy_decompress(&info);
        return "it is damaged, or of a kind that libjpeg does not turn into RGB";
    }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, data, (unsigned long)size);
    jpeg_save_markers(&info, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(&info, TRUE);
    info.out_color_space = JCS_RGB;
    jpeg_start_decompress(&info);
    const char *problem = picture_allocate(info.output_width, info.output_height, result);
    while (problem == NULL && info.output_scanline < info.output_height) {
        JSAMPROW row = result->rgb + (size_t)info.output_scanline * result->width * 3;
        jpeg_read_scanlines(&info, &row, 1);
    }
    unsigned how = info.marker_list != NULL
                       ? orientation(info.marker_list->data, info.marker_list->data_length)
                       : 1;
    if (problem == NULL && handler.base.num_warnings > 0) {
        problem = "it is damaged or truncated";
    }
    jpeg_destroy_decompress(&info);
    return problem != NULL ? problem : turn(how, result);
}
